"""The audit log: every decision, in a chain of hashes that only grows.

An entry is canonical JSON. Its hash is SHA-256(hash of the one before ‖ entry), so that none can be changed, left out
or put in without every later hash being another; the last one is authenticated with a key that is not in the database.
What this cannot show is a database that was put back as a whole: compare ``head`` with one that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from vambrace.broker.vault import Vault
from vambrace.canonical import canonical
from vambrace.errors import BrokerError

GRANTED, REFUSED, DONE = OUTCOMES = ("granted", "refused", "done")
GENESIS: Final = hashlib.sha256(b"vambrace-broker-log-1").digest()
MAX_REASON: Final = 200
_TAMPERED: Final = "the audit log was tampered with: keep the database as it is, and restore a backup elsewhere"


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
        if vault.tag(self.authenticated()) != tag:
            raise BrokerError("the end of the audit log is not what this broker wrote", hint=_TAMPERED)


@dataclass(frozen=True)
class Entry:
    """An event in its place. ``text`` is what is hashed."""

    sequence: int
    text: bytes
    hash: bytes


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
    return Entry(sequence, text, hashlib.sha256(head.hash + text).digest())


def follow(head: Head, entries: Iterable[Entry]) -> Head:
    """The end of the chain that begins at ``head``. Raises ``BrokerError`` at the first entry that does not fit."""
    for entry in entries:
        if entry.sequence != head.sequence + 1:
            raise BrokerError(f"entry {head.sequence + 1} of the audit log is missing", hint=_TAMPERED)
        if entry.hash != hashlib.sha256(head.hash + entry.text).digest():
            raise BrokerError(f"entry {entry.sequence} of the audit log was changed", hint=_TAMPERED)
        head = Head(entry.sequence, entry.hash)
    return head
