"""Genuine Arm CCA tokens appraised: by endorsements in Arm's CoRIM profiles, as their vendors would publish them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from attest_factory import NOW, Platform, collection, dumps, new_key
from cca_vectors import VECTORS, Vector
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vambrace.attest import ccavalues, corim, cose, ear
from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import Appraisal, appraise
from vambrace.attest.corim import Corim, Environment, KeyTriple, Measurement, ReferenceTriple
from vambrace.attest.policy import Policy
from vambrace.attest.token import decode_token
from vambrace.attest.trustworthiness import PLATFORM, REALM, Claim, Tier
from vambrace.attest.verify import VerifiedRealm, accepted, accepted_token
from vambrace.cli.main import main
from vambrace.errors import (
    CacheShared,
    ChallengeMismatch,
    ComponentChanged,
    InsecurePlatform,
    MeasurementMismatch,
    OwnerMismatch,
    PolicyRefused,
    ReplayedToken,
    RevocationUnknown,
    SignatureInvalid,
    UnknownProfile,
    UnknownRoot,
    VerificationError,
)

ENDORSER = new_key()
PEM = ENDORSER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
DRAFT = next(vector for vector in VECTORS if vector.name == "draft-1")


def endorsements(vector: Vector, **changes: Any) -> list[bytes]:
    """Signed CoRIMs that endorse the token's platform and expect its Realm; ``changes`` of single values."""
    token = decode_token(vector.token)
    platform, realm = token.platform, token.realm
    components = [
        Measurement(
            "cca.software-component",
            digests=((component.hash_algorithm, component.digest),),
            name=component.name or None,
            version=component.version,
            signer=component.signer,
        )
        for component in platform.components
    ]
    config = Measurement("cca.platform-config", raw=platform.config, mask=b"\xff" * len(platform.config))
    known = {
        "implementation": platform.implementation_id,
        "ueid": platform.ueid,
        "key": vector.platform_key,
        "measurements": [*components, config],
        "rim": realm.measurement,
        "rem": realm.rems[0],
        "rpv": realm.personalization,
    } | changes
    environment = Environment(known["implementation"])
    machine = Environment(known["implementation"], known["ueid"])
    of_platform = Corim(
        b"platform",
        ccavalues.PLATFORM_PROFILE,
        None,
        (ReferenceTriple(environment, tuple(known["measurements"])),),
        (KeyTriple(machine, known["key"]),),
    )
    measured = (
        Measurement("cca.rim", digests=((realm.hash_algorithm, known["rim"]),)),
        Measurement("cca.rem0", digests=((realm.hash_algorithm, known["rem"]),)),
        Measurement("cca.rpv", raw=known["rpv"]),
    )
    triple = ReferenceTriple(Environment(known["rim"]), measured)
    of_realm = Corim(b"realm", ccavalues.REALM_PROFILE, None, (triple,))
    return [corim.sign(value, ENDORSER, "ACME") for value in (of_platform, of_realm)]


def judge(vector: Vector, changes: dict[str, Any] | None = None, **given: Any) -> Appraisal:
    token = decode_token(vector.token)
    known: dict[str, Any] = {
        "anchors": Anchors.load(corims=endorsements(vector, **(changes or {})), signers=[PEM], now=NOW),
        "policy": Policy(hash_algorithm=token.realm.hash_algorithm),
        "challenge": token.realm.challenge,
        "now": NOW,
    }
    return appraise(vector.token, **{**known, **given})


def with_policy(vector: Vector, **changes: Any) -> Policy:
    return replace(Policy(hash_algorithm=decode_token(vector.token).realm.hash_algorithm), **changes)


@each_vector
def test_genuine_tokens_are_accepted(vector: Vector) -> None:
    appraisal = judge(vector)
    token = accepted_token(appraisal)
    assert token.profile == vector.expected["profile"] and not isinstance(token, VerifiedRealm)
    assert token.as_dict()["measurement"] == decode_token(vector.token).realm.measurement.hex()
    assert appraisal.status(PLATFORM) is appraisal.status(REALM) is Tier.AFFIRMING
    assert appraisal.vector(REALM)[Claim.RUNTIME_OPAQUE] == 2  # hardware keeps the host out
    claims = ear.verify_jwt(ear.sign_jwt(ear.claims_set(appraisal, now=NOW), ENDORSER), ENDORSER.public_key(), now=NOW)
    assert claims["ear_status"] == "affirming"
    assert claims["submods"]["platform"]["ear_attester_claims"]


def test_it_is_no_realm_of_ours() -> None:
    with pytest.raises(UnknownProfile):
        accepted(judge(DRAFT))


