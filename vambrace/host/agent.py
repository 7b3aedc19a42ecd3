"""What a guest's agent asks of the monitor: JSON lines (architecture, section 6). Everything is hostile.

A line that is too long, malformed or unknown gets an error reply. Requests cost tokens of a bucket, so that
a guest cannot keep TrustZone or the daemon busy; one that piles up more than the backlog ends its Realm.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from vambrace.errors import AgentFlood, UsageError, VambraceError

LINE_LIMIT = 64 << 10
BACKLOG_LINES = 64
BACKLOG_BYTES = 256 << 10
CHALLENGE = 64
DIGEST = 32
DETAIL_LIMIT = 200
#: Seconds: sampling slows a Realm down, and ends by itself.
SAMPLE_LIMIT = 3600
ORDERS = ("encrypt", "change", "auto", "sample", "reuse", "connect", "messages", "broker", "seal")
OPERATIONS = ", ".join(("identity", "attest", "extend", "stats", "report", *ORDERS))
REPORTS = ("ready", "running", "succeeded", "failed")


class LineBuffer:
    """Cuts a hostile byte stream into lines, in bounded memory. An overlong line comes out as ``None``.

    Raises ``AgentFlood`` for a line that goes on and on.
    """

    def __init__(self) -> None:
        self._partial = bytearray()
        self._skipping = False
        self._skipped = 0

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that ``data`` completes."""
        lines: list[bytes | None] = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            if self._skipping:
                self._skipping = False
            elif len(self._partial) + len(piece) > LINE_LIMIT:
                lines.append(None)
            else:
                lines.append(bytes(self._partial) + piece)
            self._partial.clear()
        if self._skipping:
            self._skipped += len(data)
            if self._skipped > BACKLOG_BYTES:
                raise AgentFlood("the agent sent a line without an end")
            return lines
        if len(self._partial) + len(rest) > LINE_LIMIT:
            self._skipped = len(self._partial) + len(rest)
            self._partial.clear()
            self._skipping = True
            lines.append(None)
        else:
            self._partial += rest
        return lines


