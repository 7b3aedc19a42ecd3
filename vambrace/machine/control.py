"""The control protocol: JSON packets over SOCK_SEQPACKET (docs/architecture.md, section 5)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from vambrace.errors import PartitionError, UsageError, VambraceError
from vambrace.machine.descriptors import MOST, Descriptors
from vambrace.machine.request import LoadRequest
from vambrace.machine.vmm import Machine, Reason
from vambrace.pager import Place, lock_process

PACKET_LIMIT = 64 << 10


class Control:
    """Serves one machine to the daemon until it is destroyed, ends, or the daemon is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._machine = Machine(
            agent=lambda data: self._event("agent", data=_encode(data)),
            console=lambda data: self._event("console", data=_encode(data)),
        )

    def serve(self) -> None:
        """Returns after memory and keys are wiped, whatever happens."""
        try:
            self._loop()
        finally:
            self._machine.close()

    def _loop(self) -> None:
        machine = self._machine
        with select.epoll() as poll:
            poll.register(self._connection, select.EPOLLIN)
            poll.register(machine.ended_fd, select.EPOLLIN)
            watched = False
            while True:
                for fd, _ in poll.poll():
                    if fd == self._connection.fileno():
                        if not self._receive():
                            return
                    else:
                        self._announce_end()
                        return
                if not watched and machine.failure_fd >= 0:
                    poll.register(machine.failure_fd, select.EPOLLIN)
                    watched = True

    def _announce_end(self) -> None:
        reason, detail = self._machine.ended() or (Reason.CRASH, "for no known reason")
        # The memory is gone when the daemon hears of it.
        self._machine.close()
        self._event("ended", reason=reason.value, detail=detail, ran=round(self._machine.ran, 3))

    def _receive(self) -> bool:
        """Serve one request; False when there will be no more."""
        try:
            packet, files, flags, _ = socket.recv_fds(
                self._connection, PACKET_LIMIT + 1, MOST, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return False
        number: Any = None
        try:
            with Descriptors(files) as descriptors:
                if not packet:
                    return False
                message = _parse(packet)
                number = message.get("id")
                if flags & socket.MSG_CTRUNC:
                    raise UsageError(f"descriptors: more than {MOST} were sent")
                descriptors.name(_names(message))
                result = self._serve(message, descriptors)
        except VambraceError as error:
            self._send({"id": number, "ok": False, "error": error.message, "hint": error.hint})
            return True
        self._send({"id": number, "ok": True, **(result or {})})
        return result is not None

    def _serve(self, message: dict[str, Any], descriptors: Descriptors) -> dict[str, Any] | None:
        """The reply's contents, or None when the machine was destroyed. Raises ``VambraceError``."""
        machine = self._machine
        match message.get("op"):
            case "load":
                measurement = machine.load(_load_request(message, descriptors, self._choose))
                return {
                    "measurement": measurement.hex(),
                    "config": machine.config_digest.hex(),
                    **machine.frames(),
                }
            case "start":
                machine.start()
            case "encrypt":
                return machine.encrypt(_integer(message, "zone"), _integer(message, "percent")).as_dict()
            case "change":
                return machine.change().as_dict()
            case "stats":
                return {"zones": [stats.as_dict() for stats in machine.stats()]}
            case "sample":
                machine.sample(_boolean(message, "on"), _zones(message))
            case "reuse":
                zones, fault_ns = machine.reuse()
                return {"zones": [zone.as_dict() for zone in zones], "fault_ns": fault_ns}
            case "agent":
                machine.agent(_bytes64(message, "data"))
            case "console":
                machine.console(_bytes64(message, "data"))
            case "destroy":
                machine.close()
                return None
            case other:
                raise UsageError(f"{str(other)[:40]!r} is no operation")
        return {}

    def _choose(self, address: int, pages: int) -> bytes:
        """Which of these pages have frames to be kept: the daemon sees the frames, this process does not.

        Raises ``VambraceError``: the daemon refuses, is gone, or wants something else first.
        """
        self._send({"ask": "choose", "address": address, "pages": pages})
        packet = b""
        with contextlib.suppress(OSError):
            packet = self._connection.recv(PACKET_LIMIT + 1, socket.MSG_PEEK)
        answer = _parse(packet) if packet else {}
        if "answer" not in answer:
            # What it is, the main loop sees next: most likely the end.
            raise UsageError("load: the daemon does not say which page frames to take")
        self._connection.recv(PACKET_LIMIT + 1)
        if answer["answer"] is not True:
            raise PartitionError(_string(answer, "error"))
        return _bytes64(answer, "keep")

    def _event(self, name: str, **contents: str | float) -> None:
        self._send({"event": name, **contents})

    def _send(self, message: dict[str, Any]) -> None:
        packet = json.dumps(message).encode()
        # An error means that the daemon is gone: the main loop sees that too.
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(packet)


def harden() -> None:
    """No core file, no debugger, no swap: guest memory and keys are in this process. Raises ``PagerError``."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lock_process()


def _parse(packet: bytes) -> dict[str, Any]:
    if len(packet) > PACKET_LIMIT:
        raise UsageError("packet too long")
    try:
        message = json.loads(packet)
    except (ValueError, RecursionError):
        raise UsageError("packet is not JSON") from None
    if not isinstance(message, dict):
        raise UsageError("packet is not an object")
    return message


def _names(message: dict[str, Any]) -> list[str]:
    names = message.get("descriptors", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError("descriptors: a list of names is expected")
    return names


def _load_request(
    message: dict[str, Any], descriptors: Descriptors, choose: Callable[[int, int], bytes]
) -> LoadRequest:
    cpus = message.get("cpus", [])
    if not isinstance(cpus, list) or not all(type(cpu) is int for cpu in cpus):
        raise UsageError("cpus: a list of integers is expected")
    # What is not attested is no instance that anybody could name.
    instance = _hex(message, "instance", 16) if "instance" in message else os.urandom(16)
    return LoadRequest(
        descriptors=descriptors,
        instance=instance,
        share=_hex(message, "share", 32) if "share" in message else None,
        cid=_integer(message, "cid"),
        cards=_cards(message),
        cpus=tuple(cpus),
        place=Place(choose, _integer(message, "draw")) if "draw" in message else None,
    )


def _cards(message: dict[str, Any]) -> tuple[tuple[bytes, int], ...]:
    cards = message.get("cards", [])
    if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
        raise UsageError("cards: a list of objects is expected")
    return tuple((_hex(card, "mac", 6), _integer(card, "mtu")) for card in cards)


def _string(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise UsageError(f"{key}: a string is expected")
    return value


def _integer(message: dict[str, Any], key: str) -> int:
    value = message.get(key)
    if type(value) is not int:
        raise UsageError(f"{key}: an integer is expected")
    return value


def _zones(message: dict[str, Any]) -> list[int] | None:
    value = message.get("zones")
    if value is not None and (not isinstance(value, list) or not all(type(zone) is int for zone in value)):
        raise UsageError("zones: a list of integers is expected")
    return value


def _boolean(message: dict[str, Any], key: str) -> bool:
    value = message.get(key)
    if type(value) is not bool:
        raise UsageError(f"{key}: true or false is expected")
    return value


def _hex(message: dict[str, Any], key: str, length: int) -> bytes:
    try:
        value = bytes.fromhex(_string(message, key))
    except ValueError:
        value = b""
    if len(value) != length:
        raise UsageError(f"{key}: {length} bytes in hexadecimal are expected")
    return value


def _bytes64(message: dict[str, Any], key: str) -> bytes:
    try:
        return base64.b64decode(_string(message, key), validate=True)
    except ValueError:  # binascii.Error, or characters that are not ASCII
        raise UsageError(f"{key}: not base64") from None


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
