"""A Realm's stream to its broker: agent, monitor and TCP; to that broker and nowhere else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
from broker_world import SECRET
from broker_world import World as BrokerWorld
from config_factory import make_realm
from messages_world import PATIENCE, Realm, World, certificate, endpoints, eventually
from vambrace_agent import AgentError
from vambrace_agent.release import Broker as AgentBroker
from vambrace_agent.secrets import Secrets
from vambrace_agent.settings import Secret as Granted

from vambrace.config import DomainConfig
from vambrace.errors import CapacityError, ConfigError, Conflict, UsageError, VambraceError
from vambrace.host.lifecycle import State
from vambrace.host.outlets import STREAMS, Outlets
from vambrace.release import MAX_SECRETS, Broker, Secret


class Site(World):
    """The daemon's ``Outlets`` and Realms with real agents; the broker is a real one, or any listener of the test's."""

    def __init__(self, folder: Path, allowed: list[str]) -> None:
        super().__init__(folder)
        self.outlets = Outlets(allowed, self._connect)

    def placed(self, port: int, name: str = "127.0.0.1") -> Realm:
        realm = self.realm("alice", "ward", agent=False)
        realm.config = realm.config.replace(broker=Broker(f"https://{name}:{port}", certificate("alice")))
        return realm

    def streams(self, realm: Realm) -> endpoints.Endpoints:
        """Its agent's."""
        agent = endpoints.Endpoints([], realm.listener, lambda endpoint, number: None)
        agent.start()
        return agent

    def open(self, realm: Realm, number: int) -> None:
        """As the agent's port does it."""
        try:
            self.do(lambda: self.outlets.open(realm, number))
        except VambraceError as error:
            raise AgentError(error.message) from None

    def end(self, realm: Realm) -> None:
        realm.lifecycle.move(State.DESTROYING)
        self.do(lambda: self.outlets.leave(realm))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_a_secret_comes_through(tmp_path: Path) -> None:
    """All of it but the machine: application's request, agent, monitor, broker."""
    with BrokerWorld(tmp_path).running() as broker:
        broker.store()
        (tmp_path / "site").mkdir()
        with Site(tmp_path / "site", [f"127.0.0.1:{broker.port}"]) as site:
            realm = site.placed(broker.port)
            agent = site.streams(realm)

            def dial() -> socket.socket:
                return agent.dial(lambda number: site.open(realm, number))

            client = broker.realm(dial=dial)
            granted = {"password": SECRET, "gone": "patients/secret/gone"}
            fields = [{"name": name, "application": "analysis", "resource": granted[name]} for name in granted]
            secrets = Secrets(client, [Granted(each) for each in fields])
            assert secrets.get("analysis", "password") == b"correct horse battery staple"
            attested = [entry for entry in broker.log() if entry["event"] == "attest"]
            for _ in range(2):
                with pytest.raises(AgentError, match="not for this Realm"):
                    secrets.get("analysis", "gone")
                secrets.get("analysis", "password")
            assert attested == [entry for entry in broker.log() if entry["event"] == "attest"]  # one session for all
            for who, name in (("report", "password"), ("analysis", "other"), ("analysis", None), ("analysis", SECRET)):
                with pytest.raises(AgentError, match="granted no such secret"):
                    secrets.get(who, name)
            # A broker that was restarted is proved to anew.
            broker.stop()
            broker.change_settings("# again")
            settings = broker.home / "broker.toml"
            settings.write_text(settings.read_text().replace("port = 0", f"port = {broker.port}"))
            broker.start()
            assert secrets.get("analysis", "password") == b"correct horse battery staple"
            site.end(realm)
            with pytest.raises(AgentError):
                secrets.get("analysis", "password")


def test_only_where_the_hosts_settings_allow(tmp_path: Path, listener: socket.socket) -> None:
    port = port_of(listener)
    with Site(tmp_path, [f"broker.example:{port}", f"127.0.0.1:{port + 1}"]) as site:
        for realm in (site.placed(port), site.placed(8443), site.placed(port, "localhost")):
            with pytest.raises(Conflict, match="does not connect") as refusal:
                site.do(lambda realm=realm: site.outlets.open(realm, 1))
            assert refusal.value.hint and "brokers" in refusal.value.hint
        without = site.realm("alice", "ward", agent=False)
        with pytest.raises(UsageError, match="no broker"):
            site.do(lambda: site.outlets.open(without, 1))
    listener.settimeout(0.2)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_streams_are_bounded_and_end_with_the_realm(tmp_path: Path, listener: socket.socket) -> None:
    with Site(tmp_path, [f"127.0.0.1:{port_of(listener)}"]) as site:
        realm = site.placed(port_of(listener))
        agent = site.streams(realm)
        inside = [agent.dial(lambda number: site.open(realm, number)) for _ in range(STREAMS)]
        outside = [listener.accept()[0] for _ in range(STREAMS)]
        with pytest.raises(CapacityError):
            site.do(lambda: site.outlets.open(realm, 99))
        inside[0].sendall(b"up")
        reached = wait(outside, PATIENCE)  # poll: select has no room for so many
        assert [stream.recv(2) for stream in outside if stream in reached] == [b"up"]
        inside[0].close()
        # What one has ended makes room for another.
        assert eventually(lambda: _opens(site, realm))
        for stream in outside:
            stream.settimeout(PATIENCE)
        site.end(realm)
        for stream in outside:
            while stream.recv(100):
                pass
        with pytest.raises(Conflict, match="does not run"):
            site.do(lambda: site.outlets.open(realm, 1))
        for stream in (*inside, *outside):
            stream.close()


