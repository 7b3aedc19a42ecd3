"""A VMM that was taken over while its page frames are chosen, and the watch over those that run."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from vambrace.errors import PartitionError
from vambrace.host import placing
from vambrace.host.placing import Placing
from vambrace.pager import PAGE_SIZE
from vambrace.partition import placement
from vambrace.partition.colours import Colours

ME = os.getpid()


def placing_of(pages: int = 64, most: int = 1 << 14) -> Placing:
    return Placing(ME, Colours(16), (1, 2), pages, most)


@pytest.mark.parametrize(
    ("address", "pages"), [(0, 0), (0, -1), (1, 1), (-4096, 1), (1 << 62, 1), (0, 1 << 60), (0, 1 << 20)]
)
def test_offers_that_cannot_be(address: int, pages: int) -> None:
    with pytest.raises(PartitionError):
        asyncio.run(placing_of(most=1 << 40).choose(address, pages))


def test_offers_are_bounded() -> None:
    """By their number of pages, and by how many of them are small: each is a system call of the daemon's."""

    async def large() -> None:
        chosen, refused = placing_of(most=5000), 0
        for _ in range(5):
            with pytest.raises(PartitionError) as raised:
                await chosen.choose(0, 2000)
            refused += raised.value.message == "the VMM offers more pages than it may"
        assert refused == 3

    async def small() -> None:
        chosen, refused = placing_of(), 0
        for _ in range(100):
            with pytest.raises(PartitionError) as raised:
                await chosen.choose(0, 1)
            refused += raised.value.message == "the VMM offers more pages than it may"
        assert refused == 100 - placing.SMALL_OFFERS

    asyncio.run(large())
    asyncio.run(small())


SIZE = 64 * PAGE_SIZE


@pytest.mark.parametrize(
    ("guest", "side"),
    [
        (SIZE, 2 * SIZE - PAGE_SIZE),
        (2 * SIZE, SIZE + PAGE_SIZE),
        (SIZE, SIZE),
        (SIZE + 1, 4 * SIZE),
        (SIZE, None),
        ("0", SIZE),
        (True, SIZE),
        (0, SIZE),
        (-SIZE, SIZE),
        (SIZE, 1 << 56),
        (float(SIZE), 4 * SIZE),
    ],
)
def test_memory_that_cannot_be(guest: Any, side: Any) -> None:
    with pytest.raises(PartitionError, match="the VMM (says two things|does not say)"):
        placing_of().memory(guest, side)


def test_memory_that_can_be() -> None:
    assert placing_of().memory(SIZE, 2 * SIZE) == placement.Memory(ME, SIZE, 2 * SIZE, 64)


def test_domains_are_watched_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes long is followed by a pause that is longer; time is the test's."""
    now, looked = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 10000:
            raise asyncio.CancelledError

    async def look(domain: str) -> None:
        nonlocal now
        looked.append(domain)
        now += 2.0

    monkeypatch.setattr(placing.asyncio, "sleep", sleep)
    monkeypatch.setattr(placing.time, "monotonic", lambda: now)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(placing.watch(lambda: ("a", "b"), look))
    assert looked[:4] == ["a", "b", "a", "b"]
    assert 2.0 * len(looked) / now <= 1 / placing.WATCH_PAUSE
