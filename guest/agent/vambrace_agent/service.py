"""What the owner can ask for (docs/architecture.md, section 7): a request in, a reply and bytes out."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Callable

from vambrace_agent import AgentError, files
from vambrace_agent.events import Events
from vambrace_agent.monitor import Monitor
from vambrace_agent.supervisor import Process, Supervisor

CHUNK = 256 << 10
MAX_MESSAGE = 8 << 10
CHALLENGE_BYTES = 64
MAX_STOPS = 64  # requests that wait; of more the oldest are forgotten

Reply = dict[str, object]
Handler = Callable[["Service", Reply], tuple[Reply, bytes]]


class Service:
    """Answers requests from any thread. ``wake`` is called when the main loop has something to do.

    ``key`` is the SubjectPublicKeyInfo (DER) of the channel's TLS key, ``set_clock`` takes nanoseconds since 1970,
    ``root`` is what guest paths are below, ``digests`` are the hashes that a challenge is made with.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        monitor: Monitor,
        events: Events,
        key: bytes,
        instance: bytes,
        wake: Callable[[], None],
        set_clock: Callable[[int], None],
        root: str = "",
        digests: tuple[str, str] = ("sha256", "sha512"),
    ) -> None:
        self._supervisor = supervisor
        self._monitor = monitor
        self._events = events
        self._key = key
        self._instance = instance
        self._wake = wake
        self._set_clock = set_clock
        self._root = root
        self._digests = digests
        self.start_wanted = threading.Event()
        self.collected = threading.Event()
        #: Names of applications that are to end, empty for all; taken by the main loop.
        self.stops_wanted: deque[str] = deque(maxlen=MAX_STOPS)
        self.state = "ready"

    def handle(self, request: object) -> tuple[Reply, bytes]:
        """The reply to ``request``, which may be anything that JSON can say."""
        if not isinstance(request, dict):
            return _refusal("a request is an object"), b""
        operation = request.get("op")
        handler = HANDLERS.get(operation) if isinstance(operation, str) else None
        if handler is None:
            return _refusal("no such request"), b""
        try:
            reply, data = handler(self, request)
        except AgentError as error:
            return _refusal(str(error)), b""
        reply = {"ok": True, **reply}
        if data:
            reply["length"] = len(data)
        return reply, data

    def attest(self, request: Reply) -> tuple[Reply, bytes]:
        import base64

        nonce = _hex(request, "nonce", 32)
        for_key, for_challenge = self._digests
        key = hashlib.new(for_key, self._key).digest()
        challenge = hashlib.new(for_challenge, b"vambrace-channel-1" + nonce + key + self._instance).digest()
        challenge = challenge.ljust(CHALLENGE_BYTES, b"\0")
        return {"token": base64.b64encode(self._monitor.attest(challenge)).decode()}, b""

    def events(self, request: Reply) -> tuple[Reply, bytes]:
        found, count = self._events.read(_integer(request, "first"))
        return {"events": found, "count": count}, b""

    def status(self, _request: Reply) -> tuple[Reply, bytes]:
        applications = [_status(process) for process in self._supervisor.processes]
        return {"state": self.state, "applications": applications}, b""

    def clock(self, request: Reply) -> tuple[Reply, bytes]:
        """The owner's time, before the applications start: nobody else is believed, and for them it only goes on."""
        wanted = not self.start_wanted.is_set()
        if wanted:
            self._set_clock(_integer(request, "time"))
        return {"set": wanted}, b""

    def start(self, _request: Reply) -> tuple[Reply, bytes]:
        self.start_wanted.set()
        self._wake()
        return {}, b""

    def stop(self, request: Reply) -> tuple[Reply, bytes]:
        name = self._process(request).application.name if "application" in request else ""
        self.stops_wanted.append(name)
        self._wake()
        return {}, b""

    def logs(self, request: Reply) -> tuple[Reply, bytes]:
        process = self._process(request)
        # Read first: what is written between the two makes "end" larger, never the data incomplete.
        offset, data = process.log.read(_integer(request, "offset"), CHUNK)
        return {"offset": offset, "end": process.log.end, "state": process.state}, data

    def results(self, _request: Reply) -> tuple[Reply, bytes]:
        found: list[Reply] = []
        for process in self._supervisor.processes:
            for path in process.application.results:
                try:
                    fd = self._open(process, path)
                except AgentError:
                    continue
                size = os.fstat(fd).st_size
                os.close(fd)
                found.append({"application": process.application.name, "path": path, "size": size})
        return {"results": found}, b""

    def result(self, request: Reply) -> tuple[Reply, bytes]:
        process = self._process(request)
        path = request.get("path")
        if not isinstance(path, str) or path not in process.application.results:
            raise AgentError("no such result is declared")
        offset = _integer(request, "offset")
        fd = self._open(process, path)
        try:
            size = os.fstat(fd).st_size
            return {"offset": offset, "size": size}, os.pread(fd, CHUNK, offset)
        except OSError:
            raise AgentError("the result cannot be read") from None
        finally:
            os.close(fd)

    def collect(self, _request: Reply) -> tuple[Reply, bytes]:
        self.collected.set()
        self._wake()
        return {}, b""

    def encrypt(self, request: Reply) -> tuple[Reply, bytes]:
        return {"change": self._monitor.encrypt(_message(request))}, b""

    def auto(self, request: Reply) -> tuple[Reply, bytes]:
        return {"auto": self._monitor.auto(_message(request))}, b""

    def change(self, request: Reply) -> tuple[Reply, bytes]:
        return {"change": self._monitor.change(_integer(request, "zone"))}, b""

    def stats(self, _request: Reply) -> tuple[Reply, bytes]:
        return self._monitor.stats(), b""

    def sample(self, request: Reply) -> tuple[Reply, bytes]:
        on = request.get("on")
        if type(on) is not bool:
            raise AgentError("on: true or false is expected")
        self._monitor.sample(on, _integer(request, "seconds"))
        return {}, b""

    def reuse(self, _request: Reply) -> tuple[Reply, bytes]:
        return self._monitor.reuse(), b""

    def messages(self, _request: Reply) -> tuple[Reply, bytes]:
        return {"messages": self._monitor.messages()}, b""

    def file(self, request: Reply) -> tuple[Reply, bytes]:
        return files.serve(str(request["op"]), self._process(request).application, request, self._root)

    def _process(self, request: Reply) -> Process:
        name = request.get("application")
        for process in self._supervisor.processes:
            if process.application.name == name:
                return process
        raise AgentError("no such application")

    def _open(self, process: Process, path: str) -> int:
        """Open a result without following links: the application may have put any there."""
        folder = process.application.results_directory
        try:
            found = files.open_below(self._root + folder, path.removeprefix(folder + "/").split("/"))
        except OSError:
            raise AgentError("the result is not there") from None
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode) or status.st_size > process.application.memory:
            os.close(found)
            raise AgentError("the result is not a regular file, or larger than its application's memory")
        return found


