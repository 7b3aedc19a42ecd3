"""One VMM process and the daemon's side of its control protocol (architecture, section 5).

Packets are JSON objects over SOCK_SEQPACKET. The VMM faces a hostile guest, so what it says is checked too.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace.errors import DomainError
from vambrace.host.agent import Bucket
from vambrace.host.launcher import Launcher, Process

PACKET_LIMIT = 64 << 10
AGENT_CHUNK = 32 << 10
DESTROY_SECONDS = 30
EXIT_SECONDS = 15
ANSWER_SECONDS = 30
STDERR_LIMIT = 16 << 10
PRINT_RATE, PRINT_BURST = 256 << 10, 1 << 20  # bytes of a console

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgentBytes:
    data: bytes


@dataclass(frozen=True)
class ConsoleBytes:
    data: bytes


@dataclass(frozen=True)
class Ended:
    """The guest ended; ``reason`` is poweroff, reset, crash or integrity."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Died:
    """The process closed its control socket, or broke the protocol, without having been told to end."""

    detail: str


@dataclass(frozen=True)
class Choose:
    """A VMM that loads asks which of its ``pages`` from ``address`` on to keep, and waits for ``answer``."""

    address: int
    pages: int


Event = AgentBytes | ConsoleBytes | Ended | Died | Choose


