"""What each domain of this host has for itself: the account, and its enforcement by the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vambrace.cache import CacheShare
from vambrace.errors import CapacityError, ConfigError, PartitionError
from vambrace.host.assigned import Assigned
from vambrace.host.caches import divide
from vambrace.host.networks import Networks, needs
from vambrace.host.parts import HOST, Part, Parts
from vambrace.host.placing import Placing
from vambrace.host.settings import Settings
from vambrace.partition import CachePartition, processors
from vambrace.partition.cards import Network
from vambrace.partition.cgroups import Cgroups
from vambrace.partition.devices import DEVICES, SYSFS, HostDevice
from vambrace.partition.handover import Opened
from vambrace.partition.ledger import Kind, Ledger, Request, Share, spell
from vambrace.partition.overlap import Domain, Verification, verify
from vambrace.partition.placement import Memory

PROCESSORS = "processors"
#: What a domain's group may take beyond what was admitted: what the kernel has for it (page tables beyond the estimate,
#: sockets, vhost), and cached pages of its disks, which go when there is no room.
MEMORY_HEADROOM = 64 << 20
#: Threads of a VMM: its own few, and for each vCPU that one, a handler of the window, and what a short task takes.
THREADS, THREADS_PER_VCPU = 32, 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where one domain runs. Its vCPUs take ``cpus`` in turn; ``alone``: nobody else runs there. It has a card at each
    of ``networks``."""

    shares: Shares
    uuid: str
    label: str
    memory: int
    cpus: tuple[int, ...]
    alone: bool
    part: Part  # of the cache
    networks: tuple[Network, ...] = ()
    devices: tuple[HostDevice, ...] = ()  # in the order of the domain's configuration

    async def enter(self, pid: int) -> None:
        """Put the domain's VMM there, before it has anything of the domain. Raises ``PartitionError``."""
        await asyncio.to_thread(self.shares.enter, self, pid)

    @property
    def partition(self) -> CachePartition:
        """What can be said of the domain's part of the cache now."""
        return self.shares.parts.state(self.part)

    def when_lost(self, tell: Callable[[str], object]) -> None:
        """``tell`` hears, in any thread, why the part of the cache that the domain demands is not its own any more."""
        self.part.lost = tell

    def placing(self, pid: int) -> AbstractAsyncContextManager[Placing | None]:
        """As ``Parts.placing``."""
        return self.shares.parts.placing(self.part, pid)

    async def placed(self, window: Memory) -> None:
        """As ``Parts.placed``."""
        await self.shares.parts.placed(self.part, window)

    async def open_devices(self, stack: ExitStack) -> tuple[Opened, ...]:
        """Its devices, reset, until ``stack`` ends. Raises ``PartitionError``."""
        opening = asyncio.create_task(asyncio.to_thread(self.shares.assigned.open, self.devices, stack))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: what it opened once ``stack`` has ended would be nobody's, and never closed.
            await asyncio.wait([opening])
            raise

    async def leave(self) -> None:
        """Whatever still runs there ends, and what the domain had is free again; twice does no harm.

        Never raises: what the kernel does not take back stays the domain's, and nobody else gets it.
        """
        await asyncio.to_thread(self.shares.leave, self)


