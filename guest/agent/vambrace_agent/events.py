"""What has happened since the launch, in an order that cannot be changed any more: each event extends a register that
the monitor keeps and every token states (docs/architecture.md, section 9). The log here is what explains them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from vambrace_agent import AgentError
from vambrace_agent.settings import Application

AGENT_REGISTER = 0
MAX_TEXT = 1024  # bytes of one event
MAX_EVENTS = 256  # of one application: a log that is not whole would prove nothing
AT_ONCE = 32  # of one reply to the owner

Record = dict[str, object]
Extend = Callable[[int, bytes], object]

_HASHES = {"sha-256": "sha256", "sm3": "sm3"}


class Events:
    """The log, and the only way to extend a register: ``extend`` is the monitor's. From any thread."""

    def __init__(self, algorithm: str, extend: Extend) -> None:
        self._hash = _HASHES[algorithm]
        self._extend = extend
        self._log: list[Record] = []
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def started(self, application: Application) -> None:
        """An application is about to be started. Raises ``AgentError``: then it must not be."""
        with self._lock:
            self._note(AGENT_REGISTER, "", f"start {application.name}")

    def told(self, application: Application, register: int, text: str) -> None:
        """An application says what it has done. Raises ``AgentError`` where it may not, or says too much."""
        if register not in application.registers:
            raise AgentError(f"application {application.name} may not extend register {register}")
        with self._lock:
            count = self._counts.get(application.name, 0)
            if count >= MAX_EVENTS:
                raise AgentError(f"an application has {MAX_EVENTS} events at most")
            self._note(register, application.name, text)
            self._counts[application.name] = count + 1

    def count(self) -> int:
        """How many there are: whoever has proved something when there were fewer has proved it of a Realm that was."""
        return len(self._log)

    def read(self, first: int) -> tuple[list[Record], int]:
        """Up to ``AT_ONCE`` events from number ``first`` on, and how many there are."""
        with self._lock:
            return self._log[first : first + AT_ONCE], len(self._log)

    def _note(self, register: int, name: str, text: str) -> None:
        try:
            content = text.encode()
        except UnicodeEncodeError:
            raise AgentError("an event is no valid Unicode") from None
        if not content or len(content) > MAX_TEXT:
            raise AgentError(f"an event has 1 to {MAX_TEXT} bytes")
        head = b"vambrace-event-1" + bytes([len(name)]) + name.encode()
        self._extend(register, hashlib.new(self._hash, head + content).digest())
        self._log.append({"register": register, "application": name, "text": text})