@each_vector
def test_nobody_endorses_it(vector: Vector) -> None:
    platform = Platform()
    anchors = Anchors(tuple(platform.roots), (platform.references,))
    appraisal = judge(vector, anchors=anchors)
    assert isinstance(appraisal.error, UnknownRoot) and not appraisal.authentic
    assert appraisal.vector(PLATFORM) == {Claim.INSTANCE_IDENTITY: 97}


def measurements() -> list[Measurement]:
    """Those that describe the draft's platform, its configuration last."""
    payload: bytes = cbor2.loads(endorsements(DRAFT)[0]).value[2]
    (values,), _ = ccavalues.read_platform(corim.decode_corim(payload))
    assert values.config is not None
    return [*values.components, values.config]


def first(**changes: Any) -> dict[str, Any]:
    """The same with the first of them changed."""
    described = measurements()
    return {"measurements": [replace(described[0], **changes), *described[1:]]}


def one_more() -> dict[str, Any]:
    described = measurements()
    return {"measurements": [*described, replace(described[0], name="more", digests=(("sha-256", bytes(32)),))]}


@pytest.mark.parametrize(
    ("changes", "error", "attester", "claim"),
    [
        ({"key": new_key().public_key()}, SignatureInvalid, PLATFORM, Claim.INSTANCE_IDENTITY),
        ({"ueid": b"\x01" + bytes(32)}, UnknownRoot, PLATFORM, Claim.INSTANCE_IDENTITY),
        ({"rim": bytes(32)}, MeasurementMismatch, REALM, Claim.EXECUTABLES),
        ({"rem": bytes([1]) * 32}, MeasurementMismatch, REALM, Claim.EXECUTABLES),
        ({"rpv": b"another"}, OwnerMismatch, REALM, Claim.INSTANCE_IDENTITY),
        (first(digests=(("sha-256", bytes(32)),)), ComponentChanged, PLATFORM, Claim.EXECUTABLES),
        (first(signer=bytes(32)), ComponentChanged, PLATFORM, Claim.EXECUTABLES),
        (first(version="9.9"), ComponentChanged, PLATFORM, Claim.EXECUTABLES),
        ({"measurements": measurements()[1:]}, ComponentChanged, PLATFORM, Claim.EXECUTABLES),
        (one_more(), ComponentChanged, PLATFORM, Claim.EXECUTABLES),
        (
            {"measurements": [*measurements()[:-1], Measurement("cca.platform-config", raw=b"\x00")]},
            ComponentChanged,
            PLATFORM,
            Claim.CONFIGURATION,
        ),
    ],
)
def test_what_endorsements_do_not_say(
    changes: dict[str, Any], error: type[VerificationError], attester: str, claim: Claim
) -> None:
    appraisal = judge(DRAFT, changes)
    first = next(finding for finding in appraisal.findings if finding.error)
    assert isinstance(first.error, error), appraisal.findings
    assert (first.attester, first.claim) == (attester, claim)
    assert appraisal.status(attester) is Tier.CONTRAINDICATED
    with pytest.raises(error):
        accepted_token(appraisal)


def test_another_implementation_s_reference_values_are_none() -> None:
    both = Anchors.load(corims=endorsements(DRAFT), signers=[PEM], now=NOW)
    foreign = tuple(replace(values, implementation_id=bytes(32)) for values in both.cca_platforms)
    appraisal = judge(DRAFT, anchors=replace(both, cca_platforms=foreign))
    assert isinstance(appraisal.error, ComponentChanged) and appraisal.vector(PLATFORM)[Claim.HARDWARE] == 97


def test_one_of_several_keys_is_enough() -> None:
    both = Anchors.load(corims=endorsements(DRAFT), signers=[PEM], now=NOW)
    other = replace(both.cca_keys[0], key=new_key().public_key())
    for keys in ((other, *both.cca_keys), (*both.cca_keys, other)):
        accepted_token(judge(DRAFT, anchors=replace(both, cca_keys=keys)))
    with pytest.raises(SignatureInvalid):
        accepted_token(judge(DRAFT, anchors=replace(both, cca_keys=(other, other))))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"profiles": frozenset({"vambrace"})}, PolicyRefused),
        ({"hash_algorithm": "sha-512"}, MeasurementMismatch),
        ({"measurements": frozenset({bytes(32)})}, MeasurementMismatch),
        ({"owners": frozenset({bytes(64)})}, OwnerMismatch),
        ({"platforms": frozenset({b"\x01" + bytes(32)})}, PolicyRefused),
        ({"registers": (None, frozenset({b"\x01" * 32}), None, None)}, PolicyRefused),
        ({"cache_partitions": frozenset({"ways"})}, CacheShared),
        ({"key_storage": frozenset({"dram"})}, PolicyRefused),
        ({"classes": frozenset({"secure"})}, PolicyRefused),
        ({"lifecycles": frozenset({0x4000})}, InsecurePlatform),
        ({"require_revocation": True}, RevocationUnknown),
    ],
)
def test_what_a_policy_demands(changes: dict[str, Any], error: type[VerificationError]) -> None:
    with pytest.raises(error):
        accepted_token(judge(DRAFT, policy=with_policy(DRAFT, **changes)))


