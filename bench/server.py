"""How long ``server up`` takes: cold, through firmware, TrustZone and kernel, and resumed from the saved state."""

from __future__ import annotations

import re
import time
from statistics import median

from bench.parts.emulated import emulated, say
from bench.report import Report, rounds
from vambrace.emulator.server import Server

ROUNDS = rounds(3)
_DONE = re.compile(r"up after .*\((?P<how>\w+)\)")


def run(report: Report) -> None:
    """Everything is built and the factory step done before; the time is until the API answers.

    Raises Unavailable: the host cannot be emulated here.
    """
    with emulated() as server:
        up(server, cold=True)  # with the factory's step
        report.add("server.up", "cold", median(up(server, cold=True) for _ in range(ROUNDS)), "s")
        up(server, cold=False, how="cold")  # takes the state
        report.add("server.up", "resumed", median(up(server, cold=False) for _ in range(ROUNDS)), "s")
        report.compare("server.up", "resumed", "cold")


def up(server: Server, *, cold: bool, how: str = "") -> float:
    """Seconds of one start, which must be ``how`` ("cold", "resumed"; "": as ``cold`` says). Raises RuntimeError."""
    server.down()
    said: list[str] = []
    started = time.monotonic()
    server.up(said.append, cold=cold)
    seconds = time.monotonic() - started
    wanted, was = how or ("cold" if cold else "resumed"), kind(said)
    say(f"{was}: {seconds:.1f} s")
    if was != wanted:
        raise RuntimeError(f"the start is {was}, not {wanted}: {'; '.join(said)}")
    return seconds


def kind(said: list[str]) -> str:
    """What ``Server.up`` says of how it started: "cold", "resumed"; "" if nothing."""
    found = [match["how"] for line in said if (match := _DONE.search(line))]
    return found[-1] if found else ""
