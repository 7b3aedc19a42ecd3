"""CoRIMs: what the endorsement profiles of Arm CCA say is read, and what is not understood is refused."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import cbor2
import pytest
from attest_factory import INSTANCE, MEASUREMENT, NONCE, NOW, Platform, dumps, new_key, published
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ReasonFlags

from vambrace.attest import ccavalues, corim
from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import appraise
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.corim import Corim, Environment, KeyTriple, Measurement, ReferenceTriple
from vambrace.attest.cose import sign1
from vambrace.attest.policy import Policy
from vambrace.attest.verify import accepted
from vambrace.errors import (
    CertificateExpired,
    CertificateRevoked,
    ConfigError,
    MalformedEvidence,
    RevocationUnknown,
    SignatureInvalid,
    UnknownRoot,
)

IMPLEMENTATION = b"acme-implementation-id-000000001"
UEID = b"\x01" + hashlib.sha256(b"a machine").digest()
SIGNER, BL1, BL2, RIM, REM = (hashlib.sha256(text).digest() for text in (b"signer", b"bl1", b"bl2", b"rim", b"rem"))
KEY = generate_private_key(SECP384R1()).public_key()
PEM = KEY.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
Tag = cbor2.CBORTag


def component(name: str, digest: bytes) -> dict[int, Any]:
    """As Veraison's corim writes it: the hash by its number, the name optional."""
    values = {2: [[1, digest]], 11: name, 13: [Tag(560, SIGNER)]}
    return {0: "cca.software-component", 1: values}


def platform_corim(change: Callable[[dict[Any, Any]], None] = lambda comid: None, **outer: Any) -> bytes:
    """The structure of veraison/corim, profiles/cca/testcases/src/cca-platform-valid.yaml (Apache-2.0)."""
    environment = {0: {0: Tag(560, IMPLEMENTATION)}}
    machine = {**environment, 1: Tag(550, UEID)}
    config = {0: "cca.platform-config", 1: {4: Tag(563, [b"\x01\x02\x03", b"\xff\x00\xff"])}}
    comid: dict[Any, Any] = {
        1: {0: b"0123456789abcdef"},
        4: {
            0: [[environment, [component("RSE_BL1_2", BL1), component("RSE_BL2", BL2), config]]],
            3: [[machine, [Tag(554, PEM)]]],
        },
    }
    change(comid)
    value = {0: "cca-platform-valid-corim", 3: "tag:arm.com,2025:cca_platform#1.0.0", 1: [Tag(506, dumps(comid))]}
    return dumps(Tag(501, {**value, **{int(key[1:]): item for key, item in outer.items()}}))


def realm_corim(change: Callable[[list[Any]], None] = lambda measurements: None, rim: bytes = RIM) -> bytes:
    """The structure of cca-realm-valid.yaml, beside the other."""
    measurements: list[Any] = [
        {0: "cca.rim", 1: {2: [["sha-256", rim]]}},
        *({0: f"cca.rem{index}", 1: {2: [["sha-256", REM]]}} for index in range(4)),
        {0: "cca.rpv", 1: {4: Tag(560, b"The quick brown fox jumps over 13 lazy dogs.")}},
    ]
    change(measurements)
    comid = {1: {0: b"0123456789abcdef"}, 4: {0: [[{0: {0: Tag(560, RIM)}}, measurements]]}}
    value = {0: "x", 3: Tag(32, "tag:arm.com,2025:cca_realm#1.0.0"), 1: [Tag(506, dumps(comid))]}
    return dumps(Tag(501, value))


def test_platform_endorsements() -> None:
    (values,), (key,) = ccavalues.read_platform(corim.decode_corim(platform_corim()))
    assert values.implementation_id == key.implementation_id == IMPLEMENTATION
    assert [m.name for m in values.components] == ["RSE_BL1_2", "RSE_BL2"]
    assert values.components[0].digests == (("sha-256", BL1),) and values.components[0].signer == SIGNER
    assert key.ueid == UEID and key.key == KEY
    assert values.configured(b"\x01\x02\x03") and values.configured(b"\x01\xee\x03")
    assert not values.configured(b"\x00\x02\x03") and not values.configured(b"\x01\x02\x03\x00")


