"""In the emulated host: QEMU/KVM with the machine that our VMM offers, as near as it comes to it.

Only the standard library: this file is copied into the host.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

from bench.parts.agent import PATIENCE
from bench.parts.vmm import open_card

RAM = 0x4000_0000


def start_qemu(
    specification: dict[str, Any], errors: Any
) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket]:
    """The process, and our ends of its monitor and of the agent's port."""
    ours, theirs = socket.socketpair()
    agent, port = socket.socketpair()
    cards = [open_card(card) for card in specification.get("cards", ())]
    taps = [file for card in cards for file in (card.tap, card.vhost)]
    process = subprocess.Popen(
        [
            *qemu_command(specification, theirs.fileno(), port.fileno()),
            *card_words(specification, cards),
            *device_words(specification),
        ],
        pass_fds=(theirs.fileno(), port.fileno(), *taps),
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
    )
    theirs.close()
    port.close()
    for card in cards:
        card.close()
    return process, ours, agent


def zone_bases(zones: list[int]) -> list[int]:
    """Guest-physical addresses of NUMA nodes of these sizes."""
    return [RAM + sum(zones[:index]) for index in range(len(zones))]


def qemu_command(specification: dict[str, Any], monitor: int, agent: int) -> list[str]:
    """The machine that our VMM offers, as near as QEMU comes to it; its device tree has more devices."""
    files, zones = specification["files"], specification["zones"]
    words = [
        "qemu-system-aarch64",
        *("-accel", "kvm", "-cpu", "host", "-smp", str(specification["vcpus"])),
        *("-machine", f"virt,gic-version=3,acpi=off,its={'on' if specification.get('devices') else 'off'}"),
        *("-m", f"{sum(zones) >> 20}M"),
        *("-no-user-config", "-nodefaults", "-display", "none", "-preconfig", "-S"),
        *("-action", "reboot=shutdown"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-kernel", files["kernel"], "-initrd", files["initrd"], "-append", specification["cmdline"]),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-device", "virtio-serial-device,bus=virtio-mmio-bus.0"),
        *("-chardev", "null,id=console", "-device", "virtconsole,chardev=console"),
        *("-chardev", f"socket,id=agent,fd={agent}", "-device", "virtserialport,chardev=agent,name=vambrace.agent"),
    ]
    for index, size in enumerate(zones):
        words += ["-object", f"memory-backend-ram,id=zone{index},size={size}"]
        words += ["-numa", f"node,memdev=zone{index}" + (",cpus=0-" + str(specification["vcpus"] - 1)) * (not index)]
    for index, disk in enumerate(files["disks"]):
        words += ["-drive", f"file={disk},format=raw,if=none,readonly=on,id=disk{index}"]
        words += ["-device", f"virtio-blk-device,drive=disk{index},bus=virtio-mmio-bus.{1 + index}"]
    # The slots of our VMM: the guest names its disks by them.
    slot = 1 + len(files["disks"])
    words += ["-device", f"vhost-vsock-device,guest-cid={specification['cid']},bus=virtio-mmio-bus.{slot}"]
    words += ["-device", f"virtio-rng-device,bus=virtio-mmio-bus.{slot + 1}"]
    words += ["-device", f"virtio-balloon-device,free-page-reporting=on,bus=virtio-mmio-bus.{slot + 2}"]
    return words


def card_words(specification: dict[str, Any], cards: Sequence[Any]) -> list[str]:
    """QEMU's network cards, in the slots after ``qemu_command``'s devices, as our VMM has them."""
    first = 4 + len(specification["files"]["disks"])
    words: list[str] = []
    for number, card in enumerate(cards):
        words += ["-netdev", f"tap,id=card{number},fd={card.tap},vhost=on,vhostfd={card.vhost}"]
        bus, mac = f"virtio-mmio-bus.{first + number}", card.mac.hex(":")
        words += ["-device", f"virtio-net-device,netdev=card{number},mac={mac},bus={bus}"]
    return words


def device_words(specification: dict[str, Any]) -> list[str]:
    """The host's PCI devices, by VFIO. Behind a virtual IOMMU where the specification says ``iommu``; otherwise they
    reach all of the guest's memory, which QEMU maps for them once."""
    words = ["-device", "virtio-iommu-pci"] if specification.get("iommu") else []
    for address in specification.get("devices", {}).values():
        words += ["-device", f"vfio-pci,host={address}"]
    return words


class Monitor:
    """A QMP connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(PATIENCE)
        self._lines = connection.makefile("rb")
        self._events: list[str] = []

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.connection.close()

    def greet(self) -> None:
        self._read()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        self.connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._read()
            if "event" in message:
                self._events.append(message["event"])
            elif "error" in message:
                raise RuntimeError(f"QEMU refuses {command}: {message['error'].get('desc')}")
            elif "return" in message:
                return message["return"]

    def await_event(self, name: str) -> None:
        while name not in self._events:
            message = self._read()
            if "event" in message:
                self._events.append(message["event"])
        self._events.remove(name)

    def host_address(self, address: int) -> int:
        """Where QEMU has this guest-physical address."""
        answer = self.execute("human-monitor-command", **{"command-line": f"gpa2hva {address:#x}"})
        return int(answer.split()[-1], 16)

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU is gone")
        message: dict[str, Any] = json.loads(line)
        return message
