"""Test tokens: one place that makes them, right or wrong in one respect.

``Platform`` is what the trusted application is on a real machine: it holds the keys and composes claims, from
the specification (docs/architecture.md, section 9) and not with the product's decoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest import cose, references, suites
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.claims import Component
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.references import ReferenceValues
from vambrace.attest.suites import PrivateKey
from vambrace.attest.verify import VerifiedRealm, verify_evidence
from vambrace.suite import NIST, Suite

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = hashlib.sha256(b"the user's nonce").digest()
INSTANCE = bytes.fromhex("00112233445566778899aabbccddeeff")
MEASUREMENT = hashlib.sha256(b"an image").digest()
PERSONALIZATION = hashlib.sha512(b"an owner").digest()
IMPLEMENTATION = hashlib.sha256(b"an implementation").digest()
SIGNER = hashlib.sha256(b"a firmware signer").digest()
COMPONENTS = tuple(
    Component(name, hashlib.sha256(name.encode()).digest(), SIGNER)
    for name in ("BL31", "OPTEE_HEADER", "OPTEE_PAGER", "BL33")
)

Change = Callable[[dict[int, Any]], None]


def new_key() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def unchanged(claims: dict[int, Any]) -> None:
    pass


@dataclass
class Platform:
    """One machine; the defaults are those of a good one."""

    authority: VendorAuthority = field(default_factory=lambda: VendorAuthority.create(now=NOW))
    pak: PrivateKey = field(default_factory=new_key)
    rak: PrivateKey = field(default_factory=new_key)
    components: Sequence[Component] = COMPONENTS
    lifecycle: int = 0x3000
    chain: list[bytes] | None = None  # instead of the vendor's endorsement
    suite: Suite = NIST

    @classmethod
    def of(cls, suite: Suite) -> Platform:
        authority = VendorAuthority.create(suite=suite, now=NOW)
        return cls(authority, suites.generate(suite), suites.generate(suite), suite=suite)

    @cached_property
    def pak_cose(self) -> bytes:
        return cose.encode_key(self.pak.public_key())

    @cached_property
    def rak_cose(self) -> bytes:
        return cose.encode_key(self.rak.public_key())

    @cached_property
    def endorsement(self) -> list[bytes]:
        return [self.authority.certify(self.pak_cose, now=NOW).public_bytes(Encoding.DER)]

    def platform_claims(self) -> dict[int, Any]:
        return {
            265: "tag:vambrace.dev,2026:platform#1",
            10: self.suite.digest(self.rak_cose),
            2396: IMPLEMENTATION,
            256: b"\x01" + self.suite.digest(self.pak_cose),
            2401: b"",
            2395: self.lifecycle,
            2402: "sha-256",
            2399: [{1: c.name, 2: c.digest, 5: c.signer, 6: "sha-256"} for c in self.components],
        }

    def realm_claims(self, nonce: bytes = NONCE, instance: bytes = INSTANCE) -> dict[int, Any]:
        return {
            265: "tag:vambrace.dev,2026:realm#1",
            10: launch_challenge(nonce, instance, self.suite),
            44235: PERSONALIZATION,
            44238: MEASUREMENT,
            44239: [bytes(32)] * 4,
            44236: self.suite.hash,
            44237: self.rak_cose,
            44240: self.suite.hash,
            -70001: instance,
            -70002: "dram",
            -70003: False,
            -70004: False,
            -70005: "none",
            -70006: "realm",
        }

    def halves(
        self,
        platform: Change = unchanged,
        realm: Change = unchanged,
        *,
        nonce: bytes = NONCE,
        instance: bytes = INSTANCE,
    ) -> dict[int, bytes]:
        """Both signed halves; ``platform`` and ``realm`` may change their claims before they are signed."""
        platform_claims, realm_claims = self.platform_claims(), self.realm_claims(nonce, instance)
        platform(platform_claims)
        realm(realm_claims)
        chain = self.endorsement if self.chain is None else self.chain
        header: dict[int | str, Any] = {33: chain[0] if len(chain) == 1 else chain} if chain else {}
        return {
            44234: cose.sign1(self.pak, dumps(platform_claims), unprotected=header),
            44241: cose.sign1(self.rak, dumps(realm_claims)),
        }

    def token(self, platform: Change = unchanged, realm: Change = unchanged, **names: bytes) -> bytes:
        return collection(self.halves(platform, realm, **names))

    @property
    def references(self) -> ReferenceValues:
        return ReferenceValues(COMPONENTS, IMPLEMENTATION)

    @property
    def roots(self) -> list[x509.Certificate]:
        return [self.authority.certificate]


def dumps(value: Any) -> bytes:
    """Another library than the product's writes the claims: the decoder meets somebody else's bytes."""
    return cbor2.dumps(value, canonical=True)


def collection(halves: dict[int, bytes], tag: int = 907) -> bytes:
    """Records of type application/eat+cwt, or what the tag before that had."""
    entries = {key: [263, half] for key, half in halves.items()} if tag == 907 else halves
    return dumps(cbor2.CBORTag(tag, entries))


def claim(key: int, value: Any) -> Change:
    """Another value of one claim."""
    return lambda claims: claims.update({key: value})


def without(key: int) -> Change:
    return lambda claims: claims.pop(key)


def expected(platform: Platform, **changes: Any) -> dict[str, Any]:
    """What a user of ``platform`` expects, except for ``changes``; the challenge is another matter."""
    values = {
        "roots": platform.roots,
        "references": platform.references,
        "measurement": MEASUREMENT,
        "personalization": PERSONALIZATION,
        "now": NOW,
    }
    return {**values, **changes}


def verify(token: bytes, platform: Platform, **changes: Any) -> VerifiedRealm:
    """Verify with what a user of ``platform`` would expect, except for ``changes``."""
    return verify_evidence(token, **expected(platform, **{"challenge": launch_challenge(NONCE, INSTANCE), **changes}))


def published(platform: Platform) -> bytes:
    return references.publish(COMPONENTS, platform.authority, implementation_id=IMPLEMENTATION, now=NOW)