def test_keys_without_the_lines_of_pem() -> None:
    bare = base64.b64encode(KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    decoded = corim.decode_corim(platform_corim(lambda comid: comid[4][3][0].__setitem__(1, [Tag(554, bare)])))
    assert decoded.keys[0].key == KEY


def test_realm_endorsements() -> None:
    (values,) = ccavalues.read_realm(corim.decode_corim(realm_corim()))
    assert (values.measurement, values.hash_algorithm) == (RIM, "sha-256")
    assert values.registers == (REM, REM, REM, REM)
    assert values.personalization == b"The quick brown fox jumps over 13 lazy dogs.".ljust(64, b"\0")
    (bare,) = ccavalues.read_realm(corim.decode_corim(realm_corim(lambda m: m.__delitem__(slice(1, None)))))
    assert bare.registers == (None,) * 4 and bare.personalization is None


def test_what_is_written_is_read() -> None:
    triple = ReferenceTriple(
        Environment(IMPLEMENTATION, UEID, "vendor", "model"),
        (
            Measurement("a", digests=(("sha-256", BL1), ("sha-384", bytes(48))), name="n", version="1", signer=SIGNER),
            Measurement("b", raw=b"xy", mask=b"\xff\x00"),
            Measurement("c", raw=b""),
        ),
    )
    written = Corim(b"id", "tag:example.org,2026:x", (1, 2), (triple,), (KeyTriple(triple.environment, KEY),))
    assert corim.decode_corim(corim.encode_corim(written)) == written


@pytest.mark.parametrize(
    "change",
    [
        lambda comid: comid[4][0][0][0][0].__setitem__(0, Tag(560, b"short")),
        lambda comid: comid[4][0][0][0][0].__setitem__(0, Tag(600, IMPLEMENTATION)),
        lambda comid: comid[4][0][0][0].__setitem__(2, b"group"),
        lambda comid: comid[4][0][0][0][0].__setitem__(4, 1),
        lambda comid: comid[4][0][0].__setitem__(1, []),
        lambda comid: comid[4][0][0][1][0].__setitem__(0, "cca.rotpk.CM.2.3"),
        lambda comid: comid[4][0][0][1][0].__setitem__(2, "authorized"),
        lambda comid: comid[4][0][0][1][0][1].__delitem__(2),
        lambda comid: comid[4][0][0][1][0][1].__delitem__(13),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(2, []),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(2, [[1, BL1], ["sha-256", BL2]]),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(2, [[2, BL1]]),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(2, [["sha-1", BL1]]),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(2, [[1, BL1[:20]]]),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(2, [[True, BL1]]),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(1, 7),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(0, {0: "1", 1: 2}),
        lambda comid: comid[4][0][0][1][0][1].__setitem__(11, "\x1b[2J"),
        lambda comid: comid[4][0][0][1][2][1].__setitem__(4, Tag(563, [b"\x01", b"\xff\xff"])),
        lambda comid: comid[4][0][0][1].append(comid[4][0][0][1][2]),
        lambda comid: comid[4][3][0][0].__delitem__(1),
        lambda comid: comid[4][3][0][0].__setitem__(1, Tag(550, b"\x02" + UEID[1:])),
        lambda comid: comid[4][3][0].__setitem__(1, [Tag(554, PEM), Tag(554, PEM)]),
        lambda comid: comid[4][3][0].__setitem__(1, [Tag(554, "rubbish")]),
        lambda comid: comid[4][3][0].__setitem__(1, [Tag(555, PEM)]),
        lambda comid: comid[4].__setitem__(1, []),
        lambda comid: comid[4].clear(),
        lambda comid: comid.__setitem__(3, [{0: b"x", 1: 1}]),
        lambda comid: comid.__delitem__(1),
    ],
)
def test_what_is_not_understood_is_refused(change: Callable[[dict[Any, Any]], None]) -> None:
    with pytest.raises(MalformedEvidence):
        ccavalues.read_platform(corim.decode_corim(platform_corim(change)))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.__delitem__(0),
        lambda m: m.append(m[0]),
        lambda m: m[0][1].__setitem__(2, [["sha-256", REM]]),
        lambda m: m[1].__setitem__(0, "cca.rem4"),
        lambda m: m[1][1].__setitem__(2, [["sha-384", bytes(48)]]),
        lambda m: m[1][1].__setitem__(11, "name"),
        lambda m: m[5][1].__setitem__(4, Tag(560, bytes(65))),
        lambda m: m[5][1].__setitem__(4, Tag(563, [bytes(4), bytes(4)])),
    ],
)
def test_what_is_not_understood_of_a_realm(change: Callable[[list[Any]], None]) -> None:
    with pytest.raises(MalformedEvidence):
        ccavalues.read_realm(corim.decode_corim(realm_corim(change)))


