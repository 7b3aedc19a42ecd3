"""A stand-in for machines without TrustZone: software keys, and tokens that say so.

Never chosen by default, and refused by every verifier that was not told otherwise: it proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from types import TracebackType

from vambrace.attest import claims
from vambrace.attest.cbor import encode
from vambrace.attest.cose import encode_key, sign1
from vambrace.attest.endorsement import platform_instance_id
from vambrace.attest.policy import NOT_PROVISIONED
from vambrace.attest.suites import generate
from vambrace.attest.token import collect
from vambrace.errors import TrustZoneError
from vambrace.suite import NIST, Suite
from vambrace.trustzone.claims import RealmClaims, SealingClaims


class InsecurePlatform:
    """The interface of ``TrustZone``. Its keys live in this process's memory and end with it."""

    def __init__(self, suite: Suite = NIST) -> None:
        self._suite = suite
        self._platform = generate(suite)
        self._sealing = os.urandom(32)
        self._realm = generate(suite)

    def __enter__(self) -> InsecurePlatform:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to close: there is no session."""

    def platform_key(self) -> bytes:
        """COSE_Key of the software key that stands for the platform's."""
        return encode_key(self._platform.public_key())

    def lifecycle(self) -> int:
        """Always "not provisioned"."""
        return NOT_PROVISIONED

    def advance(self, lifecycle: int) -> None:
        """Raises TrustZoneError: there is no fuse."""
        raise TrustZoneError("an insecure platform has no life cycle")

    def random(self, length: int) -> bytes:
        """``length`` bytes from the kernel's generator, for want of another. Raises TrustZoneError."""
        if length < 0:
            raise TrustZoneError("a number of random bytes is not negative")
        return os.urandom(length)

    def sealing_key(self, request: SealingClaims) -> bytes:
        """As ``TrustZone.sealing_key``, until this process ends."""
        return hmac.digest(self._sealing, request.encode(), "sha256")

    def evidence(self, request: RealmClaims) -> bytes:
        """As ``TrustZone.evidence``, with claim -70004 (insecure) true."""
        rak = encode_key(self._realm.public_key())
        component = claims.INSECURE_COMPONENT
        platform = {
            claims.PROFILE: claims.PLATFORM_PROFILE,
            claims.CHALLENGE: self._suite.digest(rak),
            claims.IMPLEMENTATION_ID: hashlib.sha256(b"vambrace-platform-1/insecure").digest(),
            claims.UEID: platform_instance_id(self.platform_key(), self._suite),
            claims.CONFIG: b"",
            claims.LIFECYCLE: NOT_PROVISIONED,
            claims.PLATFORM_HASH: "sha-256",
            claims.COMPONENTS: [
                {
                    claims.COMPONENT_TYPE: component.name,
                    claims.COMPONENT_DIGEST: component.digest,
                    claims.COMPONENT_SIGNER: bytes(32),
                    claims.COMPONENT_HASH: component.hash_algorithm,
                }
            ],
        }
        realm = {
            claims.PROFILE: claims.REALM_PROFILE,
            claims.CHALLENGE: request.challenge,
            claims.PERSONALIZATION: request.personalization,
            claims.MEASUREMENT: request.rim,
            claims.REMS: list(request.rems),
            claims.MEASUREMENT_HASH: request.suite.hash,
            claims.RAK: rak,
            claims.RAK_HASH: self._suite.hash,
            claims.INSTANCE: request.instance,
            claims.KEY_STORAGE: request.key_storage,
            claims.DEBUG: request.debug,
            claims.INSECURE: True,
            claims.CACHE_PARTITION: request.cache_partition,
            claims.CLASS: request.domain_class,
        }
        return collect(sign1(self._platform, encode(platform)), sign1(self._realm, encode(realm)))
