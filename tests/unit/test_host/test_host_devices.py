"""The host's devices: in the account from the settings, given by kind, refused in one line."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import pci_tree
from harness import PATIENCE

from vambrace.errors import CapacityError, ConfigError
from vambrace.host.assigned import Assigned
from vambrace.host.parts import Part
from vambrace.host.settings import parse_settings
from vambrace.host.shares import Place
from vambrace.partition.devices import DEVICES
from vambrace.partition.ledger import Ledger, Request

DISK, CARD = "0000:01:00.0", "0000:02:00.0"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    root = tmp_path / "sysfs"
    pci_tree.add(root, DISK, group=1)
    pci_tree.add(root, CARD, group=2, code=pci_tree.NETWORK, identity="8086:10ed")
    return root


def of_host(machine: Path, *devices: str) -> tuple[Assigned, Ledger]:
    ledger = Ledger(1 << 30)
    files = ("certificate", "key", "client_ca", "state", "endorsement", "vendor_root")
    settings = parse_settings({**dict.fromkeys(files, "/nowhere"), "vmm_cpus": [1], "pci_devices": list(devices)})
    assigned = Assigned(settings, ledger, machine)
    assigned.claim()
    return assigned, ledger


def test_a_domain_gets_what_it_asks_for_in_its_order(machine: Path) -> None:
    assigned, ledger = of_host(machine, DISK, "8086:10ed")
    picked = assigned.pick("first", ["network", "nvme"])
    ledger.reserve("1", "first", Request(named={DEVICES: picked}))
    assert [device.address for device in assigned.of(picked)] == [CARD, DISK]
    assert not ledger.free(DEVICES)
    assert assigned.faults() == []


def test_a_host_without_devices_says_so(machine: Path) -> None:
    assigned, ledger = of_host(machine)
    assert DEVICES not in ledger.kinds
    assert assigned.pick("first", []) == ()
    with pytest.raises(CapacityError, match="first cannot be given nvme: this host gives no devices"):
        assigned.pick("first", ["nvme"])


def test_devices_opened_for_one_that_is_destroyed_meanwhile_are_closed(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    opened: list[int] = []

    def slowly(devices: object, stack: ExitStack, **_: object) -> tuple[()]:
        begun.set()
        go_on.wait(PATIENCE)
        opened.append(os.open("/dev/null", os.O_RDONLY))
        stack.callback(os.close, opened[0])
        return ()

    monkeypatch.setattr("vambrace.host.assigned.hand_over", slowly)
    assigned, _ = of_host(machine, DISK)
    shares: Any = SimpleNamespace(assigned=assigned)
    place = Place(shares, "1", "first", 0, (), True, Part("1", "first", 0, 0))

    async def load() -> None:
        with ExitStack() as stack:
            await place.open_devices(stack)

    async def test() -> None:
        loading = asyncio.create_task(load())
        await asyncio.to_thread(begun.wait, PATIENCE)
        loading.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await loading

    asyncio.run(test())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


@pytest.mark.parametrize("name", ["nvme", "01:00.0", "0000:01:00.8", "1b36-0010", "../../etc"])
def test_settings_name_addresses_or_numbers(machine: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="neither an address nor vendor:device"):
        of_host(machine, name)
