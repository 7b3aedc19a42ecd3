"""A machine's devices and its end, up to where KVM is needed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from realm_factory import make_realm
from virtio_driver import guest_memory

from vambrace.errors import ConfigError
from vambrace.machine import layout, vmm
from vambrace.machine.vmm import LoadRequest, Machine, State
from vambrace.realm import RealmConfig
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

    def __init__(self, cid: int) -> None:
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


def with_disks(directory: Path, config: RealmConfig, *, more: int = 0) -> LoadRequest:
    """A request with a file for each configured disk, each of its size and ``more`` bytes."""
    paths = []
    for disk in config.disks:
        paths.append(directory / disk.name)
        with paths[-1].open("wb") as file:
            file.truncate(disk.size + more)
    return LoadRequest("config", "kernel", "initrd", tuple(paths), bytes(16), bytes(32), 7)


def make_devices(machine: Machine, config: RealmConfig, request: LoadRequest) -> Connections:
    connections = Connections()
    vm: Any = connections
    machine._make_devices(vm, guest_memory(), lambda offset, length: None, config, request)
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
    monkeypatch.setattr(vmm, "Vsock", Vsock)
    config, machine = make_realm(), new_machine()
    connections = make_devices(machine, config, with_disks(tmp_path, config))
    names = [name_of(transport.device) for transport in machine._transports]
    assert names == list(layout.device_slots(config.disks))
    for slot, transport in enumerate(machine._transports):
        assert connections.interrupts[transport.interrupt] == slot
        for index, kick in enumerate(transport.kicks):
            assert connections.notifications[kick] == (layout.device_address(slot) + NOTIFY, index)
    machine.close()


def test_a_disk_of_another_size_is_refused(tmp_path: Path) -> None:
    config, machine = make_realm(), new_machine()
    before = len(descriptors())
    with pytest.raises(ConfigError, match="instead of"):
        make_devices(machine, config, with_disks(tmp_path, config, more=512))
    console = machine._transports[0]
    assert len(descriptors()) == before + 1 + len(console.kicks)  # the console's alone
    machine.close()


def test_close_gives_every_descriptor_back() -> None:
    before = descriptors()
    machine = new_machine()
    machine._transports.append(Transport(Entropy(), guest_memory()))
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
    machine._transports.append(transport)
    machine._io = threading.Thread(target=go_on.wait)
    machine._io.start()
    machine.close()
    kept = (transport.interrupt, *transport.kicks, machine._io_wake)
    assert all(map(is_open, kept)) and not is_open(machine.ended_fd)
    go_on.set()
    machine._io.join()
    transport.close()
    os.close(machine._io_wake)
