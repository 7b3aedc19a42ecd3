"""Work in a guest under QEMU/KVM and under our VMM at each percentage, in the emulated host; what it would be natively.

Rows (docs/performance.md): ``emulated/WORK/PERCENT``, operations per second of ours over QEMU's (above 1 is faster) and
its interval; ``emulated-misses/WORK/PERCENT``, pages decrypted per operation; ``emulated-inside/WORK``, ours at 10
percent, where all of the work fits into the window, over ours at 0; ``estimated/WORK/PERCENT``, from those misses, with
this machine's times of an operation and of a fault; ``emulated/block-*/0``, the disk; ``emulated/boot/PERCENT``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench import boot
from bench.boot import QEMU
from bench.parts import driver
from bench.parts.emulated import HERE, kvm_host, run_part, say
from bench.parts.guest import at_percent, build_guest, build_worker, without_agent
from bench.report import Report, rounds
from testbed.door import Door
from vambrace.emulator.server import Server
from vambrace.errors import PagerError
from vambrace.image.bundle import Bundle
from vambrace.pager.cost import fault_ns

FIRST_CID = boot.FIRST_CID + 500
ROUNDS = rounds(9)
#: Length of a turn.
SECONDS = 1.5
#: At 10 percent the window holds what the work needs; the others are the ones that are published.
INSIDE, PERCENTS = 10, (25, 50, 75, 90, 95, 100)
#: The system's zone goes along up to here. At 100 percent its window would be the smallest, and emulated faults are so
#: slow that the guest's kernel would not be done with one tick of its clock before the next.
SYSTEM = 95
WORKS = ("scan", "zipf", "sqlite", "store", "analysis")
DISK_WORKS = ("block-sequential", "block-random")
#: Seconds: what one boot at a high percentage, or all turns of one work, may take.
PATIENCE = 1500.0


def run(report: Report) -> None:
    """Raises Unavailable: the host cannot be emulated here, or its kernel has no KVM."""
    with kvm_host() as (server, door):
        boots(report, door, server)
        works(report, door, server)


def works(report: Report, door: Door, server: Server) -> None:
    """All works, and what they would be without emulation where this machine can say what a fault costs."""
    worker = build_worker(server.cache, server.home / "worker")
    stage(door, server, worker)
    try:
        fault: float | None = fault_ns(()) / 1e9
    except PagerError as error:
        say(f"nothing is estimated: {error.message}")
        fault = None
    for number, work in enumerate((*WORKS, *DISK_WORKS)):
        on_disk = work in DISK_WORKS
        percents = () if on_disk else PERCENTS
        say(f"{work} ...")
        found = take_turns(door, worker, work, percents, FIRST_CID + 3 * number)
        add(report, work, found)
        if not on_disk and fault is not None:
            estimate(report, work, found["window"], rate_here(work), fault)


def add(report: Report, work: str, found: Mapping[str, Any]) -> None:
    """The rows of one work; see ``turns.take_turns`` for ``found``."""
    theirs = median(found["qemu"])
    report.add(f"emulated/{work}/{QEMU}", "operations", theirs, "1/s")

    def compared(name: str, ours: Sequence[float], others: Sequence[float], against: str) -> None:
        ratios = [rate / other for rate, other in zip(ours, others, strict=True)]
        report.add_rounds(name, "operations", ours, "1/s", ratios, against, with_interval=True)

    compared(f"emulated/{work}/0", found["open"], found["qemu"], QEMU)
    compared(f"emulated-inside/{work}", found["inside"], found["open"], "0 %")
    for percent, counted in found["window"].items():
        rates, misses = zip(*counted, strict=True)
        compared(f"emulated/{work}/{percent}", rates, [theirs] * len(rates), QEMU)
        report.add(f"emulated-misses/{work}/{percent}", "operations", median(misses), "pages")


def estimate(report: Report, work: str, window: Mapping[str, Any], rate: float, fault: float) -> None:
    """The same work without emulation: ``rate`` operations a second here without misses, each of ``fault`` seconds."""
    for percent, counted in window.items():
        misses = median(misses for _, misses in counted)
        share = 1 / (1 + misses * fault * rate)
        report.add(f"estimated/{work}/{percent}", "calculated", rate * share, "1/s", ratio=share, against="0 %")


def rate_here(work: str, seconds: float = SECONDS) -> float:
    """Operations per second on this machine, in ordinary memory. Raises RuntimeError with what the driver said."""
    requests = [{"work": work}, {"seconds": seconds}, {"seconds": seconds}]
    done = subprocess.run(
        driver.command("serve"),
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{work}: {done.stderr}")
    reply = json.loads(done.stdout.splitlines()[-1])
    rate: float = reply["operations"] / reply["seconds"]
    return rate


def stage(door: Door, server: Server, worker: Bundle) -> None:
    """Put the worker into the host."""
    boot.send(door, server, worker, "worker")
    door.put(f"{HERE}/worker-config", at_percent(without_agent(worker.config), 0, 0).encode())


def take_turns(door: Door, worker: Bundle, work: str, percents: tuple[int, ...], cid: int) -> dict[str, Any]:
    """See ``turns.take_turns``. Raises RuntimeError with what the host said."""
    config = without_agent(worker.config)
    guests = {
        name: boot.machine(config, "worker", "worker-config", cid + index)
        for index, name in enumerate(("qemu", "open", "window"))
    }
    of_zones = [[min(percent, SYSTEM), percent] for percent in percents]
    times = {"rounds": ROUNDS, "seconds": SECONDS}
    wanted = {**guests, "inside": [INSIDE, INSIDE], "percents": of_zones, "work": work, **times}
    return run_part(door, "turns", wanted, PATIENCE)


def boots(report: Report, door: Door, server: Server) -> None:
    """From the first instruction to the agent's report, once each: at high percentages it takes minutes."""
    guest = build_guest(server.cache, server.home / "guest")
    boot.stage(door, server, guest)
    times: dict[str, float] = {}
    for number, which in enumerate((QEMU, "0", *map(str, PERCENTS))):
        specification = boot.specification(guest, QEMU, "ready", boot.FIRST_CID + number)
        if which != QEMU:
            zones = (min(int(which), SYSTEM), int(which))
            door.put(f"{HERE}/config", at_percent(guest.bundle.config, *zones).encode())
            specification["vmm"] = "realm"
            specification["files"]["config"] = f"{HERE}/config"
        times[which] = boot.boot(door, specification)["run"]
        say(f"boot, {which}: {times[which]:.1f} s")
    for which, seconds in times.items():
        ratio = None if which == QEMU else times[QEMU] / seconds
        against = None if which == QEMU else QEMU
        report.add(f"emulated/boot/{which}", "boots", 1 / seconds, "1/s", ratio=ratio, against=against)
