"""Concise reference integrity manifests (draft-ietf-rats-corim-10), the part of which our profiles and Arm's make use.

A signed CoRIM is a COSE_Sign1 with content type ``application/rim+cbor`` and corim-meta in its protected header, over a
corim-map (501) with CoMIDs (506). Of their triples, reference values and attestation keys are read. What is not
understood is refused: a condition that is passed over would be taken as met.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from vambrace.attest.cbor import Tag, decode_tolerant, encode
from vambrace.attest.chain import REFERENCES_PURPOSE, verify_chain
from vambrace.attest.claims import DIGEST_BYTES, HASH_BYTES, MAX_TEXT
from vambrace.attest.cose import (
    ALGORITHMS,
    X5CHAIN,
    Sign1,
    check_headers,
    decode_sign1_tolerant,
    sign1,
)
from vambrace.attest.revocation import Revocation
from vambrace.attest.suites import PrivateKey
from vambrace.attest.token import read_x5chain
from vambrace.errors import CertificateExpired, MalformedCbor, MalformedEvidence, SignatureInvalid, UnknownRoot

CONTENT_TYPE: Final = "application/rim+cbor"
_NO_CORIM: Final = "the reference values are not a signed CoRIM"
_PUBLISHED: Final = "give the file that the vendor publishes: reference-values.corim"
MAX_CORIM: Final = 64 << 10

_CORIM, _COMID, _UEID, _KEY, _BYTES, _MASKED, _URI, _TIME = 501, 506, 550, 554, 560, 563, 32, 1
_CONTENT_TYPE, _KID, _META, _CWT_CLAIMS = 3, 4, 8, 15
_ID, _TAGS, _PROFILE, _VALIDITY, _ENTITIES = 0, 1, 3, 4, 5
_LANGUAGE, _IDENTITY, _COMID_ENTITIES, _TRIPLES = 0, 1, 2, 4
_REFERENCES, _KEYS = 0, 3
_CLASS, _INSTANCE = 0, 1
_CLASS_ID, _VENDOR, _MODEL = 0, 1, 2
_MKEY, _MVAL = 0, 1
_VERSION, _DIGESTS, _RAW, _NAME, _SIGNERS = 0, 2, 4, 11, 13
#: Hashes by their numbers in the registry of RFC 6920, which some write instead of the name.
_HASHES: Final = {1: "sha-256", 7: "sha-384", 8: "sha-512"}


@dataclass(frozen=True)
class Environment:
    """What measurements or keys are about: a class, and one instance of it where it is named (UEID)."""

    class_id: bytes | None = None
    instance: bytes | None = None
    vendor: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One measurement-map. ``digests`` are alternatives, by hash; with a ``mask``, its bits of ``raw`` count only."""

    key: str
    digests: tuple[tuple[str, bytes], ...] = ()
    name: str | None = None
    version: str | None = None
    signer: bytes | None = None
    raw: bytes | None = None
    mask: bytes | None = None


@dataclass(frozen=True)
class ReferenceTriple:
    environment: Environment
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class KeyTriple:
    """The key that verifies what one attester signs."""

    environment: Environment
    key: EllipticCurvePublicKey


@dataclass(frozen=True)
class Corim:
    """``validity``: from when to when, seconds since the epoch, where it is given."""

    identity: bytes
    profile: str
    validity: tuple[int, int] | None
    references: tuple[ReferenceTriple, ...] = ()
    keys: tuple[KeyTriple, ...] = ()


# --- signed ---------------------------------------------------------------------------------------------


def sign(corim: Corim, key: PrivateKey, signer: str, chain: Sequence[x509.Certificate] = ()) -> bytes:
    """A signed CoRIM; ``chain`` certifies ``key``, where it is not known otherwise to who verifies."""
    protected: dict[int | str, Any] = {_CONTENT_TYPE: CONTENT_TYPE, _META: encode({0: {0: signer}})}
    if chain:
        certificates = [certificate.public_bytes(Encoding.DER) for certificate in chain]
        protected[X5CHAIN] = certificates[0] if len(certificates) == 1 else certificates
    return sign1(key, encode_corim(corim), protected=protected)