def test_freshness() -> None:
    with pytest.raises(ChallengeMismatch):
        accepted_token(judge(DRAFT, challenge=bytes(64)))
    with pytest.raises(ChallengeMismatch, match="no instance"):
        accepted_token(judge(DRAFT, instance=bytes(16)))
    with pytest.raises(ReplayedToken):
        accepted_token(judge(DRAFT, seen={judge(DRAFT).sha256}))


def token_2(pak: Any, rak: Any, **extra: Any) -> bytes:
    """A token of profile 2.0.0, of which nobody has published one; ``extra``: claims of the platform, as ``_KEY``."""
    key = cose.encode_key(rak.public_key())
    platform = {
        265: "tag:arm.com,2024:cca_platform#2.0.0",
        10: hashlib.sha256(key).digest(),
        2396: bytes(32),
        256: b"\x01" + bytes(32),
        2401: b"\xcf",
        2395: 0x3000,
        2402: "sha-256",
        2394: 1,
        2399: [{1: "RSE", 2: bytes(32), 5: bytes(32)}],
        **{int(name[1:]): value for name, value in extra.items()},
    }
    realm = {
        265: "tag:arm.com,2024:realm#2.0.0",
        10: bytes(64),
        44235: bytes(64),
        44238: bytes(32),
        44239: [bytes(32)] * 4,
        44236: "sha-256",
        44237: key,
        44240: "sha-256",
        256: b"\x01" + bytes(32),
        44243: 1,
    }
    halves = {44234: cose.sign1(pak, dumps(platform)), 44241: cose.sign1(rak, dumps(realm))}
    return collection(halves)


def test_profile_2_and_devices_that_were_added() -> None:
    pak, rak = new_key(), new_key()
    expected: dict[str, Any] = {"profile": "Arm CCA 2.0.0"}
    vector = Vector("made", token_2(pak, rak), pak.public_key(), expected)
    appraisal = judge(vector)
    assert accepted_token(appraisal).profile == "Arm CCA 2.0.0"
    (opaque,) = (finding for finding in appraisal.of(REALM) if finding.claim is Claim.RUNTIME_OPAQUE)
    assert "a key of its own" in opaque.reason
    device = {2: bytes(32), 3: bytes(32), 4: True, 5: "spdm-1.2.0", 6: bytes(32)}
    extended = replace(vector, token=token_2(pak, rak, _2404=[device]))
    with pytest.raises(PolicyRefused, match="devices were added") as caught:
        accepted_token(judge(extended))
    assert caught.value.rule == "platform.extensions"
    allowed = judge(extended, policy=Policy(allow_extensions=True))
    accepted_token(allowed)
    assert allowed.status(PLATFORM) is Tier.WARNING


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Offline, with nothing but the token, endorsements and the key of who signed them."""
    files = {"token.cbor": DRAFT.token, "signer.pem": PEM}
    files |= dict(zip(("platform.corim", "realm.corim"), endorsements(DRAFT), strict=True))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    words = ["verify", str(tmp_path / "token.cbor"), "--signer", str(tmp_path / "signer.pem"), "--json"]
    words += ["--references", str(tmp_path / "platform.corim"), "--references", str(tmp_path / "realm.corim")]
    challenge = decode_token(DRAFT.token).realm.challenge
    assert main([*words, "--challenge", challenge.hex()]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["profile"] == "Arm CCA 1.0.0" and "platform: its key is endorsed by its vendor" in shown["findings"]
    assert main([*words, "--challenge", "00" * 64]) == 4
    assert json.loads(capsys.readouterr().out)["kind"] == "ChallengeMismatch"
    assert main([*words, "--nonce", "00" * 32]) == 4  # it has no instance for one
    assert json.loads(capsys.readouterr().out)["kind"] == "UnknownProfile"
    assert main([*words[:-2], "--challenge", challenge.hex()]) == 4  # nothing says what the Realm should be
    assert "MeasurementMismatch" in capsys.readouterr().out
