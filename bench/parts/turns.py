"""In the emulated host: guests under QEMU/KVM and under our VMM, alive at once, do the same work in turn.

    python3 turns.py SPECIFICATION      one JSON object each way

For every turn the result has operations per second, by the guest's own clock. Three guests are alive: QEMU's, ours at
0 percent from its start to its end, and ours with a window. They take turns, the last of them at a percentage at which
all of the work fits into its window. After that it goes from one percentage to the next, and has at each of them a turn
that is not counted, and then those that are.

Only the standard library, and what its neighbours have: this file is copied into the host.
"""

from __future__ import annotations

import base64
import json
import os
import time
from contextlib import ExitStack
from typing import Any

from bench.parts import runner
from bench.parts.agent import PATIENCE
from bench.parts.qemu import Monitor, start_qemu
from bench.parts.vmm import Control, new_launcher, start_realm


class RealmGuest:
    """A guest of our VMM, booted until its driver waits for requests."""

    def __init__(self, stack: ExitStack, specification: dict[str, Any], errors: Any) -> None:
        process, connection = start_realm(new_launcher(), errors)
        stack.enter_context(process)
        stack.callback(process.kill)
        self._control = stack.enter_context(Control(connection))
        self._waiting = b""
        self._control.load(specification)
        self._control.ask("start")
        self.reply()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(request).encode() + b"\n"
        self._control.ask("agent", data=base64.b64encode(data).decode())
        return self.reply()

    def reply(self) -> dict[str, Any]:
        while b"\n" not in self._waiting:
            event = self._control.event()
            if event["event"] == "ended":
                raise RuntimeError(f"the guest ended: {event}")
            if event["event"] == "agent":
                self._waiting += base64.b64decode(event["data"])
        line, _, self._waiting = self._waiting.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def encrypt(self, percents: list[int]) -> None:
        """Set the percentage of each zone, and wait until it holds."""
        for zone, percent in enumerate(percents):
            change = self._control.ask("encrypt", zone=zone, percent=percent)
            while not change["done"]:
                time.sleep(0.1)
                change = self._control.ask("change")

    def misses(self) -> int:
        """Pages decrypted so far, in all zones."""
        decrypted: int = sum(zone["bytes_decrypted"] for zone in self._control.ask("stats")["zones"])
        return decrypted // 4096


class QemuGuest:
    """The same guest under QEMU/KVM, its vCPU on the same processor."""

    def __init__(self, stack: ExitStack, specification: dict[str, Any], errors: Any) -> None:
        process, monitor, self._port = start_qemu(specification, errors)
        stack.enter_context(process)
        stack.callback(process.kill)
        stack.enter_context(self._port)
        self._port.settimeout(PATIENCE)
        self._lines = stack.enter_context(self._port.makefile("rb"))
        control = stack.enter_context(Monitor(monitor))
        control.greet()
        control.execute("x-exit-preconfig")
        for vcpu in control.execute("query-cpus-fast"):
            os.sched_setaffinity(vcpu["thread-id"], {specification["cpu"]})
        control.execute("cont")
        self.reply()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._port.sendall(json.dumps(request).encode() + b"\n")
        return self.reply()

    def reply(self) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self._lines.readline())
        return reply


#: By what the specifications call them.
GUESTS: dict[str, type[RealmGuest | QemuGuest]] = {"realm": RealmGuest, "qemu": QemuGuest}


def turn(guest: RealmGuest | QemuGuest, seconds: float) -> tuple[int, float]:
    """Operations of one turn, and their seconds. Raises RuntimeError: the driver says why not."""
    reply = guest.ask({"seconds": seconds})
    if "operations" not in reply:
        raise RuntimeError(f"no operations: {reply}")
    return reply["operations"], reply["seconds"]


def rate(guest: RealmGuest | QemuGuest, seconds: float) -> float:
    """Operations per second of one turn."""
    operations, spent = turn(guest, seconds)
    return operations / spent


def work_through(guest: RealmGuest | QemuGuest, works: list[str], seconds: float) -> dict[str, float]:
    """Operations per second of each work, after a short turn that is not counted."""
    rates = {}
    for work in works:
        if (answer := guest.ask({"work": work})) != {"ready": work}:
            raise RuntimeError(f"{work}: {answer}")
        turn(guest, seconds / 4)
        rates[work] = rate(guest, seconds)
    return rates


def counted_turn(guest: RealmGuest, seconds: float) -> tuple[float, float]:
    """Operations per second, and the pages decrypted for each operation."""
    before = guest.misses()
    operations, spent = turn(guest, seconds)
    return operations / spent, (guest.misses() - before) / operations


def take_turns(specification: dict[str, Any], errors: Any) -> dict[str, Any]:
    """``qemu``, ``open`` and ``inside``: rates, one of each round; ``window``: by the work's percentage, pairs of rate
    and misses per operation. ``inside`` and each of ``percents`` have the zones' percentages, the work's last."""
    seconds, rounds = specification["seconds"], specification["rounds"]
    with ExitStack() as stack:
        window = RealmGuest(stack, specification["window"], errors)
        guests: dict[str, RealmGuest | QemuGuest] = {
            "qemu": QemuGuest(stack, specification["qemu"], errors),
            "open": RealmGuest(stack, specification["open"], errors),
            "inside": window,
        }
        for guest in guests.values():
            if (answer := guest.ask({"work": specification["work"]})) != {"ready": specification["work"]}:
                raise RuntimeError(f"{specification['work']}: {answer}")
        window.encrypt(specification["inside"])
        result: dict[str, Any] = {name: [] for name in guests} | {"window": {}}
        for number in range(1 + rounds):
            for name in guests if number % 2 else reversed(guests):
                operations = rate(guests[name], seconds)
                if number:  # the first round is not counted
                    result[name].append(operations)
        for percents in specification["percents"]:
            window.encrypt(percents)
            turn(window, seconds)
            found = [counted_turn(window, seconds) for _ in range(max(1, rounds // 3))]
            result["window"][str(percents[-1])] = found
        return result


def main() -> None:
    runner.answer(take_turns)


if __name__ == "__main__":
    main()
