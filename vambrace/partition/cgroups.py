"""A cgroup (v2) for each domain: its processors, alone or shared, its memory, its number of threads.

A domain's processors are its alone by an isolated cpuset partition: the kernel takes them from everybody else, the
host's own processes among them, and from load balancing. Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.partition.ledger import spell
from vambrace.partition.processors import parse_list

ROOT = Path("/sys/fs/cgroup")
PREFIX = "vambrace-"
CONTROLLERS = ("cpuset", "memory", "pids")
PROBE = "probe"
#: Seconds until the killed processes of a group must be gone.
PATIENCE = 5.0


class Cgroups:
    """The groups of domains, right below ``root``, the root of the hierarchy: there a partition needs nobody's leave.

    ``remove`` takes a group's directory away: the kernel does so with ``rmdir``, files and all.
    """

    def __init__(self, root: Path = ROOT, remove: Callable[[Path], None] = os.rmdir) -> None:
        self.root = root
        self._remove = remove

    def prepare(self, alone: Iterable[int] = ()) -> None:
        """Check that the kernel has what is needed: the controllers, and isolation for the processors ``alone``.

        Raises ``PartitionError``.
        """
        try:
            present = (self.root / "cgroup.controllers").read_text().split()
        except OSError as error:
            raise PartitionError(f"there is no cgroup v2 at {self.root}", hint="mount it there") from error
        if missing := [name for name in CONTROLLERS if name not in present]:
            raise PartitionError(
                f"cgroup v2 has no controller {', '.join(missing)}", hint="cgroup v1 may have it: boot without v1"
            )
        try:
            (self.root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))
        except OSError as error:
            raise PartitionError(f"cgroup v2 does not give its controllers: {error.strerror}") from error
        if cpus := sorted(set(alone)):
            self.create(PROBE, cpus, alone=True, memory=1 << 20, tasks=1)
            self.remove(PROBE)

    def path(self, domain: str) -> Path:
        return self.root / f"{PREFIX}{domain}"

    def create(self, domain: str, cpus: Iterable[int], *, alone: bool, memory: int, tasks: int) -> None:
        """A group without processes: at most ``memory`` bytes, nothing in swap, ``tasks`` threads, on ``cpus`` only.

        With ``alone`` nobody else runs there. Raises ``PartitionError``; then there is no such group.
        """
        self.remove(domain)
        group, wanted = self.path(domain), spell(cpus)
        try:
            group.mkdir()
            if alone:
                self._claim(group, wanted)
            (group / "cpuset.cpus").write_text(wanted)
            if alone:
                self._isolate(group, wanted)
            (group / "memory.max").write_text(str(memory))
            (group / "pids.max").write_text(str(tasks))
            # A domain without one of its threads is none: all of it ends.
            (group / "memory.oom.group").write_text("1")
            if (group / "memory.swap.max").exists():
                (group / "memory.swap.max").write_text("0")
        except OSError as error:
            self.remove(domain)
            raise PartitionError(f"no cgroup can be made for processors {wanted}: {error.strerror}") from error
        except PartitionError:
            self.remove(domain)
            raise

    def _claim(self, group: Path, cpus: str) -> None:
        # From Linux 6.7 on, and before anything else: that another group has them is refused here, where merely to name
        # them in cpuset.cpus would end the other's partition.
        if (group / "cpuset.cpus.exclusive").exists():
            (group / "cpuset.cpus.exclusive").write_text(cpus)

    def _isolate(self, group: Path, cpus: str) -> None:
        (group / "cpuset.cpus.partition").write_text("isolated")
        # A partition that cannot be is not refused: the kernel says so here.
        if (state := (group / "cpuset.cpus.partition").read_text().strip()) != "isolated":
            raise PartitionError(f"the kernel does not isolate processors {cpus}: {state or 'it does not say why'}")

    def enter(self, domain: str, pid: int) -> None:
        """Move the process ``pid``, all its threads, into the group. What memory it has until then counts elsewhere.

        One that has ended is nobody's concern here. Raises ``PartitionError``.
        """
        try:
            (self.path(domain) / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            return
        except OSError as error:
            raise PartitionError(f"a VMM cannot enter its cgroup: {error.strerror}") from error

    def limit(self, domain: str, memory: int) -> None:
        """From now on the group has at most ``memory`` bytes. Raises ``PartitionError``."""
        try:
            (self.path(domain) / "memory.max").write_text(str(memory))
        except OSError as error:
            raise PartitionError(f"a cgroup's memory cannot be limited: {error.strerror}") from error

    def processes(self, domain: str) -> list[int]:
        """Who is in the group; none where it does not exist."""
        try:
            return [int(word) for word in (self.path(domain) / "cgroup.procs").read_text().split()]
        except (OSError, ValueError):
            return []

    def processor_time(self, domain: str) -> int | None:
        """Microseconds that the group's threads have run, those of vhost among them; None: the kernel does not say."""
        try:
            lines = (self.path(domain) / "cpu.stat").read_text().splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith("usage_usec ")), None)
        except (OSError, ValueError, IndexError):
            return None

    def remove(self, domain: str) -> None:
        """End whoever is still in the group, and it. Raises ``PartitionError``: something does not end."""
        group = self.path(domain)
        deadline = time.monotonic() + PATIENCE
        while group.exists():
            try:
                if self.processes(domain):
                    (group / "cgroup.kill").write_text("1")
                self._remove(group)
            except FileNotFoundError:
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise PartitionError(f"the cgroup {group.name} cannot be removed: {error.strerror}") from error
                time.sleep(0.02)

    def domains(self) -> list[str]:
        """The domains that have a group."""
        return sorted(path.name.removeprefix(PREFIX) for path in self.root.glob(f"{PREFIX}*") if path.is_dir())

    def faults(self, domain: str, cpus: Iterable[int], *, alone: bool) -> list[str]:
        """What is not as ``create`` made it, a line each."""
        group, wanted = self.path(domain), tuple(sorted(cpus))
        found = []
        try:
            effective = group / "cpuset.cpus.effective"
            given = parse_list((effective if effective.exists() else group / "cpuset.cpus").read_text())
            if given != wanted:
                found.append(f"its cpuset has processors {spell(given) or 'none'}, and it should have {spell(wanted)}")
            if alone and (state := (group / "cpuset.cpus.partition").read_text().strip()) != "isolated":
                found.append(f"its processors are not isolated: {state}")
        except (OSError, ValueError):
            found.append("its cgroup cannot be read")
        return found
