"""The lives of units of a disk's system: what its systemd's hooks tell decides, within each application's bound.

A unit waits before each start until the agent lets it: the start is measured, and its memory is bound, or it is none.
Starting it again after a failure is systemd's, how often is counted here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Protocol

from vambrace_agent import AgentError
from vambrace_agent.settings import Application
from vambrace_agent.supervisor import FAILED, LAST_READS, RUNNING, SUCCEEDED, WAITING, Process, Supervisor, collected

_CHUNK = 64 << 10
_LONGEST_LINE = 4096
_KILLED_SECONDS = 10.0
NOT_STARTED = 127


class System(Protocol):
    """What the units are of: ``vm.Machine``."""

    @property
    def exchange(self) -> str: ...
    def start(self) -> int: ...
    def terminate(self, application: Application) -> None: ...
    def stop(self, application: Application) -> None: ...
    def bound(self, application: Application) -> bool: ...


class Units(Supervisor):
    """Supervises ``processes``, which are units of ``system``; ``starting`` is called before each start, and raises
    ``AgentError`` where it must not be."""

    def __init__(
        self, processes: list[Process], system: System, poll: select.poll, starting: Callable[[Application], None]
    ) -> None:
        super().__init__(processes, _no_launch, system.terminate, self._kill, poll)
        self._system = system
        self._starting = starting
        self._poll = poll
        self._init = 0
        self._pidfd = self._told = -1
        self._lines = b""
        self._gates: dict[int, int] = {}  # by the application's number
        self._begun: set[int] = set()
        self._killed: set[int] = set()

    def start(self) -> None:
        """Start the system, which starts the units. Raises ``AgentError``."""
        if self.started:
            return
        self.started = True
        here = self._system.exchange
        # Open both ways: neither side ever waits for the other to open them, and none sees their end.
        self._told = _open(f"{here}/told")
        self._poll.register(self._told, select.POLLIN)
        for process in self.processes:
            number = process.application.index
            self._gates[number] = _open(f"{here}/{number}.go")
            process.output = _open(f"{here}/{number}.output")
            self._poll.register(process.output, select.POLLIN)
        self._init = self._system.start()
        self._pidfd = os.pidfd_open(self._init)
        self._poll.register(self._pidfd, select.POLLIN)

    def ready(self, fd: int) -> bool:
        """Handle an event of ``fd``; False if it is not one of ours."""
        if fd == self._told:
            self._hear()
            return True
        if fd == self._pidfd:
            self.reap(self._init)
            return True
        process = next((process for process in self.processes if fd == process.output), None)
        if process:
            _read(process, 1)
        return process is not None

    def reap(self, pid: int = -1) -> None:
        """Collect ended processes: ``pid``, or with -1 all, orphans too (the duty of PID 1)."""
        for found, code in collected(pid):
            if found == self._init:
                self._poll.unregister(self._pidfd)
                os.close(self._pidfd)
                self._init, self._pidfd = 0, -1
                self._hear()
                ended = 128 - code if code < 0 else code or 1
                for process in self.processes:
                    self._fail(process, ended, "the system has ended")

    def _kill(self, application: Application) -> None:
        """What was asked to end, and has not. It may be that nobody is left to tell of its end."""
        process = next(process for process in self.processes if process.application is application)
        if application.index in self._killed:
            self._fail(process, 128 + signal.SIGKILL, "it was killed")
        else:
            self._killed.add(application.index)
            self._system.stop(application)
            process.deadline = time.monotonic() + _KILLED_SECONDS

    def _hear(self) -> None:
        """Whoever is root in the system writes here what he likes about his units."""
        try:
            self._lines += os.read(self._told, _CHUNK)
        except BlockingIOError:
            return
        *lines, self._lines = self._lines.split(b"\n")
        self._lines = self._lines[-_LONGEST_LINE:]
        for line in lines:
            words = line.decode("ascii", "replace").split()
            if words == ["0", "booted"]:
                self._booted()
            process = next((one for one in self.processes if words[:1] == [str(one.application.index)]), None)
            if process and words[1:] == ["start"]:
                self._start_wanted(process)
            elif process and len(words) == 5 and words[1] == "end":
                self._ended(process, _exit_code(*words[2:]))

    def _start_wanted(self, process: Process) -> None:
        number = process.application.index
        answer = b"no\n"
        if process.state == WAITING:
            self._begun.add(number)
            if not self._system.bound(process.application):
                self._fail(process, NOT_STARTED, "its memory is not bound to its zone")
            else:
                try:
                    self._starting(process.application)
                except AgentError as error:
                    self._fail(process, NOT_STARTED, str(error))
                else:
                    process.state = RUNNING
                    answer = b"go\n"
        gate = self._gates[number]
        _drain(gate)  # what somebody did not wait for
        os.write(gate, answer)

    def _ended(self, process: Process, code: int) -> None:
        if process.state not in (WAITING, RUNNING):
            return
        _read(process, LAST_READS)
        self._begun.add(process.application.index)
        process.exit_code = code
        process.deadline = 0.0
        if code == 0 or (process.unwanted and code == 128 + process.application.stop_signal):
            process.state = SUCCEEDED
        elif not process.unwanted and process.restarts < process.application.restarts:
            process.restarts += 1
            process.state = WAITING
        else:
            process.state = FAILED

    def _booted(self) -> None:
        for process in self.processes:
            if process.application.index not in self._begun:
                self._fail(process, NOT_STARTED, f"there is no unit {process.application.unit}, or it starts nothing")

    def _fail(self, process: Process, code: int, reason: str) -> None:
        if process.state in (WAITING, RUNNING):
            process.state = FAILED
            process.exit_code = code
            process.deadline = 0.0
            process.log.append(f"vambrace: {reason}\n".encode())


def _no_launch(_application: Application, _output: int) -> int:
    raise AgentError("units are started by their system")


def _exit_code(result: str, how: str, status: str) -> int:
    """Of what systemd.exec(5) says at the end of a service; 128 + n after signal n, as in a shell, and never 0 for what
    did not succeed."""
    if result == "success":
        return 0
    if how == "exited" and status.isdecimal():
        return min(int(status), 255) or 1
    try:
        return 128 + signal.Signals[f"SIG{status}"]
    except KeyError:
        return 1


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


def _drain(fd: int) -> None:
    try:
        os.read(fd, _CHUNK)
    except BlockingIOError:
        return


def _read(process: Process, most: int) -> None:
    """Take what the unit has said, ``most`` times, or until there is nothing left."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(most):
            process.log.append(os.read(process.output, _CHUNK))
