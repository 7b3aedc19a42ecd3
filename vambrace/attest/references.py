"""Reference values of a platform of ours, as the vendor publishes them: a signed CoRIM (``corim``).

One reference-value triple gives, as in the CCA endorsements profile (draft-ydb-rats-cca-endorsements), one measurement
for each component: its name, digest and, where it is a condition, signer and version. The order of the measurements is
the order of the boot event log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509

from vambrace.attest import corim
from vambrace.attest.cbor import encode
from vambrace.attest.claims import HASH_BYTES, MAX_COMPONENTS, MAX_TEXT, Component
from vambrace.attest.corim import Corim, Environment, Measurement, ReferenceTriple
from vambrace.attest.endorsement import LEAF_DAYS, VendorAuthority
from vambrace.attest.revocation import Revocation
from vambrace.errors import ConfigError, MalformedEvidence

PROFILE: Final = "tag:vambrace.dev,2026:references#1"
COMPONENT_KEY: Final = "cca.software-component"


@dataclass(frozen=True)
class ReferenceValues:
    """What a platform must have measured at boot, in this order.

    ``implementation_id`` (32 bytes) is compared where it is given.
    """

    components: tuple[Component, ...]
    implementation_id: bytes | None = None


def publish(
    components: Sequence[Component],
    authority: VendorAuthority,
    *,
    implementation_id: bytes | None = None,
    now: datetime | None = None,
    days: int = LEAF_DAYS,
) -> bytes:
    """The signed reference values, for ``reference-values.corim``.

    They are signed by a key made for this once, certified by ``authority`` and then forgotten. Raises
    ``ConfigError`` for components that no token could match.
    """
    for component in components:
        _check(component)
    if not 1 <= len(components) <= MAX_COMPONENTS:
        raise ConfigError(f"{len(components)} components: from 1 to {MAX_COMPONENTS} can be published")
    start = int((now or datetime.now(UTC)).timestamp())
    end = start + int(timedelta(days=days).total_seconds())
    described = [[c.name, c.hash_algorithm, c.digest, c.signer, c.version] for c in components]
    identity = hashlib.sha256(encode([implementation_id, described])).digest()[:16]
    environment = Environment(implementation_id, vendor="vambrace", model="platform")
    triple = ReferenceTriple(environment, tuple(_measurement(component) for component in components))
    key, certificate = authority.reference_signer(now=now, days=days)
    published = Corim(identity, PROFILE, (start, end), (triple,))
    return corim.sign(published, key, "vambrace platform vendor", [certificate])


def load(
    data: bytes,
    roots: Sequence[x509.Certificate],
    *,
    now: datetime | None = None,
    revocation: Revocation | None = None,
) -> ReferenceValues:
    """Verify and read published reference values.

    Raises ``MalformedEvidence``, ``UnknownRoot``, ``CertificateExpired``, ``CertificateRevoked``,
    ``RevocationUnknown``, ``SignatureInvalid``.
    """
    return read(corim.verify(data, roots=roots, now=now or datetime.now(UTC), revocation=revocation))


def read(verified: Corim) -> ReferenceValues:
    """The reference values in a CoRIM of our profile. Raises ``MalformedEvidence``."""
    if verified.profile != PROFILE or len(verified.references) != 1 or verified.keys:
        raise MalformedEvidence("the CoRIM is not of the profile that is expected")
    (triple,) = verified.references
    if triple.environment.instance is not None:
        raise MalformedEvidence("the reference values are for one machine only")
    components = tuple(_component(measurement) for measurement in triple.measurements)
    return ReferenceValues(components, triple.environment.class_id)


def _measurement(component: Component) -> Measurement:
    return Measurement(
        COMPONENT_KEY,
        digests=((component.hash_algorithm, component.digest),),
        name=component.name,
        version=component.version,
        signer=component.signer,
    )


def _component(measurement: Measurement) -> Component:
    match measurement:
        case Measurement(
            key=key, digests=((algorithm, digest),), name=str(name), version=version, signer=signer, raw=None
        ) if key == COMPONENT_KEY and len(digest) == HASH_BYTES[algorithm]:
            return Component(name, digest, signer, algorithm, version)
        case _:
            raise MalformedEvidence("a reference value is not of the profile that is expected")


def _check(component: Component) -> None:
    name = component.name
    if not 1 <= len(name) <= MAX_TEXT or not name.isascii() or not name.isprintable():
        raise ConfigError(f"component {name!a} has no short printable name")
    if len(component.digest) != HASH_BYTES.get(component.hash_algorithm):
        raise ConfigError(f"component {name}: the digest does not fit {component.hash_algorithm}")
