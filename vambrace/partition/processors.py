"""The machine's processors: which are siblings of one core, and what the kernel lets one do to keep others off them.

Sources: sysfs ``cpuN/topology``, Documentation/core-api/irq/irq-affinity.rst, admin-guide/hw-vuln/core-scheduling.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from vambrace.errors import ConfigError, PartitionError
from vambrace.partition.ledger import spell

SYSFS = Path("/sys/devices/system/cpu")
INTERRUPTS = Path("/proc/irq")
#: More processors than the kernel knows.
MAX_CPU = 1 << 16

_PR_SCHED_CORE = 62
_PR_SCHED_CORE_CREATE = 1
_WHOLE_PROCESS = 1  # PIDTYPE_TGID


def parse_list(text: str) -> tuple[int, ...]:
    """A list as the kernel writes it, ``0-3,7``. Raises ``ValueError``: it is none, or of more than there can be."""
    numbers: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        first = int(match[1]) if match else MAX_CPU
        last = int(match[2]) if match and match[2] else first
        if not first <= last < MAX_CPU:
            raise ValueError(f"{part[:40]!r} is no list of processors")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def online(sysfs: Path = SYSFS) -> tuple[int, ...]:
    """The processors that run. Raises ``PartitionError``."""
    try:
        return parse_list((sysfs / "online").read_text())
    except (OSError, ValueError) as error:
        raise PartitionError("the kernel does not say which processors there are") from error


def siblings(cpu: int, sysfs: Path = SYSFS) -> tuple[int, ...]:
    """The processors of ``cpu``'s core, itself among them: more than one with SMT."""
    try:
        return parse_list((sysfs / f"cpu{cpu}/topology/thread_siblings_list").read_text()) or (cpu,)
    except (OSError, ValueError):
        return (cpu,)


def cores(cpus: Iterable[int], sysfs: Path = SYSFS) -> tuple[tuple[int, ...], ...]:
    """``cpus`` by their cores. Raises ``ConfigError``: one is not online, or a core is not wholly among them."""
    named = set(cpus)
    if missing := named - set(online(sysfs)):
        raise ConfigError(f"vmm_cpus: no processor {spell(missing)} runs here", hint="correct the settings file")
    found = sorted({siblings(cpu, sysfs) for cpu in named})
    for core in found:
        if not named.issuperset(core):
            raise ConfigError(
                f"vmm_cpus: processors {spell(core)} are one core, and only {spell(named.intersection(core))} is named",
                hint="siblings share caches and units: name them all, alike, or none",
            )
    return tuple(found)


def threads(pid: int) -> list[int]:
    """The threads of ``pid``, by their numbers; none, if it has ended."""
    try:
        return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return []


def confine(pid: int, cpus: Iterable[int]) -> None:
    """Every thread of ``pid``, if it still lives, may run on ``cpus`` only. Raises ``PartitionError``."""
    allowed = set(cpus)
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), allowed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PartitionError(f"a VMM cannot be put on processors {spell(allowed)}: {error.strerror}") from error


def schedule_apart(pid: int) -> None:
    """Core scheduling: no thread of another process runs on a core's sibling while one of ``pid`` runs on the core.

    Raises ``PartitionError``: the kernel has it not, or no core of this machine has siblings.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (_PR_SCHED_CORE_CREATE, pid, _WHOLE_PROCESS, 0)]
    if libc.prctl(_PR_SCHED_CORE, *words) and ctypes.get_errno() != errno.ESRCH:
        reason = os.strerror(ctypes.get_errno())
        raise PartitionError(
            f"the kernel cannot keep domains that share processors apart on a core's siblings: {reason}",
            hint="it needs CONFIG_SCHED_CORE; or switch SMT off, or name no shared_cpus",
        )


def steer_interrupts(cpus: Iterable[int], root: Path = INTERRUPTS) -> list[str]:
    """Interrupts, new ones too, are handled by ``cpus`` from now on; returns those that the kernel does not move.

    Those of a processor itself (timer, inter-processor) have no such setting, and some controllers' cannot be moved.
    Raises ``PartitionError``: there is no way to say it.
    """
    allowed = sorted(set(cpus))
    mask = sum(1 << cpu for cpu in allowed)
    # Groups of 32 bits, the highest first.
    words = [f"{mask >> shift & 0xFFFFFFFF:08x}" for shift in range(0, mask.bit_length(), 32)]
    stay = []
    try:
        (root / "default_smp_affinity").write_text(",".join(reversed(words)))
        for path in sorted(root.glob("*/smp_affinity_list")):
            try:
                if not set(parse_list(path.read_text())) <= set(allowed):
                    path.write_text(spell(allowed))
            except (OSError, ValueError):
                stay.append(path.parent.name)
    except OSError as error:
        raise PartitionError(f"interrupts cannot be kept off the domains' processors: {error.strerror}") from error
    return stay
