"""In the emulated host: our VMM, started and driven as the daemon does it.

Only the standard library, and of vambrace what the daemon starts a VMM with: this file is copied into the host.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.parts.agent import INSTANCE, PACKET, PATIENCE, Agent

DEVICES = "/dev/"


def new_launcher() -> Any:
    """The host's own, which the daemon has from its start on."""
    from vambrace.jail.launcher import Launcher

    return Launcher()


def start_realm(launcher: Any, errors: Any) -> tuple[Jailed, socket.socket]:
    """A VMM process, in its jail, that was told nothing yet, and our end of its control socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        return Jailed(launcher, launcher.bring_in(theirs.fileno(), errors.fileno())), ours


class Jailed:
    """What a launcher has started: the part of Popen's interface that is used here."""

    def __init__(self, launcher: Any, started: Any) -> None:
        self._launcher = launcher
        self._handle: int = started.process
        self.pid: int = started.pid
        self._ended = False

    def __enter__(self) -> Jailed:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def kill(self) -> None:
        if not self._ended:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> None:
        if self._ended:
            return
        if not select.select([self._handle], [], [], seconds)[0]:
            raise RuntimeError("the VMM does not end")
        self._launcher.reap(self.pid)
        self._ended = True


class Control:
    """The daemon's side of the control protocol (docs/architecture.md, section 5)."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(PATIENCE)
        self._events: list[dict[str, Any]] = []
        self._next = 0

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(
        self, operation: str, files: Sequence[int] = (), *, refused: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        self._next += 1
        packet = json.dumps({"id": self._next, "op": operation, **arguments}).encode()
        socket.send_fds(self._connection, [packet], files)
        while True:
            message = self._receive()
            if "event" in message:
                self._events.append(message)
            elif message.get("id") == self._next:
                if not refused and message.get("ok") is not True:
                    raise RuntimeError(f"{operation}: {message.get('error')}")
                return message

    def load(self, specification: dict[str, Any]) -> None:
        with ExitStack() as stack:
            wanted, files = paths(specification["files"]), []
            for path in wanted.values():
                files.append(os.open(path, os.O_RDWR if path.startswith(DEVICES) else os.O_RDONLY))
                stack.callback(os.close, files[-1])
            cards = [open_card(card) for card in specification.get("cards", ())]
            for card in cards:
                stack.callback(card.close)
                files += [card.tap, card.vhost]
            names = [f"{kind}:{number}" for number in range(len(cards)) for kind in ("net", "vhost-net")]
            for name, device in open_devices(specification.get("devices", {}), stack):
                files += [device.device, device.group, device.container]
                names += [f"{kind}:{name}" for kind in ("vfio", "vfio-group", "vfio-container")]
            self.ask(
                "load",
                files,
                descriptors=[*wanted, *names],
                cards=[{"mac": card.mac.hex(), "mtu": card.mtu} for card in cards],
                instance=INSTANCE.hex(),
                share=bytes(32).hex(),
                cid=specification["cid"],
                cpus=[specification["cpu"]],
            )

    def event(self) -> dict[str, Any]:
        """The next event, waited for."""
        return self._events.pop(0) if self._events else self._receive()

    def watch(self, until: str) -> dict[str, Any] | None:
        """Serve the agent; returns when it is ready, or, with the event, when the guest is off."""
        agent = Agent()
        while True:
            event = self.event()
            if event.get("event") == "ended":
                if until == "off" and event["reason"] == "poweroff":
                    return event
                raise RuntimeError(f"the guest ended: {event}")
            if event.get("event") == "agent":
                for answer in agent.receive(base64.b64decode(event["data"])):
                    self.ask("agent", data=base64.b64encode(answer).decode())
                if agent.ready:
                    return None

    def _receive(self) -> dict[str, Any]:
        packet = self._connection.recv(PACKET)
        if not packet:
            raise RuntimeError("the VMM is gone")
        message: dict[str, Any] = json.loads(packet)
        return message


def open_card(card: dict[str, str]) -> Any:
    """The host's side of a card at the bridge that ``card`` names, as the daemon opens it."""
    from vambrace.partition import cards

    return cards.open_card(cards.Network("bench", card["bridge"], isolated=False), bytes.fromhex(card["mac"]))


def open_devices(devices: dict[str, str], stack: ExitStack) -> list[tuple[str, Any]]:
    """The host's PCI devices at these addresses, by their names in the configuration: reset, until ``stack`` ends."""
    from vambrace.config import DEVICE_KINDS
    from vambrace.partition.devices import Devices
    from vambrace.partition.handover import hand_over

    found = {device.address: device for device in Devices(list(devices.values()), DEVICE_KINDS).devices}
    return list(zip(devices, hand_over([found[address] for address in devices.values()], stack), strict=True))


def paths(files: dict[str, Any]) -> dict[str, str]:
    """What a VMM gets, by the descriptors' names."""
    config = json.loads(Path(files["config"]).read_bytes())
    disks = {f"disk:{disk['name']}": path for disk, path in zip(config["disks"], files["disks"], strict=True)}
    devices = {name: f"{DEVICES}{name}" for name in ("kvm", "userfaultfd", "vhost-vsock")}
    return {name: files[name] for name in ("config", "kernel", "initrd")} | disks | devices
