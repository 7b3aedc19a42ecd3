"""Our Realm against QEMU/KVM: the same kernel, initrd and disks in the same emulated host, in turn, in one run.

What each figure means, and what the two do not have in common: docs/performance.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.parts.emulated import HERE, kvm_host, run_part, say
from bench.parts.guest import Guest, build_guest
from bench.report import Report, rounds
from testbed.door import Door
from vambrace.client.host import Host
from vambrace.config import DomainConfig
from vambrace.emulator.server import Server
from vambrace.image.bundle import Bundle

QEMU = "QEMU/KVM"
PERCENTS = {"Realm, 0 %": 0, "Realm, 50 %": 50}
SUBJECTS = (*PERCENTS, QEMU)
ROUNDS = rounds(3)
MIB = 1 << 20
FIRST_CID = 1000

# The rows, by what was measured: until the guest is off, or until its agent is ready.
PHASES = {
    ("off", "process"): "boot.process",
    ("off", "request"): "boot.request",
    ("off", "load"): "boot.load",
    ("off", "run"): "boot.kernel",
    ("ready", "run"): "boot.agent",
    ("ready", "whole"): "boot.whole",
    ("ready", "end"): "boot.end",
}


@dataclass
class Samples:
    """What was measured, by subject, end and figure."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)

    def add(self, subject: str, until: str, result: Mapping[str, Any]) -> None:
        for name in ("process", "request", "load", "run", "end"):
            if name not in result:
                continue
            # Starting and loading are the same whatever the guest does then.
            end = until if name in ("run", "end") else "off"
            self.values.setdefault((subject, end, name), []).append(result[name])
        whole = result["request"] + result["load"] + result["run"]
        self.values.setdefault((subject, until, "whole"), []).append(whole)
        for name, value in result.get("memory", {}).items():
            self.values.setdefault((subject, until, name), []).append(value / MIB)

    def rows(self, report: Report) -> None:
        """Medians, each of ours compared with QEMU's."""
        for (until, phase), name in PHASES.items():
            self._rows(report, until, phase, name, "s")
        for figure in ("rss", "pss"):
            self._rows(report, "ready", figure, f"vmm.memory.{figure}", "MiB")

    def _rows(self, report: Report, until: str, figure: str, name: str, unit: str) -> None:
        for subject in SUBJECTS:
            report.add(name, subject, median(self.values[subject, until, figure]), unit)
        for subject in PERCENTS:
            report.compare(name, subject, QEMU)


def run(report: Report) -> None:
    """Raises Unavailable: the host cannot be emulated here, or its kernel has no KVM."""
    with kvm_host() as (server, door):
        samples = measure(door, server)
    samples.rows(report)


def measure(door: Door, server: Server) -> Samples:
    """Boot every subject ``ROUNDS`` times for each end, in turn."""
    guest = build_guest(server.cache, server.home / "guest")
    stage(door, server, guest)
    samples = Samples()
    for number, (until, subject) in enumerate(order(ROUNDS)):
        result = boot(door, specification(guest, subject, until, FIRST_CID + number))
        times = ", ".join(f"{name} {result[name]:.2f} s" for name in ("process", "request", "load", "run"))
        say(f"{subject}, until {until}: {times}")
        samples.add(subject, until, result)
    return samples


def order(count: int) -> Iterator[tuple[str, str]]:
    """(end, subject) of every boot of so many rounds; the order alternates: what changes with time is to hit all."""
    for number in range(count):
        for until in ("off", "ready"):
            for subject in SUBJECTS if number % 2 == 0 else reversed(SUBJECTS):
                yield until, subject


def stage(door: Door, server: Server, guest: Guest) -> None:
    """Put everything into the host: the image as users send it, the rest through the door."""
    send(door, server, guest.bundle, "image")
    for name, data in {
        "off": guest.off,
        **{f"config-{percent}": guest.configuration(percent) for percent in PERCENTS.values()},
    }.items():
        door.put(f"{HERE}/{name}", data)


def send(door: Door, server: Server, bundle: Bundle, name: str) -> None:
    """Send an image as users do; its files are then in HERE under ``name``."""
    access = server.access()
    digest = hashlib.sha256(bundle.path.read_bytes()).hexdigest()
    say("sending the image")
    with Host(access.url, access.certificate, access.key, access.ca) as host:
        host.send(bundle, digest)
    door.shell(f"mkdir -p {HERE} && ln -s /state/host/images/{digest} {HERE}/{name}")


def specification(guest: Guest, subject: str, until: str, cid: int) -> dict[str, Any]:
    """What the runner in the host is to boot."""
    wanted = machine(guest.bundle.config, "image", f"config-{PERCENTS.get(subject, 0)}", cid)
    if until == "off":
        wanted["files"]["initrd"] = f"{HERE}/off"
    return {"vmm": "qemu" if subject == QEMU else "realm", "until": until, **wanted}


def machine(config: DomainConfig, image: str, configuration: str, cid: int) -> dict[str, Any]:
    """What both VMMs are told of a guest: its files by their names in HERE, and its hardware."""
    return {
        "files": {
            "config": f"{HERE}/{configuration}",
            "kernel": f"{HERE}/{image}/kernel",
            "initrd": f"{HERE}/{image}/initrd",
            "disks": [f"{HERE}/{image}/disk-{index}" for index in range(len(config.disks))],
        },
        "cmdline": config.cmdline,
        "zones": [zone.memory for zone in config.zones],
        "vcpus": config.vcpus,
        "cid": cid,
        "cpu": 1,
    }


def boot(door: Door, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """One boot. Raises RuntimeError with what the host said."""
    return run_part(door, "runner", wanted, 300)
