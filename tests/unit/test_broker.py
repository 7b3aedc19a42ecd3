"""The broker: what it hands out, to whom, and what it refuses, each refusal in the audit log with its own reason."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attest_factory import COMPONENTS, IMPLEMENTATION, Platform
from broker_world import INSTANCE, MEASUREMENT, PASSWORD, SECRET, VOLUME, World, refused, released
from client_harness import make_platform
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from vambrace_agent import AgentError
from vambrace_agent.release import Refused, Session

from vambrace.attest.references import publish


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path).running() as world:
        world.store()
        yield world


def test_a_realm_gets_its_secret(world: World) -> None:
    with world.realm().session() as session:
        assert session.resource(SECRET) == (1, PASSWORD)
        with world.client() as client:
            client.put(SECRET, b"another", None)
        assert session.resource(SECRET) == (2, b"another")
    entry = released(world)[-1]
    assert (entry["resource"], entry["generation"]) == (SECRET, 2)
    assert entry["subject"]["instance"] == INSTANCE.hex() and entry["subject"]["measurement"] == MEASUREMENT.hex()


# Not released for


def test_another_measurement(world: World) -> None:
    with world.realm(realm_claims=lambda claims: claims.update({44238: bytes(32)})).session() as session:
        refused(world, lambda: session.resource(SECRET), 403, "measurement")
        refused(world, lambda: session.volume(VOLUME), 403, "measurement")


def test_another_owner(world: World) -> None:
    with world.realm(realm_claims=lambda claims: claims.update({44235: bytes(64)})).session() as session:
        refused(world, lambda: session.resource(SECRET), 403, "another owner")


def test_a_realm_in_debug_mode(world: World) -> None:
    with world.realm(realm_claims=lambda claims: claims.update({-70003: True})).session() as session:
        refused(world, lambda: session.resource(SECRET), 403, "debug mode")


@pytest.mark.parametrize(("lifecycle", "name"), [(0x4000, "debug"), (0x5000, "debug"), (0x1000, "not provisioned"),
                                                 (0x6000, "decommissioned")])  # fmt: skip
def test_a_debug_platform(world: World, lifecycle: int, name: str) -> None:
    realm = world.realm(platform_claims=lambda claims: claims.update({2395: lifecycle}))
    refused(world, realm.session, 401, name, "attest")


def test_an_insecure_platform(world: World) -> None:
    realm = world.realm(realm_claims=lambda claims: claims.update({-70004: True}))
    refused(world, realm.session, 401, "insecure", "attest")


def test_another_vendors_platform(world: World) -> None:
    refused(world, world.realm(platform=make_platform()).session, 401, "does not lead to the given root", "attest")


def test_changed_firmware(world: World) -> None:
    changed = dataclasses.replace(COMPONENTS[3], digest=bytes(32))
    platform = dataclasses.replace(world.platform, components=(*COMPONENTS[:3], changed))
    refused(world, world.realm(platform=platform).session, 401, "component BL33 differs", "attest")


def test_a_certificate_that_is_out_of_date(world: World) -> None:
    old = dataclasses.replace(world.platform)
    begun = datetime.now(UTC) - timedelta(days=10)
    certificate = world.platform.authority.certify(old.pak_cose, now=begun, days=3)
    old.chain = [certificate.public_bytes(Encoding.DER)]
    refused(world, world.realm(platform=old).session, 401, "expired on", "attest")


def test_a_certificate_that_is_revoked_meanwhile(tmp_path: Path) -> None:
    world = World(tmp_path)
    file, authority = tmp_path / "vendor.crl", world.platform.authority
    file.write_bytes(authority.revocation_list())
    settings = world.home / "broker.toml"
    settings.write_text(settings.read_text().replace("[repositories", f'revocation = ["{file}"]\n\n[repositories', 1))
    with world.running():
        world.store(platform={"revocation": "require"})
        with world.realm().session() as session:
            assert session.resource(SECRET)[1] == PASSWORD
            assert world.platform.chain is not None
            serial = x509.load_der_x509_certificate(world.platform.chain[0]).serial_number
            file.write_bytes(authority.revocation_list(revoke={serial: x509.ReasonFlags.key_compromise}))
            refused(world, lambda: session.resource(SECRET), 403, "revoked")
        refused(world, world.realm().session, 401, "revoked", "attest")


def test_revocation_lists_that_are_demanded_and_missing(world: World) -> None:
    with world.client() as client:
        client.put(SECRET, None, world.policy(platform={"revocation": "require"}))
    with world.realm().session() as session:
        refused(world, lambda: session.resource(SECRET), 403, "revocation list")


def test_reference_values_that_were_taken_back_meanwhile(world: World) -> None:
    with world.realm().session() as session:
        assert session.resource(SECRET)[1] == PASSWORD
        newer = [dataclasses.replace(part, digest=bytes(32)) for part in COMPONENTS]
        world.references.write_bytes(publish(newer, world.platform.authority, implementation_id=IMPLEMENTATION))
        refused(world, lambda: session.resource(SECRET), 403, "differs from its reference value")


def test_a_vendor_who_is_not_trusted_any_more(world: World) -> None:
    with world.realm().session() as session:
        world.root.write_bytes(make_platform().authority.certificate_pem)
        refused(world, lambda: session.resource(SECRET), 403, "does not lead to the given root")


def test_a_policy_that_was_changed_meanwhile(world: World) -> None:
    with world.realm().session() as session:
        with world.client() as client:
            client.put(SECRET, None, world.policy(measurements=[bytes(32).hex()]))
        refused(world, lambda: session.resource(SECRET), 403, "measurement")
        volume = session.volume(VOLUME)
        with world.client() as client:
            client.put(VOLUME, None, world.policy(measurements=[bytes(32).hex()]))
        refused(world, lambda: volume.commit(b""), 403, "measurement", "commit")


def test_a_secret_that_is_gone_is_not_told_from_one_that_is_anothers(world: World) -> None:
    with world.realm().session() as session:
        with world.client() as client:
            client.put("patients/secret/others", b"x", world.policy(measurements=[bytes(32).hex()]))
            client.delete(SECRET)
        said = []
        for name in (SECRET, "patients/secret/others"):
            with pytest.raises(Refused) as refusal:
                session.resource(name)
            said.append((str(refusal.value), refusal.value.status))
        assert said[0] == said[1]


def test_a_challenge_that_is_answered_too_late(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.change_settings("challenge_seconds = 1")
    with world.running():
        world.store()

        def slowly(claims: dict[int, Any]) -> None:
            time.sleep(1.2)

        refused(world, world.realm(realm_claims=slowly).session, 401, "no such session", "session")


def test_a_stale_nonce(world: World) -> None:
    """A token of an earlier challenge, in a session of its own."""
    kept: list[bytes] = []
    platform = Recorder(world.platform, kept)
    with world.realm(platform=platform).session() as session:
        session.resource(SECRET)
    replaying = Replayer(world.platform, kept)
    refused(world, world.realm(platform=replaying).session, 401, "answers another challenge", "attest")


def test_a_challenge_is_answered_once(world: World) -> None:
    with world.realm().session() as session:
        evidence = {"primary_evidence": {"token": base64.b64encode(b"x").decode()}, "additional_evidence": "{}"}
        body = {"runtime-data": {"nonce": "", "tee-pubkey": {}}, "tee-evidence": evidence}
        again = partial(session._ask, "POST", "/kbs/v0/attest", body)
        refused(world, again, 401, "answered before", "attest")


def test_a_session_without_evidence(world: World) -> None:
    session = raw_session(world)
    session._ask("POST", "/kbs/v0/auth", {"version": "0.1.1", "tee": "cca", "extra-params": ""})
    with pytest.raises(Refused, match="no evidence yet"):
        session.resource(SECRET)


def test_a_session_after_its_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.change_settings("session_seconds = 1")
    with world.running():
        world.store()
        with world.realm().session() as session:
            assert session.resource(SECRET)[1] == PASSWORD
            time.sleep(1.2)
            refused(world, lambda: session.resource(SECRET), 401, "no such session", "session")


def test_a_realm_that_was_destroyed_meanwhile(world: World) -> None:
    """Its connection ends with it: what somebody has kept of its session is worth nothing on another one."""
    session = world.realm().session()
    cookie = session._cookie
    other = raw_session(world)
    other._cookie = cookie
    for _ in range(2):  # while it lives, and when it is gone
        refused(world, lambda: other.resource(SECRET), 401, "no such session", "session")
        session.close()
    assert not released(world)


def test_a_broker_that_was_restarted_meanwhile(world: World) -> None:
    session = world.realm().session()
    cookie = session._cookie
    world.stop()
    with pytest.raises(AgentError, match="does not answer"):
        session.resource(SECRET)
    world.start()
    again = raw_session(world)
    again._cookie = cookie
    refused(world, lambda: again.resource(SECRET), 401, "no such session", "session")
    with world.realm().session() as fresh:
        assert fresh.resource(SECRET) == (1, PASSWORD)
        assert fresh.volume(VOLUME).generation == 0


# A man in the middle


def test_a_token_that_is_relayed_with_another_key(world: World) -> None:
    """Somebody has a Realm's token over their own challenge's nonce, but not over their own key."""

    class Relay(Session):
        def prove(self, attest: Callable[[bytes], bytes], instance: bytes) -> None:
            held: list[bytes] = []

            def honest(challenge: bytes) -> bytes:
                held.append(challenge)
                return attest(challenge)

            asked = self._ask

            def with_another_key(method: str, path: str, body: Any = None) -> Any:
                if path.endswith("/attest"):
                    from vambrace_agent.jwe import public_jwk
                    from vambrace_agent.libcrypto import ExchangeKey

                    body["runtime-data"]["tee-pubkey"] = public_jwk(ExchangeKey())
                return asked(method, path, body)

            self._ask = with_another_key  # type: ignore[method-assign]
            super().prove(honest, instance)

    session = raw_session(world, Relay)
    realm = world.realm()
    refused(world, lambda: session.prove(realm._attest, INSTANCE), 401, "answers another challenge", "attest")


def test_who_only_relays_reads_nothing_and_commits_nothing(world: World) -> None:
    """Whoever sits between sees an envelope without its key; and the ticket to commit is in it."""
    with world.realm().session() as session:
        envelope = session._ask("GET", f"/kbs/v0/resource/{SECRET}")
        assert PASSWORD not in json.dumps(envelope).encode()
        session._ask("GET", f"/kbs/v0/resource/{VOLUME}")
        for ticket in (b"", bytes(32)):
            reason = "not of whom the key was released to"
            refused(world, lambda t=ticket: session.commit(VOLUME, 1, b"", t), 403, reason, "commit")
        assert session.volume(VOLUME).generation == 0


def test_another_broker_than_the_measured_one(world: World, tmp_path: Path) -> None:
    """A man in the middle with a broker of their own, of the same name: the Realm says nothing to it."""
    (tmp_path / "other").mkdir()
    with World(tmp_path / "other").running() as other:
        with pytest.raises(AgentError, match="not the one of the measured configuration"):
            world.realm(dial=other.dial).session()
        assert not other.log()


@pytest.mark.parametrize("address", ["::1", "fd00::ab"])
def test_a_broker_at_an_address_of_ipv6(tmp_path: Path, address: str) -> None:
    world = World(tmp_path, names=["localhost", "127.0.0.1", address])
    with world.running():
        world.store()
        realm = world.realm()
        at = type(realm)(f"https://[{address}]:8444", world.certificate, world.dial, realm._attest, INSTANCE)
        with at.session() as session:
            assert session.resource(SECRET) == (1, PASSWORD)


def test_an_older_generation_of_a_volume(world: World) -> None:
    with world.realm().session() as session:
        volume = session.volume(VOLUME)
        assert volume.admits(0, b"")  # new: nothing was written to it
        volume.commit(b"first")
        kept = (volume.generation, volume.state)
        volume.commit(b"second")
    with world.realm().session() as session:
        volume = session.volume(VOLUME)
        assert volume.admits(2, b"second")
        # An old copy of the disk, one of another branch, one from before there was anything, one of the future.
        for old in (kept, (2, b"other"), (0, b""), (3, b"second")):
            assert not volume.admits(*old)


def test_two_realms_with_one_volume(world: World) -> None:
    """The second one's commit ends the first one's: they cannot both go on from the same state."""
    with world.realm().session() as one, world.realm(instance=bytes(16)).session() as two:
        first, second = one.volume(VOLUME), two.volume(VOLUME)
        second.commit(b"second")
        refused_with_conflict(world, lambda: first.commit(b"first"))
        second.commit(b"more")
        assert two.volume(VOLUME).state == b"more"


def test_a_commit_whose_answer_was_lost_is_repeated(world: World) -> None:
    with world.realm().session() as session:
        volume = session.volume(VOLUME)
        volume.commit(b"state")
        session.commit(VOLUME, 1, b"state", volume._ticket)
        for generation, state in ((1, b"changed"), (3, b"state"), (1 << 52, b"")):
            refused_with_conflict(world, lambda g=generation, s=state: session.commit(VOLUME, g, s, volume._ticket))
        assert session.volume(VOLUME).generation == 1


def refused_with_conflict(world: World, ask: Callable[[], object]) -> None:
    refused(world, ask, 409, "does not follow", "commit")


def raw_session(world: World, kind: type[Session] = Session) -> Session:
    """A connection to the broker that nothing has been asked on."""
    context = ssl.create_default_context(cafile=str(world.home / "certificate.pem"))
    stream = socket.create_connection(("127.0.0.1", world.port), 10)
    return kind(context.wrap_socket(stream, server_hostname="localhost"), "localhost", world.port)


class Recorder(Platform):
    """Keeps every token that it makes."""

    def __init__(self, platform: Platform, kept: list[bytes]) -> None:
        super().__init__(**{field.name: getattr(platform, field.name) for field in dataclasses.fields(platform)})
        self.kept = kept

    def token(self, *changes: Any, **names: bytes) -> bytes:
        self.kept.append(super().token(*changes, **names))
        return self.kept[-1]


class Replayer(Recorder):
    """Gives the token that was kept first, whatever the challenge is."""

    def token(self, *changes: Any, **names: bytes) -> bytes:
        return self.kept[0]


def test_what_is_stored_is_ciphertext(world: World) -> None:
    with world.realm().session() as session:
        key = session.volume(VOLUME).key
    world.stop()
    try:
        for file in world.home.iterdir():
            data = file.read_bytes()
            for secret in (PASSWORD, key):
                for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
                    assert form not in data, file
    finally:
        shutil.copy(world.home / "broker.db", world.folder / "kept.db")
        world.start()
