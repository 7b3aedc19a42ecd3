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
from collections import ChainMap
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, delete, insert, inspect, select, update
from sqlalchemy.exc import SQLAlchemyError

from vambrace.broker.anchor import Anchor
from vambrace.broker.audit import (
    NOTHING,
    OLD,
    TAMPERED,
    Entry,
    Event,
    Head,
    Known,
    Row,
    check_all,
    check_row,
    next_entry,
)
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
#: Who waits for it, and what it returned or raised.
_Done = tuple[Future[Any], Any, Exception | None]

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
    with: none counts but the one that the log, as it is ``known``, says was stored last."""

    def __init__(self, connection: Connection, vault: Vault, known: Known) -> None:
        self.head = known.head
        #: What every row holds: what was written in this transaction, before what was there.
        self.rows = ChainMap[str, Row]({}, known.rows)
        self._connection = connection
        self._vault = vault

    def get(self, name: ResourceName) -> Secret | None:
        row = self._connection.execute(select(SECRETS).where(SECRETS.c.resource == str(name))).mappings().first()
        if row is None:
            check_row(self.rows, str(name), None)
            return None
        return self._secret(row)

    def all(self, repository: str) -> list[Secret]:
        """Those of one repository, by name."""
        pattern = SECRETS.c.resource.startswith(f"{repository}/", autoescape=True)
        rows = self._connection.execute(select(SECRETS).where(pattern).order_by(SECRETS.c.resource)).mappings()
        secrets = [self._secret(row) for row in rows]
        check_all(self.rows, {str(secret.name) for secret in secrets}, f"{repository}/")
        return secrets

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
        return NOTHING

    def last_generation(self, name: ResourceName) -> int:
        """The highest that this name ever had, also before it was deleted: numbers do not come back."""
        row = self.rows.get(str(name))
        return row.generation if row else 0

    def append(self, event: Event) -> None:
        entry = next_entry(self.head, event, datetime.now(UTC))
        self._connection.execute(
            insert(AUDIT).values(
                sequence=entry.sequence,
                resource=entry.resource,
                change=entry.change,
                entry=entry.text,
                hash=entry.hash,
            )
        )
        self.head = Head(entry.sequence, entry.hash)
        if entry.change:
            self.rows[event.resource] = Row(event.row, event.generation)

    def entries(self, repository: str, after: int, limit: int) -> list[Entry]:
        """Of the log, those about a repository that follow entry ``after``."""
        return list(_entries(self._connection, after, limit, f"{repository}/"))

    def _secret(self, row: Any) -> Secret:
        name, sealed = ResourceName.parse(row["resource"]), _blob(row["sealed"])
        check_row(self.rows, str(name), sealed)
        secret = Secret(name, row["generation"], _policy(_blob(row["policy"])), b"", _blob(row["state"]))
        value = self._vault.open(sealed, secret.context())
        return replace(secret, value=value)


Work = Callable[[Transaction], Result]


class Store:
    """A context manager. Raises ``BrokerError`` where the database cannot be used, was tampered with, or is older than
    what ``anchor`` has; that is kept up to date then."""

    def __init__(self, url: str, vault: Vault, anchor: Anchor | None = None) -> None:
        self._vault = vault
        self._anchor = anchor
        self._engine: Engine = connect(url)
        self._queue: queue.Queue[tuple[Work[Any], Future[Any]] | None] = queue.Queue()
        try:
            self._known = self._prepare()
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

    @property
    def head(self) -> Head:
        """Where the log ends, as far as this broker has read or written it."""
        return self._known.head

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

    def verify(self, *, whole: bool = False, through: Head | None = None) -> Head:
        """Follow the log, from where it was verified last or as a whole, and compare the secrets with it.

        The end of the log, which has been ``through`` that place. Raises ``BrokerError``, which names what was tampered
        with.
        """
        return self._verified(whole, through).head

    def _verified(self, whole: bool, through: Head | None) -> Known:
        with self._engine.begin() as connection:
            row = _head(connection, lock=True)
            written = self._written(row)
            known = Known() if whole else self._checked(connection, row)
            if through and through.sequence < known.head.sequence:
                known = Known()
            known.follow(_entries(connection, known.head.sequence), through)
            if known.head != written:
                raise BrokerError("the audit log ends before its end", hint="entries were taken away: restore a backup")
            self._compare(connection, known)
            connection.execute(update(HEAD).where(HEAD.c.id == _HEAD_ROW).values(self._as_checked(known)))
        return known

    def log(self) -> list[Entry]:
        """All of it."""
        with self._engine.begin() as connection:
            return list(_entries(connection, 0))

    def _written(self, row: Any) -> Head:
        """Where the log ends, as it was left."""
        head = Head(row["sequence"], _blob(row["hash"]))
        head.check(_blob(row["tag"]), self._vault)
        return head

    def _checked(self, connection: Connection, row: Any) -> Known:
        """What was verified last, from what the log says of changes up to there."""
        end = Head(row["checked_sequence"], _blob(row["checked_hash"]))
        changes = _entries(connection, 0, changes_until=end.sequence)
        known = Known(end, {entry.resource: entry.row() for entry in changes})
        if not self._vault.tags(_checked(known), _blob(row["checked_tag"])):
            raise BrokerError("the audit log is not what it was when it was verified last", hint=TAMPERED)
        return known

    def _as_checked(self, known: Known) -> dict[str, Any]:
        tag = self._vault.tag(_checked(known))
        return {"checked_sequence": known.head.sequence, "checked_hash": known.head.hash, "checked_tag": tag}

    def _compare(self, connection: Connection, known: Known) -> None:
        """Each secret is what the last entry about it says."""
        found = set()
        for resource, sealed in connection.execute(select(SECRETS.c.resource, SECRETS.c.sealed)):
            check_row(known.rows, resource, _blob(sealed))
            found.add(resource)
        check_all(known.rows, found)

    def _prepare(self) -> Known:
        """Tables where there are none, and all that the log proves."""
        with self._engine.begin() as connection:
            fresh = not inspect(connection).has_table(HEAD.name)
            if fresh:
                METADATA.create_all(connection)
                start, end = Known(), Head()
                ends = {"sequence": end.sequence, "hash": end.hash, "tag": self._vault.tag(end.authenticated())}
                connection.execute(insert(HEAD).values(id=_HEAD_ROW, schema=SCHEMA, **ends, **self._as_checked(start)))
            elif _head(connection)["schema"] != SCHEMA:
                raise BrokerError("the database is of another version of vambrace", hint="use that version")
        kept = self._anchor.read() if self._anchor else None
        known = self._verified(False, kept)
        if self._anchor:
            if kept is None and known.head != Head():
                raise BrokerError("nothing was kept of the database's log in its anchor", hint=OLD)
            self._anchor.keep(known.head)
        return known

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
        try:
            done = self._do(jobs)
        except SQLAlchemyError as error:
            log.error("the database failed: %s", type(error).__name__)
            done = [(future, None, _unusable(error)) for _, future in jobs]
        except VambraceError as error:
            log.error("%s", error.message)
            done = [(future, None, error) for _, future in jobs]
        except Exception as error:
            log.exception("internal error")
            done = [(future, None, error) for _, future in jobs]
        for future, result, failure in done:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    def _do(self, jobs: list[tuple[Work[Any], Future[Any]]]) -> list[_Done]:
        """What became of each, once that is on the disk."""
        with self._engine.begin() as connection:
            head = self._written(_head(connection, lock=True))
            self._catch_up(connection, head)
            transaction = Transaction(connection, self._vault, self._known)
            done = [_done(transaction, connection, work, future) for work, future in jobs]
            end, changes = transaction.head, dict(transaction.rows.maps[0])
            if end != head:
                tag = self._vault.tag(end.authenticated())
                values = {"sequence": end.sequence, "hash": end.hash, "tag": tag}
                connection.execute(update(HEAD).where(HEAD.c.id == _HEAD_ROW).values(values))
        self._known.add(end, changes)
        if self._anchor and end != head:
            self._anchor.keep(end)
        return done

    def _catch_up(self, connection: Connection, head: Head) -> None:
        """What other brokers have written since. Raises ``BrokerError``, for an older database, too."""
        if head == self._known.head:
            return
        if head.sequence < self._known.head.sequence:
            raise BrokerError("the database is older than what this broker has read last", hint=OLD)
        self._known.follow(_entries(connection, self._known.head.sequence), head)


def _done(transaction: Transaction, connection: Connection, work: Work[Any], future: Future[Any]) -> _Done:
    """Do one piece of work; what it raises is its own matter. Raises ``SQLAlchemyError``."""
    head, changes = transaction.head, dict(transaction.rows.maps[0])
    try:
        with connection.begin_nested():
            return future, work(transaction), None
    except SQLAlchemyError:
        raise
    except Exception as error:
        if not isinstance(error, VambraceError):
            log.exception("internal error")
        transaction.head, transaction.rows.maps[0] = head, changes
        return future, None, error


def _checked(known: Known) -> bytes:
    """What is authenticated when a log was verified."""
    return b"checked" + known.head.authenticated() + known.digest()


def _head(connection: Connection, *, lock: bool = False) -> Any:
    statement = select(HEAD).where(HEAD.c.id == _HEAD_ROW)
    # Brokers that share a PostgreSQL take turns here; SQLite has one writer anyway.
    row = connection.execute(statement.with_for_update() if lock else statement).mappings().first()
    if row is None:
        raise BrokerError("the database has no end of the audit log", hint="restore it from a backup")
    return row


def _entries(
    connection: Connection, after: int, limit: int | None = None, prefix: str = "", changes_until: int | None = None
) -> Iterator[Entry]:
    columns = (AUDIT.c.sequence, AUDIT.c.entry, AUDIT.c.hash, AUDIT.c.resource, AUDIT.c.change)
    statement = select(*columns).where(AUDIT.c.sequence > after)
    if prefix:
        statement = statement.where(AUDIT.c.resource.startswith(prefix, autoescape=True))
    if changes_until is not None:
        statement = statement.where(AUDIT.c.change, AUDIT.c.sequence <= changes_until)
    statement = statement.order_by(AUDIT.c.sequence).limit(limit).execution_options(yield_per=_READ)
    for sequence, text, digest, resource, change in connection.execute(statement):
        yield Entry(sequence, _blob(text), _blob(digest), resource, change)


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
