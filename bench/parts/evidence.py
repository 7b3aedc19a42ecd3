"""Platforms that issue tokens, for the benchmarks: the claims of docs/architecture.md, section 9, and software keys."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest import claims as c
from vambrace.attest.anchors import Anchors
from vambrace.attest.cbor import encode
from vambrace.attest.claims import Component
from vambrace.attest.cose import X5CHAIN, encode_key, sign1
from vambrace.attest.endorsement import VendorAuthority, platform_instance_id
from vambrace.attest.policy import SECURED, Policy
from vambrace.attest.references import ReferenceValues
from vambrace.attest.suites import PrivateKey, generate, suite_of
from vambrace.attest.token import collect
from vambrace.suite import Suite

NAMES = ("BL31", "OPTEE_HEADER", "OPTEE_PAGER", "BL33")
COMPONENTS = tuple(Component(name, hashlib.sha256(name.encode()).digest(), bytes(32)) for name in NAMES)
MEASUREMENT = hashlib.sha256(b"an image").digest()
OWNER = hashlib.sha512(b"an owner").digest()
POLICY = Policy(measurements=frozenset({MEASUREMENT}), owners=frozenset({OWNER}))


@dataclass
class Platform:
    """One boot of one machine of ``vendor``, in the vendor's suite: its platform half is signed once."""

    vendor: VendorAuthority
    key: PrivateKey = field(init=False)
    realm_key: PrivateKey = field(init=False)

    def __post_init__(self) -> None:
        self.key, self.realm_key = generate(self.suite), generate(self.suite)

    @property
    def suite(self) -> Suite:
        return suite_of(self.vendor.key)

    @cached_property
    def rak(self) -> bytes:
        return encode_key(self.realm_key.public_key())

    @cached_property
    def half(self) -> bytes:
        pak = encode_key(self.key.public_key())
        components = [
            {
                c.COMPONENT_TYPE: component.name,
                c.COMPONENT_DIGEST: component.digest,
                c.COMPONENT_SIGNER: component.signer,
                c.COMPONENT_HASH: component.hash_algorithm,
            }
            for component in COMPONENTS
        ]
        stated = {
            c.PROFILE: c.PLATFORM_PROFILE,
            c.CHALLENGE: self.suite.digest(self.rak),
            c.IMPLEMENTATION_ID: bytes(32),
            c.UEID: platform_instance_id(pak, self.suite),
            c.CONFIG: b"",
            c.LIFECYCLE: SECURED,
            c.PLATFORM_HASH: "sha-256",
            c.COMPONENTS: components,
        }
        endorsement = self.vendor.certify(pak).public_bytes(Encoding.DER)
        return sign1(self.key, encode(stated), unprotected={X5CHAIN: endorsement})

    def token(self, challenge: bytes, instance: bytes | None = None) -> bytes:
        """For a new Realm, or that of ``instance``; ``challenge`` has 64 bytes."""
        stated = {
            c.PROFILE: c.REALM_PROFILE,
            c.CHALLENGE: challenge,
            c.PERSONALIZATION: OWNER,
            c.MEASUREMENT: MEASUREMENT,
            c.REMS: [bytes(32)] * c.REM_COUNT,
            c.MEASUREMENT_HASH: self.suite.hash,
            c.RAK: self.rak,
            c.RAK_HASH: self.suite.hash,
            c.INSTANCE: instance or os.urandom(16),
            c.KEY_STORAGE: "dram",
            c.DEBUG: False,
            c.INSECURE: False,
            c.CACHE_PARTITION: "none",
            c.CLASS: "realm",
        }
        return collect(self.half, sign1(self.realm_key, encode(stated)))


def anchors(vendor: VendorAuthority) -> Anchors:
    return Anchors((vendor.certificate,), (ReferenceValues(COMPONENTS),))