class Shares:
    """Of one host. ``open`` comes first. Raises ``ConfigError`` for processors that the machine (``sysfs``) has not so.

    ``cgroups`` is None where the settings allow to do without and the kernel cannot; ``why`` says why.
    """

    def __init__(
        self,
        settings: Settings,
        memory: int,
        cgroups: Cgroups | None = None,
        sysfs: Path = processors.SYSFS,
        pci: Path = SYSFS,
    ) -> None:
        groups = processors.cores(settings.vmm_cpus, sysfs)
        online = set(processors.online(sysfs))
        shared = set(settings.shared_cpus)
        for core in groups:
            if not shared.isdisjoint(core) and not shared.issuperset(core):
                raise ConfigError(
                    f"shared_cpus: processors {spell(core)} are one core, which is shared as a whole or not at all",
                    hint="correct the settings file",
                )
        alone = tuple(core for core in groups if shared.isdisjoint(core))
        self.networks = Networks(settings.networks)
        self.ledger = Ledger(memory, [Kind(PROCESSORS, alone), *self.networks.kinds])
        self.parts = Parts(self.ledger, self._limit)
        self._settings = settings
        self.assigned = Assigned(settings, self.ledger, pci)
        self.shared = settings.shared_cpus
        self.cgroups: Cgroups | None = cgroups or Cgroups(settings.cgroups)
        self.why = ""
        self._allow_affinity = settings.allow_affinity
        self._alone = {cpu for core in alone for cpu in core}
        self._siblings = any(len(core) > 1 for core in groups if not shared.isdisjoint(core))
        self._places: dict[str, Place] = {}
        self._others = online - self._alone
        if self._alone and not online - set(settings.vmm_cpus):
            raise ConfigError("vmm_cpus: no processor is left for the host itself", hint="name fewer")

    @property
    def enforcement(self) -> str:
        """``cgroup``: by the kernel, against everybody; ``affinity``: domains keep to theirs, others may be there."""
        return "affinity" if self.cgroups is None else "cgroup"

    @property
    def waiting(self) -> tuple[int, ...]:
        """Where a VMM waits for its domain: not where only a domain may run. None: anywhere."""
        return self.shared

    def open(self) -> None:
        """Clear what an earlier daemon has left, and see that the kernel enforces what will be given.

        Raises ``PartitionError``: it cannot, and the settings do not allow to do without.
        """
        self.parts.divide(divide(self._settings.cache, self._settings.state), self._settings.cache.reserve)
        assert self.cgroups is not None
        self.networks.open()
        self.assigned.claim()
        try:
            for domain in self.cgroups.domains():
                log.warning("the cgroup of domain %s of an earlier run is removed", domain)
                self.cgroups.remove(domain)
            self.cgroups.prepare(self._alone)
        except PartitionError as error:
            if not self._allow_affinity:
                raise PartitionError(
                    f"domains cannot have processors of their own: {error.message}",
                    hint=error.hint or "allow_affinity does without: then nothing keeps others off them",
                ) from error
            self.cgroups, self.why = None, error.message
            log.warning("domains have their processors by affinity only, others are not kept off: %s", self.why)
            return
        if self._alone:  # shared ones need not be quiet
            self._steer_interrupts()

    def _steer_interrupts(self) -> None:
        try:
            stay = processors.steer_interrupts(self._others)
        except PartitionError as error:
            if not self._allow_affinity:
                raise
            log.warning("%s", error.message)
        else:
            log.info("interrupts stay off processors %s; the kernel does not move %d", spell(self._alone), len(stay))

    # One domain

    async def reserve(
        self,
        uuid: str,
        label: str,
        memory: int,
        vcpus: int,
        guest: int = 0,
        cache: CacheShare | None = None,
        networks: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> Place:
        """``memory`` bytes, of which the guest has ``guest``; a processor for each of ``vcpus``, its own where enough
        are free, else shared ones; the part of the cache that it asks for; a card at each of ``networks``; and a device
        of each of the kinds ``devices``.

        Raises ``CapacityError`` (the domain gets nothing then), ``PartitionError`` (the kernel does not do it).
        """
        at = self.networks.named(label, networks)
        picked = self.assigned.pick(label, devices)
        named = {DEVICES: picked} if picked else {}
        asked = Request(memory, needs(at), named, {DEVICES: ", ".join(devices)})
        share = self._reserve(uuid, label, asked, vcpus, self.parts.needs(label, guest, cache))
        own = tuple(cpu for cpu in share.of(PROCESSORS) if isinstance(cpu, int))
        cpus = own or self._least_used(vcpus)
        given = self.assigned.of(picked)
        place: Place | None = None
        try:
            demanded = cache is not None and cache.required
            part = await asyncio.to_thread(self.parts.create, share, guest, demanded=demanded)
            place = self._places[uuid] = Place(self, uuid, label, memory, cpus, bool(own), part, at, given)
            await asyncio.to_thread(self._create, place, vcpus)
        except BaseException:
            with contextlib.suppress(PartitionError):
                await asyncio.to_thread(self.parts.leave, uuid)
            self._forget(uuid)
            raise
        return place

    def _reserve(self, uuid: str, label: str, asked: Request, vcpus: int, parts: list[dict[str, int]]) -> Share:
        """``asked``, processors, and the first of ``parts`` of the cache that is free. Raises ``CapacityError`` for the
        first."""
        counts = dict(asked.counts)
        if not self.shared or len(self.ledger.free(PROCESSORS)) >= vcpus:
            counts[PROCESSORS] = vcpus
        for less in parts[1:]:
            with contextlib.suppress(CapacityError):
                return self.ledger.reserve(uuid, label, replace(asked, counts=counts | parts[0]))
            with contextlib.suppress(CapacityError):
                return self.ledger.reserve(uuid, label, replace(asked, counts=counts | less))
        return self.ledger.reserve(uuid, label, replace(asked, counts=counts | parts[0]))

    def _least_used(self, count: int) -> tuple[int, ...]:
        """Shared processors for ``count`` vCPUs; fewer where there are fewer."""
        used = [cpu for place in self._places.values() for cpu in place.cpus]
        return tuple(sorted(self.shared, key=used.count)[:count])

    def _create(self, place: Place, vcpus: int) -> None:
        if self.cgroups is not None:
            threads = THREADS + THREADS_PER_VCPU * vcpus
            limit = place.memory + MEMORY_HEADROOM
            self.cgroups.create(place.uuid, place.cpus, alone=place.alone, memory=limit, tasks=threads)

    def enter(self, place: Place, pid: int) -> None:
        if self.cgroups is not None:
            self.cgroups.enter(place.uuid, pid)
        self.parts.enter(place.uuid, pid)
        processors.confine(pid, place.cpus)
        if not place.alone and self._siblings:
            try:
                processors.schedule_apart(pid)
            except PartitionError as error:
                if not self._allow_affinity:
                    raise
                log.warning("domain %s: %s", place.uuid, error.message)

    def leave(self, place: Place) -> None:
        try:
            if self.cgroups is not None:
                self.cgroups.remove(place.uuid)
            self.parts.leave(place.uuid)
        except PartitionError as error:
            log.error("domain %s keeps what it has: %s", place.uuid, error.message)
            return
        self._forget(place.uuid)

    def _limit(self, uuid: str, memory: int) -> None:
        """So much memory, and what the kernel needs for it, may a domain have. Raises ``PartitionError``."""
        if self.cgroups is not None:
            self.cgroups.limit(uuid, memory + MEMORY_HEADROOM)

    def _forget(self, uuid: str) -> None:
        self._places.pop(uuid, None)
        self.ledger.release(uuid)

    def processor_time(self, uuid: str) -> int | None:
        """Microseconds that a domain has run; None where nobody counts them."""
        return None if self.cgroups is None else self.cgroups.processor_time(uuid)

    # All of them

    def describe(self) -> dict[str, Any]:
        """Who has what, for the API."""
        ledger = self.ledger
        return {
            "enforcement": self.enforcement,
            "reason": self.why,
            "memory": {"total": ledger.memory, "free": ledger.memory_free},
            "kinds": [
                {"name": kind.name, "total": list(kind.items), "free": list(ledger.free(kind.name))}
                for kind in ledger.kinds.values()
            ],
            "shared_processors": list(self.shared),
            "cache": self.parts.describe(),
            "domains": [self._describe(share) for share in ledger.shares if share.domain != HOST],
        }

    def _describe(self, share: Share) -> dict[str, Any]:
        place = self._places.get(share.domain)
        return {
            "uuid": share.domain,
            "name": share.label,
            "memory": share.memory,
            "items": {kind: list(items) for kind, items in share.items.items()},
            "shared_processors": [] if place is None or place.alone else list(place.cpus),
        }

    async def verify(self, pids: Iterable[tuple[str, int]]) -> Verification:
        """Look at the domains whose VMMs (uuid, process) are given. Raises ``PartitionError``."""
        places = [(self._places[uuid], pid) for uuid, pid in pids if uuid in self._places]
        return await asyncio.to_thread(self._verify, places)

    def _verify(self, places: list[tuple[Place, int]]) -> Verification:
        domains, faults = [], []
        for place, pid in places:
            group = ""
            inside: tuple[int, ...] = (pid,)
            if self.cgroups is not None:
                group = self.cgroups.path(place.uuid).name
                inside = tuple(dict.fromkeys((pid, *self.cgroups.processes(place.uuid))))
                faults += [
                    f"{place.label}: {fault}"
                    for fault in self.cgroups.faults(place.uuid, place.cpus, alone=place.alone)
                ]
            alone = place.alone and self.cgroups is not None
            domains.append(
                Domain(
                    place.label,
                    inside,
                    frozenset(place.cpus),
                    alone=alone,
                    cgroup=group,
                    iommu_groups=frozenset(device.group for device in place.devices),
                )
            )
        faults += self.assigned.faults()
        found = verify(domains)
        faults += self.parts.verify()
        return Verification(found.domains, found.threads, found.descriptors, (*found.findings, *faults))
