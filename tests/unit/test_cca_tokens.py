"""Genuine Arm CCA tokens: read, verified with their keys, and refused where only ours will do."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cbor2
import cbor_diag
import cca_factory
import pytest
from attest_factory import Platform, new_key, verify
from cca_factory import CURVES, PROFILES, REALM, Cca, bare, cose_key, records, sign1
from cca_vectors import VECTORS, Vector
from cryptography.hazmat.primitives.asymmetric import ec
from cwt import COSE, COSEKey, VerifyError
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.attest import profiles
from vambrace.attest.cbor import decode_tolerant
from vambrace.attest.claims import BootKey, ExtensionDevice, UnverifiedCcaRealm
from vambrace.attest.diagnostic import diagnostic
from vambrace.attest.show import describe
from vambrace.attest.signatures import check_signatures
from vambrace.attest.token import decode_evidence, decode_token
from vambrace.attest.verify import verify_launch
from vambrace.cli.main import main
from vambrace.errors import MalformedEvidence, SignatureInvalid, UnknownProfile, VerificationError

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def test_there_are_tokens_of_each_form() -> None:
    assert {vector.expected["profile"] for vector in VECTORS} == {profiles.CCA_LEGACY.name, profiles.CCA_1.name}
    assert {vector.expected["collection"] for vector in VECTORS} == {"LEGACY", "RECORDS"}


@each_vector
def test_genuine_tokens_verify_with_their_keys(vector: Vector) -> None:
    token = decode_token(vector.token)
    check_signatures(token, vector.platform_key)
    assert token.profile.name == vector.expected["profile"]
    assert token.collection.name == vector.expected["collection"]
    assert len(token.platform.components) == vector.expected["components"]
    assert token.platform.lifecycle == vector.expected["lifecycle"]
    assert isinstance(token.realm, UnverifiedCcaRealm)


@each_vector
def test_they_do_not_verify_with_another_key(vector: Vector) -> None:
    with pytest.raises(SignatureInvalid):
        check_signatures(decode_token(vector.token), new_key().public_key())


@each_vector
def test_a_user_of_vambrace_accepts_none(vector: Vector) -> None:
    platform = Platform()
    with pytest.raises(UnknownProfile):
        decode_evidence(vector.token)
    with pytest.raises(UnknownProfile):
        verify(vector.token, platform)
    with pytest.raises(UnknownProfile):
        verify_launch(
            vector.token,
            nonce=bytes(32),
            roots=platform.roots,
            references=platform.references,
            measurement=bytes(32),
            personalization=bytes(64),
        )


@each_vector
def test_they_are_shown(vector: Vector) -> None:
    described = json.loads(json.dumps(describe(vector.token)))
    assert described["verified"] is False
    assert described["profile"] == vector.expected["profile"]
    assert len(described["platform"]["components"]) == vector.expected["components"]
    assert "instance" not in described["realm"]


# --- what they may look like ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", PROFILES)
def test_every_profile(version: str) -> None:
    cca = Cca(version)
    for token in (records(cca.halves()), bare(cca.halves())):
        decoded = decode_token(token)
        check_signatures(decoded, cca.cpak.public_key())
        assert (decoded.profile.platform, decoded.profile.realm) == PROFILES[version]
        assert decoded.platform.verification_service == "https://verifier.example"
        assert [component.name for component in decoded.platform.components] == ["BL", ""]
        assert [component.version for component in decoded.platform.components] == ["1.2", None]


def test_claims_of_profile_2() -> None:
    decoded = decode_token(Cca("2").token())
    platform, realm = decoded.platform, decoded.realm
    assert (platform.client_id, platform.manufacturing_config, platform.peer_signers) == (1, b"\x12\x34", b"\x56")
    digest, signer = cca_factory.DIGEST, cca_factory.SIGNER
    assert platform.extensions == (
        ExtensionDevice(digest, signer, True, "spdm-1.2.0", "sha-384", digest, "cxl-type-3", 1),
        ExtensionDevice(digest, signer, False, "a protocol", device_type="a type"),
    )
    assert platform.boot_keys == (BootKey("DM", 0, 1, digest),)
    assert isinstance(realm, UnverifiedCcaRealm)
    assert (realm.ueid, realm.private_mec, realm.live_activation) == (cca_factory.UEID, True, False)
    shown = describe(Cca("2").token())
    assert shown["platform"]["extensions"][0]["vca-digest"] == digest.hex()
    assert shown["realm"]["private-mec"] is True


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name))
@pytest.mark.parametrize("fully_specified", [False, True])
def test_every_algorithm(curve: ec.EllipticCurve, fully_specified: bool) -> None:
    cca = Cca("2", ec.generate_private_key(curve), ec.generate_private_key(curve))
    name = {-7: -9, -35: -51, -36: -52}[CURVES[curve.name][1]] if fully_specified else CURVES[curve.name][1]
    payloads = cca.platform_claims(), cca.realm_claims()
    halves = [sign1(key, cbor2.dumps(claims), protected={1: name})
              for key, claims in zip((cca.cpak, cca.rak), payloads, strict=True)]  # fmt: skip
    check_signatures(decode_token(records(dict(zip((44234, 44241), halves, strict=True)))), cca.cpak.public_key())


@pytest.mark.parametrize("parameters", [{3: -35}, {4: [2]}, {2: b"a name", 3: -51, 4: [1, 2]}, {}], ids=str)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_form_of_the_realm_key(parameters: Mapping[int, Any], compressed: bool) -> None:
    rak = cca_factory.new_key()
    sign = {-3: bool(rak.public_key().public_numbers().y & 1)} if compressed else {}
    claim = cose_key(rak.public_key(), lambda key: key.update({**parameters, **sign}))
    cca = Cca("2", rak=rak, realm_key=claim)
    check_signatures(decode_token(cca.token()), cca.cpak.public_key())


def test_headers_that_say_nothing_of_trust() -> None:
    cca = Cca("2")
    half = sign1(cca.rak, cbor2.dumps(cca.realm_claims()), protected={3: 263, 16: "x"}, loose={4: b"a key"})
    check_signatures(decode_token(records({**cca.halves(), REALM: half})), cca.cpak.public_key())


def test_longer_forms_and_any_order() -> None:
    """Arm's devices may write them; what is signed are the bytes that were written."""
    cca = Cca("2")
    claims = dict(reversed(cca.realm_claims().items()))
    payload = b"\xb8" + bytes([len(claims)]) + cbor2.dumps(claims)[1:]
    half = sign1(cca.rak, payload, protected=b"\xa1\x18\x01\x38\x22")
    token = records({**cca.halves(), REALM: half})
    assert decode_tolerant(payload, limit=1 << 16).variation
    check_signatures(decode_token(token), cca.cpak.public_key())
    assert "not in its shortest form" in diagnostic(token)


