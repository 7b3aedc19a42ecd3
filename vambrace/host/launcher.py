"""The daemon's side of the launcher, which starts VMM processes, each in its jail (vambrace/jail)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from vambrace.errors import DomainError, HostError
from vambrace.jail.service import PACKET_LIMIT, READY

COMMAND = (sys.executable, "-P", "-B", "-m", "vambrace.jail")
READY_SECONDS = 60.0
_GONE = "the launcher of VMMs is gone"


class Process(Protocol):
    """A VMM process, as ``asyncio.subprocess.Process`` has it too."""

    @property
    def pid(self) -> int: ...

    def kill(self) -> None:
        """Raises ``ProcessLookupError``: it has ended."""

    async def wait(self) -> int:
        """Its exit code when it has ended, or the negative number of the signal that ended it."""


class Launcher(Protocol):
    """What starts VMMs, from ``open`` to ``close``."""

    async def open(self) -> None:
        """Raises ``HostError``: it cannot start any."""

    def close(self) -> None: ...

    async def start(self, control: int, errors: int, cpus: Sequence[int]) -> Process:
        """A VMM that waits for its first request on ``control``, on the processors ``cpus`` if there are any.

        Its standard error output goes to ``errors``; both descriptors stay open here. Raises ``DomainError``.
        """


class Jailed:
    """A process that the launcher has started. ``handle`` is a pidfd, which cannot come to mean another process."""

    def __init__(self, pid: int, handle: int) -> None:
        self.pid = pid
        self._handle = handle
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        if self._ended.done():
            raise ProcessLookupError
        signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)
            os.close(self._handle)

    def watch(self) -> None:
        """There is nobody else any more who would say that it has ended."""
        if not self._ended.done():
            asyncio.get_running_loop().add_reader(self._handle, self._seen_to_end)

    def _seen_to_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        self.end(-signal.SIGKILL)


class JailLauncher:
    """The launcher's process, ``command``: begun before anything else, while this one still has every capability."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket.setblocking(False)
        self._coming: dict[int, asyncio.Future[Jailed]] = {}
        self._living: dict[int, Jailed] = {}
        self._next = 0
        self._there = True

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READY_SECONDS):
                word = await loop.sock_recv(self._socket, PACKET_LIMIT)
        except (TimeoutError, OSError):
            word = b""
        if word != READY:
            raise HostError("the launcher of VMMs does not start", hint="see what it says above")
        loop.add_reader(self._socket, self._receive)

    async def start(self, control: int, errors: int, cpus: Sequence[int]) -> Jailed:
        if not self._there:
            raise DomainError(_GONE, hint="restart the host daemon")
        self._next += 1
        number = self._next
        coming: asyncio.Future[Jailed] = asyncio.get_running_loop().create_future()
        self._coming[number] = coming
        request = json.dumps({"id": number, "cpus": list(cpus)}).encode()
        try:
            socket.send_fds(self._socket, [request], [control, errors])
            return await coming
        except OSError as error:
            raise DomainError(f"{_GONE}: {error.strerror}", hint="restart the host daemon") from error
        finally:
            del self._coming[number]

    def close(self) -> None:
        """The launcher goes, with those of its VMMs that are left."""
        with contextlib.suppress(RuntimeError):  # without an event loop nobody reads
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._process.wait()

    def _receive(self) -> None:
        try:
            packet, files, _, _ = socket.recv_fds(self._socket, PACKET_LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            packet, files = b"", []
        if packet:
            self._hear(json.loads(packet), files)
            return
        self._there = False
        asyncio.get_running_loop().remove_reader(self._socket)
        for coming in self._coming.values():
            _fail(coming, _GONE)
        for process in self._living.values():
            process.watch()

    def _hear(self, message: dict[str, Any], files: list[int]) -> None:
        number = message["id"]
        if "ended" in message:
            if process := self._living.pop(number, None):
                process.end(message["ended"])
            return
        coming = self._coming.get(number)
        if "error" in message:
            if coming is not None:
                _fail(coming, message["error"])
            return
        process = self._living[number] = Jailed(message["pid"], files[0])
        if coming is None or coming.done():  # nobody waits for it any more
            process.kill()
        else:
            coming.set_result(process)


def _fail(coming: asyncio.Future[Jailed], why: str) -> None:
    if not coming.done():
        coming.set_exception(DomainError(why))
