"""The daemon's part of evidence: the endorsement chain beside the signature.

The daemon signs nothing and changes no signed byte: it adds x5chain (RFC 9360) to the unprotected header
of the platform token, and checks that the chain is for the key of this platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.cbor import Tag, decode, encode
from vambrace.attest.chain import MAX_CHAIN, UNREADABLE
from vambrace.attest.cose import SIGN1_TAG, X5CHAIN, encode_key
from vambrace.attest.suites import certificate_key
from vambrace.attest.token import COLLECTION_TAG, MAX_TOKEN, collect
from vambrace.errors import ConfigError, MalformedEvidence, TrustZoneError

_CHAIN = "send the vendor's endorsement of this platform's key, its certificate first, as PEM"


def with_endorsement(evidence: bytes, chain: Sequence[bytes]) -> bytes:
    """``evidence`` with the DER certificates of ``chain`` (leaf first); raises ``TrustZoneError``."""
    match _tagged(evidence, COLLECTION_TAG):
        case {44234: [263, bytes(platform)], 44241: [263, bytes(realm)], **others} if not others:
            pass
        case _:
            raise TrustZoneError("evidence is not a collection of a platform and a realm token")
    message = _tagged(platform, SIGN1_TAG)
    if not isinstance(message, list) or len(message) != 4 or not isinstance(message[1], dict):
        raise TrustZoneError("the platform token is not a COSE_Sign1")
    protected, unprotected, payload, signature = message
    header = {**unprotected, X5CHAIN: chain[0] if len(chain) == 1 else list(chain)}
    return collect(encode(Tag(SIGN1_TAG, [protected, header, payload, signature])), realm)


def parse_chain(pem: bytes) -> list[bytes]:
    """The DER certificates of a PEM chain, leaf first; raises ``ConfigError``."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise ConfigError("the endorsement is not a PEM chain of certificates", hint=_CHAIN) from error
    if len(certificates) > MAX_CHAIN:
        raise ConfigError(f"the endorsement has more than {MAX_CHAIN} certificates", hint=_CHAIN)
    return [certificate.public_bytes(Encoding.DER) for certificate in certificates]


def endorses(chain: Sequence[bytes], platform_key: bytes) -> bool:
    """Whether the leaf of ``chain`` certifies ``platform_key`` (a COSE_Key encoding)."""
    try:
        return encode_key(certificate_key(x509.load_der_x509_certificate(chain[0]))) == platform_key
    except UNREADABLE:
        return False


def _tagged(data: Any, tag: int) -> Any:
    try:
        value = decode(data, limit=MAX_TOKEN)
    except (MalformedEvidence, TypeError, ValueError) as error:
        raise TrustZoneError("evidence is not CBOR") from error
    if not isinstance(value, Tag) or value.number != tag:
        raise TrustZoneError(f"evidence lacks CBOR tag {tag}")
    return value.value
