"""QEMU: its command line, its process, and its monitor (QMP)."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace.emulator.diagnosis import refusal
from vambrace.errors import ServerError, ToolMissing

PROGRAM = "qemu-system-aarch64"
OLDEST = (8, 2)
RAM_BASE = 0x4000_0000
RAM_MIB = 3072
CPUS = 2
#: PCI slots, each below a root port: for devices that are plugged in while the machine runs.
SLOTS = 2
#: Where Realms of the server find a key broker that listens on this machine, by default on the same port.
BROKER = ("10.0.2.100", 8444)


@dataclass(frozen=True)
class Memory:
    """Memory that is an object of its own: anonymous, for a machine that will be saved, or as ``Saved`` has it."""

    saved: Saved | None = None


@dataclass(frozen=True)
class Saved:
    """A machine's state: its memory, which stays as it is whatever the machine writes, and its devices."""

    ram: Path
    devices: Path


@dataclass(frozen=True)
class Machine:
    """One emulated server's hardware. ``flash`` None: no firmware, no TrustZone, the kernel is started directly.

    ``ports`` are further virtio serial ports, each a socket ``NAME.sock`` in ``directory``.
    """

    directory: Path
    port: int
    kernel: Path
    initrd: Path
    root: Path
    state: Path
    cmdline: str = ""
    flash: Path | None = None
    dtb: Path | None = None
    loads: tuple[tuple[Path, int], ...] = ()
    ports: tuple[str, ...] = ()
    memory: Memory | None = None
    broker: int = BROKER[1]

    @property
    def resumed(self) -> bool:
        """Whether it goes on from a saved state."""
        return self.memory is not None and self.memory.saved is not None

    @property
    def monitor(self) -> Path:
        return self.directory / "qmp.sock"

    @property
    def gate(self) -> Path:
        return self.directory / "gate.sock"

    @property
    def log(self) -> Path:
        return self.directory / "console.log"

    @property
    def secure_log(self) -> Path:
        return self.directory / "secure.log"

    def command(self) -> list[str]:
        """The words that start this machine."""
        words = [program(), *self._hardware()]
        if self.flash is None:
            boot = ["-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", self.cmdline]
            return [*words, *boot]
        for file, address in self.loads:
            words += ["-device", f"loader,file={file},addr={address:#x},force-raw=on"]
        return words

    def _outwards(self) -> str:
        """The one place outside that the server reaches: a port of this machine, where a key broker may listen."""
        words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("outwards.py")), str(self.broker)]
        command = shlex.join(words).replace(",", ",,")
        return f"guestfwd=tcp:{BROKER[0]}:{BROKER[1]}-cmd:{command}"

    def _hardware(self) -> list[str]:
        inwards = f"hostfwd=tcp:127.0.0.1:{self.port}-:8443"
        words = [
            *base_options(secure=self.flash is not None, memory=self.memory is not None),
            "-display",
            "none",
            "-no-user-config",
            "-nodefaults",
            "-no-reboot",
            *("-rtc", "base=utc"),
            *("-serial", f"file:{self.log}"),
            *("-serial", f"file:{self.secure_log}"),
            *("-qmp", f"unix:{self.monitor},server=on,wait=off"),
            *("-pidfile", str(self.directory / "qemu.pid")),
            *("-netdev", ",".join(("user,id=net,restrict=on", inwards, self._outwards()))),
            *("-device", "virtio-net-device,netdev=net"),
            *("-drive", f"file={self.state},format=raw,if=none,id=state,cache=writeback"),
            *("-device", "virtio-blk-device,drive=state"),
            *("-drive", f"file={self.root},format=raw,if=none,id=root,readonly=on"),
            *("-device", "virtio-blk-device,drive=root"),
            *("-chardev", f"socket,id=gate,path={self.gate},server=on,wait=off"),
            *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=gate,name=vambrace.gate"),
        ]
        for slot in range(SLOTS):
            words += ["-device", f"pcie-root-port,id=slot{slot},chassis={slot + 1},slot={slot}"]
        for name in self.ports:
            words += ["-chardev", f"socket,id={name},path={self.directory / name}.sock,server=on,wait=off"]
            words += ["-device", f"virtserialport,chardev={name},name={name}"]
        if self.memory is not None:
            saved = self.memory.saved
            kind = f"memory-backend-file,mem-path={saved.ram},share=off" if saved else "memory-backend-memfd,share=on"
            words += ["-object", f"{kind},id=ram,size={RAM_MIB}M"]
            if saved:
                # Deferred: what the stream leaves out has to be said before it is read.
                words += ["-incoming", "defer"]
        if self.flash is not None:
            words += ["-drive", f"if=pflash,unit=0,format=raw,file={self.flash}"]
        if self.dtb is not None:
            words += ["-dtb", str(self.dtb)]
        return words


