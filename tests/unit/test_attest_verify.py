"""The verifier: a good token, then one case for each way of being wrong."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from attest_factory import (
    COMPONENTS,
    IMPLEMENTATION,
    INSTANCE,
    MEASUREMENT,
    NONCE,
    NOW,
    PERSONALIZATION,
    Change,
    Platform,
    claim,
    collection,
    expected,
    new_key,
    verify,
)
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vambrace.attest.challenge import channel_challenge, launch_challenge
from vambrace.attest.claims import CACHE_PARTITIONS, DOMAIN_CLASSES, Component
from vambrace.attest.cose import encode_key
from vambrace.attest.endorsement import VendorAuthority, certificate_builder, certificate_name, key_usage
from vambrace.attest.policy import CACHE_DEMANDS, Policy
from vambrace.attest.references import ReferenceValues
from vambrace.attest.show import describe
from vambrace.attest.verify import verify_channel, verify_launch
from vambrace.errors import (
    AnotherRealm,
    CacheShared,
    CertificateExpired,
    ChallengeMismatch,
    ComponentChanged,
    InsecurePlatform,
    MalformedEvidence,
    MeasurementMismatch,
    OwnerMismatch,
    ReplayedToken,
    SignatureInvalid,
    UnknownRoot,
    UsageError,
    VerificationError,
)


@pytest.fixture(scope="module")
def platform() -> Platform:
    return Platform()


def test_a_good_token(platform: Platform) -> None:
    realm = verify(platform.token(), platform, instance=INSTANCE)
    assert realm.instance == INSTANCE
    assert realm.measurement == MEASUREMENT
    assert realm.personalization == PERSONALIZATION
    assert realm.components == COMPONENTS
    assert realm.implementation_id == IMPLEMENTATION
    assert realm.lifecycle == 0x3000
    assert (realm.debug, realm.insecure, realm.key_storage, realm.cache_partition) == (
        False,
        False,
        "dram",
        "none",
    )
    assert realm.rak == platform.rak_cose
    assert realm.endorsement == "CN=" + realm.platform_instance_id[1:].hex()
    assert json.loads(json.dumps(realm.as_dict()))["verified"] is True


def test_legacy_tag_is_readable(platform: Platform) -> None:
    assert verify(collection(platform.halves(), tag=399), platform).instance == INSTANCE


def test_describe_is_json_and_says_that_nothing_was_verified(platform: Platform) -> None:
    described = json.loads(json.dumps(describe(platform.token())))
    assert described["verified"] is False
    assert described["realm"]["instance"] == INSTANCE.hex()
    assert described["platform"]["lifecycle"] == "0x3000 (secured)"
    assert [c["name"] for c in described["platform"]["components"]] == [c.name for c in COMPONENTS]


# --- freshness --------------------------------------------------------------------------------------------


def test_launch_token(platform: Platform) -> None:
    token = platform.token()
    assert verify_launch(token, nonce=NONCE, **expected(platform)).instance == INSTANCE
    with pytest.raises(ChallengeMismatch):
        verify_launch(token, nonce=bytes(32), **expected(platform))
    with pytest.raises(UsageError):
        verify_launch(token, nonce=NONCE[:-1], **expected(platform))


def test_replayed_launch_token(platform: Platform) -> None:
    """An old token of the same image and owner, for the nonce of an earlier start."""
    old = platform.token(nonce=bytes(32))
    with pytest.raises(ChallengeMismatch):
        verify(old, platform)
    with pytest.raises(ReplayedToken):
        verify_launch(old, nonce=NONCE, seen={hashlib.sha256(old).digest()}, **expected(platform))


def test_instance_that_the_challenge_does_not_name(platform: Platform) -> None:
    token = platform.token(realm=claim(-70001, bytes(16)))
    with pytest.raises(ChallengeMismatch):
        verify_launch(token, nonce=NONCE, **expected(platform))


def test_channel_token(platform: Platform) -> None:
    spki, other = (
        new_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for _ in "ab"
    )
    token = platform.token(realm=claim(10, channel_challenge(NONCE, spki, INSTANCE)))
    names = expected(platform)
    realm = verify_channel(token, nonce=NONCE, spki=spki, instance=INSTANCE, **names)
    assert realm.instance == INSTANCE
    with pytest.raises(ChallengeMismatch):  # somebody else's TLS key
        verify_channel(token, nonce=NONCE, spki=other, instance=INSTANCE, **names)
    with pytest.raises(ChallengeMismatch):  # replayed from an earlier connection
        verify_channel(token, nonce=bytes(32), spki=spki, instance=INSTANCE, **names)
    with pytest.raises(ChallengeMismatch):  # the launch token instead
        verify_channel(platform.token(), nonce=NONCE, spki=spki, instance=INSTANCE, **names)


def test_channel_token_relayed_from_another_realm(platform: Platform) -> None:
    """A second Realm with the same image, whose agent is given the first one's nonce and TLS key."""
    spki = b"the TLS key of the man in the middle"
    other = bytes(16)
    relayed = platform.token(
        realm=claim(10, channel_challenge(NONCE, spki, other)), nonce=NONCE, instance=other
    )
    with pytest.raises(AnotherRealm) as caught:
        verify_channel(relayed, nonce=NONCE, spki=spki, instance=INSTANCE, **expected(platform))
    assert caught.value.instance == other


