"""What a round of samples decides about a percentage that the host holds: no loop, no VMM."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vambrace.advice import Advice
from vambrace.attest.owner import Bounds
from vambrace.host.auto import DOWN, UP, WARY_ROUNDS, Regulator

BOUNDS = Bounds(30, 90, 50)


def curve(knee: int, percent: int, *, above: float = 1e6, below: float = 0.0) -> Advice:
    """Faults per second: ``below`` up to ``knee`` percent, ``above`` beyond it; each costs 10 µs."""
    misses = tuple(0.0 if p == 0 else above if p > knee else below for p in range(101))
    return Advice("analysis", percent, 4096, 1000, 1e-5, misses)


def test_it_goes_up_in_steps_where_two_rounds_agree_and_stays() -> None:
    regulator, now = Regulator(BOUNDS), 40
    seen = []
    for _ in range(8):
        now = regulator.next(curve(73, now))
        seen.append(now)
    assert seen == [40, 50, 60, 70, 73, 73, 73, 73]


def test_it_goes_down_in_larger_steps_at_once() -> None:
    regulator, now = Regulator(BOUNDS), 90
    seen = []
    for _ in range(5):
        now = regulator.next(curve(35, now))
        seen.append(now)
    assert seen == [70, 50, 35, 35, 35]


def test_one_round_that_saw_little_changes_nothing() -> None:
    regulator = Regulator(BOUNDS)
    for knee in (50, 88, 50, 88, 50):
        assert regulator.next(curve(knee, 50)) == 50
    regulator.next(curve(88, 50))
    regulator.forget()
    assert regulator.next(curve(88, 50)) == 50, "nor do two with an idle one between"
    assert regulator.next(curve(88, 50)) == 60


def test_there_is_a_band_in_which_nothing_changes() -> None:
    """Between three quarters of the slowdown and all of it: neither up nor down."""
    for share in (0.039, 0.045, 0.049):
        misses = share / (1 - share) / 1e-5
        regulator = Regulator(BOUNDS)
        for _ in range(4):
            assert regulator.next(curve(100, 60, below=misses)) == 60
    regulator = Regulator(BOUNDS)
    assert regulator.next(curve(100, 60, below=0.051 / 0.949 / 1e-5)) == 60 - DOWN


def test_faults_that_no_sample_explains_count_as_well() -> None:
    """A circle that takes longer than a round: no page is seen to return, and all of them are decrypted each time."""
    regulator, now, seen = Regulator(BOUNDS), 90, []
    for _ in range(12):
        now = regulator.next(curve(100, now), spent=0.8 if now > 55 else 0.0)
        seen.append(now)
    assert seen == [70, 50, 50, 60, 40, 40, 50, 59, 39, 39, 49, 58]
    regulator = Regulator(BOUNDS)
    for _ in range(4):
        assert regulator.next(curve(100, 60), spent=0.045) == 60, "in the band"


def test_it_is_wary_for_a_while() -> None:
    regulator = Regulator(BOUNDS)
    assert regulator.next(curve(100, 60), spent=0.5) == 40
    seen = [regulator.next(curve(100, 59)) for _ in range(WARY_ROUNDS + 2)]
    assert seen[: WARY_ROUNDS - 1] == [59] * (WARY_ROUNDS - 1) and seen[-1] == 69


def test_bounds_count_more_than_any_sample() -> None:
    assert Regulator(BOUNDS).next(curve(0, 35)) == 30
    assert Regulator(BOUNDS).next(curve(0, 30)) == 30
    assert Regulator(BOUNDS).next(curve(100, 90)) == 90
    assert Regulator(Bounds(60, 60, 50)).next(curve(0, 60)) == 60


#: Faults per second at each percentage, rising: from what is added at a few of them.
STEPS = st.dictionaries(st.integers(1, 100), st.floats(0, 1e7), max_size=5)
BOTH = st.tuples(st.integers(1, 100), st.integers(1, 100)).map(sorted)


def rising(steps: dict[int, float]) -> tuple[float, ...]:
    return tuple(sum(more for percent, more in steps.items() if percent <= p) for p in range(101))


@given(
    st.lists(st.tuples(STEPS, st.just(0.0) | st.floats(0, 1)), min_size=1, max_size=6),
    BOTH,
    st.integers(1, 999),
    st.integers(0, 100),
)
def test_whatever_the_samples_say(
    rounds: list[tuple[dict[int, float], float]], limits: list[int], slowdown: int, first: int
) -> None:
    """Within the bounds, in limited steps, never up where it is too slow and never down where it is not."""
    bounds = Bounds(limits[0], limits[1], slowdown)
    regulator = Regulator(bounds)
    now = regulator.within(first)
    for steps, spent in rounds:
        found = Advice("x", now, 4096, 1000, 1e-5, rising(steps))
        then = regulator.next(found, spent)
        assert bounds.lowest <= then <= bounds.highest
        assert -DOWN <= then - now <= UP
        too_slow = max(found.share(now), spent) > slowdown / 1000
        assert then <= now if too_slow else then >= now
        assert then == bounds.lowest or found.share(then) <= slowdown / 1000 or too_slow
        now = then


@given(STEPS, BOTH, st.integers(1, 999), st.integers(1, 100))
def test_it_comes_to_rest(steps: dict[int, float], limits: list[int], slowdown: int, first: int) -> None:
    """The same samples again and again: after some rounds nothing changes, and no higher percentage is possible."""
    bounds = Bounds(limits[0], limits[1], slowdown)
    regulator, misses = Regulator(bounds), rising(steps)
    now, seen = regulator.within(first), []
    for _ in range(40):
        now = regulator.next(Advice("x", now, 4096, 1000, 1e-5, misses))
        seen.append(now)
    assert len(set(seen[-20:])) == 1
    found = Advice("x", now, 4096, 1000, 1e-5, misses)
    assert now == bounds.lowest or found.share(now) <= slowdown / 1000
    assert now == bounds.highest or found.share(now + 1) > 0.75 * slowdown / 1000
