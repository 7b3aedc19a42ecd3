"""A machine from the factory to its end, as its tokens state it, with another machine's state disk in it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from machine import DOOR, Machine, copy_sparse, new_server
from probe import build_probe

from testbed.door import Door
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.policy import DEBUG, NOT_PROVISIONED, SECURED, Policy
from vambrace.attest.verify import VerifiedRealm, verify_launch
from vambrace.client.trust import Trust
from vambrace.emulator import fuse
from vambrace.emulator.firmware import VERSIONS
from vambrace.emulator.fuse import read_fuse
from vambrace.emulator.server import Server
from vambrace.errors import BootRefused, InsecurePlatform, ServerError

EVIDENCE = """
import sys
from pathlib import Path
from vambrace.host.evidence import parse_chain, with_endorsement
from vambrace.trustzone import RealmClaims, TrustZone
instance, challenge = map(bytes.fromhex, sys.argv[1:])
claims = RealmClaims(instance, bytes(32), (bytes(32),) * 4, bytes(64), challenge)
with TrustZone() as zone:
    evidence = zone.evidence(claims)
print(with_endorsement(evidence, parse_chain(Path("/state/endorsement.pem").read_bytes())).hex())
"""

#: What the host's root may not do in TrustZone: the daemon's is the only path, and that asks the owner.
FORBIDDEN = """
import ctypes, uuid
from vambrace.trustzone import session
session.APPLICATION = uuid.UUID("98f16531-bfa3-4075-a5fc-143abb9f14a1")
try:
    session.TrustZone()
except session.TrustZoneError as error:
    print(error.message)
"""


OPEN_MEMORY = """
import os
os.open("/dev/mem", os.O_RDONLY)
"""


@pytest.fixture
def new(machine: Machine, tmp_path: Path) -> Iterator[Server]:
    """A new machine that was given the first machine's disk, with all that its daemon keeps on it."""
    machine.stop()
    server = new_server(tmp_path / "new", variant=DOOR)
    server.home.mkdir()
    copy_sparse(machine.old_state, server.state)
    for name in ("credentials", "platform-owner"):
        shutil.copytree(machine.home / name, server.home / name)
    yield server
    server.down()


def token(server: Server, policy: Policy | None = None) -> VerifiedRealm:
    """What TrustZone states now, by a verifier with that policy."""
    nonce, instance = secrets.token_bytes(32), secrets.token_bytes(16)
    with Door(server) as host:
        done = host.python(EVIDENCE, instance.hex(), launch_challenge(nonce, instance).hex())
    assert done.code == 0, done.output
    trust = Trust.load(server.published.vendor_root, server.published.references)
    return verify_launch(
        bytes.fromhex(done.output),
        nonce=nonce,
        roots=trust.roots,
        references=trust.references,
        measurement=bytes(32),
        personalization=bytes(64),
        policy=policy,
    )


def test_a_machine_s_life(new: Server, machine: Machine, tmp_path: Path) -> None:
    old = read_fuse(machine.home / "secure-flash.img")
    new.factory(print, lock=False)
    # The endorsement on the disk was another machine's key's, and counted for nothing.
    made = read_fuse(new.flash)
    assert made.key != old.key and not made.secured
    assert (made.firmware_version, made.host_version) == (VERSIONS.firmware, VERSIONS.host)
    unlocked = token(new, Policy(allow_insecure=True))
    assert unlocked.lifecycle == NOT_PROVISIONED
    with pytest.raises(InsecurePlatform, match="not provisioned"):
        token(new)
    with Door(new) as host:
        denied = "the trusted application does not open: access denied, says the trusted application\n"
        assert host.python(FORBIDDEN).output == denied
        # Root loads nothing into this kernel that it was not built with, and reads no physical memory.
        host.put("/run/probe.ko", build_probe(new.build(print).host.kernel, tmp_path, fuse.OFFSET))
        assert "Operation not permitted" in host.run("busybox", "insmod", "/run/probe.ko").output
        assert "Operation not permitted" in host.python(OPEN_MEMORY).output

    new.factory(print)
    secured = token(new)
    assert (secured.lifecycle, secured.domain_class) == (SECURED, "realm")
    assert secured.platform_instance_id == unlocked.platform_instance_id
    names = [component.name for component in secured.components]
    assert names[:3] == ["BL_1", "BL_2", "SECURE_RT_EL3"]
    assert names[-6:] == ["BL_33", "VAMBRACE_TA", "HOST_DEVICE_TREE", "HOST_KERNEL", "HOST_INITRD", "HOST_ROOT"]
    assert {component.signer for component in secured.components} == {made.root_key_hash}
    with pytest.raises(ServerError, match="left the factory"):
        new.factory(print)
    before = new.api.get("/v1/platform")
    new.renew(print)
    assert new.api.get("/v1/platform") == before
    assert token(new).platform_instance_id == secured.platform_instance_id

    new.retire("debug", print)
    with pytest.raises(ServerError, match="403"):  # the owner has not signed that for what it is now
        new.api.request("PUT", "/v1/platform/lifecycle", b"nonsense")
    assert not new.api.get("/v1/platform")["endorsed"]
    with pytest.raises(ServerError, match="out of service"):
        new.renew(print)
    # A vendor who certifies even this.
    opened_key = bytes.fromhex(new.api.get("/v1/platform")["platform_key"])
    certificate = new._vendor()[0].certify(opened_key)
    new.api.request("PUT", "/v1/platform/endorsement?lock=0", certificate.public_bytes(Encoding.PEM))
    opened = token(new, Policy(lifecycles=frozenset({DEBUG})))
    # It is another platform: what was sealed to the first, or endorsed as the first, is out of its reach.
    assert opened.platform_instance_id != secured.platform_instance_id
    with pytest.raises(InsecurePlatform, match="debug"):
        token(new)

    new.retire("decommissioned", print)
    with Door(new) as host:
        assert "security violation" in host.python(EVIDENCE, "00" * 16, "00" * 64).output
    new.down()
    assert (read_fuse(new.flash).decommissioned, read_fuse(new.flash).key) == (True, bytes(16))
    with pytest.raises(ServerError, match="decommissioned"):
        new.up(print)
    with pytest.raises(BootRefused, match="decommissioned"):  # nor does the firmware start it
        new.starter.start(new.machine(new.build(print)), print, cold=True)
