"""How long ``server up`` takes: cold, through firmware, TrustZone and kernel, and resumed from the saved state."""

from __future__ import annotations

import os
import re
import time
from statistics import median

from bench.parts.emulated import emulated, say
from bench.report import Report
from vambrace.emulator.server import Server

ROUNDS = "VAMBRACE_BENCH_ROUNDS"
_DONE = re.compile(r"up after .*\((?P<how>\w+)\)")


def run(report: Report) -> None:
    """Everything is built and the factory step done before; the time is until the API answers.

    Raises Unavailable: the host cannot be emulated here.
    """
    rounds = max(1, int(os.environ.get(ROUNDS, "3")))
    with emulated() as server:
        up(server, cold=True)  # with the factory's step
        report.add("server.up", "cold", median(up(server, cold=True) for _ in range(rounds)), "s")
        up(server, cold=False)  # saves the state first
        report.add("server.up", "resumed", median(up(server, cold=False) for _ in range(rounds)), "s")
        report.compare("server.up", "resumed", "cold")


def up(server: Server, *, cold: bool) -> float:
    """Seconds of one start. Raises RuntimeError if it was not of the kind that is asked for."""
    server.down()
    said: list[str] = []
    started = time.monotonic()
    server.up(said.append, cold=cold)
    seconds = time.monotonic() - started
    wanted, how = ("cold" if cold else "resumed"), kind(said)
    say(f"{how}: {seconds:.1f} s")
    if how != wanted:
        raise RuntimeError(f"the start is {how}, not {wanted}: {'; '.join(said)}")
    return seconds


def kind(said: list[str]) -> str:
    """What ``Server.up`` says of how it started: "cold", "resumed"; "" if nothing."""
    found = [match["how"] for line in said if (match := _DONE.search(line))]
    return found[-1] if found else ""
