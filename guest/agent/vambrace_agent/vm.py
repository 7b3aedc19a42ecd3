"""The VM form: a disk's own system, its init as the first process of namespaces that the agent stays outside of.

The disk is under dm-verity, and a layer of the run over it takes what the system writes. Its root is a user without a
right in the Realm (``identities``): it reaches neither the agent's processes, files and devices, nor vsock, nor the
kernel's modules and settings. Services that are applications are systemd's units; ``unitfiles`` has what is put beside
them, ``units`` what becomes of them.

    /run/vm/user     the user namespace
            lower    the disk, with owners as the namespace has them
            data     a tmpfs: what the system writes (upper), and its /run
            root     both together
            bundle   what crun is told;  state  what crun remembers
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable

from vambrace_agent import AgentError, confine, groups, images, unitfiles
from vambrace_agent.identities import allow_user_namespaces, make_user_namespace, mount_mapped
from vambrace_agent.logs import Log
from vambrace_agent.release import Broker
from vambrace_agent.settings import IDENTITIES, Application, Settings, System
from vambrace_agent.supervisor import Process
from vambrace_agent.system import MS_NODEV, MS_NOSUID, MS_RDONLY, allow_small_ports, call, put
from vambrace_agent.units import Units

RUN = "/run/vm"
GROUP = f"{groups.ROOT}/vm"
RUNTIME = "/usr/bin/crun"
NAME = "system"
MAX_PROCESSES = 4096
MAX_FILES = 1 << 18  # that are written
#: Bytes of zone 0 that the system never gets: for the agent and the kernel, whatever the system does.
RESERVE = 32 << 20
_CREATE_SECONDS = 120.0
_NODE = "/sys/devices/system/node/node0/meminfo"
#: So that what was left in a journal is not wanted: the disk was checked to have nothing there when it was built.
_OPTIONS = {"ext4": b"noload"}
#: cgroups(7), delegation: what of a group is whose it is.
_DELEGATED = ("", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads")


class Machine:
    """The system of the disk: made ready by ``prepare``, then started once. ``first`` is its root's number."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.first = IDENTITIES
        self._applications: list[Application] = []

    @property
    def exchange(self) -> str:
        """The folder that the system has as ``unitfiles.HERE``."""
        return f"{RUN}/data/run/vambrace"

    def prepare(
        self,
        wanted: Settings,
        broker: Broker | None,
        logs: str,
        poll: select.poll,
        starting: Callable[[Application], None],
    ) -> Units:
        """Everything that the system needs, before anything of it runs, and who supervises its units; their output is
        below ``logs``. Raises ``AgentError``."""
        try:
            self._make_folders()
            for application in wanted.applications:
                self._make_own(application, f"{logs}/{application.name}")
            # Before the disk is read, whose pages would be counted as taken.
            memory = system_memory()
            self._make_group(limits(wanted.applications, memory))
            # It has no capability over the network that is the Realm's, and serves on small ports.
            allow_small_ports()
            self._make_root(wanted, broker)
            unitfiles.write(f"{RUN}/data/run", wanted.applications, self.first, memory)
            with open(f"{RUN}/bundle/config.json", "x", encoding="utf-8") as file:
                json.dump(unitfiles.describe(wanted.applications, RUN, self.system.writable), file)
            self._applications = wanted.applications
            processes = [Process(one, Log(f"{logs}/{one.name}")) for one in wanted.applications]
            return Units(processes, self, poll, starting)
        except OSError as error:
            raise AgentError(f"the system cannot be prepared: {error.strerror}") from error

    def start(self) -> int:
        """Start the system's init, which is a child of this process; returns its number. Raises ``AgentError``."""
        # The runtime must be out of the group before systemd divides it: only who starts nothing stays behind.
        self._run("create", "--bundle", f"{RUN}/bundle", "--pid-file", f"{RUN}/pid", joining=True)
        with open(f"{RUN}/pid", encoding="ascii") as file:
            pid = int(file.read())
        self._run("start")
        return pid

    def terminate(self, application: Application) -> None:
        """Ask every process of its unit to end."""
        with contextlib.suppress(OSError):  # it has none, or its root has made it one that nobody can list
            groups.terminate(_group(application))

    def stop(self, application: Application) -> None:
        """Kill every process of its unit."""
        with contextlib.suppress(OSError):
            groups.kill(_group(application))

    def whose(self, pid: int) -> Application | None:
        """Whose unit a process is of, by its cgroup."""
        try:
            found = groups.group_of(pid)
        except OSError:
            return None
        for application in self._applications:
            if f"{found}/".startswith(f"{_group(application)}/"):
                return application
        return None

    def bound(self, application: Application) -> bool:
        """Whether the memory of its unit comes from its own zone and nowhere else."""
        try:
            with open(f"{_group(application)}/cpuset.mems.effective", encoding="ascii") as file:
                return file.read().strip() == str(application.index)
        except OSError:
            return False

    def _make_folders(self) -> None:
        os.mkdir(RUN)
        # For the system's root and nobody else but us: the runtime is that when it looks for the root.
        os.chown(RUN, 0, self.first)
        os.chmod(RUN, 0o710)
        for name in ("disk", "lower", "data", "root", "bundle", "state"):
            os.mkdir(f"{RUN}/{name}", 0o711 if name == "root" else 0o700)

    def _make_own(self, application: Application, logs: str) -> None:
        """What is the application's, on its own node: results, which its unit's user writes, and what it says."""
        half = application.memory // 2
        os.makedirs(application.results_directory)
        confine.mount_tmpfs(application.results_directory, application.index, half, mode=0o1777, uid=self.first)
        os.makedirs(logs, mode=0o700)
        confine.mount_tmpfs(logs, application.index, 2 << 20, mode=0o700, uid=0)

    def _make_group(self, bounds: dict[str, str]) -> None:
        os.mkdir(GROUP)
        for name, bound in bounds.items():
            put(f"{GROUP}/{name}", bound)
        for name in _DELEGATED:
            os.chown(GROUP + name, self.first, self.first)

    def _make_root(self, wanted: Settings, broker: Broker | None) -> None:
        kind = self.system.filesystem
        device = images.open_image(wanted.images[self.system.disk], broker)
        flags = MS_RDONLY | MS_NODEV
        call("mount", device.encode(), f"{RUN}/disk".encode(), kind.encode(), flags, _OPTIONS.get(kind))
        allow_user_namespaces(1)
        make_user_namespace(f"{RUN}/user", self.first)
        allow_user_namespaces(0)
        mount_mapped(f"{RUN}/disk", f"{RUN}/lower", f"{RUN}/user")
        # Without a node of its own: a page is of the zone of who writes it.
        options = f"size={self.system.writable},mode=711,nr_inodes={MAX_FILES}"
        call("mount", b"tmpfs", f"{RUN}/data".encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode())
        for name in ("upper", "work", "run"):
            os.mkdir(f"{RUN}/data/{name}", 0o700 if name == "work" else 0o755)
            os.chown(f"{RUN}/data/{name}", self.first, self.first)
        layers = f"lowerdir={RUN}/lower,upperdir={RUN}/data/upper,workdir={RUN}/data/work"
        call("mount", b"overlay", f"{RUN}/root".encode(), b"overlay", MS_NODEV, layers.encode())

    def _run(self, *words: str, joining: bool = False) -> None:
        """The runtime, about the system; what it says is for a debug Realm. ``joining``: in the system's cgroup."""
        command = [RUNTIME, "--root", f"{RUN}/state", "--cgroup-manager=disabled", *words, NAME]
        pid = os.fork()
        if not pid:
            try:
                os.setsid()
                if joining:
                    put(f"{GROUP}/cgroup.procs", "0")
                os.closerange(3, 65536)
                confine.usual_signals()
                os.execve(RUNTIME, command, {"PATH": "/usr/sbin:/usr/bin"})
            finally:
                os._exit(126)
        deadline = time.monotonic() + _CREATE_SECONDS
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if os.waitstatus_to_exitcode(status):
            raise AgentError(f"the system of the disk cannot be started: crun {words[0]} failed")


def system_memory(node: str = _NODE) -> int:
    """Bytes of zone 0 that the system may have: what is free before there is any of it, without the reserve, but never
    less than half. Raises ``OSError``, ``AgentError``."""
    with open(node, encoding="ascii") as file:
        fields = {words[2]: int(words[3]) << 10 for words in map(str.split, file) if len(words) > 3}
    try:
        free = fields["MemFree:"] + fields["Active(file):"] + fields["Inactive(file):"]
    except KeyError:
        raise AgentError("the kernel does not say how much memory is free") from None
    return max(free - RESERVE, free // 2)


def limits(applications: list[Application], memory: int) -> dict[str, str]:
    """Those of the system's cgroup, by their files: all that is of its applications, and ``memory`` for the rest."""
    return {
        "cpuset.mems": f"0-{len(applications)}",
        "pids.max": str(MAX_PROCESSES),
        "memory.max": str(memory + sum(application.memory for application in applications)),
    }


def _group(application: Application) -> str:
    """Where its unit is: systemd puts it there."""
    return f"{GROUP}/{unitfiles.SLICE}/{application.unit}"
