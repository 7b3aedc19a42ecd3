"""The applications' lives: started together, started again within their bound, ended together."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from vambrace_agent.logs import Log
from vambrace_agent.settings import Application

WAITING, RUNNING, SUCCEEDED, FAILED = "waiting", "running", "succeeded", "failed"
RESTART_DELAY = 1.0
_CHUNK = 64 << 10

Launch = Callable[[Application, int], int]
Stop = Callable[[Application], None]


class Process:
    """One application and what became of it. ``exit_code`` is 128 + n after signal n, as in a shell."""

    def __init__(self, application: Application, log: Log) -> None:
        self.application = application
        self.log = log
        self.state = WAITING
        self.exit_code: int | None = None
        self.restarts = 0
        self.pid = 0
        self.pidfd = -1
        self.output = -1
        self.due = 0.0  # when to start again (monotonic), 0 for not


class Supervisor:
    """Runs ``processes`` by means of ``launch`` and ``stop``. One thread's; others only read states."""

    def __init__(self, processes: list[Process], launch: Launch, stop: Stop, poll: select.poll) -> None:
        self.processes = processes
        self._launch = launch
        self._stop = stop
        self._poll = poll
        self.started = False

    @property
    def succeeded(self) -> bool:
        return all(process.state == SUCCEEDED for process in self.processes)

    @property
    def failed(self) -> Process | None:
        """The first application that failed beyond its bound."""
        return next((process for process in self.processes if process.state == FAILED), None)

    def start(self) -> None:
        if not self.started:
            self.started = True
            for process in self.processes:
                self._begin(process)

    def tick(self, now: float) -> float | None:
        """Start what is due; returns the seconds until the next is, or None."""
        for process in self.processes:
            if process.due and process.due <= now:
                self._begin(process)
        return min((process.due - now for process in self.processes if process.due), default=None)

    def ready(self, fd: int) -> bool:
        """Handle an event of ``fd``; False if it is not one of the supervisor's."""
        for process in self.processes:
            if fd == process.output:
                self._read(process)
                return True
            if fd == process.pidfd:
                self.reap(process.pid)
                return True
        return False

    def reap(self, pid: int = -1) -> None:
        """Collect ended processes: ``pid``, or with -1 all, orphans too (the duty of PID 1)."""
        while True:
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                return
            if not found:
                return
            for process in self.processes:
                if process.pid == found:
                    self._ended(process, os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            if process.state == RUNNING:
                self._stop(process.application)

    def _begin(self, process: Process) -> None:
        process.due = 0.0
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        try:
            process.pid = self._launch(process.application, write)
        finally:
            os.close(write)
        process.pidfd = os.pidfd_open(process.pid)
        process.output = read
        process.state = RUNNING
        self._poll.register(process.pidfd, select.POLLIN)
        self._poll.register(process.output, select.POLLIN)

    def _ended(self, process: Process, code: int) -> None:
        self._poll.unregister(process.pidfd)
        os.close(process.pidfd)
        process.pid, process.pidfd = 0, -1
        self._stop(process.application)
        while process.output >= 0 and self._read(process):
            pass
        self._close_output(process)
        process.exit_code = code if code >= 0 else 128 - code
        if code == 0:
            process.state = SUCCEEDED
        elif process.restarts < process.application.restarts:
            process.restarts += 1
            process.state = WAITING
            process.due = time.monotonic() + RESTART_DELAY
        else:
            process.state = FAILED

    def _read(self, process: Process) -> bool:
        try:
            data = os.read(process.output, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._close_output(process)
            return False
        process.log.append(data)
        return True

    def _close_output(self, process: Process) -> None:
        if process.output >= 0:
            self._poll.unregister(process.output)
            os.close(process.output)
            process.output = -1
