"""The conflict probe: its decisions on simulated caches whose colours are known, and what it says of this machine."""

from __future__ import annotations

import math
import mmap
import os
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.cache import SimulatedMemory
from hypothesis import given
from hypothesis import strategies as st

from vambrace.errors import PartitionError
from vambrace.pager import PAGE_SIZE, _core
from vambrace.partition import __main__ as main
from vambrace.partition.colours import Colours
from vambrace.partition.conflict import (
    ERROR,
    SLOW,
    WALKS,
    Figures,
    Plan,
    Verdict,
    decide,
    measure,
    plan_for,
    probe,
    upper_bound,
    virtual_machine,
)
from vambrace.partition.geometry import Cache, configured, from_sysfs

#: 16 colours, 4 ways; two lines of each of 4 colours in the private cache.
PLAN = Plan(Colours(16), private=4, depth=2, ways=4)
TARGETS = 150


def plain(frame: int) -> int:
    return frame % 16


def hashed(frame: int) -> int:
    """Folded by exclusive or, as many last-level caches do it."""
    folded = 0
    while frame:
        folded, frame = folded ^ frame % 16, frame >> 4
    return folded


def half_hashed(frame: int) -> int:
    """One higher bit moves a page to another set: half of the pages are where they seem to be."""
    return frame % 16 ^ (frame >> 9 & 1) << 3


def scattered(frame: int) -> int:
    """Frame numbers of a virtual machine, say: nothing to do with the hardware's."""
    return (frame * 2654435761 >> 13) % 16


def judged(index: Callable[[int], int], *, virtual: str = "", targets: int = TARGETS, **options: Any) -> Verdict:
    memory = SimulatedMemory(PLAN.pages, index=index, ways=PLAN.ways, **options)
    return decide(measure(memory, PLAN, targets=targets, readings=3, seed=7), virtual=virtual)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 2, "jitter": 0.4},
        {"replacement": "random"},
        {"noise": 0.02, "waiting": 0.02},
        {"private": (1, 2)},
    ],
)
def test_a_cache_with_colours_is_confirmed(options: dict[str, Any]) -> None:
    verdict = judged(plain, **options)
    assert verdict.confirmed, verdict


@pytest.mark.parametrize("index", [hashed, half_hashed, scattered])
@pytest.mark.parametrize("replacement", ["lru", "random"])
def test_a_cache_that_hashes_is_not(index: Callable[[int], int], replacement: str) -> None:
    verdict = judged(index, replacement=replacement)
    assert not verdict.confirmed and "addresses are hashed" in verdict.reason, verdict


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"flat": True}, "no cache can be seen"),
        ({"noise": 0.3}, "too noisy: what should be in the cache"),
        ({"waiting": 0.7}, "too noisy: others use the cache"),
        ({"virtual": "it says so"}, r"the figures fit, but .* virtual machine \(it says so\)"),
        ({"targets": 20}, "not decided: 20 targets"),
    ],
)
def test_what_keeps_it_from_a_decision(options: dict[str, Any], reason: str) -> None:
    verdict = judged(plain, **options)
    assert not verdict.confirmed and verdict.figures
    assert re.search(reason, verdict.reason), verdict


def test_another_geometry_than_said() -> None:
    """Twice the colours, or twice the ways."""
    assert not judged(lambda frame: frame % 8).confirmed
    memory = SimulatedMemory(PLAN.pages, index=plain, ways=4 * PLAN.ways)
    verdict = decide(measure(memory, PLAN, targets=TARGETS, seed=3))
    assert not verdict.confirmed, verdict


def test_a_decision_can_be_repeated() -> None:
    assert judged(plain, noise=0.02) == judged(plain, noise=0.02)


def test_wrong_confirmations_are_as_rare_as_stated() -> None:
    """Where a share is just on the wrong side, the number of targets that would still confirm it is that unlikely."""
    for targets in (110, 150, 200, 400):
        accepted = [count for count in range(targets) if upper_bound(count, targets, ERROR / len(WALKS)) <= 0.1]
        chance = sum(math.comb(targets, count) * 0.1**count * 0.9 ** (targets - count) for count in accepted)
        assert accepted and chance <= ERROR / len(WALKS)


@given(st.integers(1, 400), st.floats(1e-6, 0.5), st.data())
def test_upper_bound(trials: int, error: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, trials - 1))
    bound = upper_bound(count, trials, error)
    tail = sum(math.comb(trials, hits) * bound**hits * (1 - bound) ** (trials - hits) for hits in range(count + 1))
    assert count / trials < bound <= 1 and tail == pytest.approx(error, rel=1e-3)
    assert bound <= upper_bound(count + 1, trials, error)


