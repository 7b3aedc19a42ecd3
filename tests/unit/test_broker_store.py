"""What a broker keeps: nothing is lost, nothing can be changed unnoticed, nothing is readable without the key."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from broker_world import PASSWORD, SECRET, VOLUME, World
from postgresql import fresh, postgresql, program
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DatabaseError
from vambrace_agent import AgentError

from vambrace.attest.policy import Policy
from vambrace.broker.audit import DONE, Event, Head, Known, next_entry
from vambrace.broker.names import ResourceName
from vambrace.broker.policy import ReleasePolicy
from vambrace.broker.store import Secret, Store
from vambrace.broker.vault import Vault
from vambrace.errors import BrokerError, ConfigError, UsageError, VambraceError

NAME = ResourceName.parse(SECRET)
COUNTER = "patients/secret/counter"
POLICY = ReleasePolicy("default", Policy(measurements=frozenset({bytes(32)}), owners=frozenset({bytes(64)})))
needs_postgresql = pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed: make packages")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/broker.db"
    else:
        yield fresh(request.getfixturevalue("server"))


@pytest.fixture
def vault() -> Vault:
    return Vault(os.urandom(32))


def put(store: Store, name: ResourceName, value: bytes, generation: int = 1) -> None:
    def work(transaction) -> None:  # type: ignore[no-untyped-def]
        row = transaction.put(Secret(name, generation, POLICY, value))
        transaction.append(Event("put", DONE, str(name), generation, row=row))

    store.submit(work).result(20)


def get(store: Store, name: ResourceName) -> Secret | None:
    return store.submit(lambda transaction: transaction.get(name)).result(20)


def test_it_is_kept(url: str, vault: Vault) -> None:
    with Store(url, vault) as store:
        put(store, NAME, PASSWORD)
        put(store, NAME, b"another", 2)
    with Store(url, vault) as store:
        assert get(store, NAME) == Secret(NAME, 2, POLICY, b"another")
        assert [json.loads(entry.text)["generation"] for entry in store.log()] == [1, 2]
        assert store.verify(whole=True).sequence == 2


def test_many_at_once(url: str, vault: Vault) -> None:
    """Each in its place of the one chain, by as many brokers as there are."""
    with Store(url, vault) as one, Store(url, vault) as two, ThreadPoolExecutor(8) as pool:
        names = [ResourceName("r", "secret", str(number)) for number in range(40)]
        list(pool.map(lambda each: put((one, two)[int(each.tag) % 2], each, each.tag.encode()), names))
        assert one.verify(whole=True).sequence == 40
        assert all(get(two, name).value == name.tag.encode() for name in names)  # type: ignore[union-attr]


def test_what_raises_writes_nothing(url: str, vault: Vault) -> None:
    def work(transaction) -> None:  # type: ignore[no-untyped-def]
        row = transaction.put(Secret(NAME, 1, POLICY, b"x"))
        transaction.append(Event("put", DONE, str(NAME), 1, row=row))
        raise UsageError("changed its mind")

    with Store(url, vault) as store:
        failing, following = store.submit(work), store.submit(lambda transaction: transaction.append(Event("a", DONE)))
        with pytest.raises(UsageError):
            failing.result(20)
        following.result(20)
        assert get(store, NAME) is None
        assert [json.loads(entry.text)["event"] for entry in store.log()] == ["a"]
        store.verify(whole=True)


def test_nobody_takes_an_entry_back(url: str, vault: Vault) -> None:
    with Store(url, vault) as store:
        put(store, NAME, b"x")
    engine = create_engine(url)
    replacing = "REPLACE INTO audit SELECT sequence, 'r/secret/other', change, entry, hash FROM audit"
    own = {"sqlite": [replacing], "postgresql": ["TRUNCATE audit"]}[engine.dialect.name]
    for statement in ("DELETE FROM audit", "UPDATE audit SET sequence = sequence + 1", *own):
        with pytest.raises(DatabaseError, match="append-only"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()


TAMPERING = {
    "another policy": "UPDATE secrets SET policy = replace(policy, '0000', '0001')",
    "another generation": "UPDATE secrets SET generation = 7",
    "another state": "UPDATE secrets SET state = x'00'",
    "another one's value": "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE resource = 'r/secret/b')",
    "a flipped bit": "UPDATE secrets SET sealed = x'01' || substr(sealed, 3) || x'00'",
    "nothing": "UPDATE secrets SET sealed = x''",
    "a secret that is gone": "DELETE FROM secrets WHERE resource = 'r/secret/b'",
    "a secret that was never stored": "INSERT INTO secrets SELECT 'r/secret/c', generation, policy, state, sealed "
    "FROM secrets WHERE resource = 'r/secret/b'",
    "a changed entry": "UPDATE audit SET entry = replace(entry, 'put', 'get') WHERE sequence = 2",
    "an entry that is gone": "DELETE FROM audit WHERE sequence = 2",
    "a shorter log": "DELETE FROM audit WHERE sequence = 3",
    "a shorter log with its head": "DELETE FROM audit WHERE sequence = 3; UPDATE head SET sequence = 2, "
    "hash = (SELECT hash FROM audit WHERE sequence = 2)",
    "no head": "DELETE FROM head",
    "an older head": "UPDATE head SET sequence = 0, hash = checked_hash, tag = checked_tag",
    "all of it, without the key": "UPDATE head SET tag = zeroblob(32)",
}


@pytest.mark.parametrize("what", TAMPERING)
def test_what_was_tampered_with_is_told(tmp_path: Path, vault: Vault, what: str) -> None:
    """By whoever can write the database, who may drop its triggers too."""
    url = f"sqlite:///{tmp_path}/broker.db"
    a, b = ResourceName("r", "secret", "a"), ResourceName("r", "secret", "b")
    with Store(url, vault) as store:
        put(store, a, b"first")
        put(store, b, b"second")
        put(store, a, b"third", 2)
    with sqlite3.connect(tmp_path / "broker.db") as database:
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.executescript(TAMPERING[what])
        assert database.total_changes
    with pytest.raises(VambraceError) as error, Store(url, vault) as store:
        # Some of it is found when the log is compared, some when it is used.
        get(store, a)
    assert error.value.hint


def replaced(folder: Path, vault: Vault) -> tuple[int, bytes]:
    """A secret that was stored twice; what its row held first."""
    url = f"sqlite:///{folder}/broker.db"
    with Store(url, vault) as store:
        put(store, NAME, b"old")
    with sqlite3.connect(folder / "broker.db") as database:
        generation, sealed = database.execute("SELECT generation, sealed FROM secrets").fetchone()
    with Store(url, vault) as store:
        put(store, NAME, b"new", 2)
    return generation, sealed


def test_an_old_row_does_not_come_back(tmp_path: Path, vault: Vault) -> None:
    old = replaced(tmp_path, vault)
    with sqlite3.connect(tmp_path / "broker.db") as database:
        database.execute("UPDATE secrets SET generation = ?, sealed = ?", old)
    with pytest.raises(BrokerError, match="not what was stored last"):
        Store(f"sqlite:///{tmp_path}/broker.db", vault)


HIDDEN = {
    "as no change": "UPDATE audit SET change = 0 WHERE sequence = 2",
    "as another's": "UPDATE audit SET resource = 'r/secret/other' WHERE sequence = 2",
    "as it is, with another text": "UPDATE audit SET entry = (SELECT entry FROM audit WHERE sequence = 1) "
    "WHERE sequence = 2",
}


@pytest.mark.parametrize("checked", [False, True], ids=["before it was checked", "after it was checked"])
@pytest.mark.parametrize("what", HIDDEN)
def test_nor_with_its_entry_hidden(tmp_path: Path, vault: Vault, what: str, checked: bool) -> None:
    """One secret alone is put back, as it was when others might have it, and the log's entry of the change with it."""
    url, old = f"sqlite:///{tmp_path}/broker.db", replaced(tmp_path, vault)
    if checked:
        Store(url, vault).close()
    with sqlite3.connect(tmp_path / "broker.db") as database:
        database.execute("DROP TRIGGER audit_no_update")
        database.execute("UPDATE secrets SET generation = ?, sealed = ?", old)
        database.execute(HIDDEN[what])
    with pytest.raises(BrokerError) as error:
        Store(url, vault)
    assert error.value.hint


