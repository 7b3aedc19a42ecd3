"""The broker and what a Realm is measured with: its suite's hash at the launch, its registers since."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from attest_factory import new_key
from broker_world import PASSWORD, SECRET, World, refused
from client_harness import make_platform
from vambrace_agent.events import Events
from vambrace_agent.main import handlers
from vambrace_agent.sealing import Sealing
from vambrace_agent.settings import Secret as Granted

from vambrace.errors import BrokerError
from vambrace.suite import NIST, SM, Suite


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path).running() as world:
        world.store()
        yield world


# What has happened since the launch


@pytest.mark.parametrize("first", [True, False], ids=["it may, and then not", "it may not yet"])
def test_evidence_is_of_after_the_last_event(world: World, first: bool) -> None:
    """A policy of registers: what an application has said since counts at once, in both directions."""
    good, bad = bytes(32), b"\1" * 32
    registers = [good if first else bad] * 4
    realm = world.realm(realm_claims=lambda claims: claims.update({44239: list(registers)}))
    events = Events("sha-256", lambda register, digest: registers.__setitem__(register, bad if first else good))
    application = SimpleNamespace(name="analysis", registers=[1])
    granted = Granted({"name": "password", "application": "analysis", "resource": SECRET})
    desk = handlers(events, realm, [granted], Sealing(None, lambda version: b""), [application])  # type: ignore[list-item]

    def secret() -> object:
        return desk["secret"](application, {"name": "password"})["value"]  # type: ignore[arg-type]

    with world.client() as client:
        client.put(SECRET, None, world.policy(registers={"1": [good.hex()]}))
    for allowed in (first, not first):
        for _ in range(2):
            if allowed:
                assert secret() == base64.b64encode(PASSWORD).decode()
            else:
                refused(world, secret, 403, "register 1")
        if allowed is first:
            desk["extend"](application, {"register": 1, "text": "said"})  # type: ignore[arg-type]
    proofs = [entry for entry in world.log() if entry["event"] == "attest"]
    assert len(proofs) == 2  # and as long as nothing is said, one is enough


# Suites


def test_a_realm_of_the_sm_suite(tmp_path: Path) -> None:
    """Its owner shows the key for TLS, and the policy says by which hash the images were measured."""
    with World(tmp_path, suite=SM).running() as world:
        world.store()
        with world.realm().session() as session:
            assert session.resource(SECRET) == (1, PASSWORD)
        with world.client() as client:
            client.put(SECRET, None, world.policy(hash=NIST.hash))
        with world.realm().session() as session:
            refused(world, lambda: session.resource(SECRET), 403, "was measured with sm3")
        with world.client(world.stranger) as client, pytest.raises(BrokerError):
            client.describe(SECRET)


@pytest.mark.parametrize(("vendor", "platform"), [(NIST, SM), (SM, NIST)], ids=["sm for nist", "nist for sm"])
def test_a_platform_of_another_suite_than_its_vendors(tmp_path: Path, vendor: Suite, platform: Suite) -> None:
    with World(tmp_path, suite=vendor).running() as world:
        world.store()
        refused(world, world.realm(platform=make_platform(platform)).session, 401, "given root", "attest")


@pytest.mark.parametrize("half", ["platform", "realm"])
def test_a_half_of_another_suite(tmp_path: Path, half: str) -> None:
    """Also where its key is the one that is vouched for."""
    with World(tmp_path, suite=SM).running() as world:
        world.store()
        mixed = dataclasses.replace(world.platform, **{{"platform": "pak", "realm": "rak"}[half]: new_key()})
        reason = {"platform": "its key is on SM2", "realm": "of different suites"}[half]
        refused(world, world.realm(platform=mixed).session, 401, reason, "attest")


@pytest.mark.parametrize("claim", [44236, 44240])
def test_a_hash_of_another_suite(tmp_path: Path, claim: int) -> None:
    with World(tmp_path, suite=SM).running() as world:
        world.store()
        realm = world.realm(realm_claims=lambda claims: claims.update({claim: NIST.hash}))
        refused(world, realm.session, 401, "of different suites", "attest")
