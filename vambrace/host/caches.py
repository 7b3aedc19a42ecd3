"""How this host divides its last-level cache among domains: by ways, by colours, or not at all, and why.

Ways are the better choice where the kernel has them: they divide a cache whatever it hashes, and leave huge pages
possible. What the probe has measured is kept for this boot: it takes half a minute, and the next boot may be another
machine's.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.files import write_whole
from vambrace.host.settings import AUTO, COLOURS, OFF, WAYS, CacheSettings
from vambrace.partition import CachePartition
from vambrace.partition.colours import Colours, colours_of
from vambrace.partition.conflict import Verdict, probe, virtual_machine
from vambrace.partition.geometry import Cache, last_level, machine_caches
from vambrace.partition.ledger import Kind
from vambrace.partition.placement import forbid_migration
from vambrace.partition.ways import Tree, Ways

BOOT = Path("/proc/sys/kernel/random/boot_id")
PROBE_FILE = "cache-probe.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Division:
    """``state`` is what a domain that has a part can say of it. ``why`` is one line: what is missing, if anything.

    ``colours`` or ``ways`` is there, or neither.
    """

    state: CachePartition
    why: str = ""
    colours: Colours | None = None
    ways: Ways | None = None

    @property
    def kind(self) -> Kind | None:
        """What the ledger has to give."""
        if self.colours is not None:
            return Kind.single(COLOURS, range(self.colours.count))
        if self.ways is not None:
            return Kind.single(WAYS, self.ways.items, in_a_row=True)
        return None

    def reserved(self, percent: int) -> tuple[int, ...]:
        """What no domain gets, where ``percent`` of the cache is to be the host's: of ways it always has the least."""
        if self.ways is not None:
            return self.ways.items[: self.ways.part(percent)]
        if self.colours is not None and percent:
            return tuple(range(self.colours.part(percent)))
        return ()

    def part(self, percent: int) -> int:
        """How many colours or ways are at least so much of the cache."""
        if self.ways is not None:
            return self.ways.part(percent)
        assert self.colours is not None
        return self.colours.part(percent)

    def least(self, pages: int, frames: int) -> int:
        """What a domain of so many pages needs that asks for nothing: colours for its pages, of a host that has so many
        frames for domains, and no ways."""
        return self.colours.least(pages, frames) if self.colours is not None else 0


def undivided(why: str) -> Division:
    return Division(CachePartition.NONE, why)


def divide(
    settings: CacheSettings,
    state: Path,
    *,
    tree: Tree | None = None,
    measure: Callable[[tuple[Cache, ...]], Verdict] = probe,
) -> Division:
    """What of ``settings`` this machine can do; ``state`` is the folder of what must last. Never raises: what is not
    possible has a reason."""
    if settings.partition == OFF:
        return undivided("the host's settings leave the cache undivided")
    missing = []
    if settings.partition in (WAYS, AUTO):
        try:
            return Division(CachePartition.WAYS, ways=Ways(tree))
        except PartitionError as error:
            missing.append(error.message)
    if settings.partition in (COLOURS, AUTO):
        try:
            found = _by_colours(settings.last, state, measure)
        except PartitionError as error:
            missing.append(error.message)
        else:
            if found.state is CachePartition.CONFIRMED or settings.partition == COLOURS:
                return found
            missing.append(f"colours are unconfirmed: {found.why}")
    return undivided("; ".join(missing))


def _by_colours(last: Cache | None, state: Path, measure: Callable[[tuple[Cache, ...]], Verdict]) -> Division:
    """Raises ``PartitionError``: this machine has no colours, or its kernel moves pages."""
    caches = machine_caches(last)
    colours = colours_of(last_level(caches))
    forbid_migration()
    if virtual := virtual_machine():
        # It could not be confirmed here, whatever is measured.
        verdict = Verdict(False, f"this is a virtual machine ({virtual})")
    else:
        verdict = _known(state, caches) or _measured(state, caches, measure)
    confirmed = CachePartition.CONFIRMED if verdict.confirmed else CachePartition.UNCONFIRMED
    return Division(confirmed, "" if verdict.confirmed else verdict.reason, colours=colours)


def _known(state: Path, caches: tuple[Cache, ...]) -> Verdict | None:
    """What was measured in this boot, on these caches."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = json.loads((state / PROBE_FILE).read_text())
        if found["boot"] == BOOT.read_text().strip() and found["caches"] == _shapes(caches):
            return Verdict(found["confirmed"] is True, str(found["reason"])[:400])
    return None


def _measured(state: Path, caches: tuple[Cache, ...], measure: Callable[[tuple[Cache, ...]], Verdict]) -> Verdict:
    log.info("measuring whether the cache's colours are real: this takes about half a minute")
    verdict = measure(caches)
    log.info("colours are %s: %s", "confirmed" if verdict.confirmed else "unconfirmed", verdict.reason)
    if verdict.figures:
        log.info("measured: %s", verdict.figures)
    found = {
        "boot": BOOT.read_text().strip(),
        "caches": _shapes(caches),
        "confirmed": verdict.confirmed,
        "reason": verdict.reason,
    }
    try:
        write_whole(state / PROBE_FILE, json.dumps(found).encode())
    except OSError as error:
        log.warning("what was measured of the cache is not kept: %s", error.strerror)
    return verdict


def _shapes(caches: tuple[Cache, ...]) -> list[list[int]]:
    return [list(cache.shape) for cache in caches]
