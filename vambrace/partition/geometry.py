"""The caches of a machine: what sysfs, the device tree or an operator says of them, checked.

sysfs: Documentation/ABI/testing/sysfs-devices-system-cpu of Linux.
Device tree: Devicetree Specification 0.4, section 3.8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import ConfigError, PartitionError
from vambrace.partition.processors import parse_list

SYSFS = Path("/sys/devices/system/cpu")
DEVICE_TREE = Path("/proc/device-tree")

#: Bounds of what is believed: levels, bytes, bytes of a line, ways. A number beyond them is a mistake.
MAX_LEVEL = 8
MAX_SIZE = 1 << 32
MAX_LINE = 4096
MAX_WAYS = 4096
_MAX_TEXT = 4096  # bytes: what sysfs writes into one file
_MAX_NODES = 1 << 16  # of a device tree

_HINT = "describe the last-level cache in the host's settings: size, line and ways"


@dataclass(frozen=True)
class Cache:
    """One cache that holds data. ``size`` and ``line`` are in bytes, size = sets × line × ways; ``cpus`` are those
    that share it, empty where it is not known (a configured one). Raises PartitionError: numbers that cannot be."""

    level: int
    size: int
    line: int
    sets: int
    ways: int
    cpus: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        bounds = {"level": MAX_LEVEL, "size": MAX_SIZE, "line": MAX_LINE, "sets": MAX_SIZE, "ways": MAX_WAYS}
        for name, most in bounds.items():
            if not 1 <= getattr(self, name) <= most:
                raise PartitionError(f"a cache's {name} of {getattr(self, name)} cannot be", hint=_HINT)
        if self.line & (self.line - 1):
            raise PartitionError(f"a cache's line of {self.line} bytes cannot be: no power of two", hint=_HINT)
        if self.size != self.sets * self.line * self.ways:
            raise PartitionError(
                f"a level {self.level} cache of {self.size} bytes cannot have {self.sets} sets of {self.ways} lines "
                f"of {self.line} bytes",
                hint=_HINT,
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Level, sets, line, ways: what two instances of one kind have in common."""
        return self.level, self.sets, self.line, self.ways


def from_sysfs(root: Path = SYSFS) -> tuple[Cache, ...]:
    """Every cache that holds data, each instance once, by level and CPU. Raises PartitionError: a file is missing, or
    says what cannot be; no cache is told of."""
    found: dict[tuple[int, frozenset[int]], Cache] = {}
    for folder in sorted(root.glob("cpu[0-9]*/cache/index[0-9]*")):
        kind = _text(folder / "type")
        if kind == "Instruction":
            continue
        if kind not in ("Data", "Unified"):
            raise PartitionError(f"sysfs: a cache of type {kind[:40]!r} is not known", hint=_HINT)
        cpus = _cpu_list(folder / "shared_cpu_list")
        cpu = int(folder.parts[-3].removeprefix("cpu"))
        if cpu not in cpus:
            raise PartitionError(f"sysfs: a cache of CPU {cpu} is not shared by CPU {cpu}", hint=_HINT)
        level, line = _number(folder / "level"), _number(folder / "coherency_line_size")
        sets, ways = _optional(folder / "number_of_sets"), _optional(folder / "ways_of_associativity")
        cache = _complete(level, _size(folder / "size"), line, sets, ways, cpus)
        if found.setdefault((level, cpus), cache) != cache:
            raise PartitionError(f"sysfs: CPUs {_listed(cpus)} say different things of one cache", hint=_HINT)
    return _checked(found.values(), "sysfs")


def from_device_tree(root: Path = DEVICE_TREE) -> tuple[Cache, ...]:
    """As ``from_sysfs``, from the nodes of a device tree as Linux shows it: folders, and properties as files. CPUs are
    counted in the order of their nodes. Only caches outside of the CPUs are told of in full, so only these are given.
    Raises PartitionError."""
    nodes = {}
    for number, path in enumerate(_folders(root)):
        if number > _MAX_NODES:
            raise PartitionError("device tree: too many nodes", hint=_HINT)
        if (path / "phandle").is_file():
            nodes[_cell(path, "phandle")] = path
    sharers: dict[Path, set[int]] = {}
    processors = sorted(path for path in root.glob("cpus/cpu@*") if path.is_dir())
    for cpu, node in enumerate(sorted(processors, key=_unit_address)):
        for _ in range(MAX_LEVEL):
            if not (node / "next-level-cache").is_file():
                break
            node = nodes.get(_cell(node, "next-level-cache"), root)
            if node == root:
                raise PartitionError(f"device tree: CPU {cpu} names a cache that is not there", hint=_HINT)
            sharers.setdefault(node, set()).add(cpu)
        else:
            raise PartitionError(f"device tree: the caches of CPU {cpu} lead in a circle", hint=_HINT)
    caches = []
    for node, cpus in sharers.items():
        line = _cell(node, "cache-line-size" if (node / "cache-line-size").exists() else "cache-block-size")
        sets = _cell(node, "cache-sets") if (node / "cache-sets").exists() else None
        caches.append(
            _complete(_cell(node, "cache-level"), _cell(node, "cache-size"), line, sets, None, frozenset(cpus))
        )
    return _checked(caches, "the device tree")


def machine_caches(last: Cache | None = None, *, sysfs: Path = SYSFS, tree: Path = DEVICE_TREE) -> tuple[Cache, ...]:
    """From sysfs, or, where that tells of none, from the device tree. ``last`` is the last level as it is configured:
    whatever the machine says of this level and beyond does not count. Raises PartitionError."""
    if last is not None:
        try:
            below = [cache for cache in machine_caches(sysfs=sysfs, tree=tree) if cache.level < last.level]
        except PartitionError:
            below = []  # what is configured is enough
        return (*below, last)
    if any(sysfs.glob("cpu[0-9]*/cache/index[0-9]*")) or not tree.is_dir():
        return from_sysfs(sysfs)
    return from_device_tree(tree)


