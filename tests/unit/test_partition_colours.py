"""Colours of page frames, and who has them."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vambrace.errors import CapacityError, PartitionError, UsageError
from vambrace.partition.colours import ColourLedger, Colours, colours_of
from vambrace.partition.geometry import Cache, configured

MIB = 1 << 20


def test_colours_of_a_cache() -> None:
    colours = colours_of(configured({"size": 32 * MIB, "line": 64, "ways": 16}))
    assert (colours.count, colours.bits) == (512, 9)
    assert [colours.of(frame) for frame in (0, 511, 512, 0x12345)] == [0, 511, 0, 0x145]


@given(
    st.integers(1, 14), st.sampled_from([32, 64, 128]), st.integers(1, 20), st.integers(0, 2**40), st.integers(0, 2**40)
)
def test_pages_of_one_colour_are_those_that_share_sets(bits: int, line: int, ways: int, one: int, other: int) -> None:
    sets = (4096 << bits) // line
    colours = colours_of(Cache(3, sets * line * ways, line, sets, ways))
    first = [(one * 4096 + offset) // line % sets for offset in range(0, 4096, line)]
    second = [(other * 4096 + offset) // line % sets for offset in range(0, 4096, line)]
    assert (colours.of(one) == colours.of(other)) == (first == second) == bool(set(first) & set(second))


@pytest.mark.parametrize(
    ("cache", "reason"),
    [
        (Cache(3, 64 * 1024, 64, 1, 1024), "fully associative"),
        (Cache(3, 24576 * 64 * 20, 64, 24576, 20), "no power of two"),
        (Cache(2, 32768, 64, 64, 8), "all pages have one colour"),
        (Cache(2, 16384, 64, 32, 8), "all pages have one colour"),
    ],
)
def test_caches_without_colours(cache: Cache, reason: str) -> None:
    with pytest.raises(PartitionError, match=reason):
        colours_of(cache)


@pytest.mark.parametrize("count", [-2, 0, 1, 3, 1 << 17])
def test_numbers_of_colours_that_cannot_be(count: int) -> None:
    with pytest.raises(PartitionError):
        Colours(count)


def test_least_colours_for_a_domain() -> None:
    colours = Colours(16)
    assert [colours.least(pages, 1600) for pages in (1, 100, 101, 1600)] == [1, 1, 2, 16]
    for pages, frames in ((1601, 1600), (1, 0)):
        with pytest.raises(PartitionError, match="do not fit"):
            colours.least(pages, frames)


def test_a_refusal_says_what_is_free_and_who_holds_the_rest() -> None:
    ledger = ColourLedger(Colours(16))
    assert ledger.assign("a", 6) == (0, 1, 2, 3, 4, 5)
    assert ledger.assign("b", 8) == tuple(range(6, 14))
    with pytest.raises(CapacityError) as raised:
        ledger.assign("c", 3)
    assert raised.value.message == "domain c wants 3 cache colours; of 16, 2 are free; a holds 6, b holds 8"
    assert "c" not in ledger.held and ledger.free == (14, 15)
    ledger.release("a")
    assert ledger.assign("c", 7) == (0, 1, 2, 3, 4, 5, 14)
    ledger.release("nobody")


def test_colours_of_a_domain_that_was_there_before() -> None:
    ledger = ColourLedger(Colours(8))
    assert ledger.take("old", [5, 3, 3]) == (3, 5)
    assert ledger.assign("new", 4) == (0, 1, 2, 4)
    with pytest.raises(CapacityError, match="colour 4 is held by new"):
        ledger.take("other", [6, 4])
    for domain, colours in (("old", [7]), ("other", []), ("other", [8]), ("other", [-1])):
        with pytest.raises(UsageError):
            ledger.take(domain, colours)
    with pytest.raises(UsageError):
        ledger.assign("other", 0)
    assert set(ledger.held) == {"old", "new"}


class Assignments(RuleBasedStateMachine):
    """Whatever comes and goes, no colour has two holders, and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ColourLedger(Colours(32))
        self.sizes: dict[str, int] = {}

    @rule(domain=st.sampled_from("abcdef"), count=st.integers(-1, 40))
    def assign(self, domain: str, count: int) -> None:
        free = len(self.ledger.free)
        try:
            colours = self.ledger.assign(domain, count)
        except UsageError:
            assert count < 1 or domain in self.sizes
        except CapacityError:
            assert count > free and len(self.ledger.free) == free
        else:
            assert len(colours) == count
            self.sizes[domain] = count

    @rule(domain=st.sampled_from("abcdef"))
    def release(self, domain: str) -> None:
        self.ledger.release(domain)
        self.sizes.pop(domain, None)

    @rule(seed=st.integers(0, 1000))
    def restart(self, seed: int) -> None:
        held = list(self.ledger.held.items())
        random.Random(seed).shuffle(held)
        self.ledger = ColourLedger(Colours(32))
        for domain, colours in held:
            assert self.ledger.take(domain, colours) == colours

    @invariant()
    def each_has_its_own(self) -> None:
        assert {domain: len(colours) for domain, colours in self.ledger.held.items()} == self.sizes
        everything = [*self.ledger.free, *(colour for held in self.ledger.held.values() for colour in held)]
        assert sorted(everything) == list(range(32))


test_assignments = Assignments.TestCase
