"""Every way that was thought of in which a token of Arm CCA is malformed: each refused with an error of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from attest_factory import Platform
from cca_factory import DIGEST, PLATFORM, REALM, Cca, Change, bare, cose_key, records, sign1
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.signatures import check_signatures
from vambrace.attest.token import MAX_TOKEN, decode_token
from vambrace.errors import (
    MalformedCbor,
    MalformedClaim,
    MalformedEnvelope,
    MalformedEvidence,
    SignatureInvalid,
    UnknownProfile,
    VerificationError,
)

CCA = Cca()
OLD = Cca("legacy")
HALVES = CCA.halves()
CERTIFICATES = [Platform().authority.certificate.public_bytes(Encoding.DER) for _ in range(2)]
Build = Callable[[], bytes]
Case = tuple[Build, type[VerificationError], str]


def put(key: Any, value: Any) -> Change:
    return lambda claims: claims.update({key: value})


def drop(key: Any) -> Change:
    return lambda claims: claims.pop(key)


def nested(key: int, change: Change, index: int = 0) -> Change:
    return lambda claims: change(claims[key][index])


def platform(change: Change) -> Build:
    return lambda: CCA.token(platform=change)


def realm(change: Change) -> Build:
    return lambda: CCA.token(realm=change)


def half(key: int, value: Any) -> Build:
    return lambda: records({**HALVES, key: value})


def signed(payload: bytes | None = None, **parts: Any) -> Build:
    """The platform half is signed in another way."""
    return half(PLATFORM, sign1(CCA.cpak, payload or cbor2.dumps(CCA.platform_claims()), **parts))


def message(change: Callable[[list[Any]], object]) -> Build:
    return signed(change=change)


def part(index: int, value: Any) -> Callable[[list[Any]], object]:
    return lambda parts: parts.__setitem__(index, value)


def keyed(change: Change) -> Build:
    """The realm key, which the platform vouches for, is of another form."""
    return lambda: Cca(cpak=CCA.cpak, rak=CCA.rak, realm_key=cose_key(CCA.rak.public_key(), change)).token()


def tagged(number: int, value: Any) -> Build:
    return lambda: cbor2.dumps(cbor2.CBORTag(number, value))


# For short lines below.
CBOR, ENVELOPE, CLAIM = MalformedCbor, MalformedEnvelope, MalformedClaim

X509 = {"x5t": [-16, hashlib.sha256(CERTIFICATES[1]).digest()]}
DOUBLE = b"\xa2\x19\x01\x09\x60\x19\x01\x09\x60"

ENVELOPES: dict[str, Case] = {
    "nothing": (lambda: b"", CBOR, "too early"),
    "longer than accepted": (lambda: bytes(MAX_TOKEN + 1), CBOR, "at most"),
    "bytes behind": (lambda: CCA.token() + b"\0", CBOR, "follow the end"),
    "an indefinite length": (lambda: b"\xd9\x03\x8b\xbf\xff", CBOR, "indefinite"),
    "a float": (lambda: b"\xd9\x03\x8b\xf9\x7e\x00", CBOR, "float"),
    "too deep": (lambda: b"\xd9\x03\x8b" + b"\x81" * 40 + b"\0", CBOR, "too deep"),
    "not UTF-8": (lambda: b"\xd9\x03\x8b\x61\xff", CBOR, "UTF-8"),
    "a byte string as key": (lambda: b"\xd9\x03\x8b\xa1\x41\x00\x00", CBOR, "neither an integer nor"),
    "a claim twice": (signed(DOUBLE), CBOR, "twice"),
    "another tag": (tagged(908, {}), ENVELOPE, "not a CMW collection"),
    "no map": (tagged(907, []), ENVELOPE, "not a collection of"),
    "no platform token": (lambda: records({REALM: HALVES[REALM]}), ENVELOPE, "no platform token"),
    "no realm token": (lambda: records({PLATFORM: HALVES[PLATFORM]}), ENVELOPE, "no realm token"),
    "a third entry": (lambda: records({**HALVES, 44258: b""}), ENVELOPE, "entries that are not known"),
    "no byte string": (tagged(907, {PLATFORM: {}, REALM: {}}), ENVELOPE, "not a record of a type"),
    "another content": (tagged(907, {key: [601, half] for key, half in HALVES.items()}), ENVELOPE, "of another"),
    "a record of three": (tagged(907, {key: [263, half, 4] for key, half in HALVES.items()}), ENVELOPE, "indicator"),
    "no records in 907": (lambda: bare(HALVES, 907), ENVELOPE, "not in a record"),
    "records in 399": (lambda: records(HALVES, 399), ENVELOPE, "not a byte string"),
    "no COSE_Sign1": (half(PLATFORM, cbor2.dumps([b"", {}, b"", b""])), ENVELOPE, "not tagged as"),
    "three parts": (message(lambda parts: parts.pop()), ENVELOPE, "is not a COSE_Sign1"),
    "a detached payload": (message(part(2, None)), ENVELOPE, "elsewhere"),
    "a header that is no map": (signed(protected=b"\x80"), ENVELOPE, "header of the platform token is not a map"),
    "no algorithm": (signed(protected=b"", loose={1: -35}), ENVELOPE, "does not say in its protected header"),
    "an algorithm by name": (signed(protected={1: "ES384"}), ENVELOPE, "does not say in its protected header"),
    "another algorithm": (signed(protected={1: -8}), ENVELOPE, "algorithm that is not known"),
    "half a signature": (message(part(3, bytes(48))), ENVELOPE, "wrong length"),
    "a critical header": (signed(protected={2: [99], 99: 0}), ENVELOPE, "parameter that is not known: '2'"),
    "a loose header": (signed(loose={"x": 0}), ENVELOPE, "parameter that is not known: 'x'"),
    "too many certificates": (signed(loose={33: [b""] * 5}), ENVELOPE, "x5chain is not a chain"),
    "a thumbprint of nothing": (signed(protected={34: b""}), ENVELOPE, "x5t is not a hash"),
    "a thumbprint of another": (
        signed(protected={34: X509["x5t"]}, loose={33: CERTIFICATES[0]}), ENVELOPE, "x5t is the hash of another"
    ),
    "claims that are no map": (signed(b"\x80"), UnknownProfile, "platform token names no profile"),
}  # fmt: skip

PROFILE_CASES: dict[str, Case] = {
    "a profile of the future": (
        platform(put(265, "tag:arm.com,2026:cca_platform#2.0.0")), UnknownProfile, "not known: 'tag:arm.com,2026"
    ),
    "PSA": (platform(put(265, "tag:psacertified.org,2023:psa#tfm")), UnknownProfile, "not known: 'tag:psa"),
    "no profile of the realm": (realm(drop(265)), UnknownProfile, "realm token names no profile"),
    "another profile of the realm": (
        realm(put(265, "tag:arm.com,2023:realm#1.0.0")), UnknownProfile, "realm token is of another profile"
    ),
    "a profile that is no text": (platform(put(265, [1])), UnknownProfile, "not known: '\\[1\\]'"),
}  # fmt: skip

COMPONENT, DEVICE, KEY = 2399, 2404, 2405
CLAIM_CASES: dict[str, Case] = {
    "a claim that is not known": (platform(put(9999, 0)), CLAIM, "not known: '9999'"),
    "a claim by name": (realm(put("x", 0)), CLAIM, "not known: 'x'"),
    "a hash of another length": (platform(put(10, bytes(20))), CLAIM, "has 20 bytes, not 32 or 48 or 64"),
    "an instance of another type": (platform(put(256, b"\x02" + bytes(32))), CLAIM, "platform.* another type than"),
    "a realm's instance of another": (realm(put(256, b"\x02" + bytes(32))), CLAIM, "realm.* another type than"),
    "a short instance": (platform(put(256, b"\x01")), CLAIM, "instance id.* has 1 bytes, not 33"),
    "a short implementation": (platform(put(2396, bytes(31))), CLAIM, "implementation id.* has 31 bytes"),
    "a long implementation": (platform(put(2396, bytes(64))), CLAIM, "implementation id.* has 64 bytes"),
    "no life cycle": (platform(put(2395, 0x3300)), CLAIM, "not known: 0x3300"),
    "a life cycle of three bytes": (platform(put(2395, 0x13000)), CLAIM, "invalid life cycle"),
    "a life cycle below zero": (platform(put(2395, -1)), CLAIM, "invalid life cycle"),
    "a life cycle that is true": (platform(put(2395, True)), CLAIM, "a truth value, not an integer"),
    "a hash that is not known": (platform(put(2402, "md5")), CLAIM, "platform.* names a hash that is not known"),
    "no components": (platform(put(COMPONENT, [])), CLAIM, "has 0 entries"),
    "too many components": (platform(put(COMPONENT, [{}] * 65)), CLAIM, "has 65 entries"),
    "a component that is no map": (platform(put(COMPONENT, [1])), CLAIM, "component .* is not a map of claims"),
    "a component without digest": (platform(nested(COMPONENT, drop(2))), CLAIM, r"claim 2 \(measurement\).* missing"),
    "a component without signer": (platform(nested(COMPONENT, drop(5))), CLAIM, r"claim 5 \(signer\).* missing"),
    "a component with more": (platform(nested(COMPONENT, put(3, 0))), CLAIM, "component .* not known: '3'"),
    "a type that draws": (platform(nested(COMPONENT, put(1, "\x1b[2J"))), CLAIM, r"\(type\).* printable"),
    "a long version": (platform(nested(COMPONENT, put(4, "9" * 129))), CLAIM, r"\(version\).* printable"),
    "a countersigner that is none": (platform(nested(COMPONENT, put(8, [b""]))), CLAIM, "invalid countersigner"),
    "no countersigner": (platform(nested(COMPONENT, put(8, []))), CLAIM, "has 0 countersigners"),
    "live activation of another type": (platform(nested(COMPONENT, put(7, 1))), CLAIM, r"\(live activation\)"),
    "another client": (platform(put(2394, 2)), CLAIM, "is 2, not 1"),
    "an empty manufacturing config": (platform(put(2403, b"")), CLAIM, r"\(manufacturing config\).* is empty"),
    "empty peer signers": (platform(put(2406, b"")), CLAIM, r"\(peer signers\).* is empty"),
    "no device": (platform(put(DEVICE, [])), CLAIM, r"\(extensions\).* has 0 entries"),
    "SPDM without its digest": (platform(nested(DEVICE, drop(6))), CLAIM, "claim 6 .*extension.* is missing"),
    "a digest without SPDM": (
        platform(nested(DEVICE, put(6, DIGEST), 1)), CLAIM, "extension .* not known: '6'"
    ),
    "a CXL device without encryption": (platform(nested(DEVICE, drop(8))), CLAIM, "claim 8 .*extension.* missing"),
    "encryption of another device": (platform(nested(DEVICE, put(8, 0), 1)), CLAIM, "extension .* not known: '8'"),
    "an encryption that is none": (platform(nested(DEVICE, put(8, 3))), CLAIM, "is 3, not 0 or 1 or 2"),
    "a device without its chain": (platform(nested(DEVICE, drop(3))), CLAIM, "claim 3 .*extension.* is missing"),
    "a boot key without its place": (platform(nested(KEY, drop(2))), CLAIM, "claim 2 .*boot key.* is missing"),
    "a boot key's short hash": (platform(nested(KEY, put(4, b"1"))), CLAIM, "claim 4 .*boot key.* has 1 bytes"),
    "a short challenge": (realm(put(10, bytes(32))), CLAIM, "challenge.* realm token has 32 bytes, not 64"),
    "a nonce in an array": (realm(put(10, [bytes(64)])), CLAIM, "is an array, not a byte string"),
    "a short personalization": (realm(put(44235, bytes(63))), CLAIM, "has 63 bytes, not 64"),
    "a measurement of SHA-1": (realm(put(44238, bytes(20))), CLAIM, "initial measurement.* has 20 bytes"),
    "three registers": (realm(put(44239, [bytes(32)] * 3)), CLAIM, "3 extensible measurements, not 4"),
    "a register of SHA-1": (realm(put(44239, [bytes(20)] * 4)), CLAIM, "invalid extensible measurements"),
    "a hash of the realm not known": (realm(put(44236, "sha-1")), CLAIM, "realm token names a hash"),
    "a hash of the key not known": (realm(put(44240, "shake128")), CLAIM, r"\(hash algorithm of the realm key\)"),
    "a policy of no meaning": (realm(put(44243, 2)), CLAIM, r"\(memory encryption contexts\).* is 2, not 0 or 1"),
    "a policy by name": (realm(put(44243, "private")), CLAIM, r"\(memory encryption contexts\).* is a text"),
    "activation of no meaning": (realm(put(44244, 7)), CLAIM, r"\(live firmware activation\).* is 7"),
}  # fmt: skip

#: The realm key, whose form is looked at when signatures are.
KEY_CASES: dict[str, Case] = {
    "no COSE_Key": (
        lambda: Cca(cpak=CCA.cpak, rak=CCA.rak, realm_key=cbor2.dumps([])).token(), ENVELOPE, "not a COSE_Key"
    ),
    "no CBOR": (lambda: Cca(cpak=CCA.cpak, realm_key=b"\xff").token(), CBOR, "indefinite"),
    "a long key": (keyed(put(2, bytes(300))), CBOR, "at most 256"),
    "another type of key": (keyed(put(1, 1)), ENVELOPE, "elliptic curve with two coordinates"),
    "another curve": (keyed(put(-1, 8)), ENVELOPE, "on a curve that is not known"),
    "no x": (keyed(drop(-2)), ENVELOPE, "no x coordinate of 48"),
    "a short y": (keyed(put(-3, bytes(47))), ENVELOPE, "no y coordinate of 48"),
    "off the curve": (keyed(put(-2, bytes(48))), ENVELOPE, "not a point of its curve"),
    "for another algorithm": (keyed(put(3, -7)), ENVELOPE, "another algorithm than its curve"),
    "for signing only": (keyed(put(4, [1])), ENVELOPE, "not for verifying"),
    "with a private half": (keyed(put(-4, bytes(48))), ENVELOPE, "parameters that are not known"),
    "a COSE_Key before its time": (
        lambda: bare(Cca("legacy", CCA.cpak, CCA.rak, cose_key(CCA.rak.public_key())).halves()),
        ENVELOPE, "not an uncompressed point",
    ),
}  # fmt: skip

OTHER = Cca(cpak=CCA.cpak)
SIGNATURE_CASES: dict[str, Case] = {
    "another platform's key": (lambda: Cca().token(), SignatureInvalid, "signature of the platform token"),
    "another realm's key": (
        lambda: records({**HALVES, REALM: sign1(OTHER.rak, cbor2.dumps(CCA.realm_claims()))}),
        SignatureInvalid, "signature of the realm token",
    ),
    "halves of two tokens": (
        lambda: records({**HALVES, REALM: OTHER.halves()[REALM]}), SignatureInvalid, "do not belong together"
    ),
    "another curve than its key": (
        signed(protected={1: -7}, change=part(3, bytes(64))), SignatureInvalid, "platform token is signed with ES256"
    ),
    "another realm's curve": (
        lambda: records({**HALVES, REALM: sign1(CCA.rak, cbor2.dumps(CCA.realm_claims()), protected={1: -36},
                                                change=part(3, bytes(132)))}),
        SignatureInvalid, "realm token is signed with ES512",
    ),
    "zeros": (message(part(3, bytes(96))), SignatureInvalid, "signature of the platform token"),
    "another header than was signed": (
        message(part(0, cbor2.dumps({1: -35, 4: b"x"}))), SignatureInvalid, "signature of the platform token"
    ),
}  # fmt: skip

MANDATORY_OF_PLATFORM = (10, 2396, 256, 2401, 2395, 2402, 2399, 2394)
MANDATORY_OF_REALM = (10, 44235, 44236, 44237, 44238, 44239, 44240, 44243, 256)
MISSING: dict[str, Case] = {
    f"{half} without {key}": (change(drop(key)), MalformedClaim, rf"claim {key} \(.*\) of the {half} token is missing")
    for half, change, keys in (("platform", platform, MANDATORY_OF_PLATFORM), ("realm", realm, MANDATORY_OF_REALM))
    for key in keys
}
OF_ANOTHER_TYPE: dict[str, Case] = {
    f"{half} with a map for {key}": (
        change(put(key, {1: 2})), MalformedClaim, rf"claim {key} \(.*\) of the {half} token is a map, not"
    )
    for half, change, keys in (
        ("platform", platform, (*MANDATORY_OF_PLATFORM, 2400, 2403, 2404, 2405, 2406)),
        ("realm", realm, (*MANDATORY_OF_REALM, 44244)),
    )
    for key in keys
}  # fmt: skip
READ = ENVELOPES | PROFILE_CASES | CLAIM_CASES | MISSING | OF_ANOTHER_TYPE
CHECKED = KEY_CASES | SIGNATURE_CASES
#: What is wrong in the same way has the same error.
ALIKE = {"no CBOR", "an algorithm by name", "a life cycle below zero", "zeros", "another header than was signed"}


@pytest.mark.parametrize("case", READ.values(), ids=READ)
def test_what_cannot_be_read(case: Case) -> None:
    build, kind, message = case
    with pytest.raises(kind, match=message) as refusal:
        decode_token(build())
    assert type(refusal.value) is kind


@pytest.mark.parametrize("case", CHECKED.values(), ids=CHECKED)
def test_what_is_not_signed(case: Case) -> None:
    build, kind, message = case
    token = decode_token(build())
    with pytest.raises(kind, match=message) as refusal:
        check_signatures(token, CCA.cpak.public_key())
    assert type(refusal.value) is kind


def test_each_has_an_error_of_its_own() -> None:
    found: dict[tuple[type, str], str] = {}
    for name, (build, _, _) in (READ | CHECKED).items():
        if name in ALIKE:
            continue
        with pytest.raises(VerificationError) as refusal:
            check_signatures(decode_token(build()), CCA.cpak.public_key())
        error = type(refusal.value), refusal.value.message
        assert error not in found, f"{name} and {found.get(error)} have the same error"
        found[error] = name
    assert len(found) == len(READ) + len(CHECKED) - len(ALIKE)


def test_errors_say_where() -> None:
    with pytest.raises(MalformedClaim) as refusal:
        decode_token(CCA.token(realm=drop(44238)))
    assert (refusal.value.claim, refusal.value.half) == (44238, "realm token")
    with pytest.raises(UnknownProfile) as unknown:
        decode_token(CCA.token(platform=put(265, "tag:example.org,2026:x")))
    assert unknown.value.profiles == ("tag:example.org,2026:x", "tag:arm.com,2024:realm#2.0.0")


def test_older_profiles_have_no_newer_claims() -> None:
    for key in (2394, 2403, 2404, 2405, 2406):
        with pytest.raises(MalformedClaim, match=f"not known: '{key}'"):
            decode_token(bare(OLD.halves(platform=put(key, CCA.platform_claims()[key]))))
    for key in (256, 44243, 44244, -70001):
        with pytest.raises(MalformedClaim, match=f"not known: '{key}'"):
            decode_token(bare(OLD.halves(realm=put(key, 1))))


def test_every_error_is_one_line() -> None:
    for build, _, _ in READ.values():
        with pytest.raises(MalformedEvidence) as refusal:
            decode_token(build())
        assert refusal.value.message.isprintable()
        assert len(refusal.value.message) < 200
