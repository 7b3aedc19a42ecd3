"""Starts VMM processes, each in its jail. The only part of a host that makes processes; it has one thread.

A new process is forked from here, walled in, and only then executes a Python of its own: domains share no page of
memory but files'. The rest of the way in it goes itself (entry.py), over a socket that it gets for that:

    it says "imported"     its root is emptied, and it is sent the filter of its system calls
    it says "shut in"      the kernel is asked whether that is so
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from vambrace.errors import HostError
from vambrace.jail import calls, linux, walls
from vambrace.jail.entry import IMPORTED, SHUT_IN
from vambrace.jail.identities import Identities

COMMAND: Final = (sys.executable, "-P", "-B", "-m", "vambrace.machine")
_LIMIT: Final = 1 << 10
_CONTROL, _WAY_IN = 3, 4  # the descriptors of a VMM, after the three that every process has


class Newcomer(NamedTuple):
    """A process on its way in. ``way_in`` is this side's end of its socket, ``process`` a pidfd."""

    pid: int
    user: int
    process: int
    way_in: socket.socket


class Launcher:
    """``command`` is what becomes of a process; ``reads``, what it reads beside what Python needs.

    Raises ``HostError``: this is not root, or the filter cannot be made.
    """

    def __init__(self, command: Sequence[str] = COMMAND, reads: Sequence[str] = ()) -> None:
        if os.geteuid():
            raise HostError("VMMs can be shut in by root only", hint="run the host daemon as root")
        self._command = tuple(command)
        self._reads = walls.python_reads(*reads)
        self._program = calls.program()
        self._identities = Identities()
        self._users: dict[int, int] = {}  # of living processes
        self._environment = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def start(self, control: int, errors: int, cpus: Sequence[int] = ()) -> Newcomer:
        """Start one, with these descriptors for its control socket and its standard error output.

        It waits on ``cpus``, if there are any. Raises ``OSError``, ``HostError``.
        """
        user = self._identities.next(self._users.values())
        with ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(theirs)
            stack.callback(ours.close)
            linux.unshare(linux.CLONE_NEWPID)
            try:
                pid = os.fork()
                if pid == 0:
                    self._become(user, cpus, control, errors, theirs)
            finally:  # also where there could be no process: the next one gets a namespace of its own, too
                linux.set_namespace(self._own, linux.CLONE_NEWPID)
            self._users[pid] = user
            process = os.pidfd_open(pid)
            stack.pop_all()
            theirs.close()
        return Newcomer(pid, user, process, ours)

    def _become(self, user: int, cpus: Sequence[int], control: int, errors: int, way_in: socket.socket) -> None:
        """In the new process: never returns."""
        report = way_in.fileno()
        try:
            null = os.open("/dev/null", os.O_RDWR)
            given = [os.dup(file) for file in (null, null, errors, control, way_in.fileno())]
            walls.enclose(user, cpus, self._reads)
            # From the first number that is surely above all of these.
            safe = [os.dup2(file, 1000 + number) for number, file in enumerate(given)]
            for number, file in enumerate(safe):
                os.dup2(file, number)
            report = _WAY_IN
            os.closerange(len(given), 1 << 20)
            words = [*self._command, "--control", str(_CONTROL), "--jail", str(_WAY_IN)]
            os.execve(words[0], words, self._environment)
        except BaseException as error:
            os.write(report, f"{type(error).__name__}: {error}".encode()[:_LIMIT])
        finally:
            os._exit(70)

    def hear(self, newcomer: Newcomer) -> bool:
        """Take one step with it, when it has said something; True: it is in. Raises ``HostError``: it will not be."""
        word = newcomer.way_in.recv(_LIMIT)
        try:
            if word == IMPORTED:
                walls.empty_root(newcomer.pid)
                newcomer.way_in.send(self._program)
                return False
            if word == SHUT_IN:
                walls.check(newcomer.pid, newcomer.user)
                return True
        except OSError as error:
            raise HostError(f"a VMM cannot be shut in: {error}") from error
        raise HostError(f"a VMM cannot be started: {word.decode(errors='replace') or 'it ended on its way in'}")

    def bring_in(self, control: int, errors: int, cpus: Sequence[int] = ()) -> Newcomer:
        """Start one and wait until it is in. Raises as ``start`` and ``hear``."""
        newcomer = self.start(control, errors, cpus)
        with newcomer.way_in:
            while not self.hear(newcomer):
                pass
        return newcomer

    def reap(self, pid: int) -> int:
        """The status of a process that has ended: its exit code, or the negative number of the signal that ended it."""
        _, status = os.waitpid(pid, 0)
        del self._users[pid]
        return os.waitstatus_to_exitcode(status)


def kill(newcomer: Newcomer) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(newcomer.process, signal.SIGKILL)