def test_nor_while_the_broker_runs(url: str, vault: Vault) -> None:
    """Whoever writes the database of a running broker: no row counts but the one that was stored last."""
    engine = create_engine(url)
    with Store(url, vault) as store:
        put(store, NAME, b"old")
        with engine.begin() as connection:
            old = connection.execute(text("SELECT generation, sealed FROM secrets")).one()
        put(store, NAME, b"new", 2)
        back = text("UPDATE secrets SET generation = :generation, sealed = :sealed")
        with engine.begin() as connection:
            connection.execute(back, {"generation": old[0], "sealed": old[1]})
        with pytest.raises(BrokerError, match="not what was stored last"):
            get(store, NAME)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM secrets"))
        with pytest.raises(BrokerError, match="was taken away"):
            get(store, NAME)
        with pytest.raises(BrokerError, match="was taken away"):
            store.submit(lambda transaction: transaction.all(NAME.repository)).result(20)
    engine.dispose()


def test_another_key_opens_nothing(url: str, vault: Vault) -> None:
    with Store(url, vault) as store:
        put(store, NAME, b"x")
    with pytest.raises(BrokerError, match="not what this broker wrote"):
        Store(url, Vault(os.urandom(32)))


def test_the_key_file(tmp_path: Path) -> None:
    Vault.create(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    Vault.load(tmp_path / "key")
    with pytest.raises(ConfigError, match="never overwritten|is there already"):
        Vault.create(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="open to others"):
        Vault.load(tmp_path / "key")
    for data in (b"", b"zz" * 32, b"00" * 31, b"00" * 33):
        (tmp_path / "bad").write_bytes(data)
        (tmp_path / "bad").chmod(0o600)
        with pytest.raises(ConfigError):
            Vault.load(tmp_path / "bad")


def test_the_same_is_never_sealed_to_the_same(vault: Vault) -> None:
    assert len({vault.seal(b"x", b"y") for _ in range(100)}) == 100
    sealed = vault.seal(b"x", b"y")
    assert vault.open(sealed, b"y") == b"x"
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(BrokerError):
            vault.open(bytes(changed), b"y")
    with pytest.raises(BrokerError):
        vault.open(sealed, b"z")


def test_the_chain() -> None:
    from datetime import UTC, datetime

    head, entries = Head(), []
    for number in range(4):
        entries.append(next_entry(head, Event("put", DONE, f"r/s/{number}"), datetime.now(UTC)))
        head = Head(entries[-1].sequence, entries[-1].hash)
    known = Known()
    known.follow(entries, head)
    assert known.head == head
    for wrong in (entries[1:], entries[:1] + entries[2:], [entries[1], entries[0]]):
        with pytest.raises(BrokerError, match="is missing"):
            Known().follow(wrong)


@pytest.mark.parametrize("url", ["", "mysql://x/y", "nonsense", "sqlite:////nowhere/broker.db"])
def test_databases_that_are_none(url: str, vault: Vault) -> None:
    with pytest.raises((ConfigError, BrokerError)) as error:
        Store(url, vault)
    assert error.value.hint


# Killed at any moment


def test_nothing_is_lost_when_it_is_killed(tmp_path: Path) -> None:
    kill_often(tmp_path, 3)


@pytest.mark.soak
def test_nothing_is_lost_however_often_it_is_killed(tmp_path: Path) -> None:
    kill_often(tmp_path, int(os.environ.get("VAMBRACE_SOAK_CUTS", "20")))


def kill_often(folder: Path, times: int) -> None:
    """Owners store and a Realm commits, all the time; what was confirmed is there, and nothing in between is."""
    load = Load(World(folder), random.Random(1))
    for number in range(times + 1):
        process, load.world.port = serve(load.world)
        try:
            if number == 0:
                load.world.store()
            else:
                load.check()
            if number < times:
                load.run(process)
            else:
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
    settings = load.world.settings
    with Store(settings.database, Vault.load(settings.master_key)) as store:
        store.verify(whole=True)
    assert load.puts > times and load.commits > times


class Load:
    """What was asked of a broker, and what it has confirmed."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.puts = self.commits = 0
        self.confirmed = self.tried = (0, b"")
        self._chance = chance

    def run(self, process: subprocess.Popen[bytes]) -> None:
        """Until the broker is killed, a moment later."""
        threads = [threading.Thread(target=work) for work in (self._put, self._commit)]
        killer = threading.Timer(self._chance.uniform(0.3, 1.0), process.kill)
        for thread in (*threads, killer):
            thread.start()
        for thread in (*threads, killer):
            thread.join()

    def check(self) -> None:
        """The broker may have done the last one, and not been able to say so: as a Realm that asks again finds out."""
        with self.world.realm().session() as session:
            volume = session.volume(VOLUME)
        assert (volume.generation, volume.state) in (self.confirmed, self.tried)
        self.confirmed = self.tried = (volume.generation, volume.state)
        with self.world.client() as client:
            found = client.describe(COUNTER)["generation"]
        assert self.puts <= found <= self.puts + 1
        self.puts = found

    def _commit(self) -> None:
        with contextlib.suppress(AgentError), self.world.realm().session() as session:
            volume = session.volume(VOLUME)
            while True:
                self.tried = (volume.generation + 1, os.urandom(16))
                volume.commit(self.tried[1])
                self.confirmed = self.tried
                self.commits += 1

    def _put(self) -> None:
        with contextlib.suppress(BrokerError), self.world.client() as client:
            while True:
                client.put(COUNTER, os.urandom(1000), self.world.policy())
                self.puts += 1


def serve(world: World) -> tuple[subprocess.Popen[bytes], int]:
    """A broker in a process of its own, and its port."""
    words = [sys.executable, "-m", "vambrace.cli.main", "broker", "serve", str(world.home)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"listening on" in line:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(line.split()[-1])
    raise AssertionError(f"the broker ended with {process.wait()}")
