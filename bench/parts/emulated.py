"""Emulated servers for benchmarks: each of its own, in a directory and on a port that nobody else uses."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.report import Unavailable
from testbed.door import Door
from testbed.door import variant as with_door
from vambrace.debian.cache import Cache
from vambrace.emulator import qemu
from vambrace.emulator.hostroot import PRODUCT, Variant
from vambrace.emulator.server import Server
from vambrace.errors import ServerError, ToolMissing

#: Where the host has what benchmarks put into it, and what of this folder runs there.
HERE = "/run/bench"
HOST_PARTS = ("agent.py", "alone.py", "pairs.py", "peer.py", "qemu.py", "runner.py", "turns.py", "vmm.py")


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def emulated(variant: Variant = PRODUCT, *, devices: bool = False) -> Iterator[Server]:
    """A server that is built and not yet started; stopped and removed afterwards. ``devices`` as in ``Server``.

    Raises Unavailable where a program that emulates or builds it is missing.
    """
    cache = Cache()
    with tempfile.TemporaryDirectory(prefix="vambrace-bench-") as home:
        # The vendor's key is part of OP-TEE: one vendor for all runs lets the cache keep what was built.
        vendor = cache.root / "test-vendor"
        where, port = Path(home) / "server", _free_port()
        server = Server(where, port=port, cache=cache, vendor=vendor, variant=variant, devices=devices)
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
def kvm_host(*, devices: bool = False) -> Iterator[tuple[Server, Door]]:
    """A server that is up and has QEMU, too, and a door into its host, in which everything is that runs there.

    Raises Unavailable: the host cannot be emulated here, or its kernel has no KVM.
    """
    with emulated(with_door("bench", packages=["qemu-system-arm"]), devices=devices) as server:
        server.up(say, cold=True)
        with Door(server) as door:
            if door.shell("test -e /dev/kvm").code:
                raise Unavailable("the emulated host has no /dev/kvm")
            for name in HOST_PARTS:
                door.put(f"{HERE}/bench/parts/{name}", Path(__file__).with_name(name).read_bytes())
            yield server, door


def run_part(door: Door, part: str, wanted: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What one of ``HOST_PARTS`` makes of ``wanted``. Raises RuntimeError with what the host said."""
    program = f"import sys; sys.path.insert(0, {HERE!r}); from bench.parts import {part}; {part}.main()"
    done = door.python(program, json.dumps(wanted), seconds=seconds)
    if done.code:
        raise RuntimeError(done.output)
    found: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
