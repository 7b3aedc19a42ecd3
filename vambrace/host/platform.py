"""This machine's TrustZone and its endorsement. Calls go through one thread: they block, up to a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from vambrace.attest.chain import PLATFORM_PURPOSE, load_roots, verify_chain
from vambrace.attest.policy import DECOMMISSIONED, NOT_PROVISIONED, SECURED
from vambrace.errors import CapacityError, ConfigError, HostError, MessageRefused, VambraceError
from vambrace.files import write_whole
from vambrace.host.evidence import endorses, parse_chain, with_endorsement
from vambrace.host.keys import SHARE, RunKeys, fresh_keys
from vambrace.trustzone import RealmClaims, SealingClaims

CHAIN_BYTES = 64 << 10

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Session(Protocol):
    """What ``vambrace.trustzone.TrustZone`` and its insecure stand-in offer."""

    def platform_key(self) -> bytes: ...
    def lifecycle(self) -> int: ...
    def advance(self, lifecycle: int) -> None: ...
    def random(self, length: int) -> bytes: ...
    def evidence(self, request: RealmClaims) -> bytes: ...
    def sealing_key(self, request: SealingClaims) -> bytes: ...


class Platform:
    """Raises ``TrustZoneError`` from every call that reaches TrustZone.

    ``vendor_root`` (PEM) is the only authority whose endorsement is taken: it lies in the measured root, so that no
    client of the API can replace the vendor's word by its own, or lock a platform that the vendor did not certify.
    """

    def __init__(self, session: Session, endorsement: Path, vendor_root: Path, *, insecure: bool) -> None:
        self.insecure = insecure
        try:
            self._roots = load_roots(vendor_root.read_bytes())
        except OSError as error:
            raise ConfigError(f"{vendor_root}: {error.strerror}", hint="it is the vendor's PEM file") from error
        self.platform_key = session.platform_key()
        self.lifecycle = session.lifecycle()
        self._session = session
        self._path = endorsement
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trustzone")
        self._chain: list[bytes] | None = None
        if endorsement.exists():
            self._chain = self._read_chain()

    @property
    def endorsed(self) -> bool:
        return self._chain is not None

    def require_endorsed(self) -> None:
        """Raises ``HostError`` (503) as long as no verifier could trust this platform."""
        if self.lifecycle == DECOMMISSIONED:
            raise HostError("this platform is decommissioned", hint="its keys are gone for ever", status=503)
        if self._chain is None:
            raise HostError(
                "this platform has no endorsement",
                hint="certify the key of GET /v1/platform, then PUT /v1/platform/endorsement",
                status=503,
            )

    def _read_chain(self) -> list[bytes] | None:
        """The stored chain. One that is damaged or for another machine's key would only make every
        verification fail: it counts as none, and can be replaced."""
        try:
            chain = parse_chain(self._path.read_bytes())
        except ConfigError as error:
            log.warning("%s: %s", self._path, error.message)
            return None
        try:
            self._check(chain)
        except VambraceError as error:
            log.warning("%s: %s", self._path, error.message)
            return None
        return chain

    def _check(self, chain: list[bytes]) -> None:
        """Raises ``MessageRefused``, ``VerificationError``: not the vendor's word for this platform's key."""
        if not endorses(chain, self.platform_key):
            raise MessageRefused("the endorsement certifies another key", hint="certify the key of GET /v1/platform")
        verify_chain(chain, self._roots, PLATFORM_PURPOSE, datetime.now(UTC))

    async def install(self, pem: bytes, *, lock: bool) -> None:
        """Store the chain of this platform's key; with ``lock``, secure the life cycle for ever.

        Raises ``ConfigError`` (no chain), ``MessageRefused`` (another platform's), ``CapacityError`` (disk full),
        ``VerificationError`` (another vendor's word, or out of its validity).
        """
        if len(pem) > CHAIN_BYTES:
            raise ConfigError(f"the endorsement is longer than {CHAIN_BYTES} bytes")
        chain = parse_chain(pem)
        self._check(chain)
        # In this order, so that an endorsed platform is a locked one whatever comes between.
        if lock and self.lifecycle == NOT_PROVISIONED:
            await self._advance(SECURED)
        try:
            await asyncio.to_thread(write_whole, self._path, pem)
        except OSError as error:
            raise CapacityError(
                f"the endorsement cannot be written: {error.strerror}", hint="look at the host's state disk"
            ) from error
        self._chain = chain

    async def leave(self, lifecycle: int) -> None:
        """Go to debug or decommissioned, for ever. What endorsed the platform's key endorses it no longer."""
        await self._advance(lifecycle)
        if lifecycle != DECOMMISSIONED:
            self.platform_key = await self._call(self._session.platform_key)
        if self._chain is not None and (lifecycle == DECOMMISSIONED or not endorses(self._chain, self.platform_key)):
            self._chain = None
        log.warning("the platform's life cycle is %#06x now", self.lifecycle)

    async def _advance(self, lifecycle: int) -> None:
        await self._call(lambda: self._session.advance(lifecycle))
        self.lifecycle = await self._call(self._session.lifecycle)

    async def fresh_keys(self) -> RunKeys:
        return fresh_keys(await self._call(lambda: self._session.random(2 * SHARE)))

    async def token(self, claims: RealmClaims) -> bytes:
        """Evidence for ``claims`` with the endorsement chain beside its platform signature."""
        self.require_endorsed()
        assert self._chain is not None
        return with_endorsement(await self._call(lambda: self._session.evidence(claims)), self._chain)

    async def sealing_key(self, claims: SealingClaims) -> bytes:
        """32 bytes for whom ``claims`` describe."""
        return await self._call(lambda: self._session.sealing_key(claims))

    def close(self) -> None:
        self._thread.shutdown()

    async def _call(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
