"""Proof that domains are apart, from what the kernel says of their running processes: page frames, processors, files.

Nothing here asks the ledger what should be: it is told what each domain was given, and looks at what is.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vambrace.partition import frames
from vambrace.partition.ledger import spell
from vambrace.partition.processors import parse_list

PROC = Path("/proc")
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of proc(5)'s flags

#: Device files that hand out something of one's own at each opening, or hold nothing.
COMMON_DEVICES = frozenset(
    (
        *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm", "/dev/userfaultfd"),
        *("/dev/vhost-vsock", "/dev/vhost-net", "/dev/vfio/vfio"),
    )
)
TUN = "/dev/net/tun"
VFIO = "/dev/vfio/"
#: Processes outside that one line names.
NAMED = 4


@dataclass(frozen=True)
class Domain:
    """One domain as it should be: its processes, the processors that it may use, whether these are its ``alone``."""

    name: str
    pids: tuple[int, ...]
    cpus: frozenset[int]
    alone: bool = False
    cgroup: str = ""  # the name of its group, or none
    iommu_groups: frozenset[str] = frozenset()  # those of its devices


@dataclass(frozen=True)
class Verification:
    """``findings`` is a line for each thing that is not as it should be; ``domains`` were looked at."""

    domains: tuple[str, ...]
    threads: int
    descriptors: int
    findings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.findings


def verify(domains: Sequence[Domain]) -> Verification:
    """Look at every domain once. Root only: raises ``PartitionError`` where the kernel does not say what is asked.

    A process that ends while it is looked at is no finding.
    """
    findings = list(_memory(domains))
    threads, processors = _processors(domains)
    descriptors, files = _files(domains)
    files += _iommu_groups(domains)
    return Verification(
        tuple(domain.name for domain in domains), threads, descriptors, (*findings, *processors, *files)
    )


# Memory


def _memory(domains: Sequence[Domain]) -> Iterator[str]:
    for (name, other), count in frames.check({domain.name: domain.pids for domain in domains}).items():
        if other == frames.NONE:
            yield f"{name}: the kernel shows none of its page frames"
        elif other in (frames.ELSEWHERE, frames.SWAPPED_OUT):
            # More are not remembered.
            yield f"{name}: {_number(count)} of its pages {'are' if count > 1 else 'is'} {other}"
        else:
            yield f"{name} and {other} have {_number(count)} page frames in common"


def _number(count: int) -> str:
    return f"{count} or more" if count >= frames.REMEMBERED else str(count)


# Processors


def _processors(domains: Sequence[Domain]) -> tuple[int, list[str]]:
    """How many threads of domains there are, and what is wrong with where they, and all others, may run."""
    findings = []
    threads = 0
    ours = {pid: domain for domain in domains for pid in domain.pids}
    reserved = {cpu: domain for domain in domains if domain.alone for cpu in domain.cpus}
    outside: dict[tuple[str, int], list[str]] = defaultdict(list)
    for first, second in combinations(domains, 2):
        if (first.alone or second.alone) and (both := first.cpus & second.cpus):
            findings.append(f"{first.name} and {second.name} were both given processors {spell(both)}")
    for pid in _processes() if reserved else ours:
        domain = ours.get(pid)
        if domain is None and _of_the_kernel(pid):
            continue
        for task, name, allowed in _threads(pid):
            if domain is None:
                for cpu in allowed & reserved.keys():
                    outside[reserved[cpu].name, cpu].append(f"{name} ({task})")
                continue
            threads += 1
            if extra := allowed - domain.cpus:
                findings.append(
                    f"{domain.name}: its thread {task} ({name}) may run on processors {spell(extra)}, not its own"
                )
        if domain is not None and domain.cgroup and (group := _cgroup(pid)) not in (None, domain.cgroup):
            findings.append(f"{domain.name}: its process {pid} is in the cgroup {group}, not in its own")
    for (domain_name, cpu), others in outside.items():
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        findings.append(f"{domain_name}: threads of others may run on its processor {cpu}: {_list(others)}{more}")
    return threads, findings


def _list(words: Sequence[str]) -> str:
    return ", ".join(words[:NAMED])


def _processes() -> Iterator[int]:
    return (int(path.name) for path in PROC.iterdir() if path.name.isdigit())


def _of_the_kernel(pid: int) -> bool:
    """A thread of the kernel, or gone."""
    try:
        words = (PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return True
    return bool(int(words[6]) & _KERNEL_THREAD)


def _threads(pid: int) -> Iterator[tuple[int, str, set[int]]]:
    """Number, name and allowed processors of each thread."""
    try:
        tasks = list((PROC / f"{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            lines = (task / "status").read_text(errors="replace").splitlines()
        except OSError:
            continue
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if "Cpus_allowed_list" in status and not status.get("State", "").startswith(("Z", "X")):
            yield int(task.name), printable(status["Name"]), set(parse_list(status["Cpus_allowed_list"]))


def _cgroup(pid: int) -> str | None:
    """The path of its group in the v2 hierarchy, without the slash that it begins with; None: it has ended."""
    try:
        lines = (PROC / f"{pid}/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((printable(line[4:]) for line in lines if line.startswith("0::/")), None)


# Files


@dataclass(frozen=True)
class _File:
    """What a descriptor is of: two that are the same thing are equal in ``thing``."""

    thing: tuple[str, int | str, int]
    path: str
    written: bool


def _files(domains: Sequence[Domain]) -> tuple[int, list[str]]:
    count = 0
    users: dict[tuple[str, int | str, int], dict[str, _File]] = defaultdict(dict)
    for domain in domains:
        for pid in domain.pids:
            for file in _descriptors(pid):
                count += 1
                known = users[file.thing].get(domain.name)
                if known is None or file.written:
                    users[file.thing][domain.name] = file
    findings = []
    for (kind, _, _), by in users.items():
        for (first, one), (second, other) in combinations(by.items(), 2):
            if kind == "file" and not (one.written or other.written):
                continue
            how = " for writing" if kind == "file" else ""
            findings.append(f"{first} and {second} have the same {kind} open{how}: {one.path}")
    return count, findings


def _iommu_groups(domains: Sequence[Domain]) -> Iterator[str]:
    """Groups that a domain has open although another has their devices, or nobody."""
    for domain in domains:
        paths = {file.path for pid in domain.pids for file in _descriptors(pid)}
        found = {path.removeprefix(VFIO) for path in paths if path.startswith(VFIO) and path not in COMMON_DEVICES}
        for group in sorted(found - domain.iommu_groups):
            yield f"{domain.name}: it has IOMMU group {group} open, whose devices it was not given"


def _descriptors(pid: int) -> Iterator[_File]:
    """What ``pid`` has open that can be common to two processes."""
    try:
        numbers = list((PROC / f"{pid}/fd").iterdir())
    except OSError:
        return
    for number in numbers:
        try:
            path = printable(os.readlink(number))  # noqa: PTH115 (readlink of pathlib needs a path there)
            info = number.stat()
            flags = (PROC / f"{pid}/fdinfo/{number.name}").read_text()
        except OSError:
            continue
        yield from _identify(path, info, flags)


def _identify(path: str, info: os.stat_result, flags: str) -> Iterable[_File]:
    fields = dict(line.split(":\t", 1) for line in flags.splitlines() if ":\t" in line)
    written = int(fields.get("flags", "02"), 8) & os.O_ACCMODE != os.O_RDONLY
    if path == TUN:
        # Each descriptor is of one interface, or of none yet.
        card = printable(fields.get("iff", ""))
        return (_File(("network card", card, 0), card, written),) if card else ()
    if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        if path in COMMON_DEVICES:
            return ()
        # A disk may be read by several, a device that does more may not.
        kind = "file" if stat.S_ISBLK(info.st_mode) else "device"
        return (_File((kind, 0, info.st_rdev), path, written),)
    if stat.S_ISSOCK(info.st_mode):
        return (_File(("socket", info.st_dev, info.st_ino), path, written),)
    if stat.S_ISFIFO(info.st_mode):
        return (_File(("pipe", info.st_dev, info.st_ino), path, written),)
    if stat.S_ISREG(info.st_mode) and info.st_ino and not path.startswith("anon_inode:"):
        return (_File(("file", info.st_dev, info.st_ino), path, written),)
    return ()  # an anonymous inode of the kernel's (eventfd, KVM): all of them have one number


def printable(text: str, limit: int = 200) -> str:
    """What a process has chosen, as one short line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])
