"""All domains and images of one machine: admission, uploads, recovery."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vambrace import __version__
from vambrace.classes import NORMAL, REALM, SECURE, DomainClass
from vambrace.config import DomainConfig
from vambrace.errors import ConfigError, Conflict, HostError, ImageError, NotFound
from vambrace.host.domain import Admitted, Domain, Services
from vambrace.host.launcher import Launcher
from vambrace.host.lifecycle import State
from vambrace.host.messages import ENDPOINT_MEMORY, Messages, Party
from vambrace.host.metrics import Metrics, Watched, WindowTotals
from vambrace.host.normal import NormalVm
from vambrace.host.outlets import OUTLET_MEMORY, Outlets
from vambrace.host.platform import Platform
from vambrace.host.realm import Realm
from vambrace.host.secure import SecureVm
from vambrace.host.settings import Settings
from vambrace.host.shares import PROCESSORS, Place, Shares
from vambrace.host.signatures import PlatformOwner
from vambrace.host.standby import Standby
from vambrace.host.store import RECORDS_KEPT, WHOLE, DomainRecord, Store, StoredImage
from vambrace.host.upload import Kept, check_size, in_order, join, receive
from vambrace.host.usage import INTERVAL, Usage
from vambrace.host.vmm import kill_leftover
from vambrace.host.vsock import Connector, connect_vsock
from vambrace.partition.cards import CARD_MEMORY
from vambrace.partition.memory import memory_available
from vambrace.partition.overlap import Verification

# What a VMM process takes beyond guest memory, and what the host keeps for itself.
VMM_OVERHEAD = 48 << 20
TABLES = 64  # of guest memory: the window's tables (28 bytes a page) and page tables, twice and of stage 2
HOST_RESERVE = 128 << 20  # the VMM that waits for the next domain among it
FIRST_CID = 16
#: How long somebody waits until what they have not sent is put to what they have; then they may send all.
TURN_SECONDS: Final = 30.0

#: What runs a domain of each class.
DOMAINS: dict[DomainClass, type[Domain]] = {NORMAL: NormalVm, SECURE: SecureVm, REALM: Realm}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DomainRequest:
    """The body of ``PUT /v1/domains/{uuid}``: ``image`` is a SHA-256, ``nonce`` 32 bytes, both in hex."""

    name: str
    image: str
    nonce: str


def admitted_memory(config: DomainConfig) -> int:
    """Bytes that a domain of ``config`` is counted with (docs/architecture.md, section 14)."""
    memory = config.memory + config.memory // TABLES + VMM_OVERHEAD
    memory += ENDPOINT_MEMORY * len(config.endpoints)
    memory += CARD_MEMORY * len(config.networks)
    return memory + OUTLET_MEMORY * (config.broker is not None)


class Host:
    """Created in the event loop; ``recover`` before anything else, ``close`` at the end."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        platform: Platform,
        launcher: Launcher,
        connect: Connector = connect_vsock,
    ) -> None:
        self.settings = settings
        self.store = store
        self.platform = platform
        path = settings.state / "platform-owner.json"
        self.owner = PlatformOwner(path, lambda: platform.platform_key, settings.suite)
        # Lazily faulted guests do not show in MemAvailable, so it is read once, before there are any.
        self.memory_limit = settings.guest_memory or max(0, memory_available() - HOST_RESERVE)
        self.shares = Shares(settings, self.memory_limit)
        self._standby = Standby(launcher, self.shares.waiting)
        self._living: dict[str, Domain] = {}
        self._ended: dict[str, Domain] = {}
        self._past: dict[str, DomainRecord] = {}
        self._admission = asyncio.Lock()
        self._verifying = asyncio.Lock()
        self._joining = asyncio.Lock()
        self._unpacking = asyncio.Lock()  # two at a time would both count on the space that is there once
        self._next_cid = FIRST_CID
        self.messages = Messages(self._parties, connect, settings.message_rate)
        self.outlets = Outlets(settings.brokers, connect)
        self._services = Services(settings, store, platform, self._standby, self.messages, self.outlets)
        windows = WindowTotals(self._running)
        self.metrics = Metrics(self, windows)
        self.usage = Usage(lambda: tuple(self._living), self.shares.processor_time)
        self._refreshing = [asyncio.create_task(part.refresh()) for part in (windows, self.messages, self.usage)]
        self._refreshing.append(asyncio.create_task(self.shares.parts.watch()))
        for task in self._refreshing:
            task.add_done_callback(_log_failure)

    def recover(self) -> None:
        """End the VMMs of an earlier daemon and make its domains ``failed``; a VMM is started for the first one."""
        for record in self.store.records():
            if kill_leftover(record.vmm_pid, record.vmm_started):
                log.warning("domain %s: its VMM of an earlier run was killed", record.uuid)
        for record in self.store.recover():
            self._past[record.uuid] = record
        self._prune()
        self.shares.open()
        self._standby.prepare()

    async def close(self) -> None:
        """Destroy every living domain and wait for it."""
        for task in self._refreshing:
            task.cancel()
        for domain in tuple(self._living.values()):
            domain.finish(State.FAILED, "host stopped")
        await asyncio.gather(*(domain.ended() for domain in tuple(self._living.values())))
        await self.messages.close()
        await self.outlets.close()
        await self._standby.close()
        self.platform.close()

    # Domains

    async def create(self, uuid: str, request: DomainRequest) -> tuple[Domain | DomainRecord, bool]:
        """The domain ``uuid`` and whether it is new.

        Raises ``Conflict`` (other content, name in use), ``CapacityError``, ``NotFound`` (image),
        ``ConfigError`` (debug, suite), ``HostError`` (no endorsement), ``MessageRefused`` (the image's signature).
        """
        async with self._admission:
            existing = self._existing(uuid, request)
            if existing is not None:
                return existing, False
            image = self.store.image(request.image)
            config = await asyncio.to_thread(image.read_config)
            signed = await self._accept(image, config)
            memory = admitted_memory(config)
            place = await self._reserve(uuid, request.name, config, memory)
            record = DomainRecord(
                uuid=uuid,
                name=request.name,
                kind=config.kind.name,
                image=request.image,
                nonce=request.nonce,
                created=time.time(),
                memory=memory,
            )
            admitted = Admitted(record, config, image, self._new_cid(), place, signed)
            domain = DOMAINS[config.kind](admitted, self._services)
            self._living[uuid] = domain
            self.metrics.created()
            domain.begin()
            asyncio.create_task(self._retire(domain)).add_done_callback(_log_failure)
            return domain, True

    def _existing(self, uuid: str, request: DomainRequest) -> Domain | DomainRecord | None:
        """What an earlier request for the same has made; None where there was none. Raises ``Conflict``."""
        existing = self._known(uuid)
        if existing is not None:
            record = existing if isinstance(existing, DomainRecord) else existing.record
            if (record.name, record.image, record.nonce) != (request.name, request.image, request.nonce):
                raise Conflict(f"domain {uuid} exists with other content", hint="choose a fresh UUID", status=409)
        elif any(domain.record.name == request.name for domain in self._living.values()):
            raise Conflict(
                f"a domain named {request.name} exists",
                hint="choose another name or destroy that one",
                status=409,
            )
        return existing

    async def _accept(self, image: StoredImage, config: DomainConfig) -> bytes | None:
        """What was signed of an image that this host runs, see ``PlatformOwner.check``. Raises ``ConfigError``,
        ``HostError``, ``MessageRefused``."""
        if config.kind.attested:
            self._check_suite(config)
            self.platform.require_endorsed()
        signature = await asyncio.to_thread(image.read_signature)
        signed = self.owner.check(config, signature, demanded=self.settings.signed_only)
        if config.debug and not self.settings.allow_debug:
            hint = "build the image without debug, or set allow_debug"
            raise ConfigError("this host runs no debug domains", hint=hint)
        return signed

    def _check_suite(self, config: DomainConfig) -> None:
        """What an image demands of all that vouches for it, this host must be able to say of its own evidence."""
        if config.suite != self.settings.suite:
            raise ConfigError(
                f"the image is of the {config.suite}, this host of the {self.settings.suite}",
                hint="build the image with the host's suite, or choose another host",
            )

    async def _reserve(self, uuid: str, name: str, config: DomainConfig, memory: int) -> Place:
        """All that the domain needs of this host, or nothing. Raises ``CapacityError``, ``Conflict``."""
        self._reserve_disks(uuid, config)
        try:
            kinds = [device.kind for device in config.devices]
            return await self.shares.reserve(
                uuid, name, memory, config.vcpus, config.memory, config.cache, config.networks, kinds
            )
        except BaseException:
            self.store.volumes.release(uuid)
            self.store.lasting.release(uuid)
            raise

    def _reserve_disks(self, uuid: str, config: DomainConfig) -> None:
        """What it writes to: space for what ends with it, and its owner's volumes. Raises ``CapacityError``,
        ``Conflict``: then it gets nothing."""
        scratch, volumes = (config.storage.scratch, config.storage.volumes) if config.storage else ((), ())
        ending = sum(disk.size for disk in config.disks if disk.plain) + sum(each.size for each in scratch)
        self.store.volumes.reserve(uuid, ending, self.store.free())
        try:
            if volumes:
                self.store.lasting.attach(uuid, config.personalization().hex(), volumes)
        except BaseException:
            self.store.volumes.release(uuid)
            raise

    def domain(self, uuid: str) -> Domain | DomainRecord:
        """A living domain, or the record of a past one; raises ``NotFound``."""
        existing = self._known(uuid)
        if existing is None:
            raise NotFound(f"no domain {uuid}")
        return existing

    def domains(self) -> list[Domain | DomainRecord]:
        return [*self._past.values(), *self._ended.values(), *self._living.values()]

    def states(self) -> Counter[State]:
        """How many living domains are in each state."""
        return Counter(domain.lifecycle.state for domain in self._living.values())

    def _running(self) -> dict[str, Watched]:
        return {uuid: domain for uuid, domain in self._living.items() if domain.lifecycle.state is State.RUNNING}

    def _parties(self) -> list[Party]:
        """Who may exchange messages, oldest first."""
        return [domain for domain in self._living.values() if domain.config.kind.messages]

    def _known(self, uuid: str) -> Domain | DomainRecord | None:
        return self._living.get(uuid) or self._ended.get(uuid) or self._past.get(uuid)

    async def _retire(self, domain: Domain) -> None:
        uuid = domain.record.uuid
        try:
            await domain.ended()
        finally:
            del self._living[uuid]
            self._ended[uuid] = domain
            self.metrics.ended(domain.lifecycle.state)
            self._prune()
            self._standby.prepare()

    def _prune(self) -> None:
        """Keep the newest records of ended domains only: the disk is bounded."""
        known = [*self._past, *self._ended]
        for uuid in known[: max(0, len(known) - RECORDS_KEPT)]:
            self._past.pop(uuid, None)
            self._ended.pop(uuid, None)
            self.store.forget(uuid)

    # Admission

    @property
    def memory_used(self) -> int:
        return self.shares.ledger.memory_used

    def _new_cid(self) -> int:
        """Never one that was used since the start: a late connection must not reach another domain."""
        self._next_cid += 1
        return self._next_cid

    async def verify(self) -> Verification:
        """Check from the numbers of the running processes that the domains are apart. Raises ``PartitionError``."""
        async with self._verifying:
            records = [domain.record for domain in self._living.values()]
            return await self.shares.verify((record.uuid, record.vmm_pid) for record in records if record.vmm_pid)

    # Images

    async def put_image(
        self, digest: str, length: int | None, chunks: AsyncIterator[bytes], blobs: Sequence[tuple[int, str]] = ()
    ) -> tuple[StoredImage, bool]:
        """Receive a bundle; nothing is left behind unless it is whole, right and sound.

        ``blobs`` are parts of it that are not sent, as offset in the bundle and SHA-256: those of images that are here.
        ``digest``, of the whole, shows that the sender has them: it cannot be had from the blobs' own digests.
        Raises ``ImageError`` (digest, structure, size), ``NotFound`` (blob), ``UsageError`` (its offset),
        ``CapacityError`` (space), ``HostError`` (too busy for blobs).
        """
        if self.store.has_image(digest):
            return self.store.image(digest), False
        kept = await asyncio.to_thread(self._find, blobs)
        known = sum(blob.size for blob in kept)
        check_size(known, self.settings.image_limit)
        if length is not None:
            check_size(length + known, self.settings.image_limit)
            # What was sent, the tar, and what is unpacked from it exist side by side for a moment.
            self.store.require_space(2 * (length + known) + (length if kept else 0))
        space, limit = self.store.require_space, self.settings.image_limit
        with self.store.new_upload() as file, self.store.new_upload() as whole:
            received = await receive(file, chunks, known=known, limit=limit, require_space=space)
            if kept:
                async with self._turn():
                    await asyncio.to_thread(join, Path(file.name), kept, digest, whole, space)
            elif received != digest:
                raise ImageError(f"the image has the digest {received}", hint="send it to the path of that")
            async with self._unpacking:
                upload = Path((whole if kept else file).name)
                return await asyncio.to_thread(self.store.add_image, digest, upload), True

    def _find(self, blobs: Sequence[tuple[int, str]]) -> list[Kept]:
        found = [(offset, blob, self.store.blob(blob)) for offset, blob in blobs]
        return in_order(Kept(offset, path.stat().st_size, path, blob) for offset, blob, path in found)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Images with blobs that were not sent are put together one at a time: it takes few bytes to ask for much work,
        of which nobody shall have more than a processor. Raises ``HostError``."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._joining.acquire()
        except TimeoutError:
            raise HostError("the host has other images to put together", hint=WHOLE) from None
        try:
            yield
        finally:
            self._joining.release()

    def delete_image(self, digest: str) -> None:
        """Raises ``NotFound``, ``Conflict`` (a living domain is of this image)."""
        users = [domain.record.name for domain in self._living.values() if domain.record.image == digest]
        if users:
            raise Conflict(f"the image is in use by {', '.join(users)}", hint="destroy it first", status=409)
        self.store.delete_image(digest)

    # The host itself

    async def advance(self, message: bytes) -> None:
        """Take the platform's life cycle where its owner says, for ever; from then on there are other keys, or none.

        Raises ``Conflict`` (no owner, or a living domain has evidence), ``MessageRefused``, ``TrustZoneError``.
        """
        async with self._admission:
            state = self.owner.lifecycle(message)
            attested = [domain.record.name for domain in self._living.values() if domain.config.kind.attested]
            if attested:
                names = ", ".join(attested)
                raise Conflict(f"there are {names}", hint="destroy all Realms and Secure VMs first", status=409)
            await self.platform.leave(state)

    def describe(self) -> dict[str, Any]:
        """Coarse totals only: what a Realm does inside is its owner's."""
        return {
            "version": __version__,
            "endorsed": self.platform.endorsed,
            "insecure": self.platform.insecure,
            "debug": self.settings.allow_debug,
            "memory": {"limit": self.memory_limit, "used": self.memory_used},
            "storage": {"free": self.store.free(), "image_limit": self.settings.image_limit},
            "processors": os.cpu_count() or 1,
            "domains": len(self._living),
        }

    def describe_usage(self) -> dict[str, Any]:
        """What living domains use at this moment, as far as it is the scheduler's to know."""
        places = {domain["uuid"]: domain for domain in self.shares.describe()["domains"]}
        return {
            "interval": INTERVAL,
            "domains": [
                {
                    "uuid": uuid,
                    "name": domain.record.name,
                    "class": domain.record.kind,
                    "state": domain.record.state,
                    "cpu": self.usage.share(uuid),
                    "memory": domain.record.memory,
                    "processors": places.get(uuid, {}).get("items", {}).get(PROCESSORS, []),
                    "shared_processors": places.get(uuid, {}).get("shared_processors", []),
                }
                for uuid, domain in self._living.items()
            ],
        }


def _log_failure(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        if (error := task.exception()) is not None:
            log.error("internal error", exc_info=error)
