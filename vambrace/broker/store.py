"""What a broker keeps: secrets, encrypted, and the audit log, in SQLite or PostgreSQL.

One thread writes. It takes all pieces of work that wait and does them in one transaction, each in a savepoint of its
own: whoever waits for an answer gets it when everything that it says is on the disk, and the disk is waited for once
for all of them. A piece reads, decides and writes in one go, so that nothing changes between its decision and its deed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, delete, insert, inspect, select, update
from sqlalchemy.exc import SQLAlchemyError

from vambrace.broker.audit import Entry, Event, Head, follow, next_entry
from vambrace.broker.names import ResourceName
from vambrace.broker.policy import ReleasePolicy
from vambrace.broker.tables import AUDIT, HEAD, METADATA, SCHEMA, SECRETS, connect
from vambrace.broker.vault import Vault
from vambrace.canonical import canonical, decode_json
from vambrace.errors import BrokerError, VambraceError

BATCH: Final = 32
WAITING: Final = 1024
_READ: Final = 1000
_HEAD_ROW: Final = 1

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Secret:
    """``generation`` rises with each new value, of a volume with each commit; ``state`` is what its Realm said then."""

    name: ResourceName
    generation: int
    policy: ReleasePolicy
    value: bytes
    state: bytes = b""

    def context(self) -> bytes:
        """What is authenticated together with the value."""
        return canonical(
            {
                "resource": str(self.name),
                "generation": self.generation,
                **self.policy.as_dict(),
                "state": self.state.hex(),
            }
        )


class Transaction:
    """What a piece of work may do; valid during its call only. Raises ``BrokerError`` for rows that were tampered
    with."""

    def __init__(self, connection: Connection, vault: Vault, head: Head) -> None:
        self.head = head
        self._connection = connection
        self._vault = vault

    def get(self, name: ResourceName) -> Secret | None:
        row = self._connection.execute(select(SECRETS).where(SECRETS.c.resource == str(name))).mappings().first()
        return None if row is None else self._secret(row)

    def all(self, repository: str) -> list[Secret]:
        """Those of one repository, by name."""
        pattern = SECRETS.c.resource.startswith(f"{repository}/", autoescape=True)
        rows = self._connection.execute(select(SECRETS).where(pattern).order_by(SECRETS.c.resource)).mappings()
        return [self._secret(row) for row in rows]

    def put(self, secret: Secret) -> str:
        """Write the secret in place of what was there; what ``Event.row`` is to say."""
        sealed = self._vault.seal(secret.value, secret.context())
        values = {
            "generation": secret.generation,
            "policy": secret.policy.encode(),
            "state": secret.state,
            "sealed": sealed,
        }
        where = SECRETS.c.resource == str(secret.name)
        if not self._connection.execute(update(SECRETS).where(where).values(values)).rowcount:
            self._connection.execute(insert(SECRETS).values(resource=str(secret.name), **values))
        return hashlib.sha256(sealed).hexdigest()

    def delete(self, name: ResourceName) -> str:
        self._connection.execute(delete(SECRETS).where(SECRETS.c.resource == str(name)))
        return hashlib.sha256(b"").hexdigest()

    def last_generation(self, name: ResourceName) -> int:
        """The highest that this name ever had, also before it was deleted: numbers do not come back."""
        entries = self._connection.execute(
            select(AUDIT.c.entry)
            .where(AUDIT.c.resource == str(name), AUDIT.c.change)
            .order_by(AUDIT.c.sequence.desc())
            .limit(1)
        )
        entry = entries.scalar()
        return 0 if entry is None else int(decode_json(_blob(entry))["generation"])

    def append(self, event: Event) -> None:
        entry = next_entry(self.head, event, datetime.now(UTC))
        self._connection.execute(
            insert(AUDIT).values(
                sequence=entry.sequence,
                resource=event.resource,
                change=bool(event.row),
                entry=entry.text,
                hash=entry.hash,
            )
        )
        self.head = Head(entry.sequence, entry.hash)

    def entries(self, repository: str, after: int, limit: int) -> list[Entry]:
        """Of the log, those about a repository that follow entry ``after``."""
        return list(_entries(self._connection, after, limit, f"{repository}/"))

    def _secret(self, row: Any) -> Secret:
        name = ResourceName.parse(row["resource"])
        secret = Secret(name, row["generation"], _policy(_blob(row["policy"])), b"", _blob(row["state"]))
        value = self._vault.open(_blob(row["sealed"]), secret.context())
        return replace(secret, value=value)


Work = Callable[[Transaction], Result]


class Store:
    """A context manager. Raises ``BrokerError`` where the database cannot be used or was tampered with."""

    def __init__(self, url: str, vault: Vault) -> None:
        self._vault = vault
        self._engine: Engine = connect(url)
        self._queue: queue.Queue[tuple[Work[Any], Future[Any]] | None] = queue.Queue()
        try:
            self._prepare()
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise _unusable(error) from None
        except BaseException:
            self._engine.dispose()
            raise
        self._thread = threading.Thread(target=self._write, name="broker-store", daemon=True)
        self._thread.start()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Do what waits, then leave the database."""
        self._queue.put(None)
        self._thread.join()
        self._engine.dispose()

    async def transact(self, work: Work[Result]) -> Result:
        """What ``work`` returns, once everything that it wrote is on the disk; what it raises, and then nothing of it
        was written. It runs in another thread, and is not cancelled."""
        return await asyncio.shield(asyncio.wrap_future(self.submit(work)))

    def submit(self, work: Work[Result]) -> Future[Result]:
        """As ``transact``, for callers without an event loop."""
        if self._queue.qsize() >= WAITING:
            raise BrokerError("the broker has too much to do", hint="try again in a moment", status=503)
        future: Future[Result] = Future()
        self._queue.put((work, future))
        return future

    def verify(self, *, whole: bool = False) -> Head:
        """Follow the log, from where it was verified last or as a whole, and compare the secrets with it.

        The end of the log. Raises ``BrokerError``, which names what was tampered with.
        """
        with self._engine.begin() as connection:
            row = _head(connection)
            checked = Head(row["checked_sequence"], _blob(row["checked_hash"]))
            checked.check(_blob(row["checked_tag"]), self._vault)
            written = Head(row["sequence"], _blob(row["hash"]))
            written.check(_blob(row["tag"]), self._vault)
            start = Head() if whole else checked
            head = follow(start, _entries(connection, start.sequence))
            if head != written:
                raise BrokerError("the audit log ends before its end", hint="entries were taken away: restore a backup")
            self._compare(connection)
            checked_values = {
                "checked_sequence": head.sequence,
                "checked_hash": head.hash,
                "checked_tag": self._vault.tag(head.authenticated()),
            }
            connection.execute(update(HEAD).where(HEAD.c.id == _HEAD_ROW).values(checked_values))
        return head

    def log(self) -> list[Entry]:
        """All of it."""
        with self._engine.begin() as connection:
            return list(_entries(connection, 0))

    def _compare(self, connection: Connection) -> None:
        """Each secret is what the last entry about it says."""
        last: dict[str, str] = {}
        changes = select(AUDIT.c.resource, AUDIT.c.entry).where(AUDIT.c.change).order_by(AUDIT.c.sequence)
        for resource, text in connection.execute(changes.execution_options(yield_per=_READ)):
            last[resource] = str(decode_json(_blob(text))["row"])
        nothing = hashlib.sha256(b"").hexdigest()
        found = {name: digest for name, digest in last.items() if digest != nothing}
        for resource, sealed in connection.execute(select(SECRETS.c.resource, SECRETS.c.sealed)):
            if found.pop(resource, None) != hashlib.sha256(_blob(sealed)).hexdigest():
                raise BrokerError(f"{resource} is not what was stored last", hint="an old state was put back: restore")
        if found:
            raise BrokerError(f"{min(found)} was taken away", hint="restore the database from a backup")

    def _prepare(self) -> None:
        """Tables where there are none, and the log's end as it was left."""
        with self._engine.begin() as connection:
            fresh = not inspect(connection).has_table(HEAD.name)
            if fresh:
                METADATA.create_all(connection)
                tag = self._vault.tag(Head().authenticated())
                start = {"sequence": 0, "hash": Head().hash, "tag": tag}
                checked = {f"checked_{name}": value for name, value in start.items()}
                connection.execute(insert(HEAD).values(id=_HEAD_ROW, schema=SCHEMA, **start, **checked))
            elif _head(connection)["schema"] != SCHEMA:
                raise BrokerError("the database is of another version of vambrace", hint="use that version")
        self.verify()

    def _write(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs = [job]
            while len(jobs) < BATCH:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._queue.put(None)  # after what was begun
                    break
                jobs.append(following)
            self._commit(jobs)

    def _commit(self, jobs: list[tuple[Work[Any], Future[Any]]]) -> None:
        """Do all of ``jobs``, then tell: nobody is told of anything that a power cut would undo."""
        done: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._engine.begin() as connection:
                row = _head(connection, lock=True)
                head = Head(row["sequence"], _blob(row["hash"]))
                head.check(_blob(row["tag"]), self._vault)
                transaction = Transaction(connection, self._vault, head)
                for work, future in jobs:
                    before = transaction.head
                    try:
                        with connection.begin_nested():
                            done.append((future, work(transaction), None))
                    except VambraceError as error:
                        transaction.head = before
                        done.append((future, None, error))
                end = transaction.head
                if end != head:
                    values = {
                        "sequence": end.sequence,
                        "hash": end.hash,
                        "tag": self._vault.tag(end.authenticated()),
                    }
                    connection.execute(update(HEAD).where(HEAD.c.id == _HEAD_ROW).values(values))
        except SQLAlchemyError as error:
            log.error("the database failed: %s", type(error).__name__)
            done = [(future, None, _unusable(error)) for _, future in jobs]
        except VambraceError as error:
            done = [(future, None, error) for _, future in jobs]
        except Exception as error:
            log.exception("internal error")
            done = [(future, None, error) for _, future in jobs]
        for future, result, failure in done:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)