def test_another_instance(platform: Platform) -> None:
    with pytest.raises(AnotherRealm, match="instance"):
        verify(platform.token(), platform, instance=bytes(16))


def test_an_instance_is_no_challenge(platform: Platform) -> None:
    """The right instance in a token for another one's challenge: what is signed decides."""
    token = platform.token(realm=claim(10, launch_challenge(NONCE, bytes(16))))
    with pytest.raises(ChallengeMismatch):
        verify(token, platform, instance=INSTANCE)


# --- who signed -------------------------------------------------------------------------------------------


def test_unknown_root(platform: Platform) -> None:
    with pytest.raises(UnknownRoot):
        verify(platform.token(), platform, roots=Platform().roots)
    with pytest.raises(UnknownRoot):
        verify(platform.token(), platform, roots=[])


def test_any_of_the_roots(platform: Platform) -> None:
    verify(platform.token(), platform, roots=[*Platform().roots, *platform.roots])


def test_no_endorsement(platform: Platform) -> None:
    with pytest.raises(UnknownRoot):
        verify(replace(platform, chain=[]).token(), platform)


def test_endorsement_of_another_platform(platform: Platform) -> None:
    other = replace(platform, pak=new_key(), chain=platform.endorsement)
    with pytest.raises(SignatureInvalid, match="platform token"):
        verify(other.token(), platform)


def test_swapped_halves(platform: Platform) -> None:
    """The realm token of one boot with the platform token of another boot of the same machine."""
    other = replace(platform, rak=new_key())
    for first, second in ((platform, other), (other, platform)):
        halves = {44234: first.halves()[44234], 44241: second.halves()[44241]}
        with pytest.raises(SignatureInvalid, match="belong together"):
            verify(collection(halves), platform)


def test_exchanged_halves(platform: Platform) -> None:
    halves = platform.halves()
    with pytest.raises(VerificationError):
        verify(collection({44234: halves[44241], 44241: halves[44234]}), platform)


def test_realm_token_not_signed_by_its_key(platform: Platform) -> None:
    forger = replace(platform, rak=new_key())
    forged = forger.halves(realm=claim(44237, platform.rak_cose))[44241]
    with pytest.raises(SignatureInvalid, match="realm token"):
        verify(collection({**platform.halves(), 44241: forged}), platform)


def test_instance_identity_of_another_key(platform: Platform) -> None:
    with pytest.raises(SignatureInvalid, match="instance identity"):
        verify(platform.token(platform=claim(256, b"\x01" + bytes(32))), platform)


def test_expired_and_not_yet_valid(platform: Platform) -> None:
    token = platform.token()
    for days in (2000, 4000, -1):
        with pytest.raises(CertificateExpired):
            verify(token, platform, now=NOW + timedelta(days=days))
    verify(token, platform, now=NOW + timedelta(days=1800))


def test_key_certified_for_another_purpose(platform: Platform) -> None:
    key, certificate = platform.authority.reference_signer(now=NOW)
    other = replace(platform, pak=key, chain=[certificate.public_bytes(Encoding.DER)])
    with pytest.raises(UnknownRoot, match="purpose"):
        verify(other.token(), platform)


