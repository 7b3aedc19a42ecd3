"""Colours of page frames."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vambrace.errors import PartitionError
from vambrace.partition.colours import Colours, colours_of
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


def test_how_many_colours_a_domain_needs() -> None:
    colours = Colours(16)
    assert [colours.part(percent) for percent in (1, 6, 7, 25, 26, 100)] == [1, 1, 2, 4, 5, 16]
    assert [colours.least(pages, 1600) for pages in (1, 80, 81, 640, 1280, 1281, 1600)] == [1, 1, 2, 8, 16, 16, 16]
    assert colours.least(1, 0) == 16
