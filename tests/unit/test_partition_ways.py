"""Ways through resctrl, on a file tree in its documented format. No hardware with MPAM has seen this code."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from fakes.resctrl import FakeResctrl
from hypothesis import given, settings

from vambrace.errors import CapacityError, PartitionError, UsageError
from vambrace.partition.ways import PREFIX, Tree, Ways


@pytest.fixture
def tree(tmp_path: Path) -> FakeResctrl:
    return FakeResctrl(tmp_path / "resctrl")


def shown(tree: FakeResctrl, group: str = "") -> str:
    return (tree.root / group / "schemata").read_text().splitlines()[1].strip()


def test_a_domain_gets_ways_of_its_own_in_every_cache(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    assert (ways.resource, ways.count, ways.held) == ("L3", 12, {})
    assert ways.assign("a", 4) == 0xF00
    assert shown(tree, PREFIX + "a") == "L3:0=f00;1=f00"
    assert shown(tree) == "L3:0=ff;1=ff"
    assert (tree.root / f"{PREFIX}a/mode").read_text() == "exclusive\n"
    ways.add("a", [17, 18])
    assert (tree.root / f"{PREFIX}a/tasks").read_text() == "17\n18\n"
    assert ways.assign("b", 3) == 0x0E0
    ways.verify()
    assert Ways(tree).held == {"a": 0xF00, "b": 0x0E0}, "a daemon that starts again finds them"
    ways.release("a")
    assert shown(tree) == "L3:0=1f;1=1f" and ways.held == {"b": 0x0E0}
    ways.release("b")
    ways.release("b")
    assert shown(tree) == "L3:0=fff;1=fff" and ways.held == {}


def test_a_refusal_says_what_is_free_and_who_holds_the_rest(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    ways.assign("a", 4)
    ways.assign("b", 4)
    before = shown(tree)
    with pytest.raises(CapacityError) as raised:
        ways.assign("c", 3)
    assert raised.value.message == (
        "domain c wants 3 cache ways in one block; of 12, 4 are free, 2 of them the host's; a holds 4, b holds 4"
    )
    assert shown(tree) == before and set(ways.held) == {"a", "b"}
    ways.assign("c", 2)
    with pytest.raises(CapacityError, match="all 4 of resctrl's groups are in use"):
        ways.assign("d", 2)


def test_calls_that_make_no_sense(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    ways.assign("a", 2)
    for domain, count in (("a", 2), ("b", 1), ("b", 0), ("../b", 2), ("", 2), ("b\n", 2)):
        with pytest.raises(UsageError):
            ways.assign(domain, count)
    assert tree.groups() == [PREFIX + "a"]


def test_ways_that_hardware_shares_are_no_domains(tmp_path: Path) -> None:
    tree = FakeResctrl(tmp_path / "resctrl")
    (tree.root / "info/L3/shareable_bits").write_text("c00\n")
    ways = Ways(tree)
    assert ways.assign("a", 4) == 0x3C0
    assert shown(tree) == "L3:0=3f;1=3f"


def test_groups_of_others_are_respected(tree: FakeResctrl) -> None:
    tree.make("theirs")
    tree.write("schemata", "L3:0=ff;1=ff\n")
    tree.write("theirs/schemata", "L3:0=f00;1=f00\n")
    ways = Ways(tree)
    assert ways.held == {}
    assert ways.assign("a", 4) == 0x0F0
    ways.release("a")
    assert shown(tree, "theirs") == "L3:0=f00;1=f00" and shown(tree) == "L3:0=ff;1=ff"


@pytest.mark.parametrize("file", ["a/schemata", "a/mode"])
def test_nothing_is_left_half_done(tree: FakeResctrl, file: str) -> None:
    ways = Ways(tree)
    tree.fail = f"{PREFIX}{file}"
    with pytest.raises(PartitionError, match=r"Invalid argument \(as the test wants it\)"):
        ways.assign("a", 4)
    assert tree.groups() == [] and shown(tree) == "L3:0=fff;1=fff"
    tree.fail = None
    assert ways.assign("a", 4) == 0xF00


def test_an_overlap_is_found(tree: FakeResctrl) -> None:
    ways = Ways(tree)
    ways.assign("a", 4)
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
    """Masks stay disjoint, and in the end the host has all again."""
    tree = FakeResctrl(tmp_path_factory.mktemp("ways") / "resctrl", closids=16)
    ways = Ways(tree)
    for domain, count in calls:
        before = ways.held
        try:
            if count:
                assert ways.assign(domain, count).bit_count() == count
            else:
                ways.release(domain)
        except (CapacityError, UsageError):
            assert ways.held == before
        ways.verify()
    for domain in ways.held:
        ways.release(domain)
    assert shown(tree) == "L3:0=fff;1=fff"
