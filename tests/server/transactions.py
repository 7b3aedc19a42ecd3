"""What a database has acknowledged, known outside of it: for tests that pull the plug.

A transaction makes an entry and changes the balance of an account, so that one half of it would be seen.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

Connect = Callable[[], psycopg.Connection[tuple[object, ...]]]

WRITERS = 3
ACCOUNTS = 5
SCHEMA = (
    "CREATE EXTENSION amcheck",
    "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL)",
    "CREATE TABLE entry (id bigint PRIMARY KEY, account int NOT NULL, amount bigint NOT NULL, text text NOT NULL)",
    "CREATE INDEX ON entry (text)",
    f"INSERT INTO account SELECT number, 0 FROM generate_series(0, {ACCOUNTS - 1}) AS number",
)
# As pg_amcheck(1) looks: at every block of every table, with its checksum, and at all that is in every index.
TABLES = """
SELECT c.oid::regclass::text, found.* FROM pg_class c, LATERAL verify_heapam(c.oid) AS found
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p'
"""
INDEXES = """
SELECT c.oid::regclass::text, bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p'
"""

#: Account, amount and text of an entry.
Entry = tuple[int, int, str]


def open_database(port: int) -> psycopg.Connection[tuple[object, ...]]:
    """A connection to the database behind a port of this machine's loopback. Raises ``psycopg.OperationalError``."""
    where = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    return psycopg.connect(f"{where} sslmode=disable gssencmode=disable connect_timeout=60", autocommit=True)


def await_database(connect: Connect, seconds: float) -> psycopg.Connection[tuple[object, ...]]:
    """A connection, as soon as the database takes any."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "the database does not come"
            time.sleep(0.5)


class Transactions:
    """One database's. ``acknowledged`` are the numbers of entries whose COMMIT was answered, or that were read."""

    def __init__(self, canary: str) -> None:
        """``canary`` is in the text of every entry."""
        self._canary = canary
        self.acknowledged: set[int] = set()
        self._asked: dict[int, Entry] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._writers: list[threading.Thread] = []

    def begin(self, database: psycopg.Connection[tuple[object, ...]]) -> None:
        """Make its tables in a new database."""
        for statement in SCHEMA:
            database.execute(statement)

    @contextmanager
    def writing(self, connect: Connect) -> Iterator[None]:
        """Transactions, of which one is answered already; they go on until the power is gone, see ``join``."""
        first = threading.Event()
        writers = [threading.Thread(target=self._write, args=(connect, first), daemon=True) for _ in range(WRITERS)]
        self._writers = writers
        for writer in writers:
            writer.start()
        assert first.wait(120), "no transaction is answered"
        yield
        assert all(writer.is_alive() for writer in writers), "a writer has ended before the power was cut"

    def join(self) -> None:
        """The power is cut: nobody writes any more."""
        for writer in self._writers:
            writer.join(60)
            assert not writer.is_alive(), "a writer still waits for its database"

    def _write(self, connect: Connect, first: threading.Event) -> None:
        chance = random.Random()
        try:
            with connect() as database:
                while True:
                    with self._lock:
                        number = next(self._numbers)
                    text = self._canary + os.urandom(chance.randint(10, 1200)).hex()
                    entry = self._asked[number] = chance.randrange(ACCOUNTS), chance.randint(-1000, 1000), text
                    with database.transaction():
                        database.execute("INSERT INTO entry VALUES (%s, %s, %s, %s)", (number, *entry))
                        change = "UPDATE account SET balance = balance + %s WHERE id = %s"
                        database.execute(change, (entry[1], entry[0]))
                    self.acknowledged.add(number)
                    first.set()
        except psycopg.OperationalError:
            return  # the power is gone

    def check(self, database: psycopg.Connection[tuple[object, ...]]) -> int:
        """Nothing that was acknowledged is lost, nothing is there in part, every block is sound; how many entries there
        are. What has been read once is as good as acknowledged."""
        assert database.execute("SHOW data_checksums").fetchone() == ("on",)
        rows = database.execute("SELECT id, account, amount, text FROM entry").fetchall()
        found = {number: (account, amount, text) for number, account, amount, text in rows}
        assert len(found) == len(rows)
        lost = sorted(self.acknowledged - found.keys())
        assert not lost, f"{len(lost)} acknowledged transactions are lost: {lost[:10]}"
        assert all(self._asked[number] == entry for number, entry in found.items())
        balances = Counter(dict.fromkeys(range(ACCOUNTS), 0))
        for account, amount, _ in found.values():
            balances[account] += amount
        assert dict(database.execute("SELECT id, balance FROM account").fetchall()) == dict(balances)
        assert database.execute(TABLES).fetchall() == []
        assert len(database.execute(INDEXES).fetchall()) > 100, "it raises where one is broken"
        assert database.execute("SELECT sum(checksum_failures) FROM pg_stat_database").fetchone() == (0,)
        self.acknowledged |= found.keys()
        return len(found)
