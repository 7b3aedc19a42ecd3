"""The boot chain: with one changed byte, or an older part in its place, no machine starts, and it says why.

Only the firmware is of interest, so these machines are stopped as soon as it has decided.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fip
import pytest
from machine import Machine, copy_sparse, new_server

from vambrace.emulator import build, firmware, fuse, provision, qemu
from vambrace.emulator.build import ServerBuild
from vambrace.emulator.firmware import FIP_OFFSET, Versions
from vambrace.emulator.fuse import Fuse, read_fuse, update_flash
from vambrace.emulator.server import Server
from vambrace.errors import BootRefused

SECONDS = 150

#: What is flipped, in which file of the firmware's build, and what is said to be refused.
FIRMWARE = {
    "BL2": ("bl2.bin", "BL_2"),
    "BL31": ("bl31.bin", "SECURE_RT_EL3"),
    "OP-TEE's header": ("tee-header_v2.bin", "SECURE_RT_EL1_OPTEE"),
    "OP-TEE": ("tee-pager_v2.bin", "SECURE_RT_EL1_OPTEE_EXTRA1"),
    "the trusted application": ("application.elf", "SECURE_RT_EL1_OPTEE_EXTRA1"),
    "the stub": ("stub.bin", "BL_33"),
}
HOST = {
    firmware.DTB_ADDRESS: "HOST_DEVICE_TREE",
    firmware.KERNEL_ADDRESS: "HOST_KERNEL",
    firmware.INITRD_ADDRESS: "HOST_INITRD",
}


class Box:
    """A machine with the product's build, whose parts can be exchanged."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.built = server.build(print)
        assert self.built.firmware is not None
        self.image = self.built.firmware.image
        self.root_key = self.built.firmware.signer
        with server.state.open("wb") as state:
            state.truncate(1 << 20)

    @property
    def flash(self) -> Path:
        return self.server.flash

    def load(self, image: Path | None = None) -> None:
        """A firmware update, of this build or another."""
        update_flash(self.flash, image or self.image, self.root_key)

    def burn(self, burnt: Fuse) -> None:
        write(self.flash, fuse.OFFSET, burnt.encode())

    def machine(self) -> qemu.Machine:
        return self.server.machine(self.built)

    def refusal(self, machine: qemu.Machine | None = None) -> BootRefused:
        """What the machine says that it does not start."""
        machine = machine or self.machine()
        pid = qemu.start(machine)
        try:
            with pytest.raises(BootRefused) as caught, qemu.at_gate(machine, pid, seconds=SECONDS):
                pass
        finally:
            stop(pid)
        return caught.value

    @property
    def versions(self) -> tuple[int, int]:
        found = read_fuse(self.flash)
        return found.firmware_version, found.host_version


@pytest.fixture(scope="module")
def box(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    machine.stop()
    server = new_server(tmp_path_factory.mktemp("boot") / "server")
    yield Box(server)


@pytest.fixture
def fresh(box: Box) -> Box:
    """The box with good firmware and a new fuse."""
    box.flash.unlink(missing_ok=True)
    box.load()
    return box


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert qemu.wait_gone(pid, 20)


def write(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as target:
        target.seek(offset)
        target.write(data)


def flip(file: Path, offset: int) -> None:
    with file.open("rb") as source:
        source.seek(offset)
        byte = source.read(1)[0]
    write(file, offset, bytes([byte ^ 0x10]))


@pytest.mark.parametrize(("file", "component"), FIRMWARE.values(), ids=FIRMWARE)
def test_a_changed_byte_of_the_firmware(fresh: Box, file: str, component: str) -> None:
    content = (fresh.image.parent / "out" / file).read_bytes()
    start = fresh.image.read_bytes().find(content)
    assert start >= FIP_OFFSET
    flip(fresh.flash, start + len(content) // 2)
    assert fresh.refusal().component == component


@pytest.mark.parametrize(("address", "component"), HOST.items(), ids=HOST.values())
def test_a_changed_byte_of_what_the_stub_pins(fresh: Box, tmp_path: Path, address: int, component: str) -> None:
    machine = fresh.machine()
    whole = {place: file for file, place in machine.loads}[address]
    changed = tmp_path / "changed"
    copy_sparse(whole, changed)
    flip(changed, whole.stat().st_size // 2)
    loads = tuple((changed if place == address else file, place) for file, place in machine.loads)
    assert fresh.refusal(replace(machine, loads=loads)).component == component


def test_a_changed_byte_of_the_host_s_root(fresh: Box, tmp_path: Path) -> None:
    changed = tmp_path / "root.img"
    copy_sparse(fresh.built.host.disk, changed)
    flip(changed, 1024 + 16)  # in the file system's superblock
    assert fresh.refusal(replace(fresh.machine(), root=changed)).component == "HOST_ROOT"


def test_a_fuse_that_starts_nothing(fresh: Box) -> None:
    """Blank, decommissioned, or of another vendor's machine."""
    good = read_fuse(fresh.flash)
    write(fresh.flash, fuse.OFFSET, b"\xff" * fuse.SIZE)
    assert (fresh.refusal().component, "blank" in fresh.refusal().message) == ("fuse", True)
    fresh.burn(good.decommission())
    assert "decommissioned" in fresh.refusal().message
    fresh.burn(replace(good, root_key_hash=bytes(32)))
    assert fresh.refusal().component == "BL_2"


def test_older_parts_do_not_come_back(fresh: Box, newer: ServerBuild, tmp_path: Path) -> None:
    """Once version 2 is burnt, nothing of version 1 starts, though the vendor has signed it: neither all of it, nor
    one component between newer ones."""
    fresh.burn(replace(read_fuse(fresh.flash), firmware_version=2, host_version=2))
    assert fresh.refusal().component == "BL_2"
    assert newer.firmware is not None
    old, new = (package_of(image) for image in (fresh.image, newer.firmware.image))
    for name in fip.PARTS:
        mixed = tmp_path / "mixed.img"
        copy_sparse(newer.firmware.image, mixed)
        write(mixed, FIP_OFFSET, fip.with_part(new, old, name))
        fresh.load(mixed)
        assert fresh.refusal().component == name


@pytest.mark.soak
def test_what_has_started_is_burnt(box: Box, newer: ServerBuild) -> None:
    """An update, and the way back that the machine does not go."""
    assert newer.firmware is not None
    server = box.server
    box.flash.unlink(missing_ok=True)
    server.state.unlink()
    try:
        server.up(print, cold=True)
        server.down()
        assert box.versions == (1, 1)
        box.load(newer.firmware.image)
        assert box.versions == (1, 1)
        server.starter.start(server.machine(newer), print, cold=True)
        server.down()
        assert box.versions == (2, 2)
        with pytest.raises(BootRefused) as caught:
            server.up(print, cold=True)
        assert caught.value.component == "BL_2"
    finally:
        server.down()


@pytest.fixture
def newer(box: Box) -> ServerBuild:
    """The next version of the same sources, signed by the same vendor."""
    authority, rot_key = provision.vendor(box.server.vendor)
    pem = authority.certificate_pem
    return build.build(box.server.cache, print, rot_key=rot_key, vendor_root=pem, versions=Versions(2, 2))


def package_of(image: Path) -> bytes:
    return image.read_bytes()[FIP_OFFSET : firmware.FLASH_SIZE - (1 << 20)]


