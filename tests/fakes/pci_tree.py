"""A directory that says of PCI devices what sysfs says, and changes drivers as the kernel does, when told to."""

from __future__ import annotations

from pathlib import Path

NVME, NETWORK, GPU, SOUND, PORT = "010802", "020000", "030200", "040300", "060400"


def add(
    root: Path,
    address: str,
    *,
    code: str = NVME,
    group: int | None = 0,
    identity: str = "1b36:0010",
    driver: str = "vfio-pci",
    resets: str = "flr bus",
) -> Path:
    """One device."""
    (root / "bus/pci").mkdir(parents=True, exist_ok=True)
    (root / "bus/pci/drivers_probe").touch()
    folder = root / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    vendor, device = identity.split(":")
    for name, text in (("vendor", f"0x{vendor}"), ("device", f"0x{device}"), ("class", f"0x{code}")):
        (folder / name).write_text(text + "\n")
    (folder / "driver_override").write_text("(null)\n")
    if resets:
        (folder / "reset_method").write_text(resets + "\n")
    if group is not None:
        target = root / f"kernel/iommu_groups/{group}"
        target.mkdir(parents=True, exist_ok=True)
        (folder / "iommu_group").symlink_to(target)
    if driver:
        bind(folder, driver)
    return folder


def bind(folder: Path, driver: str) -> None:
    """As the kernel does once a driver has taken the device; an empty name: none has."""
    link = folder / "driver"
    link.unlink(missing_ok=True)
    if driver:
        target = folder.parent.parent / "drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (target / "unbind").touch()
        link.symlink_to(target)