def verify(
    data: bytes,
    *,
    roots: Sequence[x509.Certificate],
    now: datetime,
    signers: Sequence[EllipticCurvePublicKey] = (),
    revocation: Revocation | None = None,
) -> Corim:
    """The CoRIM, if one of ``signers`` has signed it, or a key that one of ``roots`` certifies for reference values; it
    is valid no longer than the certificates then.

    Raises ``MalformedEvidence``, ``UnknownRoot``, ``CertificateExpired``, ``CertificateRevoked``,
    ``RevocationUnknown``, ``SignatureInvalid``.
    """
    try:
        message = decode_sign1_tolerant(data, "CoRIM")
    except MalformedCbor as error:
        raise MalformedEvidence(f"{_NO_CORIM}: {error.message}", hint=_PUBLISHED) from None
    headers = frozenset({_CONTENT_TYPE, _KID, _META, _CWT_CLAIMS, X5CHAIN})
    check_headers(message, "CoRIM", frozenset(ALGORITHMS), headers, frozenset({_KID, X5CHAIN}))
    if message.protected.get(_CONTENT_TYPE) != CONTENT_TYPE:
        raise MalformedEvidence(_NO_CORIM, hint=_PUBLISHED)
    path = None
    if not any(_signed_by(message, key) for key in signers):
        chain = read_x5chain(message.protected if X5CHAIN in message.protected else message.unprotected)
        if not chain:
            raise UnknownRoot(
                "the CoRIM's signer is not known", hint="give its public key, if you trust it: --signer FILE"
            )
        certified = verify_chain(chain, roots, REFERENCES_PURPOSE, now, revocation=revocation)
        message.verify(certified.key, "reference values")
        path = certified.path
    corim = decode_corim(message.payload)
    start, end = corim.validity or (0, 1 << 62)
    if path is not None:
        start, end = max(start, math.ceil(path.start.timestamp())), min(end, int(path.end.timestamp()))
        corim = replace(corim, validity=(start, end))
    if not start <= now.timestamp() <= end:
        raise CertificateExpired(
            "the reference values are out of their validity", hint="get the vendor's present ones"
        )
    return corim


def _signed_by(message: Sign1, key: EllipticCurvePublicKey) -> bool:
    try:
        message.verify(key, "reference values")
    except SignatureInvalid:
        return False
    return True


# --- written --------------------------------------------------------------------------------------------


def encode_corim(corim: Corim) -> bytes:
    """The tagged corim-map, with one CoMID."""
    triples: dict[int, Any] = {}
    if corim.references:
        triples[_REFERENCES] = [
            [_encode_environment(triple.environment), [_encode_measurement(m) for m in triple.measurements]]
            for triple in corim.references
        ]
    if corim.keys:
        triples[_KEYS] = [[_encode_environment(triple.environment), [_encode_key(triple.key)]] for triple in corim.keys]
    comid = {_IDENTITY: {0: corim.identity}, _TRIPLES: triples}
    value: dict[int, Any] = {
        _ID: corim.identity,
        _TAGS: [Tag(_COMID, encode(comid))],
        _PROFILE: Tag(_URI, corim.profile),
    }
    if corim.validity:
        start, end = corim.validity
        value[_VALIDITY] = {0: Tag(_TIME, start), 1: Tag(_TIME, end)}
    return encode(Tag(_CORIM, value))


def _encode_environment(environment: Environment) -> dict[int, Any]:
    described: dict[int, Any] = {}
    if environment.class_id is not None:
        described[_CLASS_ID] = Tag(_BYTES, environment.class_id)
    if environment.vendor is not None:
        described[_VENDOR] = environment.vendor
    if environment.model is not None:
        described[_MODEL] = environment.model
    value: dict[int, Any] = {_CLASS: described}
    if environment.instance is not None:
        value[_INSTANCE] = Tag(_UEID, environment.instance)
    return value


def _encode_measurement(measurement: Measurement) -> dict[int, Any]:
    values: dict[int, Any] = {}
    if measurement.version is not None:
        values[_VERSION] = {0: measurement.version}
    if measurement.digests:
        values[_DIGESTS] = [[algorithm, digest] for algorithm, digest in measurement.digests]
    if measurement.raw is not None:
        masked = measurement.mask is not None
        values[_RAW] = Tag(_MASKED, [measurement.raw, measurement.mask]) if masked else Tag(_BYTES, measurement.raw)
    if measurement.name is not None:
        values[_NAME] = measurement.name
    if measurement.signer is not None:
        values[_SIGNERS] = [Tag(_BYTES, measurement.signer)]
    return {_MKEY: measurement.key, _MVAL: values}


def _encode_key(key: EllipticCurvePublicKey) -> Tag:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Tag(_KEY, base64.b64encode(der).decode())


# --- read -----------------------------------------------------------------------------------------------


def decode_corim(data: bytes) -> Corim:
    """Read a tagged corim-map, whoever wrote it. Raises ``MalformedEvidence``; so does everything below."""
    value, _ = decode_tolerant(data, limit=MAX_CORIM)
    match value:
        case Tag(number=501, value={0: bytes() | str() as identity, 1: list(tags), **others}):
            profile, validity = _read_profile(others.pop(_PROFILE, None)), _read_validity(others.pop(_VALIDITY, None))
            others.pop(_ENTITIES, None)
            if others or not tags:
                _refuse("CoRIM")
        case _:
            _refuse("CoRIM")
    references: list[ReferenceTriple] = []
    keys: list[KeyTriple] = []
    for tag in tags:
        _read_comid(tag, references, keys)
    name = identity.encode() if isinstance(identity, str) else identity
    return Corim(name, profile, validity, tuple(references), tuple(keys))


def _refuse(what: str) -> NoReturn:
    raise MalformedEvidence(f"the {what} has something that is not understood")


def _read_profile(value: Any) -> str:
    match value:
        case Tag(number=32, value=str(profile)) | str(profile):
            return profile
        case _:
            raise MalformedEvidence("the CoRIM does not say of which profile it is")


