"""Reference values of a platform, as the vendor publishes them: a signed CoRIM.

The format is draft-ietf-rats-corim (map keys as of revision 08): a COSE_Sign1 (18) with content type
``application/rim+cbor``, corim-meta (8) and x5chain (33) in its protected header, over a corim-map (501) with
one CoMID (506), whose reference-value triples give, as in the CCA endorsements profile
(draft-ydb-rats-cca-endorsements), one measurement for each component: its name (11), digest (2) and,
where it is a condition, signer (13) and version (0). The order of the
measurements is the order of the boot event log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.cbor import Tag, decode, encode
from vambrace.attest.chain import REFERENCES_PURPOSE, verify_chain
from vambrace.attest.claims import HASH_BYTES, MAX_COMPONENTS, MAX_TEXT, Component
from vambrace.attest.cose import X5CHAIN, decode_sign1, sign1
from vambrace.attest.endorsement import LEAF_DAYS, VendorAuthority
from vambrace.attest.token import read_x5chain
from vambrace.errors import CertificateExpired, ConfigError, MalformedEvidence

PROFILE: Final = "tag:vambrace.dev,2026:references#1"
CONTENT_TYPE: Final = "application/rim+cbor"

_CORIM, _COMID, _BYTES, _URI, _TIME = 501, 506, 560, 32, 1
_HEADER_CONTENT_TYPE, _HEADER_META = 3, 8
_ID, _TAGS, _PROFILE, _VALIDITY = 0, 1, 3, 4
_TAG_IDENTITY, _TRIPLES, _REFERENCE_TRIPLES = 1, 4, 0
_CLASS, _CLASS_ID, _VENDOR, _MODEL = 0, 0, 1, 2
_MKEY, _MVAL, _DIGESTS, _NAME, _KEYS = 0, 1, 2, 11, 13
_MKEY_COMPONENT: Final = "cca.software-component"
_LIMIT: Final = 64 << 10


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
    environment: dict[int, Any] = {_VENDOR: "vambrace", _MODEL: "platform"}
    if implementation_id is not None:
        environment[_CLASS_ID] = Tag(_BYTES, implementation_id)
    triple = [{_CLASS: environment}, [_measurement(component) for component in components]]
    identity = hashlib.sha256(encode(triple)).digest()[:16]
    comid = {_TAG_IDENTITY: {0: identity}, _TRIPLES: {_REFERENCE_TRIPLES: [triple]}}
    corim = {
        _ID: identity,
        _TAGS: [Tag(_COMID, encode(comid))],
        _PROFILE: Tag(_URI, PROFILE),
        _VALIDITY: {0: Tag(_TIME, start), 1: Tag(_TIME, end)},
    }
    key, certificate = authority.reference_signer(now=now, days=days)
    meta = {0: {0: "vambrace platform vendor"}}
    protected: dict[int | str, Any] = {
        _HEADER_CONTENT_TYPE: CONTENT_TYPE,
        _HEADER_META: encode(meta),
        X5CHAIN: certificate.public_bytes(Encoding.DER),
    }
    return sign1(key, encode(Tag(_CORIM, corim)), protected=protected)


def load(data: bytes, roots: Sequence[x509.Certificate], *, now: datetime | None = None) -> ReferenceValues:
    """Verify and read published reference values.

    Raises ``MalformedEvidence``, ``UnknownRoot``, ``CertificateExpired``, ``SignatureInvalid``.
    """
    now = now or datetime.now(UTC)
    headers = frozenset({_HEADER_CONTENT_TYPE, _HEADER_META, X5CHAIN})
    message = decode_sign1(data, "CoRIM", protected=headers)
    if message.protected.get(_HEADER_CONTENT_TYPE) != CONTENT_TYPE:
        raise MalformedEvidence("the reference values are not a signed CoRIM")
    chain = verify_chain(read_x5chain(message.protected), roots, REFERENCES_PURPOSE, now)
    return _corim(decode(message.verify(chain.key, "reference values"), limit=_LIMIT), now)


def _measurement(component: Component) -> dict[int, Any]:
    values: dict[int, Any] = {
        _DIGESTS: [[component.hash_algorithm, component.digest]],
        _NAME: component.name,
    }
    if component.signer is not None:
        values[_KEYS] = [Tag(_BYTES, component.signer)]
    if component.version is not None:
        values[0] = {0: component.version}
    return {_MKEY: _MKEY_COMPONENT, _MVAL: values}


def _corim(value: Any, now: datetime) -> ReferenceValues:
    match value:
        case Tag(
            number=501,
            value={
                0: bytes(),
                1: [Tag(number=506, value=bytes(comid))],
                3: Tag(number=32, value=str(profile)),
                4: {0: Tag(number=1, value=int(start)), 1: Tag(number=1, value=int(end))},
            },
        ) if profile == PROFILE:
            pass
        case _:
            raise MalformedEvidence("the CoRIM is not of the profile that is expected")
    if not start <= now.timestamp() <= end:
        raise CertificateExpired(
            "the reference values are out of their validity", hint="get the vendor's present ones"
        )
    match decode(comid, limit=_LIMIT):
        case {1: {0: bytes()}, 4: {0: [[{0: dict(environment), **others}, list(measurements)]]}} if (
            not others
        ):
            pass
        case _:
            raise MalformedEvidence("the CoMID is not of the profile that is expected")
    match environment.get(_CLASS_ID):
        case None:
            implementation_id = None
        case Tag(number=560, value=bytes(implementation_id)):
            pass
        case _:
            raise MalformedEvidence("the CoMID names its platform in a way that is not known")
    components = tuple(_component(measurement) for measurement in measurements)
    if not components:
        raise MalformedEvidence("the CoMID has no reference values")
    return ReferenceValues(components, implementation_id)


def _component(measurement: Any) -> Component:
    match measurement:
        case {
            0: str(mkey),
            1: {2: [[str(algorithm), bytes(digest)]], 11: str(name), **conditions},
            **others,
        } if mkey == _MKEY_COMPONENT and not others:
            pass
        case _:
            raise MalformedEvidence("a reference value is not of the profile that is expected")
    signer: bytes | None = None
    version: str | None = None
    for key, condition in conditions.items():
        match key, condition:
            case 0, {0: str(text), **rest} if not rest:
                version = text
            case 13, [Tag(number=560, value=bytes(key_hash))]:
                signer = key_hash
            case _:
                # A condition that is not understood must not be taken as met.
                raise MalformedEvidence("a reference value has a condition that is not understood")
    return Component(name, digest, signer, algorithm, version)


def _check(component: Component) -> None:
    name = component.name
    if not 1 <= len(name) <= MAX_TEXT or not name.isascii() or not name.isprintable():
        raise ConfigError(f"component {name!a} has no short printable name")
    if len(component.digest) != HASH_BYTES.get(component.hash_algorithm):
        raise ConfigError(f"component {name}: the digest does not fit {component.hash_algorithm}")
