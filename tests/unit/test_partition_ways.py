"""Ways through resctrl, on a file tree in its documented format. No hardware with MPAM has seen this code."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from fakes.resctrl import FakeResctrl
from hypothesis import given, settings

from vambrace.errors import CapacityError, Conflict, PartitionError, UsageError
from vambrace.partition.ledger import Kind, Ledger, Request
from vambrace.partition.ways import PREFIX, Tree, Ways


@pytest.fixture
def tree(tmp_path: Path) -> FakeResctrl:
    return FakeResctrl(tmp_path / "resctrl")


def shown(tree: FakeResctrl, group: str = "") -> str:
    return (tree.root / group / "schemata").read_text().splitlines()[1].strip()


def test_a_domain_gets_ways_of_its_own_in_every_cache(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    assert (ways.resource, ways.items, ways.least, ways.held) == ("L3", tuple(range(12)), 2, {})
    ways.assign("a", range(8, 12))
    assert shown(tree, PREFIX + "a") == "L3:0=f00;1=f00"
    assert shown(tree) == "L3:0=ff;1=ff"
    assert (tree.root / f"{PREFIX}a/mode").read_text() == "exclusive\n"
    ways.add("a", [17, 18])
    assert (tree.root / f"{PREFIX}a/tasks").read_text() == "17\n18\n"
    ways.assign("b", (7, 6, 5))
    ways.verify()
    assert Ways(tree).held == {"a": (8, 9, 10, 11), "b": (5, 6, 7)}, "a daemon that starts again finds them"
    ways.release("a")
    assert shown(tree) == "L3:0=1f;1=1f" and ways.held == {"b": (5, 6, 7)}
    ways.release("b")
    ways.release("b")
    assert shown(tree) == "L3:0=fff;1=fff" and ways.held == {}


def test_how_many_ways_a_part_is(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    assert [ways.part(percent) for percent in (1, 16, 17, 25, 26, 50, 100)] == [2, 2, 3, 3, 4, 6, 12]


def test_ways_that_are_not_free(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    ways.assign("a", range(8, 12))
    ways.assign("b", range(4, 8))
    before = shown(tree)
    for wanted in (range(3, 5), range(1, 4), range(4)):
        with pytest.raises(CapacityError, match=r"the ways [0-9-]+ of the cache are not free"):
            ways.assign("c", wanted)
    assert shown(tree) == before and set(ways.held) == {"a", "b"}
    ways.assign("c", (2, 3))
    with pytest.raises(CapacityError, match="all 4 groups of resctrl are in use"):
        ways.assign("d", (0, 1))


def test_calls_that_make_no_sense(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    ways.assign("a", (10, 11))
    wrong = (("a", (4, 5)), ("b", (4,)), ("b", ()), ("../b", (4, 5)), ("", (4, 5)), ("b\n", (4, 5)))
    for domain, wanted in (*wrong, ("b", (4, 6)), ("b", (11, 12)), ("b", (-1, 0))):
        with pytest.raises(UsageError):
            ways.assign(domain, wanted)
    assert tree.groups() == [PREFIX + "a"]


def test_ways_that_hardware_shares_are_no_domains(tmp_path: Path) -> None:
    tree = FakeResctrl(tmp_path / "resctrl")
    (tree.root / "info/L3/shareable_bits").write_text("c00\n")
    ways = Ways(tree)
    assert ways.items == tuple(range(10))
    with pytest.raises(UsageError):
        ways.assign("a", range(7, 11))
    ways.assign("a", range(6, 10))
    assert shown(tree) == "L3:0=3f;1=3f"


def test_groups_of_others_are_respected(tree: FakeResctrl) -> None:
    tree.make("theirs")
    tree.write("schemata", "L3:0=ff;1=ff\n")
    tree.write("theirs/schemata", "L3:0=f00;1=f00\n")
    ways = Ways(tree)
    assert ways.held == {}
    with pytest.raises(CapacityError, match="the ways 5-8 of the cache are not free") as raised:
        ways.assign("a", range(5, 9))
    assert raised.value.hint is not None and "another program" in raised.value.hint
    ways.assign("a", range(4, 8))
    ways.release("a")
    assert shown(tree, "theirs") == "L3:0=f00;1=f00" and shown(tree) == "L3:0=ff;1=ff"


@pytest.mark.parametrize("file", ["a/schemata", "a/mode"])
def test_nothing_is_left_half_done(tree: FakeResctrl, file: str) -> None:
    ways = Ways(tree)
    tree.fail = f"{PREFIX}{file}"
    with pytest.raises(PartitionError, match=r"Invalid argument \(as the test wants it\)"):
        ways.assign("a", range(8, 12))
    assert tree.groups() == [] and shown(tree) == "L3:0=fff;1=fff"
    tree.fail = None
    ways.assign("a", range(8, 12))
    assert shown(tree, PREFIX + "a") == "L3:0=f00;1=f00"


def test_an_overlap_is_found(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    ways.assign("a", range(8, 12))
    ways.verify()
    tree._show(tree.root, dict.fromkeys(tree.caches, 0x1FF))
    with pytest.raises(PartitionError, match="the host and vambrace-a share the ways 100"):
        ways.verify()


def test_a_kernel_without_resctrl(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="no ways of the cache") as raised:
        Ways(Tree(tmp_path / "resctrl"))
    assert raised.value.hint is not None and "mount" in raised.value.hint
    (tmp_path / "resctrl").mkdir()
    with pytest.raises(PartitionError, match="offers no ways"):
        Ways(Tree(tmp_path / "resctrl"))
    (tmp_path / "resctrl/info/L3CODE").mkdir(parents=True)
    with pytest.raises(PartitionError, match="code and data apart"):
        Ways(Tree(tmp_path / "resctrl"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("info/L3/cbm_mask", "xyz"),
        ("info/L3/cbm_mask", "f0f"),
        ("info/L3/cbm_mask", "0"),
        ("info/L3/cbm_mask", "f" * 17),
        ("info/L3/min_cbm_bits", "-1"),
        ("info/L3/min_cbm_bits", "13"),
        ("info/L3/num_closids", "0"),
        ("info/L3/num_closids", ""),
        ("info/L3/shareable_bits", "all"),
        ("schemata", "L3:0=fff;1\n"),
        ("schemata", "L3:zero=fff\n"),
        ("schemata", "MB:0=100\n"),
        ("schemata", "\xff"),
        ("schemata", "L3:0=fff\n" * 10000),
    ],
)
def test_a_tree_that_cannot_be(tree: FakeResctrl, name: str, text: str) -> None:
    (tree.root / name).write_text(text)
    with pytest.raises(PartitionError) as raised:
        Ways(tree)
    assert "\n" not in raised.value.message and len(raised.value.message) < 200


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 8)), max_size=12))
def test_whatever_comes_and_goes(tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[str, int]]) -> None:
    """What the ledger gives can be given, masks stay disjoint, and in the end the host has all again."""
    tree = FakeResctrl(tmp_path_factory.mktemp("ways") / "resctrl", closids=16)
    ways = Ways(tree)
    ledger = Ledger(0, [Kind.single("ways", ways.items, in_a_row=True)])
    ledger.reserve("the host", "the host", Request(named={"ways": ways.items[: ways.least]}))
    for domain, count in calls:
        before = ways.held
        if not count:
            ways.release(domain)
            ledger.release(domain)
            continue
        try:
            share = ledger.reserve(domain, domain, Request(counts={"ways": max(count, ways.least)}))
        except (CapacityError, Conflict):
            assert ways.held == before
        else:
            ways.assign(domain, [way for way in share.of("ways") if isinstance(way, int)])
            assert ways.held == {**before, domain: share.of("ways")}
        ways.verify()
    for domain in ways.held:
        ways.release(domain)
    assert shown(tree) == "L3:0=fff;1=fff"