def _opens(site: Site, realm: Realm) -> bool:
    try:
        site.do(lambda: site.outlets.open(realm, 98))
    except CapacityError:
        return False
    return True


def test_a_broker_that_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = port_of(nobody)
    with Site(tmp_path, [f"127.0.0.1:{port}"]) as site:
        realm = site.placed(port)
        agent = site.streams(realm)
        stream = agent.dial(lambda number: site.open(realm, number))
        stream.settimeout(PATIENCE)
        assert stream.recv(1) == b""
        client = AgentBroker(f"https://127.0.0.1:{port}", certificate("alice"), lambda: stream, bytes, bytes(16))
        with pytest.raises(AgentError, match="cannot be reached"):
            client.session()


def test_what_answers_and_is_no_broker(tmp_path: Path, listener: socket.socket) -> None:
    """Bytes of anybody, in place of TLS: an error, and soon."""

    def babble() -> None:
        stream, _ = listener.accept()
        with stream:
            stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n{}" * 100)

    threading.Thread(target=babble, daemon=True).start()
    dial = lambda: socket.create_connection(("127.0.0.1", port_of(listener)), PATIENCE)  # noqa: E731
    client = AgentBroker(f"https://127.0.0.1:{port_of(listener)}", certificate("alice"), dial, bytes, bytes(16))
    with pytest.raises(AgentError, match="not the one of the measured configuration"):
        client.session()


# The configuration


def test_it_is_measured() -> None:
    config = make_realm()
    broker = Broker("https://broker.example:8444", certificate("alice"))
    name = config.applications[0].name
    secret = Secret("password", name, "patients/secret/password")
    variants = [
        config,
        *(config.replace(broker=each) for each in (
            broker, broker.replace(url="https://broker.example:8445"), broker.replace(certificate=certificate("bob")),
            broker.replace(secrets=(secret,)), broker.replace(secrets=(secret.replace(name="other"),)),
            broker.replace(secrets=(secret.replace(resource="patients/secret/other"),)),
        )),
    ]  # fmt: skip
    assert len({variant.encode() for variant in variants}) == len(variants)
    for variant in variants:
        assert DomainConfig.parse(variant.encode()) == variant


@pytest.mark.parametrize(
    "url",
    ["", "http://a:1", "https://a", "https://a:0", "https://a:65536", "https://a:1/", "https://a b:1", "https://-a:1",
     "https://u@a:1", "https://a:1#", "https://[::1:1", "https://a:1\n", 5, None],
)  # fmt: skip
def test_urls_that_are_none(url: Any) -> None:
    with pytest.raises(ConfigError, match="broker"):
        Broker(url, certificate("alice"))


def test_places() -> None:
    for url, place in (("https://a.b:1", ("a.b", 1)), ("https://[::1]:8444", ("::1", 8444))):
        assert Broker(url, certificate("alice")).place == place


def test_secrets_that_are_none() -> None:
    good = Secret("password", "analysis", "a/b/c")
    for change in ({"name": ""}, {"name": "A"}, {"application": ""}, {"resource": "a/b"}, {"resource": "a/b/c/d"},
                   {"resource": "a/../c"}, {"resource": "/b/c"}, {"resource": 1}):  # fmt: skip
        with pytest.raises(ConfigError):
            good.replace(**change)
    broker = Broker("https://a:1", certificate("alice"))
    for secrets in ((good, good), tuple(good.replace(name=f"s{n}") for n in range(MAX_SECRETS + 1))):
        with pytest.raises(ConfigError):
            broker.replace(secrets=secrets)
    with pytest.raises(ConfigError, match="application"):
        make_realm(broker=broker.replace(secrets=(good.replace(application="nobody"),)))
    with pytest.raises(ConfigError, match="certificate"):
        broker.replace(certificate="x")
