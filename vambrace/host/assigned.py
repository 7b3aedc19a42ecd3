"""The devices of one host that domains may have: found at start, given by the account, handed over reset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vambrace.config import DEVICE_KINDS
from vambrace.errors import CapacityError
from vambrace.host.settings import Settings
from vambrace.partition.devices import DEVICES, SYSFS, Devices, HostDevice, claim
from vambrace.partition.handover import Opened, hand_over
from vambrace.partition.ledger import Item, Ledger

log = logging.getLogger(__name__)


class Assigned:
    """None until ``claim``. ``sysfs`` is what the kernel says of PCI."""

    def __init__(self, settings: Settings, ledger: Ledger, sysfs: Path = SYSFS) -> None:
        self._allowed = settings.pci_devices
        self._unresettable = settings.allow_unresettable_devices
        self._ledger = ledger
        self._sysfs = sysfs
        self._devices = Devices((), DEVICE_KINDS, sysfs)

    def claim(self) -> None:
        """Take them from the host's drivers, into the account. Raises ``PartitionError``."""
        if not self._allowed:
            return
        claim(self._allowed, self._sysfs)
        self._devices = Devices(self._allowed, DEVICE_KINDS, self._sysfs, unresettable=self._unresettable)
        self._ledger.add(self._devices.kind())
        for left in self._devices.left:
            log.warning("device %s is given to no domain: %s", left.device.item, left.why)
        for device in self._devices.devices:
            log.info("device %s (%s) may be given to a domain", device.item, device.identity)

    def pick(self, label: str, wanted: Sequence[str]) -> tuple[Item, ...]:
        """What of the account domain ``label`` is to reserve for the kinds of devices ``wanted``, in order.

        Raises ``CapacityError``: this host has none to give.
        """
        if not wanted:
            return ()
        if DEVICES not in self._ledger.kinds:
            raise CapacityError(
                f"{label} cannot be given {', '.join(wanted)}: this host gives no devices to domains",
                hint="its settings must name some: pci_devices",
            )
        return self._devices.pick(wanted, self._ledger.free(DEVICES))

    def of(self, items: Sequence[Item]) -> tuple[HostDevice, ...]:
        """The devices that these are, in order."""
        return tuple(self._devices.of([item])[0] for item in items)

    def open(self, devices: Sequence[HostDevice], stack: ExitStack) -> tuple[Opened, ...]:
        """As ``hand_over``."""
        return hand_over(devices, stack, unresettable=self._unresettable)

    def faults(self) -> list[str]:
        """As ``Devices.faults``."""
        return self._devices.faults()
