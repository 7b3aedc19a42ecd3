"""One domain at run time: the boot plan made real with KVM, its devices and threads."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from enum import Enum, auto
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from vambrace.config import MAX_CONFIG_BYTES, Disk, DomainConfig
from vambrace.errors import ConfigError, UsageError
from vambrace.kvm import Crashed, Interrupted, MmioRead, MmioWrite, SystemEvent, Vcpu, Vm, abi
from vambrace.machine import layout
from vambrace.machine.change import Change, Progress
from vambrace.machine.descriptors import CARD, Descriptors, expected
from vambrace.machine.keys import PAGE_KEY_BYTES, page_key
from vambrace.machine.pci import Pci, assigned
from vambrace.machine.plan import BootPlan, plan_boot
from vambrace.measure import LaunchMeasurement
from vambrace.pager import Place, Reuse, Window, ZoneStats
from vambrace.pager.cost import fault_ns
from vambrace.record import Record
from vambrace.virtio.balloon import Balloon, Discard
from vambrace.virtio.block import Block
from vambrace.virtio.console import RX_AGENT, RX_CONSOLE, Console
from vambrace.virtio.device import Device, KernelDevice
from vambrace.virtio.device import signal as wake
from vambrace.virtio.entropy import Entropy
from vambrace.virtio.memory import GuestMemory
from vambrace.virtio.mmio import NOTIFY, Transport
from vambrace.virtio.net import Card, Net
from vambrace.virtio.vsock import Vsock

_KICK = signal.SIGUSR1  # makes a vCPU thread leave the kernel
#: Bytes whose hashing takes longer than to start a thread.
_WORTH_A_THREAD = 1 << 20
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


class LoadRequest(Record):
    """Files and identity of one domain. ``instance`` has 16 bytes; TrustZone's ``share`` of the page key has 32, and is
    there where something is encrypted. Both are for this run only.

    What ``load`` does not take of ``descriptors`` stays the caller's.
    """

    descriptors: Descriptors
    instance: bytes
    share: bytes | None
    cid: int
    cards: tuple[tuple[bytes, int], ...] = ()  # of each network: the guest's address there, and its largest packet
    cpus: tuple[int, ...] = ()  # vCPU i runs on the i-th of them, in turn; none: anywhere
    place: Place | None = None  # chooses the page frames of guest memory

    def __repr__(self) -> str:
        return "LoadRequest(…)"  # never the share


def _page_key(request: LoadRequest, config: DomainConfig) -> bytes:
    """Where nothing is encrypted, the window has a key that nobody shares in, and never uses it."""
    if request.share is None:
        return os.urandom(PAGE_KEY_BYTES)
    return page_key(request.share, request.instance, config.suite.digests[0])


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
        self._agent_sink = agent
        self._console_sink = console
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
        self._transports: list[Transport] = []
        self._pci: Pci | None = None

    # --- load: 401 and 402 -------------------------------------------------------------------------------

    @require(State.EMPTY)
    def load(self, request: LoadRequest) -> bytes:
        """Make the domain and return its launch measurement, empty where it is not measured.

        After an error only ``close`` is possible.

        Raises ``ConfigError``, ``KvmError``, ``PagerError``, ``UsageError`` (not the domain's descriptors).
        """
        files = request.descriptors
        with files.use("config") as file:
            config = DomainConfig.parse(_read(file, MAX_CONFIG_BYTES))
        files.require([name for name in expected(config) if name != "config"])
        if len(request.cards) != len(config.networks):
            raise UsageError(f"{len(config.networks)} networks are configured, {len(request.cards)} cards given")
        self._userfaultfd = files.take("userfaultfd")
        self._stack.callback(os.close, self._userfaultfd)
        with _mapped(files, "kernel") as kernel, _mapped(files, "initrd") as initrd, files.use("kvm") as kvm:
            plan = plan_boot(config, kernel, initrd)
            window = self._window = Window(
                [
                    (plan_zone.size // layout.PAGE, plan_zone.percent, zone.pins // layout.PAGE)
                    for plan_zone, zone in zip(plan.zones, config.zones, strict=True)
                ],
                _page_key(request, config),
                request.instance,
                cipher=config.cipher,
                handler_cpus=sorted(set(request.cpus)),
                userfaultfd=self._userfaultfd,
                place=request.place,
            )
            self.failure_fd = window.failure_fd
            vm = self._stack.enter_context(Vm(kvm, plan.address_bits))
            vm.map(0, layout.RAM, window.address, window.size)
            encoded = config.encode()
            self.config_digest = hashlib.sha256(encoded).digest()
            measurement = LaunchMeasurement(config.hash, encoded) if config.kind.measured else None
            _load_memory(window, plan, measurement)
            vcpus = _make_vcpus(vm, plan, measurement)
        for index, vcpu in enumerate(vcpus):
            cpu = request.cpus[index % len(request.cpus)] if request.cpus else None
            thread = threading.Thread(target=self._run_vcpu, args=(vcpu, cpu), daemon=True)
            self._vcpus.append((vcpu, thread))
        self._zones = len(config.zones)
        self._encrypted = config.kind.encrypted
        self._cpus = request.cpus
        memory = GuestMemory(window.memory(), layout.RAM, window.address)
        if plan.pci:
            self._pci = _make_pci(vm, memory, window, plan.end, files, config)
        self._make_devices(vm, memory, window.discard, config, request)
        self.state = State.LOADED
        return measurement.digest() if measurement else b""

    def frames(self) -> dict[str, int]:
        """Where guest memory is whose page frames were chosen, in this process: each page at one of two addresses."""
        window = self._window
        return {"guest": window.address, "side": window.side} if window is not None and window.placed else {}

    def _make_devices(
        self, vm: Vm, memory: GuestMemory, discard: Discard, config: DomainConfig, request: LoadRequest
    ) -> None:
        files = request.descriptors
        self._console = Console(
            self._agent_sink if config.kind.attested else None, self._console_sink if config.console else None
        )
        self._typed = config.console
        makers: dict[str, Callable[[], Device]] = {
            "console": lambda: self._console,
            "vsock": lambda: Vsock(files.take("vhost-vsock"), request.cid),
            "entropy": Entropy,
            "balloon": lambda: Balloon(discard),
        }
        for disk in config.disks:
            makers[f"disk {disk.name}"] = partial(_disk, files, disk)
        for number, (name, card) in enumerate(zip(config.networks, request.cards, strict=True)):
            makers[f"network {name}"] = partial(_card, files, number, *card)
        pci = self._pci
        if pci is not None:
            makers["iommu"] = lambda: pci.iommu
        slots = layout.device_slots(config.disks, config.networks, agent=config.kind.attested, pci=pci is not None)
        for slot, name in enumerate(slots):
            self._add(vm, memory, slot, makers[name]())

    def _add(self, vm: Vm, memory: GuestMemory, slot: int, device: Device) -> None:
        transport = Transport(device, memory)
        self._transports.append(transport)
        vm.interrupt_on(transport.interrupt, slot)
        if device.direct:
            return
        for index, kick in enumerate(transport.kicks):
            vm.notify_on(kick, layout.device_address(slot) + NOTIFY, index)

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
        if not self._send(RX_AGENT, data):
            raise UsageError("the agent does not read: too many bytes wait for it")

    @require(State.RUNNING)
    def console(self, data: bytes) -> None:
        """Type at the guest's console. Raises ``UsageError``: it has none for the operator, or nobody reads there."""
        if not self._typed:
            raise UsageError("this domain's console is nobody's")
        if not self._send(RX_CONSOLE, data):
            raise UsageError("the guest does not read its console")

    def _send(self, index: int, data: bytes) -> bool:
        transport = next(found for found in self._transports if found.device is self._console)
        with transport.lock:
            accepted = self._console.send(index, data)
        wake(transport.kicks[index])
        return accepted

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
                transport, offset = self._find(address)
                if transport:
                    vcpu.answer(transport.read(offset, length))
                else:
                    vcpu.answer(self._pci.read(address, length) if self._pci else bytes(length))
            case MmioWrite(address, data):
                transport, offset = self._find(address)
                if transport:
                    transport.write(offset, data)
                elif self._pci:
                    self._pci.write(address, data)
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

    def _find(self, address: int) -> tuple[Transport | None, int]:
        slot, offset = divmod(address - layout.MMIO, layout.MMIO_SIZE)
        return (self._transports[slot] if 0 <= slot < len(self._transports) else None), offset

    def _run_io(self) -> None:
        """Serve all queues that are not the kernel's."""
        try:
            served = {
                kick: (transport, index)
                for transport in self._transports
                if not isinstance(transport.device, KernelDevice)
                for index, kick in enumerate(transport.kicks)
            }
            with select.epoll() as poll:
                poll.register(self._io_wake, select.EPOLLIN)
                for kick in served:
                    poll.register(kick, select.EPOLLIN)
                while True:
                    for fd, _ in poll.poll():
                        if self._stopping:
                            return
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(fd)
                        transport, index = served[fd]
                        transport.process(index)
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
            users = [self._pci.quiet] if self._pci else []
            if window.failure() is None:
                users += [transport.reset for transport in self._transports]
            for let_go in users:
                # A device that is broken keeps nobody's keys and memory from being wiped.
                with contextlib.suppress(Exception):
                    let_go()
            # Threads that wait for a page of a failed window are let go by this, and a change of percentage ends.
            window.close()
            self._stop_threads()
            if self._change is not None:
                self._change.wait(_JOIN_SECONDS)
        # What a thread that would not stop may still use is left to the end of the process: the number of a
        # descriptor that is closed soon belongs to something else.
        if any(thread.is_alive() for thread in self._threads()):
            return
        for transport in self._transports:
            transport.close()
        if self._pci:
            self._pci.close()
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


def _load_memory(window: Window, plan: BootPlan, measurement: LaunchMeasurement | None) -> None:
    """Load every segment and measure what is then in guest memory, not what was in the file."""
    for segment in plan.segments:
        offset = segment.gpa - layout.RAM
        window.load(offset, segment.data)
        size = len(segment.data)
        if measurement is None:
            continue
        measurement.pages(segment.gpa, size, _digests(window, offset, size, measurement.algorithm))


def _digests(window: Window, offset: int, size: int, algorithm: str) -> bytes:
    """As ``Window.digests``, by two threads where there is much: it is most of what a start waits for."""
    half = size // 2 // layout.PAGE * layout.PAGE
    if half < _WORTH_A_THREAD:
        return window.digests(offset, size, algorithm)
    found: list[bytes] = []
    errors: list[Exception] = []

    def second() -> None:
        try:
            found.append(window.digests(offset + half, size - half, algorithm))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    try:
        first = window.digests(offset, half, algorithm)
    finally:
        thread.join()
    if errors:
        raise errors[0]
    return first + found[0]


def _card(files: Descriptors, number: int, mac: bytes, mtu: int) -> Net:
    tap, vhost = (files.take(f"{kind}:{number}") for kind in CARD)
    return Net(Card(tap, vhost, mac, mtu))


def _make_pci(
    vm: Vm, memory: GuestMemory, window: Window, end: int, files: Descriptors, config: DomainConfig
) -> Pci:
    return Pci(vm, memory, window, end, assigned(files, [device.name for device in config.devices]))


def _disk(files: Descriptors, disk: Disk) -> Block:
    kind = "volume" if disk.plain else "disk"
    block = Block(files.take(f"{kind}:{disk.name}"), disk.name, writable=disk.plain)
    if block.size != disk.size:
        block.close()
        raise ConfigError(f"disk {disk.name}: {block.size} bytes instead of {disk.size}")
    return block


def _make_vcpus(vm: Vm, plan: BootPlan, measurement: LaunchMeasurement | None) -> list[Vcpu]:
    if len(plan.vcpus) > vm.max_vcpus:
        raise ConfigError(f"{len(plan.vcpus)} vCPUs: this machine allows {vm.max_vcpus}")
    vcpus = []
    for state in plan.vcpus:
        vcpu = vm.vcpu(state.index, powered_on=state.powered_on)
        vcpu.set_registers(state.registers)
        if measurement is not None:
            measurement.vcpu(state)
        vcpus.append(vcpu)
    vm.interrupt_controller(layout.GIC_DISTRIBUTOR, layout.GIC_REDISTRIBUTORS, layout.GIC_INTERRUPTS)
    return vcpus


def _read(file: int, limit: int) -> bytes:
    """At most one byte more than ``limit``, from the file's beginning: whoever opened it may have read it."""
    try:
        return os.pread(file, limit + 1, 0)
    except OSError as error:
        raise ConfigError(f"config: cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def _mapped(files: Descriptors, name: str) -> Iterator[memoryview]:
    """A file's bytes without a copy."""
    try:
        with files.use(name) as file:
            mapping = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read ({error})") from error
    with mapping, memoryview(mapping) as view:
        yield view
