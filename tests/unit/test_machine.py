"""A machine's devices and its end, up to where KVM is needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_realm
from virtio_driver import guest_memory

from vambrace.config import DomainConfig
from vambrace.errors import ConfigError, KvmError, PagerError, UsageError
from vambrace.machine import devices, layout, vmm
from vambrace.machine.change import Progress
from vambrace.machine.descriptors import Descriptors
from vambrace.machine.request import LoadRequest
from vambrace.machine.vmm import Machine, State
from vambrace.pager import Window
from vambrace.virtio.balloon import Balloon
from vambrace.virtio.block import Block
from vambrace.virtio.console import Console
from vambrace.virtio.device import Device
from vambrace.virtio.entropy import Entropy
from vambrace.virtio.mmio import NOTIFY, Transport


class Vsock(Device):
    """Stands where the kernel's would, which needs its module."""

    kind = 19
    queues = 3

    def __init__(self, device: int, cid: int) -> None:
        os.close(device)
        self.cid = cid

    def process(self, queues: object, index: int) -> None:
        raise AssertionError


class Connections:
    """What a VM was told of its devices."""

    def __init__(self) -> None:
        self.interrupts: dict[int, int] = {}
        self.notifications: dict[int, tuple[int, int]] = {}

    def interrupt_on(self, eventfd: int, line: int) -> None:
        self.interrupts[eventfd] = line

    def notify_on(self, eventfd: int, address: int, value: int) -> None:
        self.notifications[eventfd] = (address, value)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def new_machine() -> Machine:
    return Machine(agent=lambda data: None, console=lambda data: None)


def with_disks(directory: Path, config: DomainConfig, *, more: int = 0) -> LoadRequest:
    """A request with a file for each configured disk, each of its size and ``more`` bytes."""
    files, names = [os.open("/dev/null", os.O_RDWR)], ["vhost-vsock"]
    for disk in config.disks:
        path = directory / disk.name
        path.touch()
        os.truncate(path, disk.size + more)
        files.append(os.open(path, os.O_RDONLY))
        names.append(f"disk:{disk.name}")
    found = Descriptors(files)
    found.name(names)
    return LoadRequest(found, bytes(16), bytes(32), 7)


def make_devices(machine: Machine, config: DomainConfig, request: LoadRequest) -> Connections:
    connections = Connections()
    vm: Any = connections
    machine._devices.make(vm, guest_memory(), lambda offset, length: None, config, request)
    return connections


def name_of(device: Device) -> str:
    match device:
        case Console():
            return "console"
        case Block():
            return f"disk {device._name.decode()}"
        case Vsock():
            return "vsock"
        case Entropy():
            return "entropy"
        case _:
            assert isinstance(device, Balloon)
            return "balloon"


def test_devices_are_where_the_device_tree_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "Vsock", Vsock)
    config, machine = make_realm(), new_machine()
    before, request = len(descriptors()), with_disks(tmp_path, config)
    connections = make_devices(machine, config, request)
    names = [name_of(transport.device) for transport in machine._devices.transports]
    assert names == list(layout.device_slots(config.disks))
    for slot, transport in enumerate(machine._devices.transports):
        assert connections.interrupts[transport.interrupt] == slot
        for index, kick in enumerate(transport.kicks):
            assert connections.notifications[kick] == (layout.device_address(slot) + NOTIFY, index)
    machine.close()
    assert len(descriptors()) == before - 2, "all of them were taken, and the machine's own are gone too"


def test_a_disk_of_another_size_is_refused(tmp_path: Path) -> None:
    config, machine = make_realm(), new_machine()
    before = len(descriptors())
    request = with_disks(tmp_path, config, more=512)
    with request.descriptors, pytest.raises(ConfigError, match="instead of"):
        make_devices(machine, config, request)
    console = machine._devices.transports[0]
    assert len(descriptors()) == before + 1 + len(console.kicks)  # the console's alone, and none of the request's
    machine.close()


def test_close_gives_every_descriptor_back() -> None:
    before = descriptors()
    machine = new_machine()
    machine._devices.transports.append(Transport(Entropy(), guest_memory()))
    machine.close()
    assert descriptors() == before
    machine.close()
    assert machine.state is State.CLOSED


def test_nobody_announces_an_end_after_close() -> None:
    machine = new_machine()
    machine.close()
    machine._end(vmm.Reason.CRASH, "too late")  # by a thread that did not stop: its descriptor is another's by now
    assert machine.ended() is None


def test_a_thread_that_does_not_stop_keeps_what_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm, "_JOIN_SECONDS", 0.05)
    machine, go_on = new_machine(), threading.Event()
    transport = Transport(Entropy(), guest_memory())
    machine._devices.transports.append(transport)
    machine._io = threading.Thread(target=go_on.wait)
    machine._io.start()
    machine.close()
    kept = (transport.interrupt, *transport.kicks, machine._io_wake)
    assert all(map(is_open, kept)) and not is_open(machine.ended_fd)
    go_on.set()
    machine._io.join()
    transport.close()
    os.close(machine._io_wake)


class Broken(Entropy):
    """A device that does not let go."""

    def reset(self) -> None:
        raise KvmError("the kernel refuses")


