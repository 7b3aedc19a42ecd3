"""A Realm from its bundle to its end, against a loopback host and the real agent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_agent import Agent
from client_harness import World, living_world, make_bundle, make_platform
from config_factory import make_endpoint
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace import Host, Owner, Realm, Trust
from vambrace.attest.policy import Policy
from vambrace.cache import CacheShare
from vambrace.client import channel, traffic
from vambrace.errors import (
    CacheShared,
    ChallengeMismatch,
    Conflict,
    DomainError,
    HostUnreachable,
    MalformedEvidence,
    MeasurementMismatch,
    OwnerMismatch,
    ReplayedToken,
    UnknownRoot,
    UsageError,
    VerificationError,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with living_world(tmp_path) as world:
        yield world


def test_whole_life(world: World, tmp_path: Path) -> None:
    logged: dict[str, bytes] = {}
    steps: list[str] = []

    def on_log(name: str, data: bytes) -> None:
        logged[name] = logged.get(name, b"") + data

    began = time.time()
    with Realm.run(world.bundle, progress=lambda step, done=0, total=0: steps.append(step)) as realm:
        assert realm.verified is not None and realm.verified.measurement == world.measurement
        assert realm.token() == world.record.token
        # The agent has taken the order when it answers, and starts them right after.
        while (states := {app["state"] for app in realm.status()["applications"]}) == {"waiting"}:
            time.sleep(0.01)
        assert states <= {"waiting", "running"}
        (clock,) = world.agent.clock
        assert began < clock / 1e9 < time.time()
        assert 0 < realm.clock_late <= time.time() - began
        realm.encrypt("analysis", 95)
        assert world.record.monitor.percents == [80, 95, 80]
        assert [zone["name"] for zone in realm.stats()] == ["system", "analysis", "report"]
        assert realm.stats()[1]["percent"] == 95
        assert realm.attest().instance == realm.verified.instance
        world.agent.go()
        info = realm.finish(tmp_path / "out", on_log=on_log)
    assert info.state == "succeeded"
    assert (tmp_path / "out/analysis/out.txt").read_text() == "result of analysis"
    assert (tmp_path / "out/report/out.txt").read_text() == "result of report"
    assert logged["analysis"] == b"hello from analysis\ndone\n"
    assert "sending the image" in steps
    assert world.record.verdicts == [True]


def test_the_image_is_sent_once(world: World) -> None:
    Realm.create(world.bundle).destroy()
    steps: list[str] = []
    Realm.create(world.bundle, progress=lambda step, done=0, total=0: steps.append(step)).destroy()
    assert "sending the image" not in steps
    digest = hashlib.sha256(world.bundle.read_bytes()).hexdigest()
    assert world.host.images == {digest: world.bundle.stat().st_size}


def test_another_measurement_is_refused_unexecuted(world: World) -> None:
    with pytest.raises(MeasurementMismatch):
        Realm.run(world.bundle, expected=hashlib.sha256(b"another").digest())
    assert world.record.verdicts == [False]
    assert world.record.state == "refused" and not world.record.executed


@pytest.mark.parametrize("demand", ["required", "preferred"])
def test_a_part_of_the_cache_that_the_image_asks_for(tmp_path: Path, demand: str) -> None:
    """The token says that there is none. If it is required the host broke its rules, and the Realm never runs."""
    with living_world(tmp_path, cache=CacheShare(demand, 25)) as world:
        if demand == "required":
            with pytest.raises(CacheShared, match="is 'none'"):
                Realm.run(world.bundle)
            assert world.record.verdicts == [False] and not world.record.executed
        else:
            with Realm.run(world.bundle) as realm:
                assert realm.verified is not None and realm.verified.cache_partition == "none"


def test_another_vendor_is_refused(world: World) -> None:
    trust = Trust.current()
    stranger = Trust((make_platform().authority.certificate,), trust.references, Policy())
    with pytest.raises(UnknownRoot):
        Realm.run(world.bundle, trust=stranger)
    assert world.record.state == "refused"


def test_a_token_that_is_no_token_ends_the_realm(world: World) -> None:
    realm = Realm.create(world.bundle)
    world.record.token = b"garbage"
    with pytest.raises(VerificationError):
        realm.verify()
    assert world.record.state == "destroyed" and not world.record.executed


def test_the_token_of_an_earlier_realm_is_refused(world: World) -> None:
    first = Realm.create(world.bundle)
    old = world.record.token
    first.destroy()
    second = Realm.create(world.bundle)
    world.record.token = old
    with pytest.raises(ChallengeMismatch):
        second.verify()
    assert not world.record.executed


def test_a_token_that_was_verified_before_is_known(world: World) -> None:
    with Realm.create(world.bundle) as first:
        first.verify()
        first.verify()  # its own token is no replay
        old = world.record.token
        with Realm.create(world.bundle, name="second") as second:
            world.record.token = old
            with pytest.raises(ReplayedToken):
                second.verify()
            assert not world.record.executed


def test_nothing_is_approved_unverified(world: World) -> None:
    with Realm.create(world.bundle) as realm:
        with pytest.raises(UsageError):
            realm.approve()
        with pytest.raises(UsageError, match="never approved"):
            realm.status()
    assert world.record.state == "destroyed"


def test_the_image_of_another_owner(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Owner.create(tmp_path / "other")
    bundle = make_bundle(tmp_path / "other", other)
    with pytest.raises(OwnerMismatch):
        Realm.create(bundle.path)
    assert not world.host.realms


def test_the_same_name_twice(world: World) -> None:
    with Realm.create(world.bundle):
        with pytest.raises(Conflict):
            Realm.create(world.bundle)
        assert len(world.context.all_domains()) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, HostUnreachable], ids=["interrupted", "no answer"])
@pytest.mark.parametrize("call", ["upload", "create"])
def test_nothing_stays_of_what_was_cut_short(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str, error: type[BaseException]
) -> None:
    """Ctrl-C, or a lost connection, just after the host has done what it was asked for."""
    done = getattr(Host, call)

    def cut(*arguments: Any, **options: Any) -> None:
        done(*arguments, **options)
        raise error("cut short")

    monkeypatch.setattr(Host, call, cut)
    with pytest.raises(error):
        Realm.create(world.bundle)
    assert world.context.all_domains() == []
    assert [record.state for record in world.host.realms.values()] == (["destroyed"] if call == "create" else [])


def test_waits_for_an_agent_that_is_not_there_yet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vambrace.client.realm.POLL_SECONDS", 0.01)
    world.host.busy = 3
    with Realm.run(world.bundle) as realm:
        # The agent has taken the order when it answers, and starts the applications right after.
        while (state := realm.status()["state"]) == "ready":
            time.sleep(0.01)
        assert state == "running"
    assert world.record.state == "destroyed"


def test_a_channel_to_a_second_realm_of_the_same_image(world: World) -> None:
    with Realm.run(world.bundle) as first:
        mine = world.record
        with Realm.run(world.bundle, name="second"):
            mine.channel_to = world.agent.port
            with pytest.raises(VerificationError):
                first.attest()
            mine.channel_to = None
            first.attest()


def test_a_relayed_token(world: World, tmp_path: Path) -> None:
    """A man in the middle ends our TLS, and shows a genuine token of our Realm for its own TLS key."""
    with Realm.run(world.bundle) as realm:
        key = world.agent.spki
        evil = Agent(tmp_path / "evil", world.record.monitor, lambda state, detail: None, key=key)
        world.record.channel_to = evil.port
        with pytest.raises(ChallengeMismatch):
            realm.attest()
        with pytest.raises(ChallengeMismatch):
            realm.encrypt("analysis", 0)
        assert world.record.monitor.percents[1] == 80


def test_a_wrong_token_on_the_channel(world: World) -> None:
    with Realm.run(world.bundle) as realm:
        world.record.monitor.measurement = hashlib.sha256(b"another").digest()
        with pytest.raises(MeasurementMismatch):
            realm.attest()


def test_a_certificate_that_is_none(world: World) -> None:
    """On the channel: of no X.509 version, cut, empty. It is the host's, until the token says otherwise."""
    der = world.owner.certificate.public_bytes(Encoding.DER)
    assert channel.public_key(der) == world.owner.spki
    version = der.index(bytes.fromhex("a003020102")) + 4
    for damaged in (der[:version] + b"\x03" + der[version + 1 :], der[:-1], b"", b"\x30\x80"):
        with pytest.raises(MalformedEvidence):
            channel.public_key(damaged)


