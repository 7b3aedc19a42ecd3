"""The policy file: what it says is what is accepted, and what it does not know it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from attest_factory import INSTANCE, MEASUREMENT, NONCE, NOW, PERSONALIZATION, Change, Platform, claim

from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import appraise
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.policy import CACHE_DEMANDS, Policy
from vambrace.attest.verify import VerifiedRealm, accepted
from vambrace.errors import (
    CacheShared,
    ConfigError,
    InsecurePlatform,
    MeasurementMismatch,
    OwnerMismatch,
    PolicyRefused,
    RevocationUnknown,
    VerificationError,
)

HEAD = 'schema = "vambrace.policy/1"\n'
GOOD = f'[realm]\nmeasurements = ["{MEASUREMENT.hex()}"]\n'


@pytest.fixture(scope="module")
def platform() -> Platform:
    return Platform()


def unchanged(claims: dict[int, Any]) -> None:
    pass


def judge(platform: Platform, text: str, realm: Change = unchanged, of: Change = unchanged) -> VerifiedRealm:
    """Appraise a token of ``platform``, changed by ``realm`` and ``of``, by the policy that ``text`` says."""
    anchors = Anchors(tuple(platform.roots), (platform.references,))
    policy = Policy.parse((HEAD + text).encode())
    challenge = launch_challenge(NONCE, INSTANCE)
    return accepted(appraise(platform.token(of, realm), anchors=anchors, policy=policy, challenge=challenge, now=NOW))


def test_the_defaults_are_safe(platform: Platform) -> None:
    """A policy that says nothing accepts nothing; one with a measurement is as strict as ``Policy()`` otherwise."""
    with pytest.raises(MeasurementMismatch, match="nothing says"):
        judge(platform, "")
    assert judge(platform, GOOD).measurement == MEASUREMENT
    for change, of in (
        (claim(-70003, True), unchanged),
        (claim(-70004, True), unchanged),
        (unchanged, claim(2395, 0x1000)),
        (unchanged, claim(2395, 0x4000)),
    ):
        with pytest.raises(InsecurePlatform):
            judge(platform, GOOD, change, of)


@pytest.mark.parametrize(
    ("text", "realm", "of", "error"),
    [
        (f'measurements = ["{"00" * 32}"]', unchanged, unchanged, MeasurementMismatch),
        (f'owners = ["{"00" * 64}"]', unchanged, unchanged, OwnerMismatch),
        ('hash = "sha-512"', unchanged, unchanged, MeasurementMismatch),
        ('cache = "divided"', unchanged, unchanged, CacheShared),
        ('cache = "confirmed"', claim(-70005, "colours-unconfirmed"), unchanged, CacheShared),
        ('classes = ["realm"]', claim(-70006, "secure"), unchanged, PolicyRefused),
        ('key-storage = ["trustzone"]', unchanged, unchanged, PolicyRefused),
        (f'registers = {{ "2" = ["{"11" * 32}"] }}', unchanged, unchanged, PolicyRefused),
    ],
)
def test_what_the_realm_part_demands(
    platform: Platform, text: str, realm: Change, of: Change, error: type[VerificationError]
) -> None:
    text = f"[realm]\n{text}\n" if text.startswith("measurements") else GOOD + text + "\n"
    with pytest.raises(error):
        judge(platform, text, realm, of)


def test_what_the_realm_part_accepts(platform: Platform) -> None:
    register = bytes.fromhex("11" * 32)
    extended = claim(44239, [bytes(32), bytes(32), register, bytes(32)])
    text = GOOD + f'owners = ["{PERSONALIZATION.hex()}"]\nregisters = {{ "2" = ["{register.hex()}"] }}\n'
    assert judge(platform, text, extended).rems[2] == register
    judge(platform, GOOD + 'cache = "confirmed"\n', claim(-70005, "ways"))
    assert judge(platform, GOOD + "debug = true\n", claim(-70003, True)).debug
    judge(platform, f'[realm]\nmeasurements = "any"\nowners = ["{PERSONALIZATION.hex()}"]\n', claim(44238, bytes(32)))


def test_what_the_platform_part_demands(platform: Platform) -> None:
    ueid = platform.platform_claims()[256]
    judge(platform, f'[platform]\nidentities = ["{ueid.hex()}"]\n' + GOOD)
    with pytest.raises(PolicyRefused, match="not among those") as caught:
        judge(platform, f'[platform]\nidentities = ["01{"00" * 32}"]\n' + GOOD)
    assert caught.value.rule == "platform.identities"
    with pytest.raises(RevocationUnknown):
        judge(platform, '[platform]\nrevocation = "require"\n' + GOOD)
    with pytest.raises(PolicyRefused, match="profile"):
        judge(platform, '[platform]\nprofiles = ["cca"]\n' + GOOD)
    judge(platform, '[platform]\nlifecycles = ["non-cca-debug"]\n' + GOOD, of=claim(2395, 0x4000))
    judge(platform, "[platform]\ninsecure = true\n" + GOOD, claim(-70004, True), claim(2395, 0x1000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("surprise = 1", "'surprise' is not known"),
        ("[realm]\nsurprise = 1", "'realm.surprise' is not known"),
        ('[realm]\nregisters = { "4" = ["00"] }', "'realm.registers.4' is not known"),
        ("[realm]\nmeasurements = 7", "not a list"),
        ("[realm]\nmeasurements = [7]", "not a list"),
        ('[realm]\nmeasurements = ["00"]', "bytes in hexadecimal"),
        ('[realm]\nmeasurements = ["xx"]', "bytes in hexadecimal"),
        ('[realm]\nmeasurements = "any"', "any Realm of any owner"),
        ('[realm]\ncache = "shared"', "is one of"),
        ('[realm]\ndebug = "no"', "not a bool"),
        ("[realm]\ndebug = 0", "not a bool"),
        ('[platform]\nlifecycles = ["decommissioned"]', "list of some of"),
        ("[platform]\nlifecycles = []", "list of some of"),
        ('[platform]\nrevocation = "off"', "is one of"),
        ("[platform]\nrevocation-days = 0", "1 to 3650"),
        ("[platform]\nrevocation-days = true", "not a int"),
        ('platform = "good"', "not a table"),
        ('id = "a\\u001b"', "printable"),
        ("[realm", "not TOML"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", "\\[")):
        Policy.parse((HEAD + text).encode())


def test_it_says_what_it_is() -> None:
    with pytest.raises(ConfigError, match="schema"):
        Policy.parse(b'schema = "vambrace.policy/2"')
    with pytest.raises(ConfigError, match="schema"):
        Policy.parse(b"")
    with pytest.raises(ConfigError, match="longer"):
        Policy.parse(b"#" * (1 << 20))


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(
            identifier="tag:example.org,2026:policy",
            profiles=frozenset({"cca"}),
            allow_debug=True,
            allow_insecure=True,
            lifecycles=frozenset({0x3000, 0x4000}),
            platforms=frozenset({b"\x01" + bytes(32)}),
            measurements=None,
            owners=frozenset({bytes(64)}),
            registers=(None, frozenset({bytes(32)}), None, frozenset()),
            classes=frozenset({"secure"}),
            hash_algorithm="sm3",
            cache_partitions=CACHE_DEMANDS["divided"],
            key_storage=frozenset({"dram"}),
            require_revocation=True,
            revocation_age=timedelta(days=7),
        ),
    ],
)
def test_a_policy_as_an_object(policy: Policy) -> None:
    again = Policy.from_table(policy.table())
    assert again == policy and again.digest() == policy.digest()
    assert replace(policy, allow_debug=not policy.allow_debug).digest() != policy.digest()


def test_its_name() -> None:
    assert Policy(identifier="tag:example.org,2026:x").name == "tag:example.org,2026:x"
    assert Policy().name == "urn:sha-256:" + Policy().digest().hex()
    assert Policy.parse(HEAD.encode()).name == Policy.parse((HEAD + "# a remark\n[realm]\n").encode()).name