@pytest.mark.parametrize(
    "outer",
    [
        {"_3": None},
        {"_3": 7},
        {"_2": [{0: "other"}]},
        {"_1": []},
        {"_1": [Tag(505, b"\xa0")]},
        {"_1": [Tag(506, b"\xff")]},
        {"_4": {1: "never"}},
        {"_4": {0: Tag(1, 1)}},
        {"_4": {1: Tag(1, -1)}},
        {"_7": 1},
    ],
)
def test_what_is_not_understood_of_the_manifest(outer: dict[str, Any]) -> None:
    with pytest.raises(MalformedEvidence):
        corim.decode_corim(platform_corim(**outer))


def test_profiles_are_not_mixed() -> None:
    with pytest.raises(MalformedEvidence):
        ccavalues.read_platform(corim.decode_corim(realm_corim()))
    with pytest.raises(MalformedEvidence):
        ccavalues.read_realm(corim.decode_corim(platform_corim()))
    with pytest.raises(MalformedEvidence):
        Anchors().with_corim(corim.decode_corim(platform_corim(_3="tag:example.org,2026:other")))


# --- signed ---------------------------------------------------------------------------------------------


def signed(key: Any, payload: bytes, **headers: Any) -> bytes:
    known: dict[int | str, Any] = {3: "application/rim+cbor", 8: dumps({0: {0: "ACME"}})}
    return sign1(key, payload, protected={**known, **{int(name[1:]): value for name, value in headers.items()}})


def test_signed_by_a_key_that_is_known() -> None:
    key, other = new_key(), new_key()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    anchors = Anchors.load(corims=[signed(key, platform_corim()), signed(key, realm_corim(), _4=b"kid")], signers=[pem])
    assert len(anchors.cca_platforms) == len(anchors.cca_keys) == len(anchors.realms) == 1
    with pytest.raises(UnknownRoot, match="signer is not known"):
        Anchors.load(corims=[signed(other, platform_corim())], signers=[pem])
    with pytest.raises(UnknownRoot, match="signer is not known"):
        Anchors.load(corims=[signed(key, platform_corim())])
    for data in (b"", b"rubbish", dumps(1), platform_corim()):
        with pytest.raises(MalformedEvidence):
            Anchors.load(corims=[data], signers=[pem])
    with pytest.raises(MalformedEvidence, match="the reference values are not a signed CoRIM") as found:
        Anchors.load(corims=[b"rubbish"], signers=[pem])
    assert "reference-values.corim" in str(found.value.hint)
    with pytest.raises(MalformedEvidence):
        Anchors.load(corims=[signed(key, platform_corim(), _3="application/cbor")], signers=[pem])
    with pytest.raises(ConfigError):
        Anchors.load(signers=[b"rubbish"])