def _read_validity(value: Any) -> tuple[int, int] | None:
    match value:
        case None:
            return None
        case {1: end, **others}:
            start = others.pop(0, 0)
            if not others:
                return _read_time(start), _read_time(end)
    _refuse("CoRIM's validity")


def _read_time(value: Any) -> int:
    time = value.value if isinstance(value, Tag) and value.number == _TIME else value
    if type(time) is not int or not 0 <= time < 1 << 62:
        _refuse("CoRIM's validity")
    return time


def _read_comid(tag: Any, references: list[ReferenceTriple], keys: list[KeyTriple]) -> None:
    if not isinstance(tag, Tag) or tag.number != _COMID or not isinstance(tag.value, bytes):
        raise MalformedEvidence("the CoRIM has something else than CoMIDs")
    comid, _ = decode_tolerant(tag.value, limit=MAX_CORIM)
    match comid:
        case {1: {0: bytes() | str()}, 4: dict(triples), **others} if others.keys() <= {_LANGUAGE, _COMID_ENTITIES}:
            pass
        case _:
            _refuse("CoMID")
    if not triples or not triples.keys() <= {_REFERENCES, _KEYS}:
        _refuse("CoMID")
    for triple in _list(triples.get(_REFERENCES, [])):
        match triple:
            case [dict(environment), list(measurements)] if measurements:
                found = tuple(_read_measurement(measurement) for measurement in measurements)
                references.append(ReferenceTriple(_read_environment(environment), found))
            case _:
                _refuse("CoMID's reference values")
    for triple in _list(triples.get(_KEYS, [])):
        match triple:
            case [dict(environment), [Tag(number=554, value=str(key))]]:
                keys.append(KeyTriple(_read_environment(environment), _read_key(key)))
            case _:
                _refuse("CoMID's attestation keys")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        _refuse("CoMID")
    return value


def _read_environment(value: dict[Any, Any]) -> Environment:
    match value:
        case {0: dict(described), **others} if others.keys() <= {_INSTANCE}:
            pass
        case _:
            _refuse("CoMID's environment")
    instance = others.get(_INSTANCE)
    match instance:
        case None:
            ueid = None
        case Tag(number=550, value=bytes(ueid)):
            pass
        case _:
            _refuse("CoMID's environment")
    match described.get(_CLASS_ID):
        case None:
            class_id = None
        case Tag(number=560, value=bytes(class_id)):
            pass
        case _:
            raise MalformedEvidence("the CoMID names its platform in a way that is not known")
    if not described.keys() <= {_CLASS_ID, _VENDOR, _MODEL}:
        _refuse("CoMID's environment")
    texts = [_text(described[key]) if key in described else None for key in (_VENDOR, _MODEL)]
    return Environment(class_id, ueid, *texts)


def _read_measurement(value: Any) -> Measurement:
    match value:
        case {0: str(key), 1: dict(values), **others} if not others and values:
            pass
        case _:
            _refuse("measurement of the CoMID")
    fields: dict[str, Any] = {}
    for number, part in values.items():
        match number, part:
            case 0, {0: version, **rest} if not rest:
                fields["version"] = _text(version)
            case 2, list(digests) if digests:
                fields["digests"] = tuple(_read_digest(digest) for digest in digests)
            case 4, Tag(number=560, value=bytes(raw)):
                fields["raw"] = raw
            case 4, Tag(number=563, value=[bytes(raw), bytes(mask)]) if len(raw) == len(mask):
                fields |= {"raw": raw, "mask": mask}
            case 11, name:
                fields["name"] = _text(name)
            case 13, [Tag(number=560, value=bytes(signer))]:
                fields["signer"] = signer
            case _:
                # A condition that is not understood must not be taken as met.
                raise MalformedEvidence("a reference value has a condition that is not understood")
    return Measurement(_text(key), **fields)


def _read_digest(value: Any) -> tuple[str, bytes]:
    match value:
        case [int() | str() as algorithm, bytes(digest)] if not isinstance(algorithm, bool):
            name = _HASHES.get(algorithm) if isinstance(algorithm, int) else algorithm
            # Published tokens have digests of other lengths than their hash's, and so have values that describe them.
            if name in HASH_BYTES and len(digest) in DIGEST_BYTES:
                return name, digest
    raise MalformedEvidence("a digest of the CoMID is of no hash that is known")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not (value.isascii() and value.isprintable()):
        raise MalformedEvidence("a text of the CoMID is not short and printable")
    return value


def _read_key(text: str) -> EllipticCurvePublicKey:
    """A tagged-pkix-base64-key-type: PEM, or what stands between its lines."""
    try:
        if text.lstrip().startswith("-----BEGIN"):
            key = load_pem_public_key(text.encode())
        else:
            key = load_der_public_key(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        raise MalformedEvidence("an attestation key of the CoMID cannot be read") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1 | SECP384R1 | SECP521R1):
        raise MalformedEvidence("an attestation key of the CoMID is not on P-256, P-384 or P-521")
    return key
