"""In the emulated host: boots one guest, under our VMM or under QEMU/KVM, and says how long each phase took.

    python3 runner.py SPECIFICATION      one JSON object each way; times in seconds, memory in bytes

Phases (docs/performance.md): ``process`` from starting the process until it takes a request, ``request`` from asking
for a domain until its VMM takes a request (ours waits, QEMU is started), ``load`` until the guest's memory and vCPUs
are ready, ``run`` from letting the vCPUs go until the guest switches itself off (``until`` "off") or its agent reports
ready (``until`` "ready"); in the second case also ``end``, from asking the VMM to end until its process is gone, and
``memory``.

Only the standard library, and of vambrace what the daemon starts a VMM with: this file is copied into the host.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

#: Seconds that anything of a guest or its VMM may take.
PATIENCE = 120.0
PACKET = 65 << 10
RAM = 0x4000_0000
DEVICES = "/dev/"
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
_INSTANCE = bytes(range(16))


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


# --- our VMM ---------------------------------------------------------------------------------------------


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
            self.ask(
                "load",
                files,
                descriptors=[*wanted, *names],
                cards=[{"mac": card.mac.hex(), "mtu": card.mtu} for card in cards],
                instance=_INSTANCE.hex(),
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


def paths(files: dict[str, Any]) -> dict[str, str]:
    """What a VMM gets, by the descriptors' names."""
    config = json.loads(Path(files["config"]).read_bytes())
    disks = {f"disk:{disk['name']}": path for disk, path in zip(config["disks"], files["disks"], strict=True)}
    devices = {name: f"{DEVICES}{name}" for name in ("kvm", "userfaultfd", "vhost-vsock")}
    return {name: files[name] for name in ("config", "kernel", "initrd")} | disks | devices


# --- QEMU ------------------------------------------------------------------------------------------------


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


def start_qemu(
    specification: dict[str, Any], errors: Any
) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket]:
    """The process, and our ends of its monitor and of the agent's port."""
    ours, theirs = socket.socketpair()
    agent, port = socket.socketpair()
    cards = [open_card(card) for card in specification.get("cards", ())]
    taps = [file for card in cards for file in (card.tap, card.vhost)]
    process = subprocess.Popen(
        [*qemu_command(specification, theirs.fileno(), port.fileno()), *card_words(specification, cards)],
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
        *("-machine", "virt,gic-version=3,acpi=off,its=off"),
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


# --- both ------------------------------------------------------------------------------------------------


class Agent:
    """What a monitor answers an agent until it is ready (docs/architecture.md, section 6)."""

    def __init__(self) -> None:
        self.ready = False
        self._partial = b""

    def receive(self, data: bytes) -> list[bytes]:
        """The answers, as bytes to send, to what ``data`` completes."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        answers = []
        for line in lines:
            request = json.loads(line)
            answer = {"id": request["id"], "ok": True}
            if request["op"] == "identity":
                answer["instance"] = _INSTANCE.hex()
            elif request["op"] == "report":
                if request["state"] != "ready":
                    raise RuntimeError(f"the agent reports {request['state']}: {request.get('detail')}")
                self.ready = True
            answers.append(json.dumps(answer).encode() + b"\n")
        return answers


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