def test_platform_that_plays_vendor(platform: Platform) -> None:
    """A certified platform key certifies another key: it is no authority."""
    leaf = x509.load_der_x509_certificate(platform.endorsement[0])
    fake = VendorAuthority(leaf, platform.pak)
    pak = new_key()
    forged = fake.certify(encode_key(pak.public_key()), now=NOW).public_bytes(Encoding.DER)
    other = replace(platform, pak=pak, chain=[forged, *platform.endorsement])
    with pytest.raises(UnknownRoot, match="may sign none"):
        verify(other.token(), platform)


def authority_below(root: VendorAuthority, path_length: int | None = 0) -> VendorAuthority:
    key = new_key()
    builder = certificate_builder(
        certificate_name("a factory"), root.certificate.subject, key.public_key(), NOW, 365
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    builder = builder.add_extension(key_usage(sign_certificates=True), critical=True)
    return VendorAuthority(builder.sign(root.key, SHA256()), key)


def der(authority: VendorAuthority) -> bytes:
    return authority.certificate.public_bytes(Encoding.DER)


def test_intermediate_authorities(platform: Platform) -> None:
    factory = authority_below(platform.authority)
    leaf = factory.certify(platform.pak_cose, now=NOW).public_bytes(Encoding.DER)
    for chain in ([leaf, der(factory)], [leaf, der(factory), der(platform.authority)]):
        verify(replace(platform, chain=chain).token(), platform)
    for chain in ([leaf], [leaf, der(platform.authority)], [der(factory), leaf]):
        with pytest.raises(UnknownRoot):
            verify(replace(platform, chain=chain).token(), platform)


def test_path_length(platform: Platform) -> None:
    factory = authority_below(platform.authority)
    line = authority_below(factory)
    leaf = line.certify(platform.pak_cose, now=NOW).public_bytes(Encoding.DER)
    with pytest.raises(UnknownRoot, match="longer"):
        verify(replace(platform, chain=[leaf, der(line), der(factory)]).token(), platform)


def test_chain_too_long(platform: Platform) -> None:
    with pytest.raises(MalformedEvidence):
        verify(replace(platform, chain=platform.endorsement * 5).token(), platform)


def test_garbage_in_the_chain(platform: Platform) -> None:
    for garbage in (b"", b"garbage", platform.endorsement[0] + b"\0", platform.endorsement[0][:-1]):
        with pytest.raises(VerificationError):
            verify(replace(platform, chain=[garbage]).token(), platform)


# --- state of the platform --------------------------------------------------------------------------------


def test_insecure_is_refused_unless_allowed(platform: Platform) -> None:
    insecure = replace(platform, lifecycle=0x1000).token(realm=claim(-70004, True))
    with pytest.raises(InsecurePlatform, match="insecure"):
        verify(insecure, platform)
    assert verify(insecure, platform, policy=Policy(allow_insecure=True)).insecure is True


def test_debug_is_refused_unless_allowed(platform: Platform) -> None:
    debug = platform.token(realm=claim(-70003, True))
    for policy in (None, Policy(), Policy(allow_insecure=True)):
        with pytest.raises(InsecurePlatform, match="debug"):
            verify(debug, platform, policy=policy)
    assert verify(debug, platform, policy=Policy(allow_debug=True)).debug is True


@pytest.mark.parametrize("lifecycle", [0, 0x1000, 0x2000, 0x3001, 0x4000, 0x5000, 0x6000, 0xFFFF])
def test_life_cycle(platform: Platform, lifecycle: int) -> None:
    with pytest.raises(InsecurePlatform, match="life cycle"):
        verify(replace(platform, lifecycle=lifecycle).token(), platform)


# --- what is measured -------------------------------------------------------------------------------------

BL31, HEADER, PAGER, BL33 = COMPONENTS


def altered(component: Component, **changes: Any) -> Component:
    return replace(component, **changes)


@pytest.mark.parametrize(
    ("components", "named"),
    [
        ((BL31, HEADER, PAGER), "BL33"),
        ((*COMPONENTS, Component("EXTRA", bytes(32), bytes(32))), "EXTRA"),
        ((*COMPONENTS, BL33), "BL33"),
        ((altered(BL31, digest=bytes(32)), HEADER, PAGER, BL33), "BL31"),
        ((BL31, HEADER, PAGER, altered(BL33, signer=bytes(32))), "BL33"),
        ((BL31, PAGER, HEADER, BL33), "OPTEE_PAGER"),
        ((BL31, HEADER, PAGER, altered(BL31, digest=BL33.digest)), "BL33"),
        ((altered(BL31, name="bl31"), HEADER, PAGER, BL33), "BL31"),
    ],
)
def test_changed_component(platform: Platform, components: tuple[Component, ...], named: str) -> None:
    with pytest.raises(ComponentChanged) as caught:
        verify(replace(platform, components=components).token(), platform)
    assert caught.value.component == named


def test_signer_and_version_are_conditions_only_where_given(platform: Platform) -> None:
    token = platform.token()
    verify(
        token, platform, references=ReferenceValues(tuple(Component(c.name, c.digest) for c in COMPONENTS))
    )
    versioned = ReferenceValues(tuple(replace(c, version="1.0") for c in COMPONENTS))
    with pytest.raises(ComponentChanged):
        verify(token, platform, references=versioned)


def test_another_implementation(platform: Platform) -> None:
    token = platform.token(platform=claim(2396, bytes(32)))
    with pytest.raises(ComponentChanged, match="implementation"):
        verify(token, platform)
    verify(token, platform, references=ReferenceValues(COMPONENTS))


def test_wrong_measurement(platform: Platform) -> None:
    with pytest.raises(MeasurementMismatch):
        verify(platform.token(), platform, measurement=bytes(32))
    with pytest.raises(MeasurementMismatch):
        verify(platform.token(realm=claim(44238, bytes(32))), platform)


def measured(size: int, algorithm: str) -> Change:
    def change(claims: dict[int, Any]) -> None:
        claims.update({44236: algorithm, 44238: bytes(size), 44239: [bytes(size)] * 4})

    return change


def test_wrong_hash(platform: Platform) -> None:
    token = platform.token(realm=measured(64, "sha-512"))
    with pytest.raises(MeasurementMismatch, match="sha-512"):
        verify(token, platform)
    verify(token, platform, policy=Policy(hash_algorithm="sha-512"), measurement=bytes(64))


def test_other_owner(platform: Platform) -> None:
    with pytest.raises(OwnerMismatch):
        verify(platform.token(), platform, personalization=bytes(64))


def test_a_demand_on_the_cache(platform: Platform) -> None:
    accepted = {
        "none": [],
        "colours-unconfirmed": ["divided"],
        "colours-confirmed": ["divided", "confirmed"],
        "ways": ["divided", "confirmed"],
    }
    assert set(accepted) == set(CACHE_PARTITIONS)
    for stated, demands in accepted.items():
        token = platform.token(realm=claim(-70005, stated))
        assert verify(token, platform).cache_partition == stated, "nothing is demanded"
        for demand, partitions in CACHE_DEMANDS.items():
            policy = Policy(cache_partitions=partitions)
            if demand in demands:
                assert verify(token, platform, policy=policy).cache_partition == stated
            else:
                said = f"is '{stated}', and .*'colours-confirmed' is demanded"
                with pytest.raises(CacheShared, match=said) as caught:
                    verify(token, platform, policy=policy)
                assert caught.value.stated == stated


@pytest.mark.parametrize("stated", ["colours", "Ways", "none ", "colours confirmed"])
def test_a_partition_that_is_not_known(platform: Platform, stated: str) -> None:
    with pytest.raises(MalformedEvidence, match="partition of the cache"):
        verify(platform.token(realm=claim(-70005, stated)), platform)


def test_the_class_of_a_domain(platform: Platform) -> None:
    """An attested class is stated as it is; a Normal VM has no token, whoever says so."""
    for stated in DOMAIN_CLASSES:
        assert verify(platform.token(realm=claim(-70006, stated)), platform).domain_class == stated
    for stated in ("normal", "Realm", "realm ", "r"):
        with pytest.raises(MalformedEvidence, match="class of domain"):
            verify(platform.token(realm=claim(-70006, stated)), platform)
