"""One trace, one window: every policy's misses."""

from __future__ import annotations

from dataclasses import dataclass

from bench.policy import observed
from bench.policy.engine import Engine
from bench.policy.policies import ONLINE, RIVALS, Belady, misses
from bench.policy.traces import Trace

PERCENTS = (10, 25, 50, 75)
# Taken for what a fault costs that finds its page on standby, where one that decrypts costs 1: two of its
# three parts are the same, the trap and a move.
MINOR_COST = 0.6


@dataclass(frozen=True)
class Outcome:
    """Numbers of faults. ``percent``: the window, of the pages that the trace touches."""

    trace: str
    percent: int
    others: dict[str, int]  # by policy; "belady" among them
    ours: int
    minor: int
    heard: observed.Heard  # the best of RIVALS with what ours hears, at most as many minor faults

    @property
    def best(self) -> str:
        """The rival that misses least."""
        return min(RIVALS, key=self.others.__getitem__)

    @property
    def ratio(self) -> float:
        return self.ours / self.others[self.best]

    @property
    def heard_ratio(self) -> float:
        return self.ours / self.heard.misses

    @property
    def cost_ratio(self) -> float:
        return (self.ours + MINOR_COST * self.minor) / self.others[self.best]


def window(trace: Trace, percent: int) -> int:
    return max(1, trace.pages * percent // 100)


def others(trace: Trace, percent: int) -> dict[str, int]:
    """The misses of all policies but ours."""
    capacity = window(trace, percent)
    counted = {name: misses(policy(capacity), trace.references) for name, policy in ONLINE.items()}
    counted["belady"] = misses(Belady(capacity, trace.references), trace.references)
    return counted


def compare(engine: Engine, trace: Trace, percent: int, known: dict[str, int] | None = None) -> Outcome:
    """``known``: what ``others`` gave before, for a new version of ours only. Raises EngineError."""
    capacity = window(trace, percent)
    replay = engine.replay(trace.references, trace.pages, capacity)
    heard = observed.best(capacity, trace.references, replay.minor)
    return Outcome(trace.name, percent, known or others(trace, percent), replay.misses, replay.minor, heard)


def table(outcomes: list[Outcome]) -> str:
    """In columns; ratios are ours over the best of RIVALS: told of every reference, or as much as ours (``heard``)."""
    names = [*ONLINE, "belady"]
    head = f"{'trace':<16} {'%':>3} " + "".join(f"{name:>9}" for name in names)
    lines = [head + f"{'heard':>9}{'ours':>9}{'minor':>9}  ratio  heard   cost"]
    for one in outcomes:
        counts = "".join(f"{one.others[name]:>9}" for name in names)
        figures = f"{one.heard.misses:>9}{one.ours:>9}{one.minor:>9}"
        ratios = f"{one.ratio:5.3f}  {one.heard_ratio:5.3f}  {one.cost_ratio:5.3f}"
        lines.append(f"{one.trace:<16} {one.percent:>3} {counts}{figures}  {ratios}  {one.best}, {one.heard.policy}")
    return "\n".join(lines)