def test_the_example_of_draft_3_was_not_signed_again() -> None:
    """It has the signatures of the example before it over newer claims: it can be read, and is refused."""
    before = next(vector for vector in VECTORS if vector.name == "draft-1")
    halves = cbor2.loads(before.token).value
    changed = {}
    for key, half in halves.items():
        header, loose, payload, signature = cbor2.loads(half).value
        claims = cbor2.loads(payload)
        newer = {265: "tag:arm.com,2024:cca_platform#2.0.0", 2394: 1} if key == 44234 else {
            265: "tag:arm.com,2024:realm#2.0.0", 44243: 1, 256: b"\1" + b"\2" * 32
        }  # fmt: skip
        changed[key] = cbor2.dumps(cbor2.CBORTag(18, [header, loose, cbor2.dumps(claims | newer), signature]))
    token = decode_token(records(changed))
    assert token.profile is profiles.CCA_2
    with pytest.raises(SignatureInvalid, match="signature of the platform token"):
        check_signatures(token, before.platform_key)


# --- by other libraries -----------------------------------------------------------------------------------


def by_another_library(token: bytes, platform_key: ec.EllipticCurvePublicKey) -> tuple[Any, Any]:
    """The claims of both halves, if ``cwt`` finds their signatures right."""
    entries = cbor2.loads(token).value
    halves = {key: entry if isinstance(entry, bytes) else entry[1] for key, entry in entries.items()}
    platform = cbor2.loads(COSE.new().decode(halves[44234], _cose_key(platform_key)))
    rak = cbor2.loads(cbor2.loads(halves[44241]).value[2])[44237]
    if rak[0] == 0x04:
        realm_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), rak)
    else:
        key = cbor2.loads(rak)
        curve = {1: ec.SECP256R1(), 2: ec.SECP384R1()}[key[-1]]
        realm_key = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + key[-2] + key[-3])
    return platform, cbor2.loads(COSE.new().decode(halves[44241], _cose_key(realm_key)))


def _cose_key(key: ec.EllipticCurvePublicKey) -> COSEKey:
    x, y = cca_factory.coordinates(key)
    curve, algorithm, _ = CURVES[key.curve.name]
    return COSEKey.new({1: 2, -1: curve, -2: x, -3: y, 3: algorithm})


