"""The run-time measurement registers of a Realm: what happened after its launch, as a chain of hashes for each.

In the form of CCA's REMs (Realm Management Monitor specification, RSI_MEASUREMENT_EXTEND): a register begins as
zeros, and is extended to the hash of itself and the value. It cannot be set back, so whoever has the values in order
can compute it, and nobody can find others that give the same.

What is extended here are digests of events: who did it, and a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from vambrace.errors import UsageError
from vambrace.measure.launch import ALGORITHMS

COUNT: Final = 4
BYTES: Final = 32
#: The register of the agent itself; the others are for applications.
AGENT_REGISTER: Final = 0


def event_digest(algorithm: str, application: str, text: str) -> bytes:
    """What an event of ``application`` (empty: the agent's own) extends a register by: 32 bytes.

    The lengths of tag and name make it unambiguous: H("vambrace-event-1" ‖ length of the name, a byte ‖ name ‖ text).
    """
    name = application.encode()
    if len(name) > 255:
        raise UsageError("an application's name has at most 255 bytes")
    return hashlib.new(ALGORITHMS[algorithm], b"vambrace-event-1" + bytes([len(name)]) + name + text.encode()).digest()


class Registers:
    """Four of 32 bytes; ``algorithm`` is the domain's, "sha-256" or "sm3"."""

    def __init__(self, algorithm: str) -> None:
        self._name = ALGORITHMS[algorithm]
        self._values = [bytes(BYTES)] * COUNT

    @property
    def values(self) -> tuple[bytes, bytes, bytes, bytes]:
        first, second, third, fourth = self._values
        return first, second, third, fourth

    def extend(self, index: int, value: bytes) -> bytes:
        """Extend one by ``value`` (32 bytes), and give what it is then. Raises ``UsageError``."""
        if not 0 <= index < COUNT or len(value) != BYTES:
            raise UsageError(f"a register from 0 to {COUNT - 1} is extended by {BYTES} bytes")
        self._values[index] = hashlib.new(self._name, self._values[index] + value).digest()
        return self._values[index]


def replay(algorithm: str, extensions: Iterable[tuple[int, bytes]]) -> tuple[bytes, ...]:
    """The registers after these extensions, each an index and a value."""
    registers = Registers(algorithm)
    for index, value in extensions:
        registers.extend(index, value)
    return registers.values