def base_options(*, secure: bool, memory: bool = False) -> list[str]:
    """Processor, memory and board: the options that determine the device tree. ``memory``: it is the object "ram"."""
    board = "virt,virtualization=on,gic-version=3,iommu=smmuv3,acpi=off,dtb-randomness=off"
    board += ",secure=on" if secure else ""
    board += ",memory-backend=ram" if memory else ""
    return [
        *("-machine", board),
        *("-cpu", "max,sve=off,sme=off,pauth-impdef=on"),
        *("-accel", "tcg,thread=multi"),
        *("-smp", str(CPUS)),
        *("-m", str(RAM_MIB)),
    ]


def program() -> str:
    """Path of QEMU. Raises ToolMissing, or ServerError where it is too old."""
    path = shutil.which(PROGRAM)
    if path is None:
        raise ToolMissing(PROGRAM)
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", text)
    if not found or (int(found[1]), int(found[2])) < OLDEST:
        raise ServerError(
            f"{PROGRAM} is older than {OLDEST[0]}.{OLDEST[1]}",
            hint="on Debian 12 take it from backports: 'make packages'",
        )
    return path


def start(machine: Machine) -> int:
    """Start QEMU in a session of its own, return its process id. Raises ServerError."""
    sockets = (machine.monitor, machine.gate, *(machine.directory / f"{name}.sock" for name in machine.ports))
    for old in (*sockets, machine.log, machine.secure_log):
        old.unlink(missing_ok=True)
    errors = machine.directory / "qemu.log"
    with errors.open("wb") as sink:
        process = subprocess.Popen(
            machine.command(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    deadline = time.monotonic() + 20
    while not machine.monitor.exists():
        if process.poll() is not None:
            raise ServerError(f"QEMU ended at once: {errors.read_text(errors='replace').strip()[-500:]}")
        if time.monotonic() > deadline:
            process.kill()
            raise ServerError("QEMU does not open its monitor", hint=f"see {errors}")
        time.sleep(0.02)
    if machine.resumed:
        try:
            _resume(machine)
        except ServerError:
            process.kill()
            process.wait()
            raise
    return process.pid


def _resume(machine: Machine) -> None:
    assert machine.memory is not None and machine.memory.saved is not None
    devices = machine.memory.saved.devices
    with Monitor(machine.monitor) as monitor:
        migrate(monitor, "migrate-incoming", devices)
        monitor.execute("cont")  # it was stopped when it was saved


def migrate(monitor: Monitor, command: str, file: Path, seconds: float = 120) -> None:
    """``migrate`` to ``file`` or ``migrate-incoming`` from it, all but the memory that is an object of its own.

    Raises ServerError.
    """
    capabilities = [{"capability": "x-ignore-shared", "state": True}]
    monitor.execute("migrate-set-capabilities", capabilities=capabilities)
    monitor.execute(command, uri=f"file:{file.resolve()}")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = monitor.execute("query-migrate")
        if answer.get("status") == "completed":
            return
        if answer.get("status") in ("failed", "cancelled"):
            raise ServerError(f"the machine's state cannot be transferred: {answer.get('error-desc', 'no reason')}")
        time.sleep(0.02)
    raise ServerError(f"the machine's state is not transferred after {seconds:.0f} s")


@contextmanager
def at_gate(machine: Machine, pid: int, *, seconds: float) -> Iterator[socket.socket]:
    """A connection to the gate of a machine that waits there. Raises ServerError."""
    with socket.socket(socket.AF_UNIX) as gate:
        directory = os.open(machine.directory, os.O_PATH | os.O_DIRECTORY)
        try:
            _connect(gate, f"/proc/self/fd/{directory}/{machine.gate.name}")
        finally:
            os.close(directory)
        if not machine.resumed:
            _expect(gate, b"ready\n", machine, pid, seconds)
        yield gate


def _connect(gate: socket.socket, path: str) -> None:
    """The monitor's socket is there first; of a machine that has just been started this one may not listen yet."""
    deadline = time.monotonic() + 20
    while True:
        try:
            gate.connect(path)
            return
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() > deadline:
                raise ServerError(f"the emulator does not open its gate: {error.strerror}") from error
            time.sleep(0.02)


def open_gate(gate: socket.socket, machine: Machine, pid: int) -> None:
    """Give the machine the time and fresh entropy, and let it through. Raises ServerError."""
    gate.sendall(f"go {time.time():.3f} {os.urandom(64).hex()}\n".encode())
    _expect(gate, b"going\n", machine, pid, 30)


def _expect(gate: socket.socket, word: bytes, machine: Machine, pid: int, seconds: float) -> None:
    gate.settimeout(0.5)
    deadline = time.monotonic() + seconds
    said = b""
    while word not in said:
        gone = wait_gone(pid, 0)
        if (refused := refusal(machine.log)) is not None:
            raise refused
        if gone:
            raise ServerError(
                f"the emulated server stopped; the end of its console:\n{tail(machine.log)}",
                hint=f"see console.log, secure.log and qemu.log in {machine.directory}",
            )
        if time.monotonic() > deadline:
            raise ServerError(
                f"the emulated server did not start within {seconds:.0f} s; the end of its console:\n"
                + tail(machine.log),
                hint=f"see console.log and secure.log in {machine.directory}",
            )
        try:
            said += gate.recv(64)
        except TimeoutError:
            continue


def memory_of(pid: int) -> Path:
    """The anonymous memory object of the running machine ``pid``, to be read. Raises ServerError."""
    for link in sorted(Path(f"/proc/{pid}/fd").iterdir()):
        if str(link.readlink()).startswith("/memfd:memory-backend-memfd"):
            return link
    raise ServerError("the emulator's memory is not where it is looked for", hint=f"another version of {PROGRAM}?")


def running(directory: Path) -> int | None:
    """The process id of the QEMU that serves ``directory``, if it lives."""
    try:
        pid = int((directory / "qemu.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if PROGRAM.encode() in command and str(directory).encode() in command else None


def stop(directory: Path) -> bool:
    """Stop the machine in ``directory`` if it runs; whether it did."""
    pid = running(directory)
    if pid is None:
        return False
    try:
        with Monitor(directory / "qmp.sock", timeout=10) as monitor:
            monitor.execute("quit")
    except ServerError:
        os.kill(pid, signal.SIGKILL)
    if not wait_gone(pid, 20):
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid, 10)
    (directory / "qemu.pid").unlink(missing_ok=True)
    return True


class Monitor:
    """A QMP connection (QEMU Machine Protocol 1.0); a context manager. Raises ServerError."""

    def __init__(self, path: Path, *, timeout: float = 120.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        # AF_UNIX paths are short; the directory may not be.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        except OSError as error:
            self._socket.close()
            raise ServerError(f"the emulator's monitor does not answer: {error}") from error
        finally:
            os.close(directory)
        self._file = self._socket.makefile("rb")
        self._file.readline()
        self.execute("qmp_capabilities")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command, return its answer."""
        request = {"execute": command, "arguments": arguments} if arguments else {"execute": command}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while line := self._file.readline():
                answer = json.loads(line)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise ServerError(f"the emulator refuses {command}: {answer['error'].get('desc')}")
        except OSError as error:
            raise ServerError(f"the emulator's monitor is gone: {error}") from error
        if command == "quit":
            return None
        raise ServerError("the emulator's monitor closed")


def wait_gone(pid: int, seconds: float) -> bool:
    """Whether process ``pid`` ended within ``seconds``: all its threads, of which each holds its files."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            process = Path(f"/proc/{pid}")
            zombie = (process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if zombie and len(list((process / "task").iterdir())) == 1:
                os.waitpid(pid, os.WNOHANG)
                return True
        except (OSError, ChildProcessError):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def tail(file: Path, count: int = 15) -> str:
    """The last lines of a log, for a message."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-count:])
