"""Ways of the last-level cache for each domain, through the kernel's resctrl (MPAM on arm64, CAT on x86-64).

Linux, Documentation/filesystems/resctrl.rst. A domain gets a control group whose mask of ways no other group has; the
default group, where the host and all else are, keeps the rest. Which ways are whose, ``ledger`` knows. Ways divide the
cache whatever addresses it hashes, and leave huge pages possible. No machine with MPAM was at hand: this is tested
against files in the documented format only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

from vambrace.errors import CapacityError, PartitionError, UsageError
from vambrace.partition.ledger import spell

ROOT = Path("/sys/fs/resctrl")
#: What the names of our groups begin with.
PREFIX = "vambrace-"
_OWN_FOLDERS = {"info", "mon_groups", "mon_data"}
_MAX_TEXT = 1 << 16
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Tree:
    """The file tree of resctrl. Every error is a PartitionError that has the kernel's own words where it has some."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def read(self, name: str) -> str:
        try:
            with (self.root / name).open("rb") as file:
                data = file.read(_MAX_TEXT + 1)
            if len(data) > _MAX_TEXT:
                raise ValueError
            return data.decode("ascii")
        except OSError as error:
            raise PartitionError(f"resctrl: {name}: {error.strerror}") from error
        except ValueError as error:
            raise PartitionError(f"resctrl: {name} is no text of a sensible length") from error

    def write(self, name: str, text: str) -> None:
        try:
            with (self.root / name).open("wb", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise PartitionError(f"resctrl: {name}: {error.strerror}{self._words()}") from error

    def groups(self) -> list[str]:
        """Names of the control groups but for the default one."""
        try:
            entries = [entry.name for entry in self.root.iterdir() if entry.is_dir()]
        except OSError as error:
            raise PartitionError(
                f"the kernel offers no ways of the cache: {self.root.name}: {error.strerror}",
                hint="mount resctrl ('mount -t resctrl resctrl /sys/fs/resctrl'), on a machine and kernel that have it",
            ) from error
        return sorted(set(entries) - _OWN_FOLDERS)

    def make(self, name: str) -> None:
        try:
            (self.root / name).mkdir()
        except OSError as error:
            raise PartitionError(f"resctrl: no group {name}: {error.strerror}{self._words()}") from error

    def remove(self, name: str) -> None:
        """The kernel moves the tasks of the group into the default one."""
        try:
            (self.root / name).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise PartitionError(f"resctrl: group {name} stays: {error.strerror}{self._words()}") from error

    def _words(self) -> str:
        """Why the kernel refused last."""
        try:
            said = (self.root / "info/last_cmd_status").read_bytes()[:200].decode("ascii", "replace").strip()
        except OSError:
            return ""
        return f" ({' '.join(said.split())})" if said and said != "ok" else ""


class Ways:
    """Masks of the last level's ways. All of a domain's share lies in one block, as some hardware demands, and is the
    same in every instance of the cache. Not for several threads, nor beside another program that changes resctrl."""

    def __init__(self, tree: Tree | None = None) -> None:
        """Raises PartitionError: the kernel offers no ways, or in a form that is not known."""
        self._tree = tree or Tree()
        self._tree.groups()
        self.resource = self._resource()
        info = f"info/{self.resource}"
        self._mask = _mask(self._tree.read(f"{info}/cbm_mask"), f"{info}/cbm_mask")
        self._least = max(1, _number(self._tree.read(f"{info}/min_cbm_bits"), f"{info}/min_cbm_bits"))
        self._closids = _number(self._tree.read(f"{info}/num_closids"), f"{info}/num_closids")
        if self._mask & (self._mask + 1) or self._least > self._mask.bit_count() or self._closids < 1:
            raise PartitionError(f"resctrl: {info} tells what cannot be")
        # Ways that other hardware may use too are nobody's exclusively: the host has them.
        self._shareable = self._mask & self._optional_mask(f"{info}/shareable_bits")
        self._caches = sorted(self._masks(""))

    @property
    def items(self) -> tuple[int, ...]:
        """The ways that domains may have, and of which the host keeps ``least`` at least."""
        return _bits(self._mask & ~self._shareable)

    @property
    def least(self) -> int:
        """The fewest ways that one group can have."""
        return self._least

    @property
    def held(self) -> dict[str, tuple[int, ...]]:
        """The ways of each domain. Raises PartitionError."""
        groups = [group for group in self._tree.groups() if group.startswith(PREFIX)]
        return {group.removeprefix(PREFIX): _bits(self._union(group)) for group in groups}

    def part(self, percent: int) -> int:
        """How many ways are at least so much of the cache."""
        return max(self._least, -(-self._mask.bit_count() * percent // 100))

    def assign(self, domain: str, ways: Iterable[int]) -> None:
        """These ways, exclusively. All or nothing.

        Raises CapacityError: somebody has one of them, too few are left to the host, or the groups are used up;
        UsageError: the domain has some, or asks for what the hardware cannot give; PartitionError.
        """
        if not _DOMAIN.fullmatch(domain):
            raise UsageError("a domain's name for resctrl has letters, digits, '-' and '_' only")
        wanted = tuple(sorted(set(ways)))
        if len(wanted) < self._least or not set(wanted) <= set(self.items) or wanted[-1] - wanted[0] >= len(wanted):
            raise UsageError(
                f"ways {spell(wanted) or 'none'} of a cache cannot be given: {self._least} in a row, or more"
            )
        mask = sum(1 << way for way in wanted)
        taken = {group: self._union(group) for group in self._tree.groups()}
        if PREFIX + domain in taken:
            raise UsageError(f"domain {domain} has its ways already")
        held = 0
        for other in taken.values():
            held |= other
        if len(taken) + 1 >= self._closids:
            raise CapacityError(f"all {self._closids} groups of resctrl are in use", hint="destroy a Realm with ways")
        rest = self._rest(held | mask)
        if held & mask or not rest:
            raise CapacityError(
                f"the ways {spell(wanted)} of the cache are not free", hint="does another program use resctrl?"
            )
        before = self._union("")
        group = PREFIX + domain
        try:
            self._set("", rest)
            self._tree.make(group)
            self._set(group, mask)
            self._tree.write(f"{group}/mode", "exclusive\n")
            if self._tree.read(f"{group}/mode").strip() != "exclusive":
                raise PartitionError(f"resctrl: the ways of domain {domain} are not exclusive")
        except PartitionError:
            self._tree.remove(group)
            self._set("", before)
            raise

    def add(self, domain: str, tasks: list[int]) -> None:
        """Threads of the domain, by their numbers; those that they make later follow them. Raises PartitionError."""
        for task in tasks:  # the kernel takes one with each write
            self._tree.write(f"{PREFIX}{domain}/tasks", f"{task}\n")

    def release(self, domain: str) -> None:
        """The domain's ways, if it has any, go back to the default group. Raises PartitionError."""
        self._tree.remove(PREFIX + domain)
        held = 0
        for group in self._tree.groups():
            held |= self._union(group)
        self._set("", self._rest(held))

    def verify(self) -> None:
        """Raises PartitionError: two groups have a way in common, the default one included."""
        for finding in self.findings():
            raise PartitionError(finding)

    def findings(self, domain: str = "") -> list[str]:
        """A line for each two groups with a way in common; with ``domain`` only where one of them is its. Raises
        PartitionError."""
        masks = {group or "the host": self._union(group) for group in ["", *self._tree.groups()]}
        return [
            f"resctrl: {one} and {other} share the ways {both:x}"
            for one, other in combinations(sorted(masks), 2)
            if (both := masks[one] & masks[other]) and (not domain or PREFIX + domain in (one, other))
        ]

    # --- masks -----------------------------------------------------------------------------------------------

    def _resource(self) -> str:
        info = self._tree.root / "info"
        levels = [level for level in ("L3", "L2") if (info / level).is_dir()]
        if not levels:
            if any((info / f"{level}CODE").is_dir() for level in ("L3", "L2")):
                raise PartitionError(
                    "resctrl gives ways for code and data apart", hint="mount it without the options cdp and cdpl2"
                )
            raise PartitionError("resctrl offers no ways of a cache on this machine")
        return levels[0]

    def _masks(self, group: str) -> dict[int, int]:
        """The mask that a group has in each cache, by the cache's number."""
        name = f"{group}/schemata" if group else "schemata"
        for line in self._tree.read(name).splitlines():
            resource, _, masks = line.strip().partition(":")
            if resource.strip() == self.resource:
                found = {}
                for part in masks.split(";"):
                    number, equals, mask = part.partition("=")
                    if not equals:
                        raise PartitionError(f"resctrl: {name} cannot be read")
                    found[_number(number, name)] = _mask(mask, name)
                return found
        raise PartitionError(f"resctrl: {name} has no {self.resource}")

    def _union(self, group: str) -> int:
        union = 0
        for mask in self._masks(group).values():
            union |= mask
        return union & self._mask

    def _set(self, group: str, mask: int) -> None:
        name = f"{group}/schemata" if group else "schemata"
        self._tree.write(name, f"{self.resource}:" + ";".join(f"{cache}={mask:x}" for cache in self._caches) + "\n")
        if any(found != mask for found in self._masks(group).values()):
            raise PartitionError(f"resctrl: {name} is not as it was written")

    def _rest(self, held: int) -> int:
        """The host's ways where domains hold others: the longest free block, the lowest of several; 0: too short."""
        best = block = 0
        count = self._mask.bit_count()
        for bit in range(count + 1):
            if bit < count and not held >> bit & 1:
                block |= 1 << bit
                continue
            if block.bit_count() > best.bit_count():
                best = block
            block = 0
        return best if best.bit_count() >= self._least else 0

    def _optional_mask(self, name: str) -> int:
        return _mask(self._tree.read(name), name) if (self._tree.root / name).exists() else 0


def _mask(text: str, name: str) -> int:
    if not re.fullmatch(r"\s*[0-9a-fA-F]{1,16}\s*", text):
        raise PartitionError(f"resctrl: {name}: {text[:40]!r} is no mask")
    return int(text, 16)


def _bits(mask: int) -> tuple[int, ...]:
    return tuple(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise PartitionError(f"resctrl: {name}: {text[:40]!r} is no number")
    return int(text)