def _head(connection: Connection, *, lock: bool = False) -> Any:
    statement = select(HEAD).where(HEAD.c.id == _HEAD_ROW)
    # Brokers that share a PostgreSQL take turns here; SQLite has one writer anyway.
    row = connection.execute(statement.with_for_update() if lock else statement).mappings().first()
    if row is None:
        raise BrokerError("the database has no end of the audit log", hint="restore it from a backup")
    return row


def _entries(connection: Connection, after: int, limit: int | None = None, prefix: str = "") -> Iterator[Entry]:
    statement = select(AUDIT.c.sequence, AUDIT.c.entry, AUDIT.c.hash).where(AUDIT.c.sequence > after)
    if prefix:
        statement = statement.where(AUDIT.c.resource.startswith(prefix, autoescape=True))
    statement = statement.order_by(AUDIT.c.sequence).limit(limit).execution_options(yield_per=_READ)
    for sequence, text, digest in connection.execute(statement):
        yield Entry(sequence, _blob(text), _blob(digest))


@lru_cache(256)
def _policy(stored: bytes) -> ReleasePolicy:
    """Read anew for each release it would take as long as the appraisal."""
    fields = decode_json(stored)
    return ReleasePolicy.parse(fields["platform"], fields["policy"])


def _blob(value: object) -> bytes:
    """Bytes of a row. SQLite keeps anything in any column: whoever changed it may have left a text there."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise BrokerError("the database holds what this broker never wrote", hint="restore it from a backup")
    return bytes(value)


def _unusable(error: SQLAlchemyError) -> BrokerError:
    # The driver's own words may hold what was to be written.
    return BrokerError(
        f"the broker's database cannot be used ({type(error).__name__})",
        hint="look at its disk, its server and 'database' in the broker's settings",
        status=503,
    )
