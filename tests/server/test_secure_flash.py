"""The fuse: out of the normal world's reach, and all that the platform's attestation key depends on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from machine import OPEN, Machine, copy_sparse, dumped, eventually, holds, sealing_keys
from probe import build_probe

from testbed.door import Done, Door
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.kernel import kernel
from vambrace.emulator import fuse, memory, qemu
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.hostroot import PRODUCT
from vambrace.emulator.server import Server

# The machine's memory map (QEMU, hw/arm/virt.c).
SECURE_FLASH, NORMAL_FLASH, CLOCK, SECURE_RAM = 0, 0x0400_0000, 0x0901_0000, 0x0E10_0000
SIGBUS = -7

READ = """
import mmap, os, sys
descriptor = os.open("/dev/mem", os.O_RDONLY | os.O_SYNC)
page = mmap.mmap(descriptor, 4096, prot=mmap.PROT_READ, offset=int(sys.argv[1]))
print(memoryview(page).cast("I")[0])
"""


def read(host: Door, address: int) -> Done:
    """The word at a physical address, as root of the normal world reads it."""
    return host.python(READ, str(address))


def identity(server: Server) -> tuple[str, int, bool]:
    platform = server.api.get("/v1/platform")
    return platform["platform_key"], platform["lifecycle"], platform["endorsed"]


def load_module(server: Server, host: Door, folder: Path, address: int) -> Done:
    """Let the host's kernel read the word at a physical address."""
    cache = Cache()
    module = build_probe(kernel(Archive(cache.root / "archive", LOCK_FILE), cache), folder, address)
    host.put("/run/probe.ko", module)
    return host.run("busybox", "insmod", "/run/probe.ko", seconds=60)


def in_the_kernel(server: Server, host: Door, folder: Path) -> None:
    """What a program of root's is refused, the kernel is refused as well: by the bus, which ends it."""
    console = server.home / "console.log"
    loaded = load_module(server, host, folder, NORMAL_FLASH)
    assert loaded.code == 0, loaded.output
    assert eventually(lambda: "vambrace probe: read " in console.read_text(errors="replace"), 20)
    with contextlib.suppress(OSError, ValueError):  # there is nobody to answer any more
        load_module(server, host, folder, fuse.OFFSET + 8)
    pid = qemu.running(server.home)
    assert pid is None or qemu.wait_gone(pid, 60)
    attempt = console.read_text(errors="replace").partition(f"about to read {fuse.OFFSET + 8:x}")[2]
    assert "synchronous external abort" in attempt
    assert "vambrace probe: read" not in attempt


def test_fuse(machine: Machine, server: Server, tmp_path: Path) -> None:
    """Root of the normal world, and its kernel, read devices and flash, but not the secure flash; the fuse is in no
    memory or file.

    Without the state disk the machine is still who it was, and so it is with an old copy of that disk.
    """
    before = identity(server)
    assert before[1:] == (0x3000, True)
    server.down()
    server.state.unlink()
    server = machine.run(OPEN)
    assert identity(server) == before

    with Door(server) as host:
        # The method works: this is the clock's seconds, and that is a flash that is the normal world's.
        clock = read(host, CLOCK)
        assert clock.code == 0, clock.output
        assert abs(int(clock.output) - time.time()) < 600
        assert read(host, NORMAL_FLASH).code == 0
        for address in (fuse.OFFSET, SECURE_FLASH, SECURE_RAM):
            assert read(host, address) == Done(SIGBUS, "")
        # The same fuse under another host: what was sealed under that one stays closed.
        keys = sealing_keys(host)
        for others in machine.sealing_keys.values():
            assert not set(keys) & set(others)
        assert host.shell("busybox sync").code == 0

    key = fuse.read_fuse(server.flash).key
    complement = bytes(byte ^ 0xFF for byte in key)
    assert holds(server.flash, key)
    assert holds(server.state, b"BEGIN CERTIFICATE")
    with dumped(server, tmp_path) as dump:
        assert memory.pages_with(dump, b"/etc/vambrace/host.toml")
        for part in (key, key[:8], key[8:], complement):
            assert memory.pages_with(dump, part) == []
            assert not holds(server.state, part)
    with Door(server) as host:
        in_the_kernel(server, host, tmp_path)

    copy_sparse(machine.old_state, server.state)
    assert identity(machine.run(PRODUCT)) == before
