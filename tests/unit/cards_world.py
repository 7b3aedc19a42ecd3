"""A host of its own for network cards: run by test_cards in new network and mount namespaces, as root.

    unshare --net --mount python3 cards_world.py

Bridges and taps are the kernel's own, packets are written to the taps as vhost-net does. Only vhost-net itself is not
needed, and another file stands in for it. Says as one JSON object who received what.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.partition import cards
from vambrace.partition.cards import Network, OpenCard, new_address, open_card

HEADER = bytes(12)
EVERYBODY = b"\xff" * 6
#: An Ethernet type for experiments (IEEE 802).
KIND = b"\x88\xb5"
SPANNING_TREE = bytes.fromhex("0180c2000000")
#: Best of all bridges (IEEE 802.1D, section 9.3.1: LLC, protocol and version, flags, root, cost, bridge, port, times).
POSE = bytes.fromhex("424203 0000 00 00 00 0000000000000001 00000000 0000000000000001 8001 0000 1400 0200 0f00")


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def send(card: OpenCard, target: bytes, text: str, *, source: bytes | None = None, header: bytes = HEADER) -> str:
    """A packet from the guest of ``card``; returns the kernel's objection."""
    packet = target + (source or card.mac) + KIND + text.encode().ljust(50, b"\0")
    try:
        os.write(card.tap, header + packet)
    except OSError as error:
        return error.strerror or "?"
    return ""


def received(card: OpenCard) -> list[str]:
    """What has come for the guest of ``card``; bridges of one machine deliver at once."""
    found = []
    while select.select([card.tap], [], [], 0.1)[0]:
        packet = os.read(card.tap, 1 << 16)[12:]
        if packet[12:14] == KIND:
            found.append(packet[14:].rstrip(b"\0").decode())
    return found


def ordinary(bridge: str) -> OpenCard:
    """What else is at a bridge is the operator's: a port like any other."""
    tap = os.open(cards.DEVICES / cards.TUN, os.O_RDWR | os.O_NONBLOCK)
    interface = cards._attach(tap)
    run(f"ip link set {interface} master {bridge} up")
    return OpenCard(tap, os.open("/dev/null", os.O_RDWR), new_address(), 1500, interface)


def main() -> None:
    cards.VHOST = "null"
    run("mount -t sysfs sys /sys")
    for bridge in ("lab", "apart"):
        run(f"ip link add {bridge} type bridge mcast_snooping 0")
        run(f"ip link set {bridge} up")
    lab, apart = Network("lab", "lab", isolated=False), Network("apart", "apart")
    with contextlib.ExitStack() as stack:

        def card(network: Network) -> OpenCard:
            opened = open_card(network, new_address())
            stack.callback(opened.close)
            return opened

        one, two, third = card(lab), card(lab), card(lab)
        away, alone = card(apart), card(apart)
        names = cards.leftovers()
        uplink = ordinary("apart")
        stack.callback(uplink.close)
        everyone = {"one": one, "two": two, "third": third, "away": away, "alone": alone, "uplink": uplink}

        def outcome() -> dict[str, list[str]]:
            return {name: got for name, each in everyone.items() if (got := received(each))}

        cards_only = [one, two, third, away, alone]
        results: dict[str, object] = {"names": names, "interfaces": [card.interface for card in cards_only]}
        send(one, two.mac, "to two")
        results["addressed"] = outcome()
        send(one, EVERYBODY, "to all")
        results["broadcast"] = outcome()
        send(one, two.mac, "as third", source=third.mac)
        send(one, EVERYBODY, "as nobody", source=new_address())
        send(one, new_address(), "to nobody")
        results["spoofed"] = outcome()
        # Nor can a neighbour take an address over by speaking as its holder.
        send(two, one.mac, "still here")
        results["afterwards"] = outcome()
        send(away, alone.mac, "to alone")
        send(away, EVERYBODY, "to all")
        results["isolated"] = outcome()
        send(uplink, EVERYBODY, "from outside", source=alone.mac)
        outcome()
        send(away, uplink.mac, "out")
        send(uplink, alone.mac, "in")
        results["outside"] = outcome()
        header = bytearray(HEADER)
        header[1] = 0x7F  # no kind of segmentation
        results["header"] = send(one, two.mac, "odd", header=bytes(header))
        header[0:8] = b"\x01\x01\xff\xff\x00\x00\xff\xff"  # TCP segments of no size, headers longer than the packet
        results["sizes"] = send(one, two.mac, "odd", header=bytes(header))
        send(one, two.mac, "even")
        results["even"] = outcome()
        # A bridge that takes part in spanning trees: a guest would be the root of one, and move what others send.
        run("ip link add tree type bridge stp_state 1")
        run("ip link set tree up")
        rival = card(Network("tree", "tree"))
        before = Path("/sys/class/net/tree/bridge/root_id").read_text()
        packet = SPANNING_TREE + rival.mac + len(POSE).to_bytes(2, "big") + POSE
        os.write(rival.tap, HEADER + packet.ljust(60, b"\0"))
        results["root"] = Path("/sys/class/net/tree/bridge/root_id").read_text() == before
        results["rival"] = Path(f"/sys/class/net/{rival.interface}/brport/state").read_text().strip()
    results["left"] = cards.leftovers()
    try:
        open_card(Network("none", "nothing"), new_address())
    except PartitionError as error:
        results["refused"] = error.message
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
