"""Sessions of Realms: a challenge that is answered once, then what it was answered with, for a while.

A session belongs to the connection on which it began. It ends with that, so that whoever learns its cookie can do
nothing with it elsewhere, and a Realm that ends (its daemon closes its streams) asks for nothing any more; and it is in
memory only, so that none outlives its broker.
"""

from __future__ import annotations

import os
import secrets
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vambrace.attest.challenge import NONCE_BYTES
from vambrace.broker.envelope import TeeKey
from vambrace.errors import BrokerError, NotReleased

MAX_SESSIONS: Final = 4096
PER_CONNECTION: Final = 4
TICKET_BYTES: Final = 32
_CLEAN: Final = 64  # from so many new sessions to the next look for old ones


@dataclass(frozen=True)
class Attested:
    """What the challenge was answered with. ``subject`` is for the audit log."""

    evidence: bytes
    challenge: bytes
    key: TeeKey
    subject: dict[str, str]


@dataclass
class Session:
    """``nonce`` is empty once it was answered, rightly or not."""

    identifier: str
    nonce: bytes
    ends: float
    connection: weakref.ref[object]
    attested: Attested | None = None
    tickets: dict[str, bytes] = field(default_factory=dict)  # of the volumes that it has the key of

    def ticket(self, resource: str) -> bytes:
        """Only whoever can read what is encrypted to the session's key has it: 32 bytes."""
        return self.tickets.setdefault(resource, os.urandom(TICKET_BYTES))


class Sessions:
    """``challenge_seconds`` is how long a nonce is good for, ``session_seconds`` how long its answer is."""

    def __init__(
        self, challenge_seconds: float, session_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._challenge_seconds = challenge_seconds
        self._session_seconds = session_seconds
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._own: weakref.WeakKeyDictionary[object, list[Session]] = weakref.WeakKeyDictionary()
        self._begun = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, connection: object) -> Session:
        """A new session with a fresh challenge. Raises ``BrokerError`` (503): there are too many."""
        self._begun += 1
        if self._begun % _CLEAN == 0 or len(self._sessions) >= MAX_SESSIONS:
            self._expire()
        own = self._own.setdefault(connection, [])
        while len(own) >= PER_CONNECTION:
            self._sessions.pop(own.pop(0).identifier, None)
        if len(self._sessions) >= MAX_SESSIONS:
            raise BrokerError("the broker has too many sessions", hint="try again in a minute", status=503)
        session = Session(
            identifier=secrets.token_urlsafe(32),
            nonce=os.urandom(NONCE_BYTES),
            ends=self._clock() + self._challenge_seconds,
            connection=weakref.ref(connection),
        )
        self._sessions[session.identifier] = session
        own.append(session)
        return session

    def find(self, identifier: str, connection: object) -> Session:
        """Raises ``NotReleased`` (401): no such session, none any more, or one of another connection."""
        session = self._sessions.get(identifier)
        if session is None or session.connection() is not connection or session.ends < self._clock():
            raise NotReleased("there is no such session", hint="begin with POST /kbs/v0/auth", status=401)
        return session

    def take_nonce(self, session: Session) -> bytes:
        """The challenge, for one answer. Raises ``NotReleased`` (401) if there was one."""
        nonce, session.nonce = session.nonce, b""
        if not nonce:
            raise NotReleased("the challenge was answered before", hint="begin with POST /kbs/v0/auth", status=401)
        return nonce

    def settle(self, session: Session, attested: Attested) -> None:
        session.attested = attested
        session.ends = self._clock() + self._session_seconds

    def _expire(self) -> None:
        now = self._clock()
        for session in [each for each in self._sessions.values() if each.ends < now or each.connection() is None]:
            del self._sessions[session.identifier]
