"""The audit log: every decision, in a chain of hashes that only grows.

An entry is canonical JSON. Its hash is SHA-256(hash of the one before ‖ entry), so that none can be changed, left out
or put in without every later hash being another; the last one is authenticated with a key that is not in the database.
What this cannot show is a database that was put back as a whole: the end is kept elsewhere, too (``anchor``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from vambrace.broker.vault import Vault
from vambrace.canonical import canonical
from vambrace.errors import BrokerError

GRANTED, REFUSED, DONE = ("granted", "refused", "done")
GENESIS: Final = hashlib.sha256(b"vambrace-broker-log-1").digest()
MAX_REASON: Final = 200
TAMPERED: Final = "the audit log was tampered with: keep the database as it is, and restore a backup elsewhere"
OLD: Final = (
    "an older state was put back: restore the newest backup, and if this is it 'vambrace broker audit FOLDER --accept'"
)
#: What ``Event.row`` says of a row that is gone.
NOTHING: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Event:
    """What happened. ``subject`` says of whom it is known: instance, measurement, platform, administrator, address.

    ``row`` is the SHA-256 (hex) of what the resource's row holds from now on, empty where it is as before.
    """

    what: str
    outcome: str
    resource: str = ""
    generation: int = 0
    reason: str = ""
    row: str = ""
    subject: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """Where the log ends: so many entries, and the hash of the last one."""

    sequence: int = 0
    hash: bytes = GENESIS

    def authenticated(self) -> bytes:
        return self.sequence.to_bytes(8, "big") + self.hash

    def check(self, tag: bytes, vault: Vault) -> None:
        """Raises ``BrokerError``."""
        if not vault.tags(self.authenticated(), tag):
            raise BrokerError("the end of the audit log is not what this broker wrote", hint=TAMPERED)


@dataclass(frozen=True)
class Row:
    """What a resource's row holds (SHA-256, hex), and the generation that it had then."""

    digest: str
    generation: int


@dataclass(frozen=True)
class Entry:
    """An event in its place. ``text`` is what is hashed; ``resource`` and ``change`` are what it is found by."""

    sequence: int
    text: bytes
    hash: bytes
    resource: str
    change: bool

    def row(self) -> Row:
        """What it has changed. Raises ``BrokerError``: it was tampered with so that nobody can find it by that."""
        try:
            fields = json.loads(self.text)
            row = Row(fields["row"], fields["generation"])
            said = fields["resource"], bool(row.digest)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BrokerError(f"entry {self.sequence} of the audit log was changed", hint=TAMPERED) from None
        if said != (self.resource, self.change):
            raise BrokerError(f"entry {self.sequence} of the audit log was hidden", hint=TAMPERED)
        return row


def next_entry(head: Head, event: Event, now: datetime) -> Entry:
    sequence = head.sequence + 1
    value: dict[str, Any] = {
        "sequence": sequence,
        "at": now.astimezone(UTC).isoformat(timespec="milliseconds"),
        "event": event.what,
        "outcome": event.outcome,
        "resource": event.resource,
        "generation": event.generation,
        "reason": event.reason.encode("ascii", "backslashreplace").decode()[:MAX_REASON],
        "row": event.row,
        "subject": event.subject,
    }
    text = canonical(value)
    return Entry(sequence, text, hashlib.sha256(head.hash + text).digest(), event.resource, bool(event.row))


class Known:
    """What a log that was followed from its beginning proves: where it ends, and what every row holds.

    ``rows`` has the deleted, too: their generations do not come back.
    """

    def __init__(self, head: Head | None = None, rows: dict[str, Row] | None = None) -> None:
        self.head = head or Head()
        self.rows = rows or {}

    def digest(self) -> bytes:
        """SHA-256 over ``rows``."""
        rows = {name: [row.digest, row.generation] for name, row in self.rows.items()}
        return hashlib.sha256(canonical(rows)).digest()

    def follow(self, entries: Iterable[Entry], through: Head | None = None) -> None:
        """Go on to the end of ``entries``, the next ones of the chain; it has to lead ``through`` that place.

        Raises ``BrokerError`` at the first entry that does not fit; then nothing has changed.
        """
        head, changes = self.head, dict[str, Row]()
        met = through is None or through == head
        for entry in entries:
            if entry.sequence != head.sequence + 1:
                raise BrokerError(f"entry {head.sequence + 1} of the audit log is missing", hint=TAMPERED)
            if entry.hash != hashlib.sha256(head.hash + entry.text).digest():
                raise BrokerError(f"entry {entry.sequence} of the audit log was changed", hint=TAMPERED)
            row = entry.row()
            head = Head(entry.sequence, entry.hash)
            met = met or through == head
            if entry.change:
                changes[entry.resource] = row
        if not met:
            raise BrokerError("the database is older than what this broker has written last", hint=OLD)
        self.add(head, changes)

    def add(self, head: Head, changes: dict[str, Row]) -> None:
        """What was written by ourselves."""
        self.head = head
        self.rows.update(changes)


def check_row(rows: Mapping[str, Row], name: str, sealed: bytes | None) -> None:
    """Raises ``BrokerError`` unless the row of ``name``, or that there is none, is what was stored last."""
    expected = rows[name].digest if name in rows else NOTHING
    if sealed is None and expected != NOTHING:
        raise BrokerError(f"{name} was taken away", hint="restore the database from a backup")
    if sealed is not None and hashlib.sha256(sealed).hexdigest() != expected:
        raise BrokerError(f"{name} is not what was stored last", hint="an old state was put back: restore")


def check_all(rows: Mapping[str, Row], names: Set[str], prefix: str = "") -> None:
    """Raises ``BrokerError`` unless ``names`` are all of the resources that begin with ``prefix``."""
    living = {name for name, row in rows.items() if row.digest != NOTHING and name.startswith(prefix)}
    if missing := living - names:
        raise BrokerError(f"{min(missing)} was taken away", hint="restore the database from a backup")