@pytest.mark.usefixtures("kernel")
def test_a_broken_device_keeps_nothing_from_being_wiped() -> None:
    window = Window([(64, 0)], bytes(32), bytes(16))
    machine = loaded(window)
    machine._devices.transports += [Transport(Broken(), guest_memory()), Transport(Entropy(), guest_memory())]
    machine.close()
    with pytest.raises(PagerError):
        window.stats(0)


class Held(Window):
    """A window whose next change waits until it is let ``go``, as one does that has much to encrypt."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.go = threading.Event()

    def set_percent(self, zone: int, percent: int) -> None:
        self.go.wait()
        super().set_percent(zone, percent)


PAGES = 1000


@pytest.fixture
def held(kernel: None) -> Iterator[Held]:
    """Two zones of 1000 plaintext pages."""
    window = Held([(PAGES, 0, 100), (PAGES, 0)], bytes(32), bytes(16))
    memory = window.memory()
    for page in range(2 * PAGES):
        memory[page * 4096] = 1
    yield window
    window.go.set()
    window.close()


def loaded(window: Window) -> Machine:
    """A machine that has a window, and nothing else yet."""
    machine = new_machine()
    machine._window, machine._zones, machine.state = window, 2, State.LOADED
    return machine


def test_a_change_is_begun_and_looked_at(held: Held) -> None:
    """Meanwhile all is answered but what would have to wait for it."""
    machine = loaded(held)
    with pytest.raises(UsageError, match="no percentage was changed"):
        machine.change()
    begun = machine.encrypt(1, 50)
    assert begun == Progress(1, 50, False, PAGES // 2, PAGES // 2) == machine.change()
    assert [stats.percent for stats in machine.stats()] == [0, 0]
    for again in (lambda: machine.encrypt(1, 60), lambda: machine.encrypt(0, 60), lambda: machine.sample(True)):
        with pytest.raises(UsageError, match="being changed"):
            again()
    held.go.set()
    while not machine.change().done:
        time.sleep(0.001)
    assert machine.change() == Progress(1, 50, True, 0, PAGES // 2)
    assert held.stats(1).percent == 50 and held.stats(1).plaintext <= PAGES // 2
    machine.sample(True)
    assert machine.encrypt(1, 0).done, "to lower it is done at once"
    machine.close()


@pytest.mark.usefixtures("kernel")
def test_progress_of_a_real_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 MiB, which take some ten milliseconds: what is left only falls."""
    monkeypatch.setattr(vmm, "_AT_ONCE_SECONDS", 0.0)
    pages = 16384
    with Window([(pages, 0), (64, 0)], bytes(32), bytes(16)) as window:
        for page in range(pages):
            window.memory()[page * 4096] = 1
        machine = loaded(window)
        seen = [machine.encrypt(0, 100)]
        while not seen[-1].done:
            seen.append(machine.change())
        assert [progress.left for progress in seen] == sorted((progress.left for progress in seen), reverse=True)
        assert {progress.total for progress in seen} == {pages - 64} and seen[-1].left == 0
        assert window.stats(0).plaintext == 64
        machine.close()


def test_sampling_some_zones(held: Held) -> None:
    machine = loaded(held)
    machine.sample(True, [1])
    assert [zone.on for zone in machine.reuse()[0]] == [False, True]
    machine.sample(True)
    machine.sample(False, [0])
    assert [zone.on for zone in machine.reuse()[0]] == [False, True]
    with pytest.raises(PagerError):
        machine.sample(True, [2])
    machine.close()


def test_a_change_that_is_impossible(held: Held) -> None:
    """Refused for pages that are pinned, with their number: at once, or as soon as somebody looks."""
    held.pin(0, 100 * 4096)
    machine = loaded(held)
    assert not machine.encrypt(0, 95).done
    held.go.set()
    machine._change.wait(60)  # type: ignore[union-attr]
    for look in (machine.change, machine.change, lambda: machine.encrypt(0, 95)):
        with pytest.raises(PagerError, match="95 % cannot be encrypted: 100 pages are pinned"):
            look()
    assert machine.encrypt(0, 50).done, "another one is possible"
    for zone, percent in ((2, 50), (-1, 50), (0, 101), (0, -1), (0, 1 << 40)):
        with pytest.raises(PagerError):
            machine.encrypt(zone, percent)
    assert [stats.percent for stats in machine.stats()] == [50, 0]
    machine.close()


def test_close_ends_a_change(held: Held) -> None:
    """The thread is gone, and so are keys and memory; whether the change was begun or still waits."""
    machine = loaded(held)
    machine.encrypt(0, 100)
    threading.Timer(0.1, held.go.set).start()
    machine.close()
    change = machine._change
    assert change is not None and not change.under_way
    with pytest.raises(PagerError, match="closed"):
        change.progress()
    with pytest.raises(UsageError, match="closed"):
        machine.change()


@pytest.mark.usefixtures("kernel")
def test_close_in_the_middle_of_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm, "_AT_ONCE_SECONDS", 0.0)
    for pages in (2000, 8000, 16000):
        window = Window([(pages, 0), (64, 0)], bytes(32), bytes(16))
        for page in range(pages):
            window.memory()[page * 4096] = 1
        machine = loaded(window)
        machine.encrypt(0, 100)
        machine.close()
        change = machine._change
        assert change is not None and not change.under_way