@each_vector
def test_another_library_agrees_on_genuine_tokens(vector: Vector) -> None:
    platform, realm = by_another_library(vector.token, vector.platform_key)
    token = decode_token(vector.token)
    assert (platform[2396], platform[256], platform[2395]) == (
        token.platform.implementation_id, token.platform.ueid, token.platform.lifecycle
    )  # fmt: skip
    assert [component[2] for component in platform[2399]] == [c.digest for c in token.platform.components]
    assert (realm[44238], tuple(realm[44239]), realm[44235], realm[10]) == (
        token.realm.measurement, token.realm.rems, token.realm.personalization, token.realm.challenge
    )  # fmt: skip
    with pytest.raises(VerifyError):
        by_another_library(vector.token, cca_factory.new_key().public_key())


def test_another_library_reads_and_verifies_ours() -> None:
    platform = Platform()
    verified = verify(platform.token(), platform)
    platform_claims, realm_claims = by_another_library(platform.token(), platform.pak.public_key())
    assert platform_claims[256] == verified.platform_instance_id
    assert (realm_claims[44238], realm_claims[-70001]) == (verified.measurement, verified.instance)


@pytest.mark.parametrize("token", [*(vector.token for vector in VECTORS), Cca().token(), Platform().token()])
def test_another_parser_reads_our_diagnostic_notation(token: bytes) -> None:
    text = diagnostic(token)
    assert text.isascii()
    assert cbor_diag.diag2cbor(text) == token
    assert "/ initial measurement / 44238:" in text


def test_notation_of_what_is_no_token() -> None:
    """Anything that is CBOR is shown; nothing that a terminal would obey is."""
    hostile = records({44234: b"\xff", "\x1b[2J": cbor2.dumps("\u202e")})
    assert diagnostic(hostile) == "907({/ platform token / 44234: [263, h'ff'], \"\\u001b[2J\": [263, h'63e280ae']})"
    with pytest.raises(MalformedEvidence):
        diagnostic(hostile[:-1])


def test_the_command_shows_genuine_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token.cbor"
    file.write_bytes(VECTORS[0].token)
    assert main(["token", "show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == VECTORS[0].expected["profile"]
    assert main(["token", "show", str(file), "--diagnostic"]) == 0
    shown = capsys.readouterr().out.split("\n", 1)
    assert shown[0] == "NOT verified:"
    assert cbor_diag.diag2cbor(shown[1]) == VECTORS[0].token


# --- hostile bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS[:3], ids=lambda vector: vector.name)
def test_every_byte_of_a_genuine_token_counts(vector: Vector) -> None:
    """Where one does not, the token says what it said before: its envelope may be encoded in other ways."""
    original = decode_token(vector.token)
    for position in range(0, len(vector.token) * 8, 11):
        changed = bytearray(vector.token)
        changed[position // 8] ^= 1 << position % 8
        try:
            token = decode_token(bytes(changed))
            check_signatures(token, vector.platform_key)
        except VerificationError:
            continue
        assert (token.platform, token.realm) == (original.platform, original.realm)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_cut_and_spliced_tokens(data: st.DataObject) -> None:
    vector = data.draw(st.sampled_from(VECTORS))
    start = data.draw(st.integers(0, len(vector.token)))
    end = data.draw(st.integers(start, len(vector.token)))
    token = vector.token[:start] + data.draw(st.binary(max_size=30)) + vector.token[end:]
    if token == vector.token:
        return
    with pytest.raises(VerificationError):
        check_signatures(decode_token(token), vector.platform_key)


MEGABYTE = 1 << 20
NESTED = {
    "arrays": b"\x81" * MEGABYTE,
    "tags": b"\xc1" * MEGABYTE,
    "maps": b"\xa1\x00" * (MEGABYTE // 2),
    "many": b"\x9a\x00\x0f\xff\xfb" + b"\x80" * (MEGABYTE - 5),
    "a promise": b"\x9b\x00\x00\x00\x7f\xff\xff\xff\xff" + bytes(MEGABYTE),
    "texts": b"\x99\x0f\xff" + b"\x61a" * 4095 + bytes(MEGABYTE),
}


@pytest.mark.parametrize("data", NESTED.values(), ids=NESTED)
def test_a_megabyte_takes_no_memory(data: bytes) -> None:
    """As a token, and where the limit of size lets it pass; how long it takes is a row of the benchmarks."""
    for read in (decode_token, diagnostic, lambda bytes_: decode_tolerant(bytes_, limit=2 * MEGABYTE)):
        tracemalloc.start()
        with pytest.raises(MalformedEvidence):
            read(data)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2 * MEGABYTE  # of which the reader's own copy is half, where there is one