class Vmm:
    """Client of one VMM process. ``on_event`` is called in the event loop; after ``Died`` nothing can be relied on."""

    def __init__(
        self,
        process: Process,
        control: socket.socket,
        errors: asyncio.StreamReader,
        on_event: Callable[[Event], None],
    ) -> None:
        self._process = process
        self._control = control
        self._errors = errors
        self._on_event = on_event
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._sending = asyncio.Lock()
        self._closing = False
        self._prints = Bucket(PRINT_RATE, PRINT_BURST)
        self._reader = asyncio.create_task(self._read())
        self._stderr = asyncio.create_task(self._drain_stderr())

    @classmethod
    async def spawn(cls, launcher: Launcher, on_event: Callable[[Event], None], *, cpus: Sequence[int] = ()) -> Vmm:
        """Have ``launcher`` start one, to wait on ``cpus``; raises ``DomainError`` if it cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output, errors = os.pipe()
        with ExitStack() as stack:
            stack.callback(ours.close)
            written = stack.enter_context(os.fdopen(output, "rb", buffering=0))
            try:
                process = await launcher.start(theirs.fileno(), errors, cpus)
            finally:
                theirs.close()
                os.close(errors)
            stack.pop_all()
        ours.setblocking(False)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), written)
        return cls(process, ours, reader, on_event)

    @property
    def pid(self) -> int:
        return self._process.pid

    def adopt(self, on_event: Callable[[Event], None]) -> bool:
        """From here on its events are ``on_event``'s; False: it is gone already."""
        self._on_event = on_event
        return not self._reader.done()

    async def request(
        self, op: str, seconds: float, *, descriptors: Mapping[str, int] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Send one request and return its reply; raises ``DomainError`` (refused, dead or too slow).

        The VMM gets ``descriptors`` under these names; they stay open here.
        """
        self._next += 1
        number = self._next
        if descriptors:
            arguments["descriptors"] = list(descriptors)
        packet = json.dumps({"id": number, "op": op, **arguments}).encode()
        if len(packet) > PACKET_LIMIT:
            raise DomainError(f"a {op} request is too large for the VMM")
        if self._reader.done():
            raise DomainError("the VMM is gone")
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        try:
            async with asyncio.timeout(seconds):
                async with self._sending:
                    await self._send(packet, list((descriptors or {}).values()))
                answer = await reply
        except TimeoutError:
            detail = f"the VMM did not answer {op} within {seconds:g} s"
            if not self._closing:
                # Whether it did what it was told is not known: as good as dead.
                self._on_event(Died(detail))
            raise DomainError(detail) from None
        except OSError:
            raise DomainError("the VMM is gone") from None
        finally:
            self._replies.pop(number, None)
        if answer.get("ok") is not True:
            raise DomainError(
                printable(answer.get("error"), f"the VMM refused {op}"),
                hint=printable(answer.get("hint"), "") or None,
            )
        return answer

    async def _send(self, packet: bytes, descriptors: list[int]) -> None:
        """A packet goes as a whole, with its descriptors, or not yet. Raises ``OSError``."""
        while True:
            try:
                socket.send_fds(self._control, [packet], descriptors)
                return
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._control, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._control)

    async def send_agent(self, data: bytes, seconds: float) -> None:
        """Send bytes towards the agent's port."""
        for start in range(0, len(data), AGENT_CHUNK):
            chunk = base64.b64encode(data[start : start + AGENT_CHUNK]).decode()
            await self.request("agent", seconds, data=chunk)

    async def answer(self, ok: bool, **contents: str) -> None:
        """Answer what the VMM has asked. Raises ``DomainError``: it is gone, or does not read."""
        packet = json.dumps({"answer": ok, **contents}).encode()
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._sending:
                await self._send(packet, [])
        except OSError:  # a TimeoutError is one, too
            raise DomainError("the VMM is gone") from None

    def allow_writes(self, size: int) -> None:
        """Up to ``size`` bytes of files that it has open for it: at first it can write to none. It may be gone."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, size))

    async def destroy(self) -> None:
        """Ask the VMM to wipe and exit, kill it if it does not, and reap it. Never raises."""
        self._closing = True
        with contextlib.suppress(DomainError):
            await self.request("destroy", DESTROY_SECONDS)
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.warning("VMM %d does not end: killed", self.pid)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, self._stderr, return_exceptions=True)
        self._control.close()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        detail = "the VMM process ended"
        try:
            while packet := await loop.sock_recv(self._control, PACKET_LIMIT + 1):
                printed = self._dispatch(packet)
                if printed:
                    # A guest that prints without end waits: the loop is others' as well.
                    await self._prints.take(min(printed, PRINT_BURST))
                # While packets wait, receiving does not: a busy guest must not keep the loop from the others.
                await asyncio.sleep(0)
        except OSError:
            pass
        except ValueError as error:
            detail = f"the VMM broke its protocol: {error}"
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(DomainError("the VMM is gone"))
        if not self._closing:
            self._on_event(Died(detail))

    def _dispatch(self, packet: bytes) -> int:
        """Deal with one packet; the number of bytes in it that the guest has printed."""
        if len(packet) > PACKET_LIMIT:
            raise ValueError("packet too long")
        try:
            message = json.loads(packet)
        except (ValueError, RecursionError):
            raise ValueError("packet is not JSON") from None
        if not isinstance(message, dict):
            raise ValueError("packet is not an object")
        if "event" in message:
            event = _event(message)
            self._on_event(event)
            return len(event.data) if isinstance(event, ConsoleBytes) else 0
        if "ask" in message:
            self._on_event(_asked(message))
            return 0
        number = message.get("id")
        reply = self._replies.get(number) if type(number) is int else None
        # A reply that comes after its request was given up is no error.
        if reply is not None and not reply.done():
            reply.set_result(message)
        return 0

    async def _drain_stderr(self) -> None:
        """Keep the end of what the VMM wrote on stderr; log it only if the process died by itself."""
        tail = b""
        while chunk := await self._errors.read(4096):
            tail = (tail + chunk)[-STDERR_LIMIT:]
        status = await self._process.wait()
        if status != 0 and tail:
            for line in tail.decode(errors="replace").splitlines()[-30:]:
                log.warning("VMM %d: %s", self.pid, printable(line, ""))


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _event(message: dict[str, Any]) -> Event:
    match message["event"]:
        case "agent":
            return AgentBytes(_bytes(message))
        case "console":
            return ConsoleBytes(_bytes(message))
        case "ended":
            return Ended(printable(message.get("reason"), "crash"), printable(message.get("detail"), ""))
    raise ValueError("unknown event")


def _asked(message: dict[str, Any]) -> Choose:
    address, pages = message.get("address"), message.get("pages")
    if message["ask"] != "choose" or type(address) is not int or type(pages) is not int:
        raise ValueError("unknown question")
    return Choose(address, pages)


def _bytes(message: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(message["data"], validate=True)
    except (KeyError, TypeError, binascii.Error):
        raise ValueError("event without data") from None


def printable(value: Any, otherwise: str, limit: int = 200) -> str:
    """``value`` as one short printable line if it is a string, else ``otherwise``."""
    if not isinstance(value, str) or not value:
        return otherwise
    return "".join(letter if letter.isprintable() else "?" for letter in value[:limit])


def started_at(pid: int) -> int:
    """The start time of a process in clock ticks since boot, 0 if there is none (proc(5), field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def kill_leftover(pid: int, started: int) -> bool:
    """Kill the process of an earlier daemon, if it is still that process. A PID is reused; both are not."""
    if pid <= 1 or not started or started_at(pid) != started:
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if started_at(pid) != started:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
