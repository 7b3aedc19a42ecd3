"""All Realms and images of one machine: admission, uploads, recovery."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace import __version__
from vambrace.errors import CapacityError, ConfigError, Conflict, ImageError, NotFound
from vambrace.host.lifecycle import State
from vambrace.host.messages import ENDPOINT_MEMORY, Messages
from vambrace.host.metrics import Metrics, Watched, WindowTotals
from vambrace.host.platform import Platform
from vambrace.host.realm import Realm
from vambrace.host.settings import Settings
from vambrace.host.shares import Shares
from vambrace.host.standby import Standby
from vambrace.host.store import RECORDS_KEPT, RealmRecord, Store, StoredImage
from vambrace.host.vmm import kill_leftover
from vambrace.host.vsock import Connector, connect_vsock
from vambrace.partition.overlap import Verification

# What a VMM process takes beyond guest memory, and what the host keeps for itself.
VMM_OVERHEAD = 48 << 20
TABLES = 64  # of guest memory: the window's tables (28 bytes a page) and page tables, twice and of stage 2
HOST_RESERVE = 128 << 20  # the VMM that waits for the next Realm among it
SPACE_CHECK = 64 << 20
BLOCK = 4 << 20
FIRST_CID = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealmRequest:
    """The body of ``PUT /v1/realms/{uuid}``: ``image`` is a SHA-256, ``nonce`` 32 bytes, both in hex."""

    name: str
    image: str
    nonce: str


class Host:
    """Created in the event loop; ``recover`` before anything else, ``close`` at the end."""

    def __init__(
        self, settings: Settings, store: Store, platform: Platform, connect: Connector = connect_vsock
    ) -> None:
        self.settings = settings
        self.store = store
        self.platform = platform
        # Lazily faulted guests do not show in MemAvailable, so it is read once, before there are any.
        self.memory_limit = settings.guest_memory or max(0, memory_available() - HOST_RESERVE)
        self.shares = Shares(settings, self.memory_limit)
        self._standby = Standby(settings, self.shares.waiting)
        self._living: dict[str, Realm] = {}
        self._ended: dict[str, Realm] = {}
        self._past: dict[str, RealmRecord] = {}
        self._admission = asyncio.Lock()
        self._verifying = asyncio.Lock()
        self._next_cid = FIRST_CID
        self.messages = Messages(self._living.values, connect, settings.message_rate)
        windows = WindowTotals(self._running)
        self.metrics = Metrics(self, windows)
        self._refreshing = [asyncio.create_task(part.refresh()) for part in (windows, self.messages)]
        for task in self._refreshing:
            task.add_done_callback(_log_failure)

    def recover(self) -> None:
        """End the VMMs of an earlier daemon and make its Realms ``failed``; a VMM is started for the first Realm."""
        for record in self.store.records():
            if kill_leftover(record.vmm_pid, record.vmm_started):
                log.warning("realm %s: its VMM of an earlier run was killed", record.uuid)
        for record in self.store.recover():
            self._past[record.uuid] = record
        self._prune()
        self.shares.open()
        self._standby.prepare()

    async def close(self) -> None:
        """Destroy every living Realm and wait for it."""
        for task in self._refreshing:
            task.cancel()
        for realm in tuple(self._living.values()):
            realm.finish(State.FAILED, "host stopped")
        await asyncio.gather(*(realm.ended() for realm in tuple(self._living.values())))
        await self.messages.close()
        await self._standby.close()
        self.platform.close()

    # Realms

    async def create(self, uuid: str, request: RealmRequest) -> tuple[Realm | RealmRecord, bool]:
        """The Realm ``uuid`` and whether it is new.

        Raises ``Conflict`` (other content, name in use), ``CapacityError``, ``NotFound`` (image),
        ``ConfigError`` (debug), ``HostError`` (no endorsement).
        """
        async with self._admission:
            existing = self._known(uuid)
            if existing is not None:
                record = existing if isinstance(existing, RealmRecord) else existing.record
                if (record.name, record.image, record.nonce) != (request.name, request.image, request.nonce):
                    raise Conflict(f"Realm {uuid} exists with other content", hint="choose a fresh UUID", status=409)
                return existing, False
            self.platform.require_endorsed()
            if any(realm.record.name == request.name for realm in self._living.values()):
                raise Conflict(
                    f"a Realm named {request.name} exists",
                    hint="choose another name or destroy that one",
                    status=409,
                )
            image = self.store.image(request.image)
            config = await asyncio.to_thread(image.read_config)
            if config.debug and not self.settings.allow_debug:
                raise ConfigError(
                    "this host runs no debug Realms", hint="build the image without debug, or set allow_debug"
                )
            memory = config.memory + config.memory // TABLES + VMM_OVERHEAD
            memory += ENDPOINT_MEMORY * len(config.endpoints)
            place = await self.shares.reserve(uuid, request.name, memory, config.vcpus)
            record = RealmRecord(uuid, request.name, request.image, request.nonce, created=time.time(), memory=memory)
            realm = Realm(
                record,
                config,
                image,
                settings=self.settings,
                store=self.store,
                platform=self.platform,
                standby=self._standby,
                messages=self.messages,
                cid=self._new_cid(),
                place=place,
            )
            self._living[uuid] = realm
            self.metrics.created()
            realm.begin()
            asyncio.create_task(self._retire(realm)).add_done_callback(_log_failure)
            return realm, True

    def realm(self, uuid: str) -> Realm | RealmRecord:
        """A living Realm, or the record of a past one; raises ``NotFound``."""
        existing = self._known(uuid)
        if existing is None:
            raise NotFound(f"no Realm {uuid}")
        return existing

    def realms(self) -> list[Realm | RealmRecord]:
        return [*self._past.values(), *self._ended.values(), *self._living.values()]

    def states(self) -> Counter[State]:
        """How many living Realms are in each state."""
        return Counter(realm.lifecycle.state for realm in self._living.values())

    def _running(self) -> dict[str, Watched]:
        return {uuid: realm for uuid, realm in self._living.items() if realm.lifecycle.state is State.RUNNING}

    def _known(self, uuid: str) -> Realm | RealmRecord | None:
        return self._living.get(uuid) or self._ended.get(uuid) or self._past.get(uuid)

    async def _retire(self, realm: Realm) -> None:
        uuid = realm.record.uuid
        try:
            await realm.ended()
        finally:
            del self._living[uuid]
            self._ended[uuid] = realm
            self.metrics.ended(realm.lifecycle.state)
            self._prune()
            self._standby.prepare()

    def _prune(self) -> None:
        """Keep the newest records of ended Realms only: the disk is bounded."""
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
        """Never one that was used since the start: a late connection must not reach another Realm."""
        self._next_cid += 1
        return self._next_cid

    async def verify(self) -> Verification:
        """Check from the numbers of the running processes that the domains are apart. Raises ``PartitionError``."""
        async with self._verifying:
            records = [realm.record for realm in self._living.values()]
            return await self.shares.verify((record.uuid, record.vmm_pid) for record in records if record.vmm_pid)

    # Images

    async def put_image(
        self, digest: str, length: int | None, chunks: AsyncIterator[bytes]
    ) -> tuple[StoredImage, bool]:
        """Receive a bundle; nothing is left behind unless it is whole, right and sound.

        Raises ``ImageError`` (digest, structure, size) and ``CapacityError`` (space).
        """
        if self.store.has_image(digest):
            return self.store.image(digest), False
        if length is not None:
            _check_size(length, self.settings.image_limit)
            # The tar and what is unpacked from it exist side by side for a moment.
            self.store.require_space(2 * length)
        descriptor, path = self.store.new_upload()
        try:
            received = await self._receive(descriptor, chunks)
            if received != digest:
                raise ImageError(f"the image has the digest {received}", hint="send it to the path of that")
            return await asyncio.to_thread(self.store.add_image, digest, path), True
        finally:
            path.unlink(missing_ok=True)

    async def _receive(self, descriptor: int, chunks: AsyncIterator[bytes]) -> str:
        """Write ``chunks`` to the file, within limit and space; returns their SHA-256."""
        hasher = hashlib.sha256()
        size = unchecked = 0
        block = bytearray()
        try:
            with os.fdopen(descriptor, "wb") as file:

                def put() -> None:
                    hasher.update(block)
                    file.write(block)
                    block.clear()

                async for chunk in chunks:
                    size += len(chunk)
                    unchecked += len(chunk)
                    _check_size(size, self.settings.image_limit)
                    if unchecked >= SPACE_CHECK:
                        self.store.require_space(unchecked)
                        unchecked = 0
                    # What comes from the network are small pieces: a thread for each would take longer than its work.
                    block += chunk
                    if len(block) >= BLOCK:
                        await asyncio.to_thread(put)
                await asyncio.to_thread(put)
        except ConnectionError:
            raise
        except OSError as error:
            raise CapacityError(
                f"the image could not be stored: {error.strerror}", hint="delete images that nobody needs any more"
            ) from error
        return hasher.hexdigest()

    def delete_image(self, digest: str) -> None:
        """Raises ``NotFound``, ``Conflict`` (a living Realm is of this image)."""
        users = [realm.record.name for realm in self._living.values() if realm.record.image == digest]
        if users:
            raise Conflict(f"the image is in use by {', '.join(users)}", hint="destroy it first", status=409)
        self.store.delete_image(digest)

    # The host itself

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
            "realms": len(self._living),
        }


def memory_available() -> int:
    """Bytes that the kernel can give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return 0


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ImageError(f"the image is larger than {limit} bytes", hint="raise image_limit on the host")


def _log_failure(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        if (error := task.exception()) is not None:
            log.error("internal error", exc_info=error)
