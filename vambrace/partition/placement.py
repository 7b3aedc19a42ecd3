"""Page frames chosen by their colour: which ones to keep, and whether they are still the right ones. Root only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.pager import PAGE_SIZE
from vambrace.partition.colours import Colours
from vambrace.partition.frames import Owners
from vambrace.partition.pagemap import PRESENT, PageMap

PROC = Path("/proc")
ABSENT = -1

#: Most pages that a VMM, which may be hostile, asks about at a time.
MAX_PAGES = 1 << 17
#: Pages that are read at a time: what lies between the first and the last of them may move meanwhile.
_STEP = 1 << 12
#: How often a page is looked for that was seen at neither of its places: it was on its way.
_LOOKS = 200
_PAUSE = 0.005

#: What makes the kernel move locked pages, and the value that ends it. A kernel that has not the file does not move.
_SYSCTLS = {"vm/compact_unevictable_allowed": "0", "kernel/numa_balancing": "0"}


def read_frames(process: int, address: int, pages: int) -> list[int]:
    """The frame numbers of so many pages of a process, ABSENT where there is none (or it is being migrated).

    Raises PartitionError: no such process, no right to see them, or an address that no process has.
    """
    try:
        with PageMap(process) as pagemap:
            entries = pagemap.read(address // PAGE_SIZE, pages)
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such address"
        raise PartitionError(f"the page frames of process {process} cannot be read: {reason}") from error
    if len(entries) != pages:
        raise PartitionError(f"the page frames of process {process} cannot be read: no such address")
    numbers = zip(entries.frames(), entries.tops, strict=True)
    frames = [frame if top & PRESENT else ABSENT for frame, top in numbers]
    if 0 in frames and not any(frame > 0 for frame in frames):
        raise PartitionError(
            f"the kernel hides the page frames of process {process}", hint="run as root, or give CAP_SYS_ADMIN"
        )
    return frames


def choose(process: int, address: int, pages: int, colours: Colours, allowed: Iterable[int]) -> bytes:
    """Which of so many pages of a process have an allowed colour: bit i % 8 of byte i // 8. This is the privileged
    side of ``vambrace.pager.Place``; address and number may be a hostile process's. Raises PartitionError, also if a
    page is not there."""
    if not 0 < pages <= MAX_PAGES or address < 0 or address % PAGE_SIZE:
        raise PartitionError(f"process {process} asks about page frames that cannot be asked about")
    good = frozenset(allowed)
    keep = bytearray((pages + 7) // 8)
    for index, frame in enumerate(read_frames(process, address, pages)):
        if frame == ABSENT:
            raise PartitionError(f"page {index} of those that process {process} offers is not there")
        if colours.of(frame) in good:
            keep[index // 8] |= 1 << index % 8
    return bytes(keep)


@dataclass(frozen=True)
class Memory:
    """Where a placed window's pages are in the address space of ``process``: ``pages`` from ``guest`` on, or at the
    same offset from ``side`` on."""

    process: int
    guest: int
    side: int
    pages: int

    def there(self) -> bool:
        """Whether the process still has guest memory at all: a window that was closed keeps the addresses only."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process}/maps").read_text(errors="replace").splitlines():
                words = line.split(maxsplit=2)
                start, end = (int(word, 16) for word in words[0].split("-"))
                if start <= self.guest < end:
                    return words[1].startswith("rw")
        return False

    def frames(self) -> list[int]:
        """Each page's frame, wherever it is; while the domain runs, too. Raises PartitionError: a page has none."""
        return [frame for _, frames in self.steps() for frame in frames]

    def steps(self) -> Iterator[tuple[int, list[int]]]:
        """The same little by little: a page's number, and the frames from this page on."""
        for first in range(0, self.pages, _STEP):
            yield first, self._step(first, min(_STEP, self.pages - first))

    def _step(self, first: int, count: int) -> list[int]:
        frames = [ABSENT] * count
        for look in range(_LOOKS):
            if look:
                time.sleep(_PAUSE)
            for start in (self.guest, self.side):
                for index, frame in enumerate(read_frames(self.process, start + first * PAGE_SIZE, count)):
                    if frame == ABSENT:
                        continue
                    if frames[index] not in (ABSENT, frame):
                        raise PartitionError(
                            f"page {first + index} of process {self.process} has two page frames, or was migrated"
                        )
                    frames[index] = frame
            if ABSENT not in frames:
                return frames
        missing = first + frames.index(ABSENT)
        raise PartitionError(f"page {missing} of process {self.process} has no page frame")


def findings(
    domains: Mapping[str, Memory], colours: Colours, held: Mapping[str, Sequence[int]]
) -> Iterator[str]:
    """A line for each domain of which a page has a frame of a colour that is not its own, or that another one has too.
    ``held`` are the colours of all domains, and of the host, by their names."""
    holders = {colour: name for name, own in held.items() for colour in own}
    owners, names = Owners(), list(domains)
    for number, (name, memory) in enumerate(domains.items(), 1):
        wrong: tuple[int, int] | None = None
        shared: dict[str, list[int]] = {}
        count = 0
        try:
            for first, frames in memory.steps():
                for page, frame in enumerate(frames, first):
                    if holders.get(colours.of(frame)) != name:
                        wrong = wrong or (page, frame)
                        count += 1
                for frame, other in owners.take(number, sorted(frames)):
                    shared.setdefault(names[other - 1], []).append(frame)
        except PartitionError as error:
            yield f"{name}: {error.message}"
        if wrong:
            page, frame = wrong
            whose = holders.get(colours.of(frame), "nobody")
            more = f", and {count - 1} more are wrong" if count > 1 else ""
            yield f"{name}: page {page} has frame {frame:#x} of colour {colours.of(frame)}, which is {whose}'s{more}"
        for whose, common in shared.items():
            yield f"{name} and {whose} have {len(common)} page frames in common, frame {min(common):#x} among them"


def verify(domains: Mapping[str, Memory], colours: Colours, held: Mapping[str, Sequence[int]]) -> None:
    """Raises PartitionError with the first of ``findings``."""
    for finding in findings(domains, colours, held):
        raise PartitionError(finding)


def forbid_migration(root: Path = PROC / "sys") -> None:
    """Keeps the kernel from moving locked pages to other frames, and checks that. Raises PartitionError."""
    for name, path in _settings(root):
        try:
            path.write_text(_SYSCTLS[name] + "\n")
        except OSError as error:
            raise PartitionError(f"{name.replace('/', '.')} cannot be set: {error.strerror}") from error
    check_migration(root)


def check_migration(root: Path = PROC / "sys") -> None:
    """Raises PartitionError: the kernel may move locked pages to other frames."""
    for name, path in _settings(root):
        try:
            value = path.read_text().strip()
        except OSError as error:
            raise PartitionError(f"{name.replace('/', '.')} cannot be read: {error.strerror}") from error
        if value != _SYSCTLS[name]:
            raise PartitionError(
                f"the kernel may move pages to other frames: {name.replace('/', '.')} is {value[:20]!r}",
                hint=f"set {name.replace('/', '.')}={_SYSCTLS[name]} at boot",
            )


def _settings(root: Path) -> Iterator[tuple[str, Path]]:
    for name in _SYSCTLS:
        if (root / name).exists():
            yield name, root / name