def test_signed_by_a_key_that_a_vendor_certifies() -> None:
    platform = Platform()
    key, certificate = platform.authority.reference_signer(now=NOW)
    chain = certificate.public_bytes(Encoding.DER)
    data = signed(key, platform_corim(), _33=chain)
    root = platform.authority.certificate_pem
    anchors = Anchors.load(roots=[root], corims=[data, published(platform)], now=NOW)
    assert anchors.references == (platform.references,) and anchors.cca_platforms
    with pytest.raises(UnknownRoot):
        Anchors.load(roots=[Platform().authority.certificate_pem], corims=[data], now=NOW)
    with pytest.raises(SignatureInvalid):
        Anchors.load(roots=[root], corims=[signed(new_key(), platform_corim(), _33=chain)], now=NOW)
    revoked = platform.authority.revocation_list(
        revoke={certificate.serial_number: ReasonFlags.key_compromise}, now=NOW
    )
    with pytest.raises(CertificateRevoked):
        Anchors.load(roots=[root], corims=[data], lists=[revoked], now=NOW)


def test_values_that_expire_while_a_verifier_runs() -> None:
    """What was loaded in time accepts nothing after its end."""
    platform = Platform()
    anchors = Anchors.load(roots=[platform.authority.certificate_pem], corims=[published(platform)], now=NOW)
    policy, challenge = Policy(measurements=frozenset({MEASUREMENT})), launch_challenge(NONCE, INSTANCE)
    root = replace(anchors, until=(NOW + timedelta(days=1)).timestamp())
    accepted(appraise(platform.token(), anchors=anchors, policy=policy, challenge=challenge, now=NOW))
    assert anchors.until > NOW.timestamp()
    late = appraise(platform.token(), anchors=root, policy=policy, challenge=challenge, now=NOW + timedelta(days=2))
    with pytest.raises(CertificateExpired, match="reference values"):
        accepted(late)


def test_a_policy_s_demand_counts_for_signers_of_corims() -> None:
    platform = Platform()
    root, strict = platform.authority.certificate_pem, Policy(require_revocation=True)
    with pytest.raises(RevocationUnknown):
        Anchors.load(roots=[root], corims=[published(platform)], policy=strict, now=NOW)
    fresh = platform.authority.revocation_list(now=NOW)
    Anchors.load(roots=[root], corims=[published(platform)], lists=[fresh], policy=strict, now=NOW)


def test_out_of_its_validity() -> None:
    key = new_key()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    start, end = (int((NOW + timedelta(days=days)).timestamp()) for days in (0, 10))
    data = signed(key, platform_corim(_4={0: Tag(1, start), 1: Tag(1, end)}))
    Anchors.load(corims=[data], signers=[pem], now=NOW + timedelta(days=5))
    for days in (-1, 11):
        with pytest.raises(CertificateExpired):
            Anchors.load(corims=[data], signers=[pem], now=NOW + timedelta(days=days))


@pytest.mark.parametrize("end", [None, 1 << 40, int((NOW + timedelta(days=1)).timestamp())])
def test_reference_values_end_with_their_signers_certificate(end: int | None) -> None:
    """Whoever verifies may run for years: what was loaded when the certificate was good counts no longer than that."""
    platform = Platform()
    key, certificate = platform.authority.reference_signer(now=NOW, days=3)
    read = corim.verify(published(platform), roots=[platform.authority.certificate], now=NOW)
    data = corim.sign(replace(read, validity=end and (0, end)), key, "vendor", [certificate])
    anchors = Anchors.load(roots=[platform.authority.certificate_pem], corims=[data], now=NOW)
    assert anchors.until == min(end or 1 << 62, certificate.not_valid_after_utc.timestamp())
    policy, challenge = Policy(measurements=frozenset({MEASUREMENT})), launch_challenge(NONCE, INSTANCE)
    appraise_at = partial(appraise, platform.token(), anchors=anchors, policy=policy, challenge=challenge)
    assert appraise_at(now=NOW).error is None
    assert isinstance(appraise_at(now=NOW + timedelta(days=4)).error, CertificateExpired)