def test_another_owner_cannot_connect(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Owner.create(tmp_path / "other")
    with Realm.run(world.bundle) as realm, Host.current() as host:
        with pytest.raises(DomainError):
            channel.Channel(host, realm.uuid, other.certificate_path, other.key_path, lambda *_: pytest.fail("asked"))
        assert realm.status()["state"] == "running"


def test_a_cut_channel_is_opened_again(world: World) -> None:
    with Realm.run(world.bundle) as realm:
        for _ in range(2):
            assert realm._channel is not None
            realm._channel._socket.close()
            assert realm.status()["state"] == "running"
        realm._channel._socket.close()
        realm.encrypt("report", 30)
        assert world.record.monitor.percents[2] == 30


ROW = {"endpoint": "records", "role": "offer", "peer": "ward", "open": 1, "connections": 2, "refused": 0, "sent": 5,
       "received": 6}  # fmt: skip


def test_messages(world: World) -> None:
    """A Realm without endpoints is not asked."""
    with Realm.run(world.bundle) as realm:
        world.record.monitor.traffic = "nonsense"
        assert realm.messages() == []


def test_traffic_that_none_can_be() -> None:
    wanted = (make_endpoint(), make_endpoint("other", role="connect", port=9000))
    none = ROW | {"endpoint": "other", "role": "connect", "peer": None}
    assert traffic.check(wanted, [ROW | {"more": 1}, none]) == [ROW, none]
    (shown,) = traffic.check(wanted, [ROW | {"peer": "\x1b[2J", "role": "connect"}])
    assert (shown["peer"], shown["role"]) == ("?[2J", "offer")
    for items in (None, {}, "x", [1], [ROW] * 1025, [{}]):
        with pytest.raises(DomainError, match="not understood"):
            traffic.check(wanted, items)
    for key in ("open", "connections", "refused", "sent", "received"):
        for value in (-1, 1 << 64, True, "1", None, 1.5):
            with pytest.raises(DomainError, match="not understood"):
                traffic.check(wanted, [ROW | {key: value}])
    for name in ("unknown", [], None, 1):
        with pytest.raises(DomainError, match="not understood"):
            traffic.check(wanted, [ROW | {"endpoint": name}])


def test_attached_from_another_process(world: World, tmp_path: Path) -> None:
    with Realm.run(world.bundle) as realm:
        realm.detach()
    with Realm.attach("patients") as again:
        assert again.uuid == realm.uuid
        assert again.status()["state"] == "running"
        output = again.follow("analysis", poll=0.05)
        assert next(output) == b"hello from analysis\n"
        world.agent.go()
        assert b"".join(output) == b"done\n"
    assert world.record.state == "running"
    Realm.attach(realm.uuid[:8]).destroy()


def test_a_failing_application(world: World, tmp_path: Path) -> None:
    with Realm.run(world.bundle) as realm:
        import os
        import signal

        process = world.agent.service._supervisor.processes[0]
        while not process.pid:  # the agent starts it right after it has answered; and 0 is every process of ours
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(DomainError, match="analysis.*137"):
            realm.finish(tmp_path / "out")


def test_a_hostile_host_cannot_write_elsewhere(world: World, tmp_path: Path) -> None:
    from vambrace.client.results import ResultFile

    for path in (
        "/results/a/../../x",
        "/etc/passwd",
        "/results/a/",
        "/results/a/b\n",
        "/results/a/b\\c",
        "/results/b/x",
    ):
        with pytest.raises(DomainError, match="not safe"):
            _ = ResultFile("a", path, 1).relative
    with pytest.raises(DomainError, match="not safe"):
        _ = ResultFile("..", "/results/../x", 1).relative
    assert ResultFile("a", "/results/a/b/c.txt", 1).relative == Path("a/b/c.txt")


def test_a_download_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    from vambrace.client.results import ResultFile, download

    content, asked = bytes(range(250)), []

    def fetch(application: str, path: str, offset: int) -> tuple[int, bytes]:
        asked.append(offset)
        if len(asked) == 2:
            raise DomainError("cut")
        return len(content), content[offset : offset + 100]

    file, uuid = ResultFile("a", "/results/a/x", 250), "00000000-0000-0000-0000-000000000000"
    with pytest.raises(DomainError, match="cut"):
        download(file, tmp_path, uuid, fetch, 1000)
    assert not (tmp_path / "a/x").exists()
    assert download(file, tmp_path, uuid, fetch, 1000).read_bytes() == content
    assert asked == [0, 100, 100, 200]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    from vambrace.client.results import ResultFile, download

    (tmp_path / "a").symlink_to("/tmp")
    with pytest.raises(UsageError, match="link"):
        download(ResultFile("a", "/results/a/x", 0), tmp_path, "0" * 36, lambda *_: (0, b""), 1000)


@pytest.mark.parametrize("stated", [1001, 10])
def test_a_result_larger_than_the_memory_is_not_taken(tmp_path: Path, stated: int) -> None:
    """Neither one that says so at once, nor one that grows while it is fetched."""
    from vambrace.client.results import ResultFile, download

    asked = []

    def fetch(application: str, path: str, offset: int) -> tuple[int, bytes]:
        asked.append(offset)
        return 1 << 62, bytes(4)

    with pytest.raises(DomainError, match="more than its application's memory"):
        download(ResultFile("a", "/results/a/x", stated), tmp_path, "0" * 36, fetch, 1000)
    assert len(asked) <= 1
    assert not (tmp_path / "a/x").exists()


def test_a_realm_that_is_being_destroyed_says_why(world: World) -> None:
    """Not that it cannot be reached at this moment."""
    realm = Realm.create(world.bundle)
    realm.verify()
    realm.approve()
    record = world.record
    record.state = "destroying"
    steps = iter([("destroying", ""), ("failed", "agent: volume records: the host gives an older copy of it")])
    looked = realm.host.domain

    def look(*arguments: Any, **options: Any) -> Any:
        record.state, record.reason = next(steps, (record.state, record.reason))
        return looked(*arguments, **options)

    realm.host.domain = look  # type: ignore[method-assign]
    with pytest.raises(DomainError, match="the Realm has failed: agent: .* gives an older copy") as found:
        realm._connect()
    assert "without --detach" in str(found.value.hint)
