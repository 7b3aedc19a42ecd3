"""One domain at run time: its life, its threads and its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import Enum, auto
from typing import Concatenate, ParamSpec, TypeVar

from vambrace.errors import UsageError
from vambrace.kvm import Crashed, Interrupted, MmioRead, MmioWrite, SystemEvent, Vcpu, Vm, abi
from vambrace.machine import layout
from vambrace.machine.change import Change, Progress
from vambrace.machine.descriptors import expected
from vambrace.machine.devices import Devices
from vambrace.machine.loading import load_memory, make_vcpus, make_window, mapped, read_config
from vambrace.machine.plan import plan_boot
from vambrace.machine.request import LoadRequest
from vambrace.measure import LaunchMeasurement
from vambrace.pager import Reuse, Window, ZoneStats
from vambrace.pager.cost import fault_ns
from vambrace.virtio.console import RX_AGENT, RX_CONSOLE
from vambrace.virtio.device import signal as wake
from vambrace.virtio.memory import GuestMemory

_KICK = signal.SIGUSR1  # makes a vCPU thread leave the kernel
_JOIN_SECONDS = 2.0
#: How long whoever asks for a change of percentage waits for it to be done: most are.
_AT_ONCE_SECONDS = 0.05

P = ParamSpec("P")
R = TypeVar("R")


class State(Enum):
    EMPTY = auto()
    LOADED = auto()  # 401, 402: memory and vCPUs are measured, nothing has run
    RUNNING = auto()  # 404 on
    CLOSED = auto()  # keys and memory are gone


class Reason(Enum):
    """Why a domain ended."""

    POWEROFF = "poweroff"
    RESET = "reset"
    CRASH = "crash"
    INTEGRITY = "integrity"


def require(
    *states: State,
) -> Callable[[Callable[Concatenate[Machine, P], R]], Callable[Concatenate[Machine, P], R]]:
    """The method may be called in ``states`` only, else it raises ``UsageError``."""

    def decorate(method: Callable[Concatenate[Machine, P], R]) -> Callable[Concatenate[Machine, P], R]:
        def checked(self: Machine, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if self.state not in states:
                raise UsageError(f"{method.__name__}: not possible while {self.state.name.lower()}")
            return method(self, *args, **kwargs)

        checked.__doc__ = method.__doc__
        return checked

    return decorate


class Machine:
    """All methods belong to one thread. ``agent`` and ``console`` get the guest's bytes in the I/O thread;
    ``console`` is used only where the measured configuration says debug."""

    def __init__(self, agent: Callable[[bytes], None], console: Callable[[bytes], None]) -> None:
        self.state = State.EMPTY
        # Readable when the domain ended; until ``close``.
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.ran = 0.0  # seconds from the first instruction to the end
        self.failure_fd = -1  # readable when the pager failed; from ``load`` on
        self.config_digest = b""  # SHA-256 of the configuration that was measured; from ``load`` on
        self._started = 0.0
        self._ended: tuple[Reason, str] | None = None
        self._ending = threading.Lock()
        self._stopping = False
        self._stack = ExitStack()
        self._window: Window | None = None
        self._userfaultfd = 0
        self._change: Change | None = None  # the last one
        self._zones = 0
        self._encrypted = True
        self._cpus: tuple[int, ...] = ()
        self._fault_ns = 0  # not measured yet
        self._vcpus: list[tuple[Vcpu, threading.Thread]] = []
        self._io: threading.Thread | None = None
        self._io_wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._devices = Devices(agent, console)

    # --- load: 401 and 402 -------------------------------------------------------------------------------

    @require(State.EMPTY)
    def load(self, request: LoadRequest) -> bytes:
        """Make the domain and return its launch measurement, empty where it is not measured.

        After an error only ``close`` is possible.

        Raises ``ConfigError``, ``KvmError``, ``PagerError``, ``UsageError`` (not the domain's descriptors).
        """
        files = request.descriptors
        config = read_config(files)
        files.require([name for name in expected(config) if name != "config"])
        if len(request.cards) != len(config.networks):
            raise UsageError(f"{len(config.networks)} networks are configured, {len(request.cards)} cards given")
        self._userfaultfd = files.take("userfaultfd")
        self._stack.callback(os.close, self._userfaultfd)
        with mapped(files, "kernel") as kernel, mapped(files, "initrd") as initrd, files.use("kvm") as kvm:
            plan = plan_boot(config, kernel, initrd)
            window = self._window = make_window(request, config, plan, self._userfaultfd)
            self.failure_fd = window.failure_fd
            vm = self._stack.enter_context(Vm(kvm, plan.address_bits))
            vm.map(0, layout.RAM, window.address, window.size)
            encoded = config.encode()
            self.config_digest = hashlib.sha256(encoded).digest()
            measurement = LaunchMeasurement(config.hash, encoded) if config.kind.measured else None
            load_memory(window, plan, measurement)
            vcpus = make_vcpus(vm, plan, measurement)
        for index, vcpu in enumerate(vcpus):
            cpu = request.cpus[index % len(request.cpus)] if request.cpus else None
            thread = threading.Thread(target=self._run_vcpu, args=(vcpu, cpu), daemon=True)
            self._vcpus.append((vcpu, thread))
        self._zones = len(config.zones)
        self._encrypted = config.kind.encrypted
        self._cpus = request.cpus
        memory = GuestMemory(window.memory(), layout.RAM, window.address)
        if plan.pci:
            self._devices.make_pci(vm, memory, window, plan.end, files, config)
        self._devices.make(vm, memory, window.discard, config, request)
        self.state = State.LOADED
        return measurement.digest() if measurement else b""

    def frames(self) -> dict[str, int]:
        """Where guest memory is whose page frames were chosen, in this process: each page at one of two addresses."""
        window = self._window
        return {"guest": window.address, "side": window.side} if window is not None and window.placed else {}

    # --- run: 404 on -------------------------------------------------------------------------------------

    @require(State.LOADED)
    def start(self) -> None:
        """Let the vCPUs run; returns when they do."""
        signal.signal(_KICK, lambda number, frame: None)
        self._io = threading.Thread(target=self._run_io, name="io", daemon=True)
        self._io.start()
        self._started = time.monotonic()
        for _, thread in self._vcpus:
            thread.start()
        self.state = State.RUNNING

    @require(State.LOADED, State.RUNNING)
    def encrypt(self, zone: int, percent: int) -> Progress:
        """Begin to change a zone's percentage, and say how far that is: perhaps it is done.

        Raises ``PagerError``, ``UsageError`` (one change at a time).
        """
        assert self._window is not None
        if not self._encrypted:
            raise UsageError("this domain's memory is not encrypted")
        self._check_unchanging()
        self._change = Change(self._window, zone, percent)
        self._change.wait(_AT_ONCE_SECONDS)
        return self._change.progress()

    @require(State.LOADED, State.RUNNING)
    def change(self) -> Progress:
        """How far the last change is. Raises ``PagerError`` (it failed), ``UsageError`` (there was none)."""
        if self._change is None:
            raise UsageError("no percentage was changed yet")
        return self._change.progress()

    def _check_unchanging(self) -> None:
        """The window does one thing after the other, and whoever came second would wait for the first."""
        if self._change is not None and self._change.under_way:
            raise UsageError("a percentage is being changed", hint="try again when that has ended")

    @require(State.LOADED, State.RUNNING)
    def stats(self) -> list[ZoneStats]:
        """Raises ``PagerError``."""
        assert self._window is not None
        return [self._window.stats(zone) for zone in range(self._zones)]

    @require(State.LOADED, State.RUNNING)
    def sample(self, on: bool, zones: Sequence[int] | None = None) -> None:
        """Begin to sample how soon pages are touched again, in these zones or all, or end it.

        Raises ``PagerError``, ``UsageError`` (while a percentage is being changed).
        """
        assert self._window is not None
        self._check_unchanging()
        for zone in range(self._zones) if zones is None else zones:
            self._window.sample(zone, on)

    @require(State.LOADED, State.RUNNING)
    def reuse(self) -> tuple[list[Reuse], int]:
        """What sampling has found in each zone, and the cost of a fault in nanoseconds. Raises ``PagerError``."""
        assert self._window is not None
        if not self._fault_ns:
            self._fault_ns = fault_ns(self._cpus, self._userfaultfd)
        return [self._window.reuse(zone) for zone in range(self._zones)], self._fault_ns

    @require(State.RUNNING)
    def agent(self, data: bytes) -> None:
        """Send bytes to the agent. Raises ``UsageError`` when it does not take what it has asked for."""
        if not self._devices.send(RX_AGENT, data):
            raise UsageError("the agent does not read: too many bytes wait for it")

    @require(State.RUNNING)
    def console(self, data: bytes) -> None:
        """Type at the guest's console. Raises ``UsageError``: it has none for the operator, or nobody reads there."""
        if not self._devices.typed:
            raise UsageError("this domain's console is nobody's")
        if not self._devices.send(RX_CONSOLE, data):
            raise UsageError("the guest does not read its console")

    def ended(self) -> tuple[Reason, str] | None:
        """Why the domain ended, with a line of detail; None while it did not."""
        failure = self._window.failure() if self._window is not None else None
        if failure is not None:
            return Reason.INTEGRITY, f"page {failure.page} of zone {failure.zone}: {failure.reason}"
        return self._ended

    # --- threads -----------------------------------------------------------------------------------------

    def _end(self, reason: Reason, detail: str) -> None:
        """The first reason counts."""
        with self._ending:
            if self._ended is None and not self._stopping:
                self._ended = reason, detail
                self.ran = time.monotonic() - self._started
                wake(self.ended_fd)

    def _run_vcpu(self, vcpu: Vcpu, cpu: int | None) -> None:
        try:
            if cpu is not None:
                # A fault is answered fastest where it happened: by the handler on the vCPU's own CPU.
                os.sched_setaffinity(0, {cpu})
            while not self._stopping and self._ended is None:
                self._step(vcpu)
        except Exception as error:  # whatever it is, the domain must end in order
            self._end(Reason.CRASH, f"the monitor failed: {type(error).__name__}")

    def _step(self, vcpu: Vcpu) -> None:
        match vcpu.run():
            case MmioRead(address, length):
                vcpu.answer(self._devices.read(address, length))
            case MmioWrite(address, data):
                self._devices.write(address, data)
            case SystemEvent(abi.SYSTEM_EVENT_SHUTDOWN):
                self._end(Reason.POWEROFF, "the guest switched itself off")
            case SystemEvent(abi.SYSTEM_EVENT_RESET):
                self._end(Reason.RESET, "the guest reset itself")
            case SystemEvent(kind):
                self._end(Reason.CRASH, f"system event {kind}")
            case Crashed(detail):
                self._end(Reason.CRASH, detail)
            case Interrupted():
                pass

    def _run_io(self) -> None:
        try:
            self._devices.serve(self._io_wake, lambda: self._stopping)
        except Exception as error:
            self._end(Reason.CRASH, f"the monitor's devices failed: {type(error).__name__}")

    # --- end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop everything, wipe keys and memory. In every state, also after a failure; twice does no harm."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        with self._ending:  # from here on nobody announces an end
            self._stopping = True
            os.close(self.ended_fd)
        wake(self._io_wake)
        self._stop_threads()
        window, self._window = self._window, None
        if window is not None:
            self._devices.let_go(reset=window.failure() is None)
            # Threads that wait for a page of a failed window are let go by this, and a change of percentage ends.
            window.close()
            self._stop_threads()
            if self._change is not None:
                self._change.wait(_JOIN_SECONDS)
        # What a thread that would not stop may still use is left to the end of the process: the number of a
        # descriptor that is closed soon belongs to something else.
        if any(thread.is_alive() for thread in self._threads()):
            return
        self._devices.close()
        self._stack.close()
        os.close(self._io_wake)

    def _threads(self) -> list[threading.Thread]:
        return [*(thread for _, thread in self._vcpus), *([self._io] if self._io else [])]

    def _stop_threads(self) -> None:
        for vcpu, thread in self._vcpus:
            vcpu.stop()
            if thread.is_alive() and thread.ident is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pthread_kill(thread.ident, _KICK)
        for thread in self._threads():
            if thread.ident is not None:
                thread.join(_JOIN_SECONDS)
