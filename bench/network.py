"""Network cards and messages, in the emulated host.

Rows (docs/performance.md): ``card/WORK``, TCP between a guest and its host through our vhost-net card over the same
through QEMU/KVM's; ``messages/WORK``, between two Realms through an endpoint over the same through their network cards.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from bench import boot
from bench.boot import QEMU
from bench.emulated import stage
from bench.parts import exchange
from bench.parts.driver import ADDRESS
from bench.parts.emulated import HERE, kvm_host, run_part, say
from bench.parts.guest import at_percent, build_worker, without_agent
from bench.parts.works import PEER
from bench.report import Report, rounds
from testbed.door import Door
from vambrace.emulator.server import Server
from vambrace.image.bundle import Bundle

FIRST_CID = boot.FIRST_CID + 700
ROUNDS = rounds(7)
#: Length of a turn.
SECONDS = 2.0
PATIENCE = 600.0
#: What an operation of the works is.
UNITS = {"send": "MiB/s", "receive": "MiB/s", "ask": "1/s"}
BRIDGE = "bench"
CARDS = "TCP over two cards"


def run(report: Report) -> None:
    """Raises Unavailable: the host cannot be emulated here, or its kernel has no KVM."""
    with kvm_host() as (server, door):
        cards(report, door, server)
        messages(report, server)


def cards(report: Report, door: Door, server: Server) -> None:
    """Our card against QEMU's, the same guest in turn."""
    worker = build_worker(server.cache, server.home / "worker")
    stage(door, server, worker)
    where, port = PEER
    made = door.shell(
        f"ip link add {BRIDGE} type bridge && ip addr add {where}/24 dev {BRIDGE} && ip link set {BRIDGE} up;"
        f"python3 -B {HERE}/bench/parts/peer.py {where} {port} > /run/bench/peer 2>&1 &"
        f"until grep -q ready /run/bench/peer; do sleep 0.1; done"
    )
    if made.code:
        raise RuntimeError(f"no bridge: {made.output}")
    door.put(f"{HERE}/card-config", with_card(worker).encode())
    guests = {}
    for number, name in enumerate(("qemu", "realm")):
        guest = boot.machine(without_agent(worker.config), "worker", "card-config", FIRST_CID + number)
        guest["cmdline"] = " ".join([guest["cmdline"], "vambrace.network", f"{ADDRESS}10.9.0.{number + 2}/24"])
        guests[name] = {**guest, "cards": [{"bridge": BRIDGE, "mac": f"0242000000{number:02x}"}]}
    wanted = {**guests, "works": [f"card-{work}" for work in UNITS], "rounds": ROUNDS, "seconds": SECONDS}
    found = run_part(door, "pairs", wanted, PATIENCE)
    for work, unit in UNITS.items():
        ours, theirs = found[f"card-{work}"]["realm"], found[f"card-{work}"]["qemu"]
        ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
        report.add(f"card/{work}", QEMU, median(theirs), unit)
        report.add_rounds(f"card/{work}", "vhost-net", ours, unit, ratios, QEMU, with_interval=True)


def with_card(worker: Bundle) -> Any:
    """The worker's configuration without encryption, at one network, with our guest's address."""
    config = at_percent(without_agent(worker.config), 0, 0)
    cmdline = " ".join([config.cmdline, "vambrace.network", f"{ADDRESS}10.9.0.3/24"])
    return config.replace(cmdline=cmdline, networks=("bench",))


def messages(report: Report, server: Server) -> None:
    """An endpoint of two Realms against their network cards, the same program in turn."""
    say("two Realms exchange bytes")
    found = exchange.between(server, ROUNDS, SECONDS)
    for work, unit in UNITS.items():
        ours, theirs = found[work]["messages"], found[work]["cards"]
        ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
        report.add(f"messages/{work}", CARDS, median(theirs), unit)
        report.add_rounds(f"messages/{work}", "messages", ours, unit, ratios, CARDS, with_interval=True)
