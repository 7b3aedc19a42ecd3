"""Where applications ask the agent for something: JSON lines over a Unix socket (docs/architecture.md, section 9).

Who asks is known by its user, which the kernel tells: each application has one of its own, a container many. Units
of one system may have any: they are known by their cgroup.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence

from vambrace_agent import AgentError
from vambrace_agent.pace import accept
from vambrace_agent.settings import Application

MAX_CONNECTIONS = 4  # of one application
MAX_LINE = 64 << 10
IDLE_SECONDS = 60.0
_SO_PEERPIDFD = 77  # asm-generic/socket.h

Request = dict[str, object]
#: An application's request in, what to answer out; raises ``AgentError``.
Handler = Callable[[Application, Request], Request]


class Desk:
    """Listens at ``path``, and serves each connection in a thread; ``handlers`` are by the request's ``op``.

    ``who`` tells whose a process is, where its user does not."""

    def __init__(
        self,
        path: str,
        applications: Sequence[Application],
        handlers: Mapping[str, Handler],
        who: Callable[[int], Application | None] | None = None,
    ) -> None:
        self._applications = applications
        self._who = who
        self._handlers = handlers
        self._open = {application.name: 0 for application in applications}
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        os.chmod(path, 0o666)
        self._listener.listen(16)

    def start(self) -> None:
        """Serve from now on."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            accepted = accept(self._listener)
            if accepted is None:
                continue
            connection, _ = accepted
            application = self._caller(connection)
            with self._lock:
                welcome = application is not None and self._open[application.name] < MAX_CONNECTIONS
                if application is not None and welcome:
                    self._open[application.name] += 1
            if application is None or not welcome:
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection, application), daemon=True).start()
            except RuntimeError:  # no memory for another thread
                self._leave(connection, application)

    def _caller(self, connection: socket.socket) -> Application | None:
        """Whose the process at the other end is, or was when it connected."""
        pid, uid, _ = struct.unpack("3I", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if self._who is None:
            return next((one for one in self._applications if one.owns(uid)), None)
        fd = -1
        try:
            # One that is still there afterwards had this number all the time.
            (fd,) = struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))
            found = self._who(pid)
            signal.pidfd_send_signal(fd, 0)
        except OSError:
            return None
        finally:
            if fd >= 0:
                os.close(fd)
        return found if found and found.owns(uid) else None

    def _leave(self, connection: socket.socket, application: Application) -> None:
        connection.close()
        with self._lock:
            self._open[application.name] -= 1

    def _serve(self, connection: socket.socket, application: Application) -> None:
        try:
            connection.settimeout(IDLE_SECONDS)
            with connection.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE):
                    reply = self._answer(application, line)
                    connection.sendall(json.dumps(reply).encode() + b"\n")
        except OSError:
            pass  # gone, or silent for too long
        finally:
            self._leave(connection, application)

    def _answer(self, application: Application, line: bytes) -> Request:
        try:
            request = json.loads(line)
            handler = self._handlers[request["op"]]
        except (ValueError, RecursionError, KeyError, TypeError):
            return {"ok": False, "error": f"a request is a line of JSON with an op: {', '.join(self._handlers)}"}
        try:
            return {"ok": True, **handler(application, request)}
        except AgentError as error:
            return {"ok": False, "error": str(error)}
