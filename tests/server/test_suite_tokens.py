"""TrustZone signs in every suite: on this machine, whose host is of one of them, its application is asked for all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from user import User

from testbed.door import Door
from vambrace.attest import cose, suites
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.policy import Policy
from vambrace.attest.verify import verify_evidence
from vambrace.emulator.server import Server
from vambrace.errors import SignatureInvalid
from vambrace.host.evidence import with_endorsement
from vambrace.suite import NIST, SM, SUITES, Suite

EVIDENCE = """
import sys
from vambrace.suite import SUITES
from vambrace.trustzone import RealmClaims, TrustZone
suite = SUITES[sys.argv[1]]
instance, rim, personalization, challenge = map(bytes.fromhex, sys.argv[2:])
claims = RealmClaims(instance, rim, (bytes(32),) * 4, personalization, challenge, suite=suite)
with TrustZone(suite) as zone:
    for _ in range(2):
        print(zone.platform_key().hex(), zone.evidence(claims).hex())
"""


@pytest.mark.parametrize("suite", SUITES.values(), ids=str)
def test_evidence_from_trustzone(user: User, server: Server, suite: Suite, tmp_path: Path) -> None:
    instance, nonce, rim, owner = os.urandom(16), os.urandom(32), os.urandom(32), os.urandom(64)
    challenge = launch_challenge(nonce, instance, suite)
    with Door(server) as host:
        done = host.python(EVIDENCE, suite.name, *(value.hex() for value in (instance, rim, owner, challenge)))
    assert done.code == 0, done.output
    key, evidence, again, another = map(bytes.fromhex, done.output.split())
    assert key == again and evidence != another, "the key is the fuse's, a signature is new each time"
    assert suites.suite_of(cose.decode_key(key)) == suite
    # A vendor of this test's: that of the machine certifies keys of the host's suite only.
    authority = VendorAuthority.create(suite=suite)
    endorsement = authority.certify(key).public_bytes(suites.Encoding.DER)
    expected = {
        "roots": [authority.certificate],
        "references": user.trust.references,
        "challenge": challenge,
        "measurement": rim,
        "personalization": owner,
        "policy": Policy(hash_algorithm=suite.hash),
    }
    for signed in (evidence, another):
        token = with_endorsement(signed, [endorsement])
        realm = verify_evidence(token, **expected)
        assert (realm.instance, realm.hash_algorithm) == (instance, suite.hash)
        assert realm.platform_instance_id[1:] == suite.digest(key)
    # The last bytes are the realm token's signature.
    with pytest.raises(SignatureInvalid):
        verify_evidence(token[:-1] + bytes([token[-1] ^ 1]), **expected)


def test_keys_of_suites_are_different_keys(server: Server) -> None:
    program = """
from vambrace.suite import SUITES
from vambrace.trustzone import TrustZone
for suite in SUITES.values():
    with TrustZone(suite) as zone:
        print(zone.platform_key().hex())
"""
    with Door(server) as host:
        done = host.python(program)
    assert done.code == 0, done.output
    keys = [cose.decode_key(bytes.fromhex(line)) for line in done.output.split()]
    assert [suites.suite_of(key) for key in keys] == [NIST, SM]
    assert len({suites.point(key) for key in keys}) == len(keys)
