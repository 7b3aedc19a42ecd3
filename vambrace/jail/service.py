"""The launcher as a service: starts a VMM for whoever has the other end of its socket, the daemon.

It says "ready"; from then on packets are JSON objects over SOCK_SEQPACKET. The daemon asks ``{"id": n, "cpus": […]}``,
with two descriptors: the VMM's control socket and its standard error output. It is answered ``{"id": n, "pid": p}``
with a pidfd when the process is in its jail, or ``{"id": n, "error": "…"}``, and for the former later
``{"id": n, "ended": status}``.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from contextlib import suppress
from typing import Any, Final

from vambrace.errors import VambraceError
from vambrace.jail.launcher import Launcher, Newcomer, kill

PACKET_LIMIT: Final = 4 << 10
READY: Final = b"ready"
#: Seconds that a process may take to get in, and that all may take to end when the daemon is gone.
ENTRY_SECONDS, FAREWELL_SECONDS = 120.0, 20.0


class Service:
    """Serves one socket, in one thread, until its other end is closed."""

    def __init__(self, launcher: Launcher, daemon: socket.socket) -> None:
        self._launcher = launcher
        self._daemon = daemon
        self._selector = selectors.DefaultSelector()
        self._coming: dict[int, tuple[Newcomer, float]] = {}  # by the request's id, with the time by which it is in
        self._living: dict[int, Newcomer] = {}

    def serve(self) -> None:
        """Returns when the daemon is gone, and after it all of its VMMs: who does not go is killed."""
        self._selector.register(self._daemon, selectors.EVENT_READ, self._take_request)
        with suppress(OSError):  # the daemon is gone: the first look at its socket says so
            self._daemon.send(READY)
        while self._step(1.0 if self._coming else None):
            pass
        end = time.monotonic() + FAREWELL_SECONDS
        while self._living and time.monotonic() < end:
            self._step(0.5)
        for vmm in self._living.values():
            kill(vmm)
            self._launcher.reap(vmm.pid)

    def _step(self, timeout: float | None) -> bool:
        """False: the daemon is gone."""
        there = True
        for key, _ in self._selector.select(timeout):
            there = key.data() is not False and there
        for number, (newcomer, end) in tuple(self._coming.items()):
            if time.monotonic() > end:
                self._refuse(number, newcomer, f"it was not in its jail within {ENTRY_SECONDS:g} s")
        return there

    def _take_request(self) -> bool:
        try:
            packet, files, _, _ = socket.recv_fds(self._daemon, PACKET_LIMIT, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # it has ended without a look at READY
            packet, files = b"", []
        try:
            if not packet:
                self._selector.unregister(self._daemon)
                return False
            request = json.loads(packet)
            control, errors = files
            self._start(request["id"], control, errors, request["cpus"])
        finally:
            for file in files:
                os.close(file)
        return True

    def _start(self, number: int, control: int, errors: int, cpus: list[int]) -> None:
        try:
            newcomer = self._launcher.start(control, errors, cpus)
        except (OSError, VambraceError) as error:
            self._answer({"id": number, "error": f"a VMM cannot be started: {error}"})
            return
        self._living[number] = newcomer
        self._coming[number] = newcomer, time.monotonic() + ENTRY_SECONDS
        self._selector.register(newcomer.way_in, selectors.EVENT_READ, lambda: self._hear(number, newcomer))
        self._selector.register(newcomer.process, selectors.EVENT_READ, lambda: self._bury(number, newcomer))

    def _hear(self, number: int, newcomer: Newcomer) -> None:
        if number not in self._coming:
            return
        try:
            if self._launcher.hear(newcomer):
                self._let_go(number, newcomer)
                self._answer({"id": number, "pid": newcomer.pid}, newcomer.process)
        except VambraceError as error:
            self._refuse(number, newcomer, error.message)

    def _refuse(self, number: int, newcomer: Newcomer, why: str) -> None:
        self._let_go(number, newcomer)
        kill(newcomer)
        self._answer({"id": number, "error": why})

    def _let_go(self, number: int, newcomer: Newcomer) -> None:
        del self._coming[number]
        self._selector.unregister(newcomer.way_in)
        newcomer.way_in.close()

    def _bury(self, number: int, vmm: Newcomer) -> None:
        if number in self._coming:
            self._hear(number, vmm)  # it may have said why
        if number in self._coming:
            return  # and more than one word
        self._selector.unregister(vmm.process)
        status = self._launcher.reap(vmm.pid)
        os.close(vmm.process)
        del self._living[number]
        if status < 0:
            print(f"WARNING VMM {vmm.pid} was ended by signal {-status}", file=sys.stderr, flush=True)
        self._answer({"id": number, "ended": status})

    def _answer(self, message: dict[str, Any], *files: int) -> None:
        with suppress(OSError):  # as there
            socket.send_fds(self._daemon, [json.dumps(message).encode()], files)
