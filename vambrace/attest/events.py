"""The log of what has happened in a Realm since its launch, replayed against the measurement registers of its token.

The log itself is nobody's word: the agent says it, a file may hold it. What it must lead to is signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vambrace.errors import EventsMismatch, MalformedEvidence
from vambrace.measure.registers import COUNT, Registers, event_digest


@dataclass(frozen=True)
class Event:
    """``application`` has said ``text``, by extending ``register``; it is empty where it was the agent itself."""

    register: int
    application: str
    text: str

    @classmethod
    def decode(cls, value: dict[str, Any]) -> Event:
        """Raises ``MalformedEvidence``."""
        register, application, text = (value.get(key) for key in ("register", "application", "text"))
        if type(register) is int and 0 <= register < COUNT and isinstance(application, str) and isinstance(text, str):
            # What is no Unicode was never hashed. The lengths are bounds of ours.
            with contextlib.suppress(UnicodeEncodeError):
                if len(application.encode()) < 256 and len(text.encode()) <= 1 << 16:
                    return cls(register, application, text)
        raise MalformedEvidence("an event of the log is not one")

    def as_dict(self) -> dict[str, Any]:
        return {"register": self.register, "application": self.application, "text": self.text}


def verify_events(rems: Sequence[bytes], algorithm: str, log: Iterable[Event]) -> list[Event]:
    """The events that ``rems``, the registers of a verified token, prove: the beginning of ``log`` that leads to them.

    What follows in the log came later than the token, or was made up, and is left out. Raises ``EventsMismatch`` where
    no beginning leads there: an event is missing, changed or out of order.
    """
    registers, wanted = Registers(algorithm), tuple(rems)
    proven: list[Event] = []
    events = iter(log)
    while registers.values != wanted:
        event = next(events, None)
        if event is None:
            raise EventsMismatch(
                "the log of events does not lead to the measurement registers of the token",
                hint="an event is missing, changed or out of order: do not trust the log",
            )
        registers.extend(event.register, event_digest(algorithm, event.application, event.text))
        proven.append(event)
    return proven
