"""The console of a Normal VM, or of a debug domain: what it prints, and keys for it. Nothing here is attested."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

from websockets.exceptions import ConnectionClosed

from vambrace.client.host import Host
from vambrace.client.websocket import open_websocket
from vambrace.errors import DomainError

PIECE = 1024


class Console:
    """As a context manager it is closed in the end. ``read`` and ``write`` may be called by two threads.

    One that nobody reads does not answer the host once some KiB wait in it, and is closed after a while: open it for as
    long as it is read. What was printed last before, 64 KiB at most, comes first.
    """

    def __init__(self, host: Host, uuid: str) -> None:
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(open_websocket(host, host.console_url(uuid)))

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stack.close()

    def read(self, timeout: float | None = None) -> bytes:
        """What was printed, once there is some; nothing after ``timeout`` seconds. Raises ``EOFError``: it ended."""
        try:
            data = self._socket.recv(timeout)
        except TimeoutError:
            return b""
        except ConnectionClosed:
            raise EOFError from None
        return data if isinstance(data, bytes) else b""

    def write(self, data: bytes) -> None:
        """Type ``data``. Raises ``EOFError``: it has ended."""
        try:
            for start in range(0, len(data), PIECE):
                self._socket.send(data[start : start + PIECE])
        except ConnectionClosed:
            raise EOFError from None

    def expect(self, words: bytes, seconds: float) -> bytes:
        """What is printed up to and with ``words``. Raises ``DomainError``: they do not come in time, or it ends."""
        printed = b""
        deadline = time.monotonic() + seconds
        while words not in printed:
            left = deadline - time.monotonic()
            try:
                printed += self.read(left) if left > 0 else b""
            except EOFError:
                left = 0
            if left <= 0:
                end = printed[-200:].decode(errors="replace")
                raise DomainError(f"the console did not print {words!r}, but ended so: {end!r}")
        return printed
