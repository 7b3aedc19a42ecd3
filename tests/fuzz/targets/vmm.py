"""What a VMM says that its guest has taken over, and what comes through it of the agent's: packet after packet."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import Any

from jsons import packet
from script import Script, demand

from vambrace.errors import AgentFlood, MessageRefused, VambraceError
from vambrace.host import vmm
from vambrace.host.agent import BACKLOG_BYTES, BACKLOG_LINES, LINE_LIMIT, AgentPort
from vambrace.host.metrics import summed

EVENTS: list[dict[str, Any]] = [
    {"event": "agent", "data": ""},
    {"id": 1, "ok": True, "measurement": "00" * 32, "zones": [{"faults": 1, "evictions": 2, "percent": 3}]},
    {"id": 1, "ok": False, "error": "x", "hint": "y"},
    {"event": "console", "data": base64.b64encode(b"x\n").decode()},
    {"event": "ended", "reason": "crash", "detail": "x", "ran": 1.0},
]
REQUESTS: list[dict[str, Any]] = [
    {"id": 1, "op": "identity"},
    {"id": 2, "op": "attest", "challenge": "00" * 64},
    {"id": 3, "op": "encrypt", "message": base64.b64encode(b"message").decode()},
    {"id": 8, "op": "change", "zone": 1},
    {"id": 9, "op": "auto", "message": base64.b64encode(b"message").decode()},
    {"id": 4, "op": "stats"},
    {"id": 6, "op": "sample", "on": True, "seconds": 5},
    {"id": 7, "op": "reuse"},
    {"id": 10, "op": "connect", "endpoint": 0, "stream": 1},
    {"id": 11, "op": "messages"},
    {"id": 12, "op": "broker", "stream": 1},
    {"id": 13, "op": "seal", "version": 1},
    {"id": 5, "op": "report", "state": "running", "detail": "x"},
    {"id": 12, "op": "extend", "register": 1, "digest": "00" * 32},
]


class Monitor:
    """Checks what reaches it."""

    def identity(self) -> bytes:
        return bytes(16)

    async def attest(self, challenge: bytes) -> bytes:
        demand(type(challenge) is bytes and len(challenge) == 64, "attest: no challenge")
        return b"token"

    def extend(self, register: int, digest: bytes) -> bytes:
        demand(type(register) is int and register >= 0, "extend: no register")
        demand(type(digest) is bytes and len(digest) == 32, "extend: no digest")
        return digest

    async def encrypt(self, message: bytes) -> dict[str, Any]:
        demand(type(message) is bytes, "encrypt: no message")
        raise MessageRefused("no")

    def change(self, zone: int) -> dict[str, Any] | None:
        demand(type(zone) is int and zone >= 0, "change: no zone")
        return None

    async def auto(self, message: bytes) -> None:
        demand(type(message) is bytes, "auto: no message")
        raise MessageRefused("no")

    def autos(self) -> list[dict[str, Any] | None]:
        return [None]

    async def stats(self) -> list[Any]:
        return []

    async def sample(self, on: bool, seconds: int) -> None:
        demand(type(on) is bool and type(seconds) is int and 0 <= seconds <= 3600, "sample: no time")

    async def reuse(self) -> dict[str, Any]:
        return {"zones": [], "fault_ns": 1}

    def open_stream(self, endpoint: int, number: int) -> None:
        demand(all(type(word) is int and 0 <= word < 1 << 32 for word in (endpoint, number)), "connect: no numbers")

    def open_broker(self, number: int) -> None:
        demand(type(number) is int and 0 <= number < 1 << 32, "broker: no number")

    async def sealing_key(self, version: int) -> bytes:
        demand(type(version) is int and 0 <= version < 1 << 32, "seal: no version")
        return bytes(32)

    def messages(self) -> list[dict[str, Any]]:
        return []

    def report(self, state: str, detail: str) -> None:
        demand(state in ("ready", "running", "succeeded", "failed") and len(detail) <= 200, "report: too much")


def run(data: bytes) -> None:
    asyncio.run(conversation(Script(data)))


async def conversation(script: Script) -> None:
    replies: list[dict[str, Any]] = []
    flooded = False

    async def send(line: bytes) -> None:
        demand(line.endswith(b"\n") and line.count(b"\n") == 1 and len(line) <= LINE_LIMIT, "a reply is no line")
        replies.append(json.loads(line))

    def hear(event: vmm.Event) -> None:
        nonlocal flooded
        match event:
            case vmm.AgentBytes(data):
                try:
                    port.receive(data)
                except AgentFlood:
                    flooded = True
            case vmm.ConsoleBytes(data):
                demand(type(data) is bytes, "the console says no bytes")
            case vmm.Ended(reason, detail):
                demand((reason + detail + "x").isprintable() and len(reason + detail) <= 400, "an end is unreadable")

    monitor = Monitor()
    port = AgentPort(monitor, send, monitor, rate=1e9, burst=1e9)
    serving = asyncio.create_task(port.serve())
    client = object.__new__(vmm.Vmm)
    client._on_event = hear
    client._replies = {}
    try:
        for _ in range(12):
            if not script.more or flooded:
                break
            if script.number() & 1:
                what = agent_bytes(script)
                message = json.dumps({"event": "agent", "data": base64.b64encode(what).decode()}).encode()
            else:
                message = packet(script, EVENTS)
            reply = client._replies[1] = asyncio.get_running_loop().create_future()
            try:
                client._dispatch(message)
            except ValueError:
                break  # the daemon kills such a VMM
            if reply.done() and isinstance(zones := reply.result().get("zones"), list):
                with contextlib.suppress(VambraceError):
                    summed(zones)
            demand(len(port._backlog) <= BACKLOG_LINES + 1, "too many requests wait")
            demand(port._waiting <= BACKLOG_BYTES + LINE_LIMIT, "requests that wait are too long")
            for _ in range(40):
                await asyncio.sleep(0)
            demand(not serving.done(), "the agent is not served any more")
        demand(all(type(reply.get("ok")) is bool for reply in replies), "a reply is neither yes nor no")
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


def agent_bytes(script: Script) -> bytes:
    """Lines, and parts of lines."""
    match script.below(4):
        case 0:
            return script.text(60)
        case 1:
            return b"x" * script.of((1, 1000, LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1, 300_000)) + script.text(8)
        case _:
            return packet(script, REQUESTS) + script.of((b"\n", b"\n", b"\n\n", b"", b"\r\n"))
