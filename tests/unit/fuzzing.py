"""Hostile bytes by the thousand: good ones with a few things wrong, so that they get past the first check.

``until_budget`` runs a property again and again, with new examples each time, for VAMBRACE_SOAK_SECONDS (60).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("VAMBRACE_SOAK_SECONDS", "60"))

# Bytes and numbers at which formats change their mind.
PIECES = [
    *(bytes([value]) for value in (0, 1, 0x1F, 0x20, 0x30, 0x7F, 0x80, 0x81, 0x82, 0x84, 0x9F, 0xA0, 0xBF, 0xD2, 0xFF)),
    *(b"\0" * 8, b"\xff" * 8, b"\x9b" + b"\xff" * 8, b"\x5b\x7f" + b"\xff" * 7, b"\x30\x84\xff\xff\xff\xff"),
    *(
        b'"',
        b"\\u0000",
        b"\\ud800",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"1e999",
        b"NaN",
        b"-0",
        b"0" * 20,
        b"9" * 5000,
    ),
    *(b"\n", b"\r\n", b"\xe2\x80\xae", b"\xed\xa0\x80", b"../", b"/", b"%", b"\t", b"&a ", b"*a ", b"!!", b"- ", b"? "),
]
JSON_SCALARS: Any = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from(
        [0, -1, 100, 101, 4096, 2**31, 2**32, 2**53, 2**63, 2**64, 2**100, 0.5, float("inf"), float("nan")]
    )
    | st.text(max_size=12)
    | st.sampled_from(["", "\0", "\ud800", "a" * 5000, "..", "/", "/app/x/../y", "system", "％", "-", "é", "1" * 80])
)
JSON: Any = st.recursive(
    JSON_SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def until_budget(strategy: Any, seconds: float = SECONDS) -> Callable[[Callable[[Any], None]], int]:
    """Decorates a property of one argument and runs it at once, for the budget; the number of its examples.

    What it finds is shrunk and raised as by any property test.
    """

    def decorate(check: Callable[[Any], None]) -> int:
        examples = 0

        @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def run(value: Any) -> None:
            nonlocal examples
            examples += 1
            check(value)

        end = time.monotonic() + seconds
        while examples == 0 or time.monotonic() < end:
            run()
        return examples

    return decorate


@st.composite
def mutated(draw: st.DrawFn, samples: Sequence[bytes], most: int = 6) -> bytes:
    """One of ``samples`` with up to ``most`` changes: bits, bytes, pieces put in, taken out, doubled, exchanged."""
    data = bytearray(draw(st.sampled_from(list(samples))))
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 1, 2, 4, 8, 16, 64, 512])))
        match draw(st.integers(0, 6)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                data[at:end] = draw(st.binary(max_size=8))
            case 2:
                data[at:at] = draw(st.sampled_from(PIECES))
            case 3:
                data[at:end] = b""
            case 4:
                data[at:at] = data[at:end] * draw(st.integers(1, 3))
            case 5:
                data[at:end] = draw(st.sampled_from(PIECES))
            case _:
                other = draw(st.sampled_from(list(samples)))
                start = draw(st.integers(0, len(other)))
                data[at:end] = other[start : start + end - at]
    return bytes(data)


@st.composite
def mutated_json(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """A copy of a JSON value with up to ``most`` of its parts replaced, removed, renamed or doubled."""
    copy = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, most))):
        parent, key = None, None
        node = copy
        while isinstance(node, (dict, list)) and node and (parent is None or draw(st.integers(0, 3))):
            parent, key = node, draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            node = parent[key]
        if parent is None:
            return draw(JSON)
        match draw(st.integers(0, 4)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(key, json.loads(json.dumps(node)))
            case 1:
                parent[draw(st.text(max_size=6))] = node
            case 2 if isinstance(node, str):
                at = draw(st.integers(0, len(node)))
                parent[key] = node[:at] + draw(st.text(max_size=3)) + node[at + draw(st.integers(0, 2)) :]
            case 2 if type(node) is int:
                parent[key] = node + draw(st.integers(-2, 2))
            case _:
                parent[key] = draw(JSON)
    return copy
