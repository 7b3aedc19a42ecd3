"""JSON from a script: a good object with parts replaced, or bytes of the script's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from script import EDGES, Script

TEXTS = (
    "",
    "a",
    "\0",
    "\ud800",
    "é",
    "％",
    "..",
    "/",
    "/app/x/../y",
    "system",
    "-",
    "1" * 80,
    "a" * 5000,
    "%2e",
    "\u202e",
    " ",
)
NUMBERS = (-1, 2**31, 2**32, 2**53, 2**63, 2**64, 2**100, 0.5, float("inf"), float("nan"), -(2**63), 1e308)
OTHERS = ("null", "true", "false", "[]", "{}", "[[]]", '{"": null}')


def packet(script: Script, samples: Sequence[Any]) -> bytes:
    """Bytes of one message like one of ``samples``."""
    how = script.number()
    if how < 32:
        return script.text(255)
    data = json.dumps(edited(script, script.of(samples))).encode()
    if how < 64:  # cut, or with something in it
        at = script.number(2) % (len(data) + 1)
        data = data[:at] + script.text(16) + data[at + script.below(4) :]
    return data


def edited(script: Script, value: Any) -> Any:
    """A copy of ``value`` with up to three of its parts replaced, removed, renamed or doubled."""
    copy = json.loads(json.dumps(value))
    for _ in range(script.below(4)):
        parent, key = _part(script, copy)
        if parent is None:
            return scalar(script)
        match script.below(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(key, json.loads(json.dumps(parent[key])))
            case 1:
                parent[script.of(TEXTS)] = parent[key]
            case 2 if isinstance(parent[key], str):
                text = parent[key]
                at = script.number(2) % (len(text) + 1)
                parent[key] = text[:at] + script.text(6).decode("latin-1") + text[at + script.below(3) :]
            case 2 if type(parent[key]) is int:
                parent[key] += script.below(5) - 2
            case _:
                parent[key] = scalar(script)
    return copy


def _part(script: Script, value: Any) -> tuple[Any, Any]:
    """Some container in ``value`` and the place in it of one of its parts; nothing where ``value`` has no parts."""
    parent, key = None, None
    while isinstance(value, dict | list) and value and (parent is None or script.number() & 3):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        parent, key = value, script.of(keys)
        value = parent[key]
    return parent, key


def scalar(script: Script) -> Any:
    """Any value of a few bytes."""
    match script.below(6):
        case 0:
            return script.of(TEXTS)
        case 1:
            return script.of(EDGES)
        case 2:
            return script.of(NUMBERS)
        case 3:
            return script.text(40).decode("latin-1")
        case 4:
            value: Any = []
            for _ in range(script.of((1, 10, 200))):
                value = [value]
            return value
        case _:
            return json.loads(script.of(OTHERS))