def configured(values: Mapping[str, object]) -> Cache:
    """The last-level cache as an operator's settings describe it: ``size`` and ``line`` in bytes, ``ways``, and
    perhaps ``level`` (3). Raises ConfigError: a setting that is missing, not known or no whole number;
    PartitionError: numbers that cannot be."""
    if unknown := set(values) - {"size", "line", "ways", "level"}:
        raise ConfigError(f"cache: {min(unknown)!r} is not a setting", hint=_HINT)
    numbers = {}
    for name in ("size", "line", "ways", "level"):
        value = values.get(name, 3 if name == "level" else None)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"cache: {name} must be a whole number", hint=_HINT)
        numbers[name] = value
    return _complete(numbers["level"], numbers["size"], numbers["line"], None, numbers["ways"], frozenset())


def last_level(caches: tuple[Cache, ...]) -> Cache:
    """One of the last level's instances, which are all alike. Raises PartitionError: they differ, or no CPU shares
    its own with another, so that there is nothing to partition."""
    level = max(cache.level for cache in caches)
    last = [cache for cache in caches if cache.level == level]
    if len({cache.shape for cache in last}) > 1:
        raise PartitionError(
            f"the caches of level {level} differ, and one number of colours cannot serve all", hint=_HINT
        )
    if all(len(cache.cpus) == 1 for cache in last):
        raise PartitionError(
            f"no cache is known to be shared: each CPU has one of level {level} to itself",
            hint="if there is a system-level cache behind it, describe that in the host's settings",
        )
    return last[0]


def _complete(level: int, size: int, line: int, sets: int | None, ways: int | None, cpus: frozenset[int]) -> Cache:
    """Firmware often leaves out the sets or the ways: each follows from the other."""
    if sets is None and ways is None:
        raise PartitionError(f"neither sets nor ways of the cache of level {level} are told", hint=_HINT)
    if min(size, line, 1 if sets is None else sets, 1 if ways is None else ways) < 1:
        raise PartitionError(f"a level {level} cache with a size, line, sets or ways of 0 cannot be", hint=_HINT)
    if sets is None:
        assert ways is not None
        sets = size // (line * ways)
    if ways is None:
        ways = size // (line * sets)
    return Cache(level, size, line, sets, ways, cpus)


def _checked(caches: Iterable[Cache], source: str) -> tuple[Cache, ...]:
    found = sorted(caches, key=lambda cache: (cache.level, sorted(cache.cpus)))
    if not found:
        raise PartitionError(f"{source} tells of no cache", hint=_HINT)
    held: dict[int, set[int]] = {}
    for cache in found:
        seen = held.setdefault(cache.level, set())
        if seen & cache.cpus:
            raise PartitionError(
                f"{source}: CPU {min(seen & cache.cpus)} has two caches of level {cache.level}", hint=_HINT
            )
        seen |= cache.cpus
    return tuple(found)


# --- sysfs ---------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT + 1)
        if len(data) > _MAX_TEXT:
            raise ValueError("it is too long")
        return data.decode("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no short text"
        raise PartitionError(f"sysfs: {_short(path)}: {reason}", hint=_HINT) from error


def _number(path: Path) -> int:
    text = _text(path)
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise PartitionError(f"sysfs: {_short(path)}: {text[:40]!r} is no number", hint=_HINT)
    return int(text)


def _optional(path: Path) -> int | None:
    return _number(path) if path.exists() else None


def _size(path: Path) -> int:
    """Bytes of a size as sysfs writes it, '32768K'."""
    text = _text(path)
    if not (match := re.fullmatch(r"([0-9]{1,12})([KM]?)", text)):
        raise PartitionError(f"sysfs: {_short(path)}: {text[:40]!r} is no size", hint=_HINT)
    return int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]]


def _cpu_list(path: Path) -> frozenset[int]:
    """The CPUs of a list as sysfs writes it, '0-3,8'."""
    text = _text(path)
    try:
        if cpus := parse_list(text):
            return frozenset(cpus)
    except ValueError:
        pass
    raise PartitionError(f"sysfs: {_short(path)}: {text[:40]!r} is no list of CPUs", hint=_HINT)


def _short(path: Path) -> str:
    return "/".join(path.parts[-4:])


def _listed(cpus: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cpus)))


# --- device tree ---------------------------------------------------------------------------------------------


def _folders(root: Path) -> Iterator[Path]:
    left = [root]
    while left:
        path = left.pop()
        yield path
        left += [entry for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink()]


def _cell(node: Path, name: str) -> int:
    """A property of one cell: 32 bits, the most significant byte first."""
    try:
        with (node / name).open("rb") as file:
            data = file.read(5)
    except OSError as error:
        raise PartitionError(f"device tree: {node.name}/{name}: {error.strerror}", hint=_HINT) from error
    if len(data) != 4:
        raise PartitionError(f"device tree: {node.name}/{name} is not of one cell", hint=_HINT)
    return int.from_bytes(data, "big")


def _unit_address(node: Path) -> int:
    _, _, address = node.name.partition("@")
    if not re.fullmatch(r"[0-9a-fA-F]{1,16}", address):
        raise PartitionError(f"device tree: {node.name[:40]!r} is no CPU", hint=_HINT)
    return int(address, 16)
