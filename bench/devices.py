"""An NVMe disk that a guest has for itself, in the emulated host: under our VMM and under QEMU/KVM, both by VFIO.

Rows (docs/performance.md): ``nvme/WORK``, ours over QEMU's. There is one disk, so a guest has it, works and ends before
the next one has it; in every round each of them has it once, in alternating order.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from bench import boot
from bench.emulated import stage
from bench.parts.alone import ENCRYPTED
from bench.parts.emulated import HERE, kvm_host, run_part, say
from bench.parts.guest import at_percent, build_worker, without_agent
from bench.parts.works import LARGE, MIB
from bench.report import Report, rounds
from vambrace.config import Device, DomainConfig

FIRST_CID = boot.FIRST_CID + 800
ROUNDS = rounds(6)
#: Length of a turn.
SECONDS = 2.0
PATIENCE = 1800.0
#: Of each work, the row's unit, and what so many operations a second are in it.
UNITS: dict[str, tuple[str, Callable[[float], float]]] = {
    "nvme-read": ("MiB/s", lambda rate: rate * LARGE / MIB),
    "nvme-write": ("MiB/s", lambda rate: rate * LARGE / MIB),
    "nvme-random-read": ("1/s", lambda rate: rate),
    "nvme-random-write": ("1/s", lambda rate: rate),
    "nvme-latency": ("µs", lambda rate: 1e6 / rate),
}
#: By whom each guest is run, and in the end what ours is compared with: QEMU as it is, whose guest's memory is all
#: mapped for the device, and with a virtual IOMMU as every guest of ours has one.
REALM, QEMU, QEMU_IOMMU = "VFIO, 0 %", "QEMU/KVM, VFIO", "QEMU/KVM, VFIO and virtio-iommu"
ENCRYPTED_REALM = "VFIO, 50 %"
PERCENT = 50
NAME, ADDRESS = "disk", "0000:01:00.0"
PINS = 16 << 20


def run(report: Report) -> None:
    """Raises Unavailable: the host cannot be emulated here, or its kernel has no KVM."""
    with kvm_host(devices=True) as (server, door):
        worker = build_worker(server.cache, server.home / "worker")
        stage(door, server, worker)
        config = with_disk(without_agent(worker.config))
        door.put(f"{HERE}/disk-config", config.encode())
        guests = {}
        for number, name in enumerate((QEMU, REALM, QEMU_IOMMU)):
            guest = boot.machine(config, "worker", "disk-config", FIRST_CID + number)
            guests[name] = {**guest, "devices": {NAME: ADDRESS}, "vmm": "realm" if name == REALM else "qemu"}
        guests[REALM]["encrypt"] = [PERCENT] * len(config.zones)
        guests[QEMU_IOMMU]["iommu"] = True
        say("guests have the disk in turn")
        wanted = {"guests": guests, "works": list(UNITS), "rounds": ROUNDS, "seconds": SECONDS}
        add(report, run_part(door, "alone", wanted, PATIENCE))


def with_disk(config: DomainConfig) -> DomainConfig:
    """The worker's configuration without encryption, with the disk and what its driver may pin."""
    open_config = at_percent(config, *[0] * len(config.zones))
    zones = tuple(zone.replace(pins=PINS) for zone in open_config.zones)
    cmdline = f"{config.cmdline} vambrace.devices deferred_probe_timeout=-1 nvme_core.multipath=N"
    changed: DomainConfig = open_config.replace(zones=zones, devices=(Device(NAME, "nvme"),), cmdline=cmdline)
    return changed


def add(report: Report, found: dict[str, dict[str, list[float]]]) -> None:
    """The rows of all works; see ``alone.take_turns`` for ``found``."""
    ours = {REALM: REALM, ENCRYPTED_REALM: ENCRYPTED.format(REALM)}
    for work, (unit, measure) in UNITS.items():
        name = work.replace("-", "/", 1)
        values = {guest: [measure(rate) for rate in rates] for guest, rates in found[work].items()}
        for theirs in (QEMU, QEMU_IOMMU):
            report.add(name, theirs, median(values[theirs]), unit)
            for subject, guest in ours.items():
                ratios = [our / their for our, their in zip(values[guest], values[theirs], strict=True)]
                report.add_rounds(name, subject, values[guest], unit, ratios, theirs, with_interval=True)
