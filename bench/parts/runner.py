"""In the emulated host: boots one guest, under our VMM or under QEMU/KVM, and says how long each phase took.

    python3 runner.py SPECIFICATION      one JSON object each way; times in seconds, memory in bytes

Phases (docs/performance.md): ``process`` from starting the process until it takes a request, ``request`` from asking
for a domain until its VMM takes a request (ours waits, QEMU is started), ``load`` until the guest's memory and vCPUs
are ready, ``run`` from letting the vCPUs go until the guest switches itself off (``until`` "off") or its agent reports
ready (``until`` "ready"); in the second case also ``end``, from asking the VMM to end until its process is gone, and
``memory``.

Only the standard library, and what its neighbours have: this file is copied into the host.
"""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.parts.agent import PACKET, PATIENCE, Agent
from bench.parts.qemu import Monitor, start_qemu, zone_bases
from bench.parts.vmm import Control, Jailed, new_launcher, start_realm

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


def main() -> None:
    answer(boot)


def boot(specification: dict[str, Any], errors: Any) -> dict[str, Any]:
    return {"realm": boot_realm, "qemu": boot_qemu}[specification["vmm"]](specification, errors)


def answer(work: Callable[[dict[str, Any], Any], dict[str, Any]]) -> None:
    """Print what ``work`` makes of the specification; where it fails, exit with why, and with what VMMs have said.

    ``work`` gets the specification and a file for the standard error output of VMMs.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            print(json.dumps(work(json.loads(sys.argv[1]), errors)))
        except (OSError, RuntimeError, ValueError) as error:
            errors.seek(0)
            sys.exit(f"{type(error).__name__}: {error}\n{errors.read()[-3000:].decode(errors='replace')}")


def boot_realm(specification: dict[str, Any], errors: Any) -> dict[str, Any]:
    """As the daemon has it started, and drives it."""
    launcher = new_launcher()
    started = time.monotonic()
    process, ours = start_realm(launcher, errors)
    with process, Control(ours) as control:
        try:
            # The answer to any request shows that it takes them. The first comes when the process has started: in
            # the daemon it waits from then on, and a Realm's request begins at the second.
            control.ask("stats", refused=True)
            requested = time.monotonic()
            control.ask("stats", refused=True)
            ready = time.monotonic()
            control.load(specification)
            loaded = time.monotonic()
            control.ask("start")
            ended = control.watch(specification["until"])
            result = {"process": requested - started, **phases(requested, ready, loaded)}
            if ended is not None:
                result["run"] = ended["ran"]  # the event itself comes after memory and keys are wiped
            if specification["until"] == "ready":
                result["memory"] = memory(process.pid, in_window)
                result["zones"] = control.ask("stats")["zones"]
                result["end"] = seconds_to_end(process, lambda: control.ask("destroy"))
            process.wait(PATIENCE)
            return result
        finally:
            process.kill()


def boot_qemu(specification: dict[str, Any], errors: Any) -> dict[str, Any]:
    """Stopped before its machine is made, then before its first instruction: the same phases as ours."""
    started = time.monotonic()
    process, ours, agent = start_qemu(specification, errors)
    with process, agent, Monitor(ours) as monitor:
        try:
            monitor.greet()
            ready = time.monotonic()
            monitor.execute("x-exit-preconfig")
            loaded = time.monotonic()
            monitor.execute("cont")
            if specification["until"] == "off":
                monitor.await_event("SHUTDOWN")
            else:
                serve_agent(agent, monitor)
            result = {"process": ready - started, **phases(started, ready, loaded)}
            if specification["until"] == "ready":
                bases = [monitor.host_address(base) for base in zone_bases(specification["zones"])]
                result["memory"] = memory(
                    process.pid, lambda start, end, flags: any(start <= base < end for base in bases)
                )
                result["end"] = seconds_to_end(process, lambda: monitor.execute("quit"))
            process.wait(PATIENCE)
            return result
        finally:
            process.kill()


def serve_agent(port: socket.socket, monitor: Monitor) -> None:
    """Returns when the agent is ready; RuntimeError when the guest ends before."""
    agent = Agent()
    while not agent.ready:
        ready, _, _ = select.select([port, monitor.connection], [], [], PATIENCE)
        if port in ready and (data := port.recv(PACKET)):
            for answer in agent.receive(data):
                port.sendall(answer)
        elif monitor.connection in ready:
            message = monitor.connection.recv(PACKET)
            if not message or b"SHUTDOWN" in message:
                raise RuntimeError("the guest ended before its agent was ready")
        elif not ready:
            raise RuntimeError("the agent does not come")


def phases(started: float, ready: float, loaded: float) -> dict[str, Any]:
    """Seconds of each phase, the last one ending now."""
    return {"request": ready - started, "load": loaded - ready, "run": time.monotonic() - loaded}


def seconds_to_end(process: subprocess.Popen[bytes] | Jailed, ask: Callable[[], Any]) -> float:
    """From asking a VMM to end until its process is gone."""
    asked = time.monotonic()
    ask()
    process.wait(PATIENCE)
    return time.monotonic() - asked


def memory(process: int, is_guest: Callable[[int, int, list[str]], bool]) -> dict[str, int]:
    """Resident bytes of a process, of guest memory and of everything else."""
    return memory_of(Path(f"/proc/{process}/smaps").read_text(), is_guest)


def memory_of(smaps: str, is_guest: Callable[[int, int, list[str]], bool]) -> dict[str, int]:
    """The same of a text of /proc/PID/smaps. ``pss`` shares what several processes map among them."""
    sums = {"guest": 0, "rss": 0, "pss": 0}
    for start, end, values, flags in _mappings(smaps):
        if is_guest(start, end, flags):
            sums["guest"] += values["Rss"]
        else:
            sums["rss"] += values["Rss"]
            sums["pss"] += values["Pss"]
    return sums


def in_window(start: int, end: int, flags: list[str]) -> bool:
    """Whether it is one of our window's: nothing else is kept from both core files and children."""
    return {"dd", "dc"} <= set(flags)


def _mappings(smaps: str) -> Iterator[tuple[int, int, dict[str, int], list[str]]]:
    start = end = 0
    values: dict[str, int] = {}
    for line in smaps.splitlines():
        if found := _MAPPING.match(line):
            start, end, values = int(found[1], 16), int(found[2], 16), {}
        elif line.startswith("VmFlags:"):
            yield start, end, values, line.split()[1:]
        elif line.endswith(" kB"):
            name, value, _ = line.split()
            values[name.rstrip(":")] = int(value) << 10


if __name__ == "__main__":
    main()
