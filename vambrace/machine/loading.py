"""What of a domain is measured, loaded and made: its configuration, its memory, its vCPUs (401 and 402)."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator

from vambrace.config import MAX_CONFIG_BYTES, DomainConfig
from vambrace.errors import ConfigError
from vambrace.kvm import Vcpu, Vm
from vambrace.machine import layout
from vambrace.machine.descriptors import Descriptors
from vambrace.machine.keys import PAGE_KEY_BYTES, page_key
from vambrace.machine.plan import BootPlan
from vambrace.machine.request import LoadRequest
from vambrace.measure import LaunchMeasurement
from vambrace.pager import Window

#: Bytes whose hashing takes longer than to start a thread.
_WORTH_A_THREAD = 1 << 20


def read_config(files: Descriptors) -> DomainConfig:
    """Raises ``ConfigError``, ``UsageError``."""
    with files.use("config") as file:
        return DomainConfig.parse(_read(file, MAX_CONFIG_BYTES))


@contextlib.contextmanager
def mapped(files: Descriptors, name: str) -> Iterator[memoryview]:
    """A file's bytes without a copy. Raises ``ConfigError``, ``UsageError``."""
    try:
        with files.use(name) as file:
            mapping = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read ({error})") from error
    with mapping, memoryview(mapping) as view:
        yield view


def make_window(request: LoadRequest, config: DomainConfig, plan: BootPlan, userfaultfd: int) -> Window:
    """The domain's memory, empty. Raises ``PagerError``."""
    return Window(
        [
            (plan_zone.size // layout.PAGE, plan_zone.percent, zone.pins // layout.PAGE)
            for plan_zone, zone in zip(plan.zones, config.zones, strict=True)
        ],
        _page_key(request, config),
        request.instance,
        cipher=config.cipher,
        handler_cpus=sorted(set(request.cpus)),
        userfaultfd=userfaultfd,
        place=request.place,
    )


def load_memory(window: Window, plan: BootPlan, measurement: LaunchMeasurement | None) -> None:
    """Load every segment and measure what is then in guest memory, not what was in the file. Raises
    ``PagerError``."""
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


def make_vcpus(vm: Vm, plan: BootPlan, measurement: LaunchMeasurement | None) -> list[Vcpu]:
    """All vCPUs, measured as they are, and their interrupt controller. Raises ``ConfigError``, ``KvmError``."""
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


def _page_key(request: LoadRequest, config: DomainConfig) -> bytes:
    """Where nothing is encrypted, the window has a key that nobody shares in, and never uses it."""
    if request.share is None:
        return os.urandom(PAGE_KEY_BYTES)
    return page_key(request.share, request.instance, config.suite.digests[0])


def _read(file: int, limit: int) -> bytes:
    """At most one byte more than ``limit``, from the file's beginning: whoever opened it may have read it."""
    try:
        return os.pread(file, limit + 1, 0)
    except OSError as error:
        raise ConfigError(f"config: cannot be read ({error.strerror})") from error
