"""Long property tests of what reads bytes of strangers and is not fuzzed by coverage (tests/fuzz)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from config_factory import owner
from fuzzing import JSON, mutated, mutated_json, until_budget
from hypothesis import strategies as st

from vambrace.client.host import DomainInfo, problem
from vambrace.errors import (
    AgentFlood,
    ConfigError,
    HostError,
    VambraceError,
)
from vambrace.host.agent import BACKLOG_BYTES, LINE_LIMIT, LineBuffer
from vambrace.image.manifest import read_manifest

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore:Parsed a serial number")]


MANIFEST = b"""\
name: patients
owner: owner.pem
system: {memory: 384M}
vcpus: 2
debug: false
applications:
  - name: analysis
    files: analysis
    command: [python3, "analyse.py", 'x']
    environment: {A: b}
    memory: 128M
    percent: 80
    results: [result.txt]
  - {name: report, files: [owner.pem], command: "sh -c 'echo 1'", restarts: 3}
"""
# What YAML has beside the plain things.
YAML = [
    *(
        b'"\\UFFFFFFFF"',
        b'"\\x"',
        b'"\\ud800"',
        b"!!binary x",
        b"!!python/name:os",
        b"!!int x",
        b"!!float 1",
        b"<<: *a",
    ),
    *(
        b"%YAML 1.1\n---\n",
        b"%YAML 9.9\n---\n",
        b"---\n",
        b"...\n",
        b"&a [*a]",
        b"|\n ",
        b">-\n ",
        b"? [a]: b",
        b"\xff\xfe",
    ),
    *(
        b"0o17",
        b"0x10",
        b"1_000",
        b"1:30",
        b"~",
        b".inf",
        b"2001-01-01",
        b"{" * 3000,
        b"[" * 3000,
        b"\t",
        b'"' + b"a" * 999,
    ),
    *(b"n" * 300, b"'" + b"n/" * 3000 + b"'", b'"a\\0b"', b"../..", b"/", b"''"),
]


def test_manifest(tmp_path: Path) -> None:
    (tmp_path / "owner.pem").write_text(owner()[0])
    (tmp_path / "analysis").mkdir()
    path = tmp_path / "manifest.yaml"

    @st.composite
    def manifests(draw: st.DrawFn) -> bytes:
        data = draw(mutated([MANIFEST], most=3) | st.just(MANIFEST))
        if draw(st.booleans()):
            words = data.split(b" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(YAML))
            data = b" ".join(words)
        return data

    @until_budget(manifests())
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            read_manifest(path)

    assert check


def test_lines() -> None:
    """As a simple reader of the whole stream sees them, in bounded memory."""
    pieces = st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b"\n\n", b"x" * LINE_LIMIT, b"y" * 70_000]))

    @until_budget(pieces)
    def check(parts: list[bytes]) -> None:
        buffer, seen = LineBuffer(), []
        for number, part in enumerate(parts, start=1):
            try:
                seen += buffer.feed(part)
            except AgentFlood:
                # Only for a line that goes on and on.
                assert len(b"".join(parts[:number]).rpartition(b"\n")[2]) > BACKLOG_BYTES
                return
            assert len(buffer._partial) <= LINE_LIMIT
        *whole, rest = b"".join(parts).split(b"\n")
        expected = [line if len(line) <= LINE_LIMIT else None for line in whole]
        assert seen == expected + ([None] if len(rest) > LINE_LIMIT else [])

    assert check


def test_what_a_host_says() -> None:
    """To the client: a Realm or an error of our tree, printable."""
    info = {"uuid": "0" * 8 + "-0000" * 3 + "-" + "0" * 12, "name": "n", "state": "running", "executed": True}
    info |= {"created": 1.0, "memory": 5, "instance": "00", "reason": "r", "agent": None}
    error = {"type": "tag:vambrace.dev,2026:problem/image", "detail": "d", "hint": "h", "status": 422}

    @until_budget(mutated_json(info) | mutated_json(error) | JSON)
    def check(value: Any) -> None:
        with contextlib.suppress(HostError):
            decoded = DomainInfo.decode(value)
            assert (decoded.name + decoded.state + decoded.reason + "x").isprintable()
        raised = problem(422, json.dumps(value).encode())
        assert isinstance(raised, VambraceError) and raised.message.isprintable()
        assert raised.hint is None or raised.hint.isprintable()

    assert check
