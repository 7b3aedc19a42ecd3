"""A container's health check, as its image asks for it: when to run it, and what its outcomes come to."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from vambrace_agent.settings import Application, Health

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"

#: Starts the check, and returns the process number of what waits for it.
LaunchHealth = Callable[[Application], int]


class HealthCheck:
    """The checks of one container. Times are monotonic seconds; one thread's, others only read ``state``."""

    def __init__(self, application: Application, health: Health, launch: LaunchHealth) -> None:
        self._application = application
        self._health = health
        self._launch = launch
        self.state = STARTING
        self.pid = 0
        self.failures = 0  # one after the other
        self._began = self._due = 0.0
        self._expired = False

    def started(self, now: float) -> None:
        """The container runs, for the first time or again."""
        self.state, self.failures, self.pid = STARTING, 0, 0
        self._began, self._due = now, now + self._health.interval
        self._expired = False

    def tick(self, now: float) -> float:
        """Do what is due; returns when the next is."""
        if now >= self._due:
            if self.pid:
                self._expire()
            else:
                self.pid, self._expired = self._launch(self._application), False
            self._due = now + self._health.timeout
        return self._due

    def ended(self, code: int, now: float) -> None:
        """The check's process is gone; ``code`` as of ``os.waitstatus_to_exitcode``."""
        self.pid = 0
        self._due = now + self._health.interval
        if code == 0 and not self._expired:
            self.state, self.failures = HEALTHY, 0
            return
        if self.state == STARTING and now < self._began + self._health.start_period:
            return
        self.failures += 1
        if self.failures >= self._health.retries:
            self.state = UNHEALTHY

    def _expire(self) -> None:
        """It has taken too long: what waits for it is not waited for. What it began in the container is that's."""
        self._expired = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
