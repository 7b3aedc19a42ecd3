"""The device tree that the guest's kernel gets. The same input always gives the same bytes.

There is no seed in it: randomness is a device, and a measured value must not be random.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import fdt  # type: ignore[import-untyped, unused-ignore]

from vambrace.machine import layout

_GIC, _ITS, _IOMMU = 1, 2, 3  # phandles
_SPI, _PPI = 0, 1
_EDGE, _LEVEL_HIGH = 1, 4
# Secure, non-secure, virtual and hypervisor timer (arm,armv8-timer).
_TIMERS = (13, 14, 11, 10)
_LOCAL, _REMOTE = 10, 20  # NUMA distances


def build_tree(
    *,
    cmdline: str,
    vcpus: int,
    zones: Sequence[tuple[int, int]],
    initrd: tuple[int, int],
    devices: int,
    pci: bool = False,
) -> bytes:
    """The flattened tree. ``zones`` are (base, size) of the NUMA nodes; ``initrd`` (start, end). With ``pci`` there is
    a bus for PCI devices, and the last of the ``devices`` is their IOMMU."""
    root = _node(
        "/",
        ("#address-cells", 2),
        ("#size-cells", 2),
        ("interrupt-parent", _GIC),
        ("compatible", "linux,dummy-virt"),
        ("model", "vambrace realm"),
    )
    root.append(_chosen(cmdline, initrd))
    for node, (base, size) in enumerate(zones):
        root.append(_memory(node, base, size))
    root.append(_distances(len(zones)))
    root.append(_cpus(vcpus))
    root.append(_node("psci", ("compatible", ["arm,psci-1.0", "arm,psci-0.2"]), ("method", "hvc")))
    root.append(_interrupt_controller(vcpus, pci))
    root.append(_timer())
    for slot in range(devices):
        root.append(_virtio_device(slot, iommu=pci and slot == devices - 1))
    if pci:
        base, size = zones[-1]
        root.append(_pci_bus(layout.pci_high(base + size)))
    tree = fdt.FDT()
    tree.root = root
    return bytes(tree.to_dtb(version=17, last_comp_version=16))


def _node(name: str, *properties: tuple[str, Any]) -> Any:
    node = fdt.Node(name)
    for key, value in properties:
        node.set_property(key, value)
    return node


def _cells64(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def _chosen(cmdline: str, initrd: tuple[int, int]) -> Any:
    return _node(
        "chosen",
        ("bootargs", cmdline.encode("ascii") + b"\0"),  # bytes: fdt refuses an empty string
        ("linux,initrd-start", _cells64(initrd[0])),
        ("linux,initrd-end", _cells64(initrd[1])),
    )


def _memory(node: int, base: int, size: int) -> Any:
    return _node(
        f"memory@{base:x}",
        ("device_type", "memory"),
        ("reg", _cells64(base, size)),
        ("numa-node-id", node),
    )


def _cpus(count: int) -> Any:
    cpus = _node("cpus", ("#address-cells", 1), ("#size-cells", 0))
    for index in range(count):
        cpus.append(
            _node(
                f"cpu@{index:x}",
                ("device_type", "cpu"),
                ("compatible", "arm,armv8"),
                ("reg", index),
                ("enable-method", "psci"),
                ("numa-node-id", 0),
            )
        )
    return cpus


def _distances(nodes: int) -> Any:
    """Every application's node is as far from the CPUs (node 0) and from the others."""
    matrix = [
        cell
        for one in range(nodes)
        for other in range(nodes)
        for cell in (one, other, _LOCAL if one == other else _REMOTE)
    ]
    return _node("distance-map", ("compatible", "numa-distance-map-v1"), ("distance-matrix", matrix))


def _timer() -> Any:
    interrupts = [cell for timer in _TIMERS for cell in (_PPI, timer, _LEVEL_HIGH)]
    return _node("timer", ("compatible", "arm,armv8-timer"), ("interrupts", interrupts), ("always-on", None))


def _virtio_device(slot: int, *, iommu: bool) -> Any:
    address = layout.device_address(slot)
    return _node(
        f"virtio_mmio@{address:x}",
        ("compatible", "virtio,mmio"),
        ("reg", _cells64(address, layout.MMIO_SIZE)),
        ("interrupts", [_SPI, slot, _EDGE]),
        ("dma-coherent", None),
        *((("#iommu-cells", 1), ("phandle", _IOMMU)) if iommu else ()),
    )


def _pci_bus(high: int) -> Any:
    """One bus behind a generic host bridge (PCI Bus Binding to IEEE 1275; Linux: host-generic-pci.yaml). A device's
    number at the IOMMU, and at the interrupt translation, is that of its function on the bus."""
    low, low_size, high_size = layout.PCI_LOW, layout.PCI_LOW_SIZE, layout.PCI_HIGH_SIZE
    ranges = struct.pack(">IQQQ", 0x0200_0000, low, low, low_size) + struct.pack(
        ">IQQQ", 0x4300_0000, high, high, high_size
    )
    return _node(
        f"pcie@{layout.PCI_CONFIG:x}",
        ("compatible", "pci-host-ecam-generic"),
        ("device_type", "pci"),
        ("#address-cells", 3),
        ("#size-cells", 2),
        ("linux,pci-domain", 0),
        ("bus-range", [0, 0]),
        ("reg", _cells64(layout.PCI_CONFIG, layout.PCI_CONFIG_SIZE)),
        ("ranges", ranges),
        ("dma-coherent", None),
        ("msi-map", [0, _ITS, 0, 256]),
        ("iommu-map", [0, _IOMMU, 0, 256]),
    )


def _interrupt_controller(vcpus: int, pci: bool) -> Any:
    controller = _node(
        f"interrupt-controller@{layout.GIC_DISTRIBUTOR:x}",
        ("compatible", "arm,gic-v3"),
        ("#interrupt-cells", 3),
        ("interrupt-controller", None),
        (
            "reg",
            _cells64(
                layout.GIC_DISTRIBUTOR,
                layout.GIC_DISTRIBUTOR_SIZE,
                layout.GIC_REDISTRIBUTORS,
                layout.GIC_REDISTRIBUTOR_SIZE * vcpus,
            ),
        ),
        ("phandle", _GIC),
        *((("#address-cells", 2), ("#size-cells", 2), ("ranges", None)) if pci else ()),
    )
    if pci:
        controller.append(
            _node(
                f"msi-controller@{layout.ITS:x}",
                ("compatible", "arm,gic-v3-its"),
                ("msi-controller", None),
                ("#msi-cells", 1),
                ("reg", _cells64(layout.ITS, layout.ITS_SIZE)),
                ("phandle", _ITS),
            )
        )
    return controller
