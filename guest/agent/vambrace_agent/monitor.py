"""The agent's side of the monitor port: one JSON line per request and reply (docs/architecture.md, section 6)."""

from __future__ import annotations

import base64
import json
import os
import select
import threading
import time

from vambrace_agent import AgentError
from vambrace_agent.system import restrict

PORT_NAME = "vambrace.agent"
MAX_LINE = 64 << 10
TIMEOUT = 120.0


class MonitorRefused(AgentError):
    """The monitor answered with an error."""


def open_port(timeout: float = 30.0) -> int:
    """Open the virtio port of the monitor; only root can open any of them.

    Raises ``AgentError`` if it does not appear, or others could.
    """
    deadline = time.monotonic() + timeout
    ports = "/sys/class/virtio-ports"
    while True:
        names = os.listdir(ports) if os.path.isdir(ports) else []
        for port in names:
            with open(f"{ports}/{port}/name", encoding="ascii") as file:
                if file.read().strip() == PORT_NAME:
                    for name in names:
                        restrict("/dev/" + name)
                    return os.open("/dev/" + port, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        if time.monotonic() > deadline:
            raise AgentError("the monitor's port does not appear")
        time.sleep(0.05)


class Monitor:
    """Requests over ``fd``, one at a time, from any thread. Raises ``MonitorRefused`` and ``AgentError``."""

    def __init__(self, fd: int, timeout: float = TIMEOUT) -> None:
        self._fd = fd
        self._timeout = timeout
        self._lock = threading.Lock()
        self._next = 1
        self._buffer = b""
        os.set_blocking(fd, False)

    def identity(self) -> bytes:
        """This Realm's instance: 16 bytes."""
        instance = bytes.fromhex(str(self._call("identity").get("instance")))
        if len(instance) != 16:
            raise AgentError("the monitor gave no identity")
        return instance

    def attest(self, challenge: bytes) -> bytes:
        """An attestation token over ``challenge`` (64 bytes)."""
        reply = self._call("attest", challenge=challenge.hex())
        return base64.b64decode(str(reply.get("token")), validate=True)

    def extend(self, register: int, digest: bytes) -> None:
        """Extend a measurement register (0 to 3) by ``digest`` (32 bytes)."""
        self._call("extend", register=register, digest=digest.hex())

    def encrypt(self, message: str) -> object:
        """Carry the owner's signed ``message`` (base64) to the monitor, which verifies it and begins the change.

        Returns how far it is, as the monitor gives it.
        """
        return self._call("encrypt", message=message).get("change")

    def change(self, zone: int) -> object:
        """How far the last change of a zone's percentage is, as the monitor gives it; None if there was none."""
        return self._call("change", zone=zone).get("change")

    def auto(self, message: str) -> object:
        """Carry the owner's signed bounds (base64) to the monitor; returns what is on auto, as it gives it."""
        return self._call("auto", message=message).get("auto")

    def stats(self) -> dict[str, object]:
        """The statistics of every zone and what is on auto, as the monitor gives them."""
        reply = self._call("stats")
        return {"zones": reply.get("zones"), "auto": reply.get("auto")}

    def sample(self, on: bool, seconds: int) -> None:
        """Have the monitor begin sampling how soon pages are touched again, for so long at most, or end it."""
        self._call("sample", on=on, seconds=seconds)

    def reuse(self) -> dict[str, object]:
        """What it has sampled, as the monitor gives it: ``zones`` and ``fault_ns``."""
        reply = self._call("reuse")
        return {"zones": reply.get("zones"), "fault_ns": reply.get("fault_ns")}

    def connect(self, endpoint: int, stream: int) -> None:
        """Ask for a stream to the Realm behind an endpoint: the monitor will connect, and name this number."""
        self._call("connect", endpoint=endpoint, stream=stream)

    def broker(self, stream: int) -> None:
        """Ask for a stream to the broker: the monitor will connect, and name this number."""
        self._call("broker", stream=stream)

    def sealing_key(self, version: int) -> bytes:
        """The key (32 bytes) of what a version of this image has sealed here."""
        key = bytes.fromhex(str(self._call("seal", version=version).get("key")))
        if len(key) != 32:
            raise AgentError("the monitor gave no key")
        return key

    def messages(self) -> object:
        """What has gone through each endpoint, as the monitor gives it."""
        return self._call("messages").get("messages")

    def report(self, state: str, detail: str = "") -> None:
        self._call("report", state=state, detail=detail[:200])

    def _call(self, operation: str, **arguments: object) -> dict[str, object]:
        with self._lock:
            number = self._next
            self._next += 1
            line = json.dumps({"id": number, "op": operation, **arguments}).encode() + b"\n"
            if len(line) > MAX_LINE:
                raise AgentError("the request is too long")
            deadline = time.monotonic() + self._timeout
            self._send(line, deadline)
            while True:
                reply = self._reply(deadline)
                # An earlier request may have timed out; its late reply is not ours.
                if reply.get("id") == number:
                    break
        if reply.get("ok") is not True:
            raise MonitorRefused(str(reply.get("error") or "the monitor refused")[:500])
        return reply

    def _send(self, line: bytes, deadline: float) -> None:
        while line:
            self._wait(select.POLLOUT, deadline)
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:
                continue

    def _reply(self, deadline: float) -> dict[str, object]:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise AgentError("the monitor's reply is too long")
            self._wait(select.POLLIN, deadline)
            try:
                data = os.read(self._fd, MAX_LINE)
            except BlockingIOError:
                continue
            if not data:  # a virtio port reads as empty while the other side is not connected
                time.sleep(0.05)
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            reply = json.loads(line)
        except ValueError:
            raise AgentError("the monitor's reply is not understood") from None
        if not isinstance(reply, dict):
            raise AgentError("the monitor's reply is not understood")
        return reply

    def _wait(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._fd, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise AgentError("the monitor does not answer")
