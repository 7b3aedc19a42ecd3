"""The applications' lives: started together, started again within their bound, ended together."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator

from vambrace_agent.health import HealthCheck
from vambrace_agent.logs import Log
from vambrace_agent.settings import Application

WAITING, RUNNING, SUCCEEDED, FAILED = "waiting", "running", "succeeded", "failed"
RESTART_DELAY = 1.0
_CHUNK = 64 << 10
#: So often is read what a pipe may hold (pipe(7), pipe-max-size); who has handed it on to others may write without end.
LAST_READS = (1 << 20) // _CHUNK + 1

Launch = Callable[[Application, int], int]
Stop = Callable[[Application], None]


class Process:
    """One application and what became of it. ``exit_code`` is 128 + n after signal n, as in a shell."""

    def __init__(self, application: Application, log: Log, health: HealthCheck | None = None) -> None:
        self.application = application
        self.log = log
        self.state = WAITING
        self.exit_code: int | None = None
        self.restarts = 0
        self.pid = 0
        self.pidfd = -1
        self.output = -1
        self.due = 0.0  # when to start again (monotonic), 0 for not
        self.health = health
        self.deadline = 0.0  # when to kill what was asked to end (monotonic), 0 for not
        self.unwanted = False  # its owner has asked that it ends


class Supervisor:
    """Runs ``processes`` by means of ``launch``, ``terminate``, which asks, and ``stop``, which does not. One thread's;
    others only read states."""

    def __init__(
        self, processes: list[Process], launch: Launch, terminate: Stop, stop: Stop, poll: select.poll
    ) -> None:
        self.processes = processes
        self._launch = launch
        self._terminate = terminate
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

    @property
    def running(self) -> bool:
        return any(process.state == RUNNING for process in self.processes)

    def tick(self, now: float) -> float | None:
        """Do what is due: starts, health checks, ends; returns the seconds until the next is, or None."""
        due = []
        for process in self.processes:
            if process.due and process.due <= now:
                self._begin(process)
            if process.deadline and process.deadline <= now:
                process.deadline = 0.0
                self._stop(process.application)
            if process.health and process.state == RUNNING and not process.deadline:
                due.append(process.health.tick(now))
            due += [moment for moment in (process.due, process.deadline) if moment]
        return min(due) - now if due else None

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
        for found, code in collected(pid):
            for process in self.processes:
                if process.pid == found:
                    self._ended(process, code)
                elif process.health and process.health.pid == found:
                    process.health.ended(code, time.monotonic())

    def end(self, name: str = "") -> None:
        """Ask the application ``name``, or all, to end; what has not when its time is over is killed."""
        now = time.monotonic()
        for process in self.processes:
            if name in ("", process.application.name):
                process.unwanted = True
                process.due = 0.0
                if process.state == RUNNING and not process.deadline:
                    self._terminate(process.application)
                    process.deadline = now + process.application.stop_seconds
                elif process.state == WAITING and self.started:
                    process.state = FAILED

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
        if process.health:
            process.health.started(time.monotonic())
        self._poll.register(process.pidfd, select.POLLIN)
        self._poll.register(process.output, select.POLLIN)

    def _ended(self, process: Process, code: int) -> None:
        self._poll.unregister(process.pidfd)
        os.close(process.pidfd)
        process.pid, process.pidfd = 0, -1
        self._stop(process.application)
        for _ in range(LAST_READS):
            if process.output < 0 or not self._read(process):
                break
        self._close_output(process)
        process.exit_code = code if code >= 0 else 128 - code
        process.deadline = 0.0
        if code == 0 or (process.unwanted and process.exit_code == 128 + process.application.stop_signal):
            process.state = SUCCEEDED
        elif not process.unwanted and process.restarts < process.application.restarts:
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


def collected(pid: int) -> Iterator[tuple[int, int]]:
    """Number and exit code, of signal n -n, of ended children: of ``pid``, or with -1 of any, as far as there are."""
    while True:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return
        if not found:
            return
        yield found, os.waitstatus_to_exitcode(status)