HANDLERS: dict[str, Handler] = {
    "attest": Service.attest,
    "events": Service.events,
    "status": Service.status,
    "clock": Service.clock,
    "start": Service.start,
    "stop": Service.stop,
    "logs": Service.logs,
    "results": Service.results,
    "result": Service.result,
    "collected": Service.collect,
    "encrypt": Service.encrypt,
    "change": Service.change,
    "auto": Service.auto,
    "stats": Service.stats,
    "sample": Service.sample,
    "reuse": Service.reuse,
    "messages": Service.messages,
    **dict.fromkeys(files.OPERATIONS, Service.file),
}


def _status(process: Process) -> Reply:
    found: Reply = {
        "name": process.application.name,
        "state": process.state,
        "exit_code": process.exit_code,
        "restarts": process.restarts,
    }
    if process.health:
        found["health"] = process.health.state
    return found


def _refusal(error: str) -> Reply:
    return {"ok": False, "error": error}


def _message(request: Reply) -> str:
    message = request.get("message")
    if not isinstance(message, str) or len(message) > MAX_MESSAGE or not message.isascii():
        raise AgentError("message: a base64 string is expected")
    return message


def _integer(request: Reply, key: str) -> int:
    value = request.get(key, 0)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise AgentError(f"{key}: a number from 0 up is expected")
    return value


def _hex(request: Reply, key: str, length: int) -> bytes:
    value = request.get(key)
    try:
        data = bytes.fromhex(value) if isinstance(value, str) and len(value) == 2 * length else b""
    except ValueError:
        data = b""
    if len(data) != length:
        raise AgentError(f"{key}: {2 * length} hexadecimal digits are expected")
    return data
