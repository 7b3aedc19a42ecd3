"""Emulated servers for benchmarks: each of its own, in a directory and on a port that nobody else uses."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.report import Unavailable
from testbed.door import Door
from testbed.door import variant as with_door
from vambrace.debian.cache import Cache
from vambrace.emulator import qemu
from vambrace.emulator.hostroot import PRODUCT, Variant
from vambrace.emulator.server import Server
from vambrace.errors import ServerError, ToolMissing


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def emulated(variant: Variant = PRODUCT) -> Iterator[Server]:
    """A server that is built and not yet started; stopped and removed afterwards.

    Raises Unavailable where a program that emulates or builds it is missing.
    """
    cache = Cache()
    with tempfile.TemporaryDirectory(prefix="vambrace-bench-") as home:
        # The vendor's key is part of OP-TEE: one vendor for all runs lets the cache keep what was built.
        vendor = cache.root / "test-vendor"
        server = Server(Path(home) / "server", port=_free_port(), cache=cache, vendor=vendor, variant=variant)
        try:
            qemu.program()
            server.build(say)
        except (ToolMissing, ServerError) as error:
            raise Unavailable(f"{error.message} ({error.hint})") from error
        try:
            yield server
        finally:
            server.down()


@contextmanager
def kvm_host() -> Iterator[tuple[Server, Door]]:
    """A server that is up and has QEMU, too, and a door into its host.

    Raises Unavailable: the host cannot be emulated here, or its kernel has no KVM.
    """
    with emulated(with_door("bench", packages=["qemu-system-arm"])) as server:
        server.up(say, cold=True)
        with Door(server) as door:
            if door.shell("test -e /dev/kvm").code:
                raise Unavailable("the emulated host has no /dev/kvm")
            yield server, door


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
