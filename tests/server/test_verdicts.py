"""403 on the real stack: who is not the owner starts nothing, and what is refused leaves nothing in memory."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from machine import one_waits, pages, vmm_of, vmms
from user import User

from testbed.door import Door
from vambrace.attest import ear
from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import appraise
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.policy import Policy
from vambrace.attest.revocation import load_list
from vambrace.attest.verify import accepted
from vambrace.client.realm import Realm
from vambrace.client.trust import Expected
from vambrace.emulator.server import Server
from vambrace.errors import ComponentChanged, ConfigError, Conflict, InsecurePlatform, MessageRefused
from vambrace.image import Bundle
from vambrace.machine.plan import plan_boot

# In place of the measured initrd's own: the Realm resets itself before anything else.
RESET = "#!/bin/busybox sh\nexec busybox reboot -f\n"
VERDICT_SECONDS = 30

SIGN = """
import sys
from pathlib import Path
from vambrace.host.evidence import parse_chain, with_endorsement
from vambrace.trustzone import RealmClaims, TrustZone
instance, rim, personalization, challenge = map(bytes.fromhex, sys.argv[1:])
claims = RealmClaims(instance, rim, (bytes(32),) * 4, personalization, challenge, debug=True)
with TrustZone() as zone:
    evidence = zone.evidence(claims)
print(with_endorsement(evidence, parse_chain(Path("/state/endorsement.pem").read_bytes())).hex())
"""


def device_tree_part(bundle: Path) -> bytes:
    """Bytes that a loaded Realm of this image has in its memory, and no file: how its device tree says /chosen."""
    image = Bundle.open(bundle)
    tree = bytes(plan_boot(image.config, image.kernel.read(), image.initrd.read()).segments[-1].data)
    words = tree.index(image.config.cmdline.encode())
    # Token, length and name of the property, then its value; within one page, for neighbours need not stay such.
    part = tree[words - 12 : words + 100]
    assert (words - 12) // 4096 == (words + 100) // 4096
    return part


def wrong_verdicts(user: User, realm: Realm, old_yes: bytes) -> dict[bytes, str]:
    """Everything but the owner's yes to this token of this instance, and why it is none."""
    verified = realm.verified
    assert verified is not None
    instance, token = verified.instance, verified.token_sha256
    forged = bytearray(user.owner.sign_verdict(instance, token, yes=True))
    forged[-1] ^= 1
    return {
        user.stranger.sign_verdict(instance, token, yes=True): "not signed by the owner",
        bytes(forged): "not signed by the owner",
        old_yes: "for another instance",
        user.owner.sign_verdict(os.urandom(16), token, yes=True): "for another instance",
        user.owner.sign_verdict(instance, os.urandom(32), yes=True): "about another token",
        user.owner.sign_percent(instance, 1, 0, 1): "not a verdict",
        b"yes": "cannot be read",
    }


def check_result(user: User, server: Server, realm: Realm) -> None:
    """A real token, judged from files alone, by a policy that wants the vendor's list; the result is signed."""
    revoked = load_list(server.access().revocation_list.read_bytes())
    anchors = Anchors(user.trust.roots, (user.trust.references,), (revoked,))
    measurement = bytes.fromhex(realm.state.measurement)
    policy = Policy(measurements=frozenset({measurement}), require_revocation=True)
    assert realm.verified is not None
    challenge = launch_challenge(bytes.fromhex(realm.state.nonce), realm.verified.instance)
    appraisal = appraise(realm.token(), anchors=anchors, policy=policy, challenge=challenge)
    assert accepted(appraisal).measurement == measurement
    key = generate_private_key(SECP256R1())
    claims = ear.verify_jwt(ear.sign_jwt(ear.claims_set(appraisal), key), key.public_key())
    assert claims["submods"]["platform"]["ear_status"] == "affirming"
    with pytest.raises(ComponentChanged):
        nothing = dataclasses.replace(anchors, references=())
        accepted(appraise(realm.token(), anchors=nothing, policy=policy, challenge=challenge))


def test_reset_and_refusal(user: User, server: Server, tmp_path: Path) -> None:
    """A Realm that resets itself has ended. Of the same image another one gets every verdict but its owner's yes,
    and a third none."""
    image = user.bundle(init=RESET, verdict_seconds=600).rename(tmp_path / "patient")
    with Door(server) as host:
        first = user.create(image)
        verified = first.verify()
        check_result(user, server, first)
        vmm = vmm_of(host, first.uuid)
        old_yes = user.owner.sign_verdict(verified.instance, verified.token_sha256, yes=True)
        first.approve()
        ended = first.host.wait(first.uuid, lambda info: info.final, timeout=120)
        assert (ended.state, ended.executed) == ("failed", True)
        assert ended.reason == "reset: a restart is a new instance"
        assert vmm not in vmms(host)

        second = user.create(image)
        try:
            second.verify()
            for message, why in wrong_verdicts(user, second, old_yes).items():
                with pytest.raises(MessageRefused, match=why):
                    second.host.verdict(second.uuid, message)
                assert second.info().state == "awaiting-verdict"
            marker = device_tree_part(image)
            assert pages(server, tmp_path, marker)[0] > 0
            assert second.info().state == "awaiting-verdict"
        finally:
            second.abandon()

        hasty = user.bundle(init=RESET, verdict_seconds=VERDICT_SECONDS)
        assert device_tree_part(hasty) == marker
        third = user.create(hasty)
        try:
            third.verify()
            vmm = vmm_of(host, third.uuid)
            # Silence until the deadline.
            ended = third.host.wait(third.uuid, lambda info: info.final, timeout=VERDICT_SECONDS + 60)
            assert (ended.state, ended.executed) == ("refused", False)
            assert ended.reason == f"no verdict within {VERDICT_SECONDS} s"
            with pytest.raises(Conflict):
                third.approve()
            assert not third.info().executed
            assert one_waits(host)
            assert vmm not in vmms(host)
            assert pages(server, tmp_path, marker) == [0]
        finally:
            third.abandon()
        # No Realm was started once more by anybody.
        images = (first.state.image, third.state.image)
        ours = [info for info in user.host.domains() if info.image in images]
        assert {info.uuid for info in ours} == {first.uuid, second.uuid, third.uuid}
        assert all(info.final for info in ours)


def test_debug(user: User, server: Server) -> None:
    """The host runs no debug Realm, and a verifier takes no token that says debug: one that TrustZone signed even."""
    with pytest.raises(ConfigError, match="no debug domains"):
        user.create(user.bundle(debug=True))
    instance, nonce, rim = os.urandom(16), os.urandom(32), os.urandom(32)
    challenge = launch_challenge(nonce, instance)
    expected = Expected(rim, user.owner.personalization())
    with Door(server) as host:
        done = host.python(SIGN, *(value.hex() for value in (instance, rim, expected.personalization, challenge)))
    assert done.code == 0, done.output
    token = bytes.fromhex(done.output)
    with pytest.raises(InsecurePlatform, match="debug"):
        user.trust.launch(token, nonce, expected)
    # That is all that is wrong with it.
    allowed = dataclasses.replace(user.trust, policy=Policy(allow_debug=True))
    assert allowed.launch(token, nonce, expected).debug