def test_each_walk_can_speak_against_it() -> None:
    right = {walk: 200 if SLOW[walk] else 0 for walk in WALKS}
    figures = Figures(200, right, 300.0, 900.0, (1, 2))
    assert decide(figures).confirmed
    reasons = set()
    for walk in WALKS:
        for wrong in (40, 15):  # clearly, and perhaps
            slow = right | {walk: 200 - wrong if SLOW[walk] else wrong}
            verdict = decide(Figures(200, slow, 300.0, 900.0, (1, 2)))
            assert not verdict.confirmed
            assert verdict.reason.startswith("not decided") == (wrong == 15)
            reasons.add(verdict.reason)
    assert len(reasons) == len(WALKS) + 1
    assert "same 200, others 0" in str(figures)


# --- plans ---------------------------------------------------------------------------------------------------


def test_plan_for_a_machine() -> None:
    one = frozenset({0})
    caches = [
        Cache(1, 32 << 10, 64, 64, 8, one),
        Cache(2, 1 << 20, 64, 2048, 8, one),
        Cache(3, 32 << 20, 64, 32768, 16, frozenset({0, 1})),
    ]
    plan = plan_for(caches)
    assert (plan.colours.count, plan.private, plan.depth, plan.ways) == (512, 32, 16, 16)
    assert plan.pages * PAGE_SIZE == 8 * (32 << 20)


def test_plan_for_a_configured_cache() -> None:
    plan = plan_for([configured({"size": 1 << 20, "line": 64, "ways": 16})])
    assert (plan.colours.count, plan.private, plan.depth, plan.ways) == (16, 1, 0, 16)


def test_machines_that_the_probe_cannot_judge() -> None:
    both, one, other = frozenset({0, 1}), frozenset({0}), frozenset({1})
    large = [Cache(2, 1 << 20, 64, 2048, 8, cpu) for cpu in (one, other)]
    with pytest.raises(PartitionError, match="which of both evicts a page cannot be told"):
        plan_for([*large, Cache(3, 2 << 20, 64, 2048, 16, both)])
    verdict = probe(large)
    assert not verdict.confirmed and "each CPU has one of level 2" in verdict.reason and verdict.figures is None
    verdict = probe([Cache(3, 1 << 32, 64, 1 << 22, 16, both)])
    assert not verdict.confirmed and "MiB of memory" in verdict.reason
    with pytest.raises(PartitionError, match="too few pages"):
        measure(SimulatedMemory(64, index=plain, ways=4), PLAN)


# --- this machine --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees page frame numbers")
def test_this_machine_gets_an_answer() -> None:
    """Confirmed on hardware only, and otherwise a reason."""
    try:
        caches = from_sysfs()
    except PartitionError as error:
        pytest.skip(error.message)
    small = [cache for cache in caches if cache.size <= 64 << 20]
    if len(small) < len(caches):
        pytest.skip("its cache is too large for a test")
    verdict = probe(caches, targets=5)
    assert not verdict.confirmed, "five targets are too few to confirm anything"
    assert verdict.reason and "\n" not in verdict.reason
    if verdict.figures:
        assert verdict.figures.targets == 5 and set(verdict.figures.slow) == set(WALKS)
    if virtual_machine():
        assert "virtual machine" in verdict.reason or verdict.figures is None


def test_what_an_operator_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as the parts say, each obstacle with its reason."""
    monkeypatch.setattr(main, "probe", lambda caches: probe(caches, targets=5))
    status = main.main()
    told = capsys.readouterr().out
    assert re.search(r"^ways: (\d+ of L\d|none \(.+\))$", told, re.MULTILINE)
    assert re.search(r"^colours: (\d+|none \(.+\))$", told, re.MULTILINE)
    assert status == (1 if "ways: none" in told else 0), "five targets confirm nothing"


def test_signs_of_a_virtual_machine(tmp_path: Path) -> None:
    assert virtual_machine(tmp_path) == ""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu vme hypervisor lahf_lm\n")
    assert virtual_machine(tmp_path) == "'hypervisor' in /proc/cpuinfo"
    (tmp_path / "proc/cpuinfo").write_text("CPU implementer : 0x41\n")
    (tmp_path / "proc/device-tree").mkdir()
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"linux,dummy-virt\0")
    assert "dummy-virt" in virtual_machine(tmp_path)


def test_the_timing_loop() -> None:
    pages = 64
    with mmap.mmap(-1, pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = bytes(len(memory))
        walk = array("I", range(1, pages))
        assert 0 < _core.time_walk(memory, 0, walk, 3, 0) < 10**9
        waited = [_core.time_walk(memory, 5, array("I"), 0, 2_000_000) for _ in range(5)]
        assert min(waited) < 2_000_000, "the wait itself is not counted"
        wrong: list[tuple[Any, ...]] = [
            (memory, pages, walk, 1, 0),
            (memory, 0, array("I", [pages]), 1, 0),
            (memory, 0, b"123", 1, 0),
            (b"", 0, array("I"), 1, 0),
        ]
        for arguments in wrong:
            with pytest.raises(_core.Error):
                _core.time_walk(*arguments)