class Bucket:
    """Token bucket: ``rate`` tokens per second, at most ``burst`` saved. Who came first is served first: many who want
    little do not keep one waiting who wants much."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._last = time.monotonic()
        self._first = asyncio.Lock()

    def take_at_once(self, cost: float) -> bool:
        """Take ``cost`` tokens if they are there and nobody waits for some; else nothing is taken."""
        if self._first.locked():
            return False
        self._fill()
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True

    def _fill(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now

    async def take(self, cost: float) -> None:
        """Wait until ``cost`` tokens (at most the burst) are there, and take them."""
        async with self._first:
            while True:
                self._fill()
                if self._tokens >= cost:
                    self._tokens -= cost
                    return
                await asyncio.sleep((cost - self._tokens) / self._rate)


class Monitor(Protocol):
    """What every agent may ask for; errors of our tree become error replies."""

    def identity(self) -> bytes: ...
    async def attest(self, challenge: bytes) -> bytes: ...
    def extend(self, register: int, digest: bytes) -> bytes: ...
    async def stats(self) -> list[Any]: ...
    def report(self, state: str, detail: str) -> None: ...


class OwnerOrders(Protocol):
    """What the agent carries for the owner of a Realm."""

    async def encrypt(self, message: bytes) -> dict[str, Any]: ...
    def change(self, zone: int) -> dict[str, Any] | None: ...
    async def auto(self, message: bytes) -> None: ...
    def autos(self) -> list[dict[str, Any] | None]: ...
    async def sample(self, on: bool, seconds: int) -> None: ...
    async def reuse(self) -> dict[str, Any]: ...
    def open_stream(self, endpoint: int, number: int) -> None: ...
    def open_broker(self, number: int) -> None: ...
    async def sealing_key(self, version: int) -> bytes: ...
    def messages(self) -> list[dict[str, Any]]: ...


class AgentPort:
    """Serves one agent: ``receive`` bytes as they come, ``serve`` answers in order."""

    def __init__(
        self,
        monitor: Monitor,
        send: Callable[[bytes], Awaitable[None]],
        orders: OwnerOrders | None,
        *,
        rate: float = 20,
        burst: float = 60,
    ) -> None:
        self._monitor = monitor
        self._send = send
        self._orders = orders
        self._lines = LineBuffer()
        self._backlog: deque[bytes | None] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._bucket = Bucket(rate, burst)

    def receive(self, data: bytes) -> None:
        """Take bytes from the guest; raises ``AgentFlood`` when too much is waiting."""
        for line in self._lines.feed(data):
            self._backlog.append(line)
            self._waiting += len(line or b"")
            if len(self._backlog) > BACKLOG_LINES or self._waiting > BACKLOG_BYTES:
                raise AgentFlood("the agent sent more requests than may wait")
        self._arrived.set()

    async def serve(self) -> None:
        """Answer for ever; ends by cancellation or by the error of ``send``."""
        while True:
            while not self._backlog:
                self._arrived.clear()
                await self._arrived.wait()
            line = self._backlog.popleft()
            self._waiting -= len(line or b"")
            await self._bucket.take(1)
            await self._send(json.dumps(await self._answer(line)).encode() + b"\n")

    async def _answer(self, line: bytes | None) -> dict[str, Any]:
        number: int | None = None
        try:
            request = _parse(line)
            number = _number(request)
            return {"id": number, "ok": True, **await self._perform(request)}
        except VambraceError as error:
            answer: dict[str, Any] = {"id": number, "ok": False, "error": error.message}
            if error.hint:
                answer["hint"] = error.hint
            return answer

    async def _perform(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "identity":
                return {"instance": self._monitor.identity().hex()}
            case "attest":
                challenge = _hex(request, "challenge", CHALLENGE)
                await self._bucket.take(10)
                token = await self._monitor.attest(challenge)
                return {"token": base64.b64encode(token).decode()}
            case "extend":
                digest = _hex(request, "digest", DIGEST)
                return {"value": self._monitor.extend(_integer(request, "register"), digest).hex()}
            case "stats":
                zones = await self._monitor.stats()
                return {"zones": zones, "auto": self._orders.autos() if self._orders else [None] * len(zones)}
            case "report":
                state, detail = request.get("state"), request.get("detail", "")
                if state not in REPORTS or not isinstance(detail, str):
                    raise UsageError(f"state must be one of {', '.join(REPORTS)}, detail a string")
                self._monitor.report(state, detail[:DETAIL_LIMIT])
                return {}
            case op if op in ORDERS and self._orders is not None:
                return await self._order(self._orders, request)
            case op if op in ORDERS:
                raise UsageError(f"{op}: only a Realm does this")
        raise UsageError("unknown op", hint=f"known: {OPERATIONS}")

    async def _order(self, orders: OwnerOrders, request: dict[str, Any]) -> dict[str, Any]:
        match request["op"]:
            case "encrypt":
                await self._bucket.take(4)
                return {"change": await orders.encrypt(_base64(request.get("message")))}
            case "change":
                return {"change": orders.change(_integer(request, "zone"))}
            case "auto":
                await self._bucket.take(4)
                await orders.auto(_base64(request.get("message")))
                return {"auto": orders.autos()}
            case "sample":
                await self._bucket.take(4)
                on, seconds = request.get("on"), request.get("seconds", 0)
                if type(on) is not bool or type(seconds) is not int or not 0 <= seconds <= SAMPLE_LIMIT:
                    raise UsageError(f"on must be true or false, seconds 0 to {SAMPLE_LIMIT}")
                await orders.sample(on, seconds)
                return {}
            case "reuse":
                return await orders.reuse()
            case "connect":
                orders.open_stream(_integer(request, "endpoint"), _integer(request, "stream"))
                return {}
            case "broker":
                orders.open_broker(_integer(request, "stream"))
                return {}
            case "seal":
                version = _integer(request, "version")
                await self._bucket.take(4)
                return {"key": (await orders.sealing_key(version)).hex()}
        return {"messages": orders.messages()}


def _parse(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise UsageError(f"a line is longer than {LINE_LIMIT} bytes")
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("a line is not JSON") from None
    if not isinstance(request, dict):
        raise UsageError("a line is not a JSON object")
    return request


def _number(request: dict[str, Any]) -> int:
    number = request.get("id")
    if type(number) is not int or not 0 <= number < 1 << 53:
        raise UsageError("id must be an integer from 0 to 2^53 - 1")
    return number


def _integer(request: dict[str, Any], key: str) -> int:
    value = request.get(key)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise UsageError(f"{key} must be an integer from 0 to 2^32 - 1")
    return value


def _hex(request: dict[str, Any], key: str, length: int) -> bytes:
    try:
        data = bytes.fromhex(request[key])
    except (KeyError, TypeError, ValueError):
        data = b""
    if len(data) != length:
        raise UsageError(f"{key} must be {length} bytes in hexadecimal")
    return data


def _base64(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise UsageError("message must be base64") from None
