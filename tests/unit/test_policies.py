"""Replacement policies: strings worked out by hand, what holds for every string, and what ours is measured by."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.policy import observed, recorder, traces, workloads
from bench.policy.compare import compare
from bench.policy.engine import Engine, EngineError
from bench.policy.policies import (
    ONLINE,
    Arc,
    Belady,
    Fifo,
    Lru,
    Policy,
    S3Fifo,
    TwoQueue,
    misses,
)

# Belady's own example of his anomaly: FIFO does worse with four frames than with three.
ANOMALY = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
STRINGS = st.lists(st.integers(0, 11), min_size=1, max_size=120)


@pytest.fixture(scope="module")
def engine() -> Engine:
    assert shutil.which("cc"), "cc is missing: run 'make packages'"
    return Engine()


def hits(policy: Policy, references: list[int]) -> str:
    """One letter a reference: h or m."""
    return "".join("h" if policy.touch(page) else "m" for page in references)


# --- by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "faults"), [(3, 9), (4, 10)])
def test_fifo_has_its_anomaly(frames: int, faults: int) -> None:
    assert misses(Fifo(frames), ANOMALY) == faults


@pytest.mark.parametrize(("frames", "faults"), [(3, 10), (4, 8)])
def test_lru(frames: int, faults: int) -> None:
    assert misses(Lru(frames), ANOMALY) == faults


@pytest.mark.parametrize(("frames", "faults"), [(3, 7), (4, 6)])
def test_belady(frames: int, faults: int) -> None:
    assert misses(Belady(frames, ANOMALY), ANOMALY) == faults


def test_arc_learns_from_its_ghosts() -> None:
    # 1 and 2 are used twice (t2 = 1 2); the scan 3 4 5 6 7 passes through t1, and leaves 1 and 2 alone.
    assert hits(Arc(4), [1, 2, 1, 2, 3, 4, 5, 6, 7, 1, 2]) == "mmhhmmmmmhh"
    # 1 is given up for 4 and comes back as a ghost: into t2, where 5, 6, 7 do not reach it.
    assert hits(Arc(3), [1, 2, 2, 3, 4, 1, 5, 6, 7, 1]) == "mmhmmmmmmh"


def test_two_queues_keep_what_comes_back() -> None:
    # Four frames: one for a1in, a1out of two. 1 leaves for 5, comes back from a1out into am, and stays there.
    assert hits(TwoQueue(4), [1, 2, 3, 4, 5, 1, 6, 7, 8, 9, 1]) == "mmmmmmmmmmh"
    # Touched again while in a1in: proves nothing, and it leaves in its turn.
    assert hits(TwoQueue(4), [1, 1, 2, 3, 4, 5, 1]) == "mhmmmmm"


def test_s3_fifo_promotes_what_is_used_more_than_once() -> None:
    # Ten frames, one of them the small queue's share: 1, used twice after it came, goes to main; 2, used once, goes.
    references = [1, 1, 1, 2, 2, *range(3, 11), 11, 12, 1, 2]
    assert hits(S3Fifo(10), references) == "mhh" + "mh" + "m" * 8 + "mm" + "hm"


def test_s3_fifo_remembers_ghosts() -> None:
    # 1 leaves the small queue at 11; as a ghost it comes back into main, and 20 others pass it by.
    references = [*range(1, 12), 1, *range(20, 40), 1]
    assert hits(S3Fifo(10), references)[-1] == "h"


@pytest.mark.parametrize("policy", [*ONLINE.values(), lambda capacity: Belady(capacity, [])])
def test_no_room_is_refused(policy: Callable[[int], Policy]) -> None:
    with pytest.raises(ValueError, match="no room"):
        policy(0)


# --- for every string ---------------------------------------------------------------------------------------------


@given(STRINGS, st.integers(1, 14))
def test_capacity_holds_and_nothing_beats_belady(references: list[int], capacity: int) -> None:
    best = misses(Belady(capacity, references), references)
    distinct = len(set(references))
    assert best >= distinct
    policies = {name: make(capacity) for name, make in ONLINE.items()} | {"belady": Belady(capacity, references)}
    for name, policy in policies.items():
        seen: set[int] = set()
        count = 0
        for page in references:
            hit = policy.touch(page)
            assert not hit or page in seen, name
            seen.add(page)
            count += not hit
            assert len(policy) <= capacity, name
        assert count >= best, name
        if capacity >= distinct:
            assert count == distinct, name


@given(STRINGS, st.integers(1, 14))
@settings(deadline=None)
def test_ours_keeps_its_limit_and_its_queues(engine: Engine, references: list[int], limit: int) -> None:
    replay = engine.replay(array("I", references), 12, limit, check=1)
    assert replay.plaintext_max <= limit
    assert replay.misses >= misses(Belady(limit, references), references)
    assert replay.misses + replay.minor <= len(references)


@pytest.mark.parametrize("limit", [16, 64, 300, 900])
def test_ours_in_windows_that_have_spare_room(engine: Engine, limit: int) -> None:
    chance = random.Random(limit)
    references = array("I", (int(chance.paretovariate(0.6)) % 1000 for _ in range(20_000)))
    replay = engine.replay(references, 1000, limit, check=7)
    assert replay.plaintext_max <= limit
    assert replay.misses >= misses(Belady(limit, references), references)


def test_ours_misses_once_where_all_fits(engine: Engine) -> None:
    references = array("I", list(range(400)) * 3)
    replay = engine.replay(references, 400, 420, check=1)
    assert (replay.misses, replay.minor) == (400, 0)


def scan_beside(hot: int, rounds: int) -> array[int]:
    """``hot`` pages that are touched in each round, and ten pages a round that nobody touches again."""
    passing = iter(range(hot, hot + 10 * rounds))
    return array("I", (page for _ in range(rounds) for page in [*range(hot), *islice(passing, 10)]))


def test_ours_seldom_asks_for_pages_in_steady_use(engine: Engine) -> None:
    replay = engine.replay(scan_beside(hot=250, rounds=1000), 10_250, 400)
    assert replay.misses <= 10_250 + 400
    assert replay.minor <= 500  # in 10,000 faults each came back twice at most, by and large


def test_ours_gives_up_pages_in_steady_use_when_nobody_uses_them_any_more(engine: Engine) -> None:
    before = scan_beside(hot=300, rounds=1000)
    known = engine.replay(before, 10_300, 400).misses
    after = array("I", list(range(10_300, 10_550)) * 100)  # for which there is room without the 300
    assert engine.replay(before + after, 10_550, 400).misses - known <= 3 * 250


def test_ours_keeps_a_part_of_a_loop_that_looks_back(engine: Engine) -> None:
    # Most pages are used again soon after, which is no reason to keep them: they come again when the others have.
    chance = random.Random(1)
    around = [page for _ in range(60) for page in range(500)]
    references = array("I", (page - back for page in around for back in {0, chance.randrange(40)} if page >= back))
    assert misses(Lru(400), references) == 60 * 500
    assert engine.replay(references, 500, 400).misses <= 20_000


def test_what_cannot_be_replayed_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be replayed"):
        engine.replay(array("I", [5]), 5, 4)
    with pytest.raises(EngineError, match="cannot be replayed"):
        engine.replay(array("I", [1]), 5, 0)
    with pytest.raises(EngineError, match="32-bit"):
        engine.replay(array("Q", [1]), 5, 4)
    with pytest.raises(EngineError, match="does not compile"):
        Engine(tmp_path)


# A seed that the policy was not tuned on. `python3 -m bench.policy` has all windows, and programs.
@pytest.mark.parametrize(
    ("name", "percent"), [("zipf", 20), ("zipf", 50), ("loop", 75), ("short-loop", 50), ("phases", 25), ("mixed", 50)]
)
def test_ours_is_near_the_best_that_sees_every_touch(engine: Engine, name: str, percent: int) -> None:
    outcome = compare(engine, traces.synthetic(name, seed=11), percent)
    assert outcome.ours >= outcome.others["belady"]
    assert outcome.ratio <= 1.1
    assert outcome.heard_ratio <= 1.1 and outcome.heard.minor <= outcome.minor
    if name == "zipf":
        assert outcome.cost_ratio <= 1.2


# --- told as much -------------------------------------------------------------------------------------------------


def told(policy: Policy, share: float, references: list[int]) -> str:
    """One letter a reference: h is heard of by nobody, s a minor fault, m a miss."""
    seen, letters = observed.Observed(policy, share), ""
    for page in references:
        before = seen.misses, seen.minor
        seen.touch(page)
        letters += {(0, 0): "h", (0, 1): "s", (1, 0): "m"}[seen.misses - before[0], seen.minor - before[1]]
    return letters


def test_a_policy_that_is_told_of_misses_only_cannot_tell_what_is_used() -> None:
    references = [1, 2, 3, 4, 1, 1, 1, 5, 1]
    assert hits(Lru(4), references) == "mmmmhhhmh"
    assert told(Lru(4), 0, references) == hits(Fifo(4), references) == "mmmmhhhmm"


def test_standby_tells_of_the_pages_that_go_next() -> None:
    # A page aside: 1 is asked when all four are there, and its return is heard; then it is 2's turn to be aside.
    assert told(Lru(4), 0.25, [1, 2, 3, 4, 1, 3, 5, 1, 2]) == "mmmmshmhm"
    # S3-FIFO asks the small queue and the main one; what is told counts as a use.
    assert "s" in told(S3Fifo(10), 0.5, [*range(10), *range(10)])


@given(STRINGS, st.integers(1, 14), st.sampled_from(observed.SHARES))
def test_what_is_told_changes_no_promise(references: list[int], capacity: int, share: float) -> None:
    best = misses(Belady(capacity, references), references)
    for name, make in ONLINE.items():
        policy = make(capacity)
        letters = told(policy, share, references)
        assert len(policy) <= capacity and letters.count("m") >= best, name
        assert all(page in policy for page in references[-1:]), name
    assert told(Fifo(capacity), share, references).replace("h", "") == "m" * misses(Fifo(capacity), references)


def test_the_best_that_is_told_as_much_keeps_the_budget() -> None:
    references = traces.synthetic("zipf", 3).references[:20_000]
    none, some = (observed.best(500, references, budget) for budget in (0, 1500))
    assert none.minor == 0 and 0 < some.minor <= 1500
    assert some.misses < none.misses
    assert some.misses >= misses(Belady(500, references), references)


# --- traces -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**32 - 2), min_size=1, max_size=200))
def test_files_give_back_what_was_written(references: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "some.trace")
        trace = traces.Trace("some", max(references) + 1, array("I", references))
        traces.write(path, trace)
        assert traces.read(path) == trace
        assert traces.recorded(Path(directory)) == [trace]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"X" + data[1:], lambda data: data[:-4]])
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "some.trace"
    traces.write(path, traces.numbered("some", [5, 900, 5, 7]))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(traces.TraceError):
        traces.read(path)


def test_a_file_names_its_references_rightly(tmp_path: Path) -> None:
    path = tmp_path / "some.trace"
    traces.write(path, traces.Trace("some", 3, array("I", [1, 3])))
    with pytest.raises(traces.TraceError, match="does not have"):
        traces.read(path)


def test_numbering_closes_gaps() -> None:
    assert traces.numbered("some", [900, 5, 900, 7]).references.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("name", traces.SYNTHETIC)
def test_synthetic_traces_are_the_same_each_time(name: str) -> None:
    once = traces.synthetic(name, 7)
    assert once == traces.synthetic(name, 7)
    assert once.references != traces.synthetic(name, 8).references
    assert len(once.references) >= traces.REFERENCES and max(once.references) == once.pages - 1


def test_workloads_have_the_data_that_they_are_asked_for() -> None:
    (words, once), (_, again), (_, other) = (workloads.command("perl", data) for data in (1, 1, 2))
    assert words[0] == "perl" and once == again != other
    assert workloads.command("store", 3)[0][-2:] == ["store", "3"]
    assert not set(workloads.NAMES) & set(workloads.HELD_OUT)
    with pytest.raises(KeyError):
        workloads.command("none such")


def test_a_program_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "some.trace"
    program = "kept = [bytes(3000) for _ in range(4000)]; print(sum(map(len, kept)))"
    try:
        trace = recorder.record([sys.executable, "-c", program], path)
    except recorder.RecorderError as error:
        if "cannot be recorded" not in str(error):
            raise
        pytest.skip(str(error))
    assert trace.pages > 3000  # 12 MB
    assert traces.read(path) == trace
    with pytest.raises(recorder.RecorderError, match="ended with 3"):
        recorder.record([sys.executable, "-c", "raise SystemExit(3)"], path)
