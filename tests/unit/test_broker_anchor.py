"""A broker's database that was put back as a whole, and where the log's end is kept so that this is seen."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from broker_world import PASSWORD, SECRET, World

from vambrace.broker.anchor import Anchor, read_anchor
from vambrace.broker.audit import DONE, Event, Head
from vambrace.broker.store import Store, Transaction
from vambrace.broker.vault import Vault
from vambrace.cli.main import main
from vambrace.errors import BrokerError, ConfigError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def vault() -> Vault:
    return Vault(os.urandom(32))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture
def anchor(tmp_path: Path, vault: Vault) -> Iterator[Anchor]:
    with Anchor(tmp_path / "anchor", vault) as anchor:
        yield anchor


def note(transaction: Transaction) -> None:
    transaction.append(Event("note", DONE))


def write(store: Store, count: int = 1) -> None:
    for _ in range(count):
        store.submit(note).result(20)


def backup(folder: Path) -> Path:
    copy(folder / "broker.db", folder / "kept.db")
    return folder / "kept.db"


def copy(source: Path, target: Path) -> None:
    """One database, also one that is open, into another."""
    with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(target)) as kept:
        database.backup(kept)


def restore(folder: Path) -> None:
    for name in ("broker.db-wal", "broker.db-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(folder / "kept.db", folder / "broker.db")


@pytest.mark.parametrize("later", [1, 2, 5])
def test_an_older_database_is_refused(tmp_path: Path, url: str, vault: Vault, anchor: Anchor, later: int) -> None:
    with Store(url, vault, anchor) as store:
        write(store, 3)
        backup(tmp_path)
        write(store, later)
    restore(tmp_path)
    with pytest.raises(BrokerError, match="older than what this broker has written last") as error:
        Store(url, vault, anchor)
    assert error.value.hint and "--accept" in error.value.hint
    Store(url, vault).close()  # by itself it is one that was true once


def test_nor_one_that_has_gone_another_way_since(tmp_path: Path, url: str, vault: Vault, anchor: Anchor) -> None:
    """As many entries, or more: by somebody who lets a broker without an anchor go on with it."""
    with Store(url, vault, anchor) as store:
        write(store, 3)
        backup(tmp_path)
        write(store, 2)
    restore(tmp_path)
    with Store(url, vault) as store:
        write(store, 4)
    for _ in range(2):  # the second time all of it was verified before
        with pytest.raises(BrokerError, match="older than what this broker has written last"):
            Store(url, vault, anchor)
        Store(url, vault).close()


def test_nor_an_empty_one(tmp_path: Path, url: str, vault: Vault, anchor: Anchor) -> None:
    with Store(url, vault, anchor) as store:
        write(store)
    for file in tmp_path.glob("broker.db*"):
        file.unlink()
    with pytest.raises(BrokerError, match="older than"):
        Store(url, vault, anchor)


def test_nor_while_the_broker_runs(tmp_path: Path, url: str, vault: Vault) -> None:
    with Store(url, vault) as store:
        write(store, 2)
        kept = backup(tmp_path)
        write(store, 2)
        copy(kept, tmp_path / "broker.db")
        with pytest.raises(BrokerError, match="older than what this broker has read last"):
            write(store)


def test_a_database_that_is_ahead_is_right(tmp_path: Path, url: str, vault: Vault, anchor: Anchor) -> None:
    """The power went between the two, or another broker of the same database has written."""
    with Store(url, vault, anchor) as store:
        write(store, 2)
    with Store(url, vault) as other:
        write(other, 3)
    with Store(url, vault, anchor) as store:
        write(store)
    kept = read_anchor(tmp_path / "anchor", vault)
    assert kept is not None and kept.sequence == 6


def test_a_log_that_nothing_was_kept_of(tmp_path: Path, url: str, vault: Vault) -> None:
    with Store(url, vault) as store:
        write(store)
    with Anchor(tmp_path / "anchor", vault) as anchor, pytest.raises(BrokerError, match="nothing was kept"):
        Store(url, vault, anchor)


def test_the_file(tmp_path: Path, vault: Vault) -> None:
    path = tmp_path / "anchor"
    heads = [Head(number, os.urandom(32)) for number in range(1, 6)]
    with Anchor(path, vault) as anchor:
        assert path.stat().st_mode & 0o777 == 0o600
        assert anchor.read() is None
        for head in heads:
            anchor.keep(head)
            assert anchor.read() == read_anchor(path, vault) == head
        with pytest.raises(ConfigError, match="another broker has"):
            Anchor(path, vault)
    data = path.read_bytes()
    # Whichever of the two places the power went at, the other one is whole.
    for place, left in ((0, heads[3]), (4096, heads[4])):
        path.write_bytes(data[:place] + os.urandom(20) + data[place + 20 :])
        assert read_anchor(path, vault) == left
        with Anchor(path, vault) as anchor:
            anchor.read()
            anchor.keep(Head(9, bytes(32)))
        assert read_anchor(path, vault) == Head(9, bytes(32))
    for changed in (bytes(len(data)), data[:10]):
        path.write_bytes(changed)
        with pytest.raises(BrokerError, match="not what this broker wrote"):
            read_anchor(path, vault)
    path.write_bytes(data)
    with pytest.raises(BrokerError, match="not what this broker wrote"):
        read_anchor(path, Vault(os.urandom(32)))


def test_an_anchor_that_cannot_be_written(tmp_path: Path, url: str, vault: Vault) -> None:
    """Nobody is told of what may be undone unseen."""
    with Anchor(tmp_path / "anchor", vault) as anchor, Store(url, vault, anchor) as store:
        reading = os.open(tmp_path / "anchor", os.O_RDONLY)
        os.dup2(reading, anchor._file)
        os.close(reading)
        with pytest.raises(BrokerError, match="cannot be written"):
            write(store)


def test_places_that_are_none(tmp_path: Path, vault: Vault) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path, tmp_path / "no" / "folder", tmp_path / "link"):
        with pytest.raises(ConfigError) as error:
            Anchor(path, vault)
        assert error.value.hint


def test_the_end_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the start and at the end, for who has no anchor, or keeps lines longer than files."""
    caplog.set_level(logging.INFO)
    world = World(tmp_path)
    with world.running():
        world.store()
    told = [record.getMessage() for record in caplog.records if "audit log ends" in record.getMessage()]
    kept = read_anchor(world.home / "log.anchor", Vault.load(world.settings.master_key))
    assert kept is not None and len(told) == 2
    assert told[0].startswith("the audit log ends with entry 0,")
    assert told[1] == f"the audit log ends with entry {kept.sequence}, {kept.hash.hex()}"


def test_a_backup_that_is_meant(tmp_path: Path, capsys: Capture) -> None:
    """A secret whose policy was narrowed: the older one does not come back unless its owner says so."""
    world = World(tmp_path)
    with world.running():
        world.store()
        backup(world.home)
        with world.client() as client:
            client.put(SECRET, None, world.policy(measurements=[bytes(32).hex()]))
    restore(world.home)
    with pytest.raises(BrokerError, match="older than"):
        world.start()
    assert main(["broker", "audit", str(world.home)]) != 0
    assert "older than" in capsys.readouterr().err
    assert main(["broker", "audit", str(world.home), "--accept"]) == 0
    with world.running(), world.realm().session() as session:
        assert session.resource(SECRET) == (1, PASSWORD)
    with world.running():
        assert main(["broker", "audit", str(world.home)]) == 0  # beside it
        assert main(["broker", "audit", str(world.home), "--accept"]) != 0
        assert "another broker has the anchor" in capsys.readouterr().err
