"""The rows that benchmarks add, as a table and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median


class Unavailable(Exception):
    """This machine cannot run the benchmark; the message says what is missing."""


@dataclass(frozen=True)
class Row:
    """One figure. ``ratio`` is ``value`` over that of ``against``, where two subjects are compared; it has an
    ``interval`` from ``low`` to ``high`` where it was measured several times."""

    name: str
    subject: str
    value: float
    unit: str
    ratio: float | None = None
    against: str | None = None
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict[str, str | float]:
        return {key: value for key, value in asdict(self).items() if value is not None}


class Report:
    """Collects rows; ``added`` is called with each as it comes, so that a long run shows its progress."""

    def __init__(self, added: Callable[[Row], None] = lambda row: None) -> None:
        self.rows: list[Row] = []
        self._added = added

    def add(
        self,
        name: str,
        subject: str,
        value: float,
        unit: str,
        *,
        ratio: float | None = None,
        against: str | None = None,
        within: tuple[float, float] | None = None,
    ) -> None:
        """``within`` is the ratio's interval. Raises ValueError: a figure that is not finite, a ratio without what it
        is against, or an interval without a ratio."""
        if (ratio is None) != (against is None):
            raise ValueError(f"{name}: ratio and against come together")
        if within is not None and ratio is None:
            raise ValueError(f"{name}: an interval of no ratio")
        figures = [value, *(() if ratio is None else (ratio,)), *(within or ())]
        if not all(map(math.isfinite, figures)):
            raise ValueError(f"{name}: not a finite figure")
        row = Row(name, subject, _rounded(value), unit)
        if ratio is not None:
            row = replace(row, ratio=_rounded(ratio), against=against)
        if within is not None:
            row = replace(row, low=_rounded(within[0]), high=_rounded(within[1]))
        self.rows.append(row)
        self._added(row)

    def add_rounds(
        self,
        name: str,
        subject: str,
        values: Sequence[float],
        unit: str,
        ratios: Sequence[float],
        against: str,
        *,
        with_interval: bool = False,
    ) -> None:
        """A row of the medians of ``values`` and ``ratios``, which have one of each round. Raises as ``add``."""
        within = interval(ratios) if with_interval else None
        self.add(name, subject, median(values), unit, ratio=median(ratios), against=against, within=within)

    def compare(self, name: str, subject: str, against: str) -> None:
        """Replaces the row of ``subject`` by one with its ratio to the row of ``against``, both of ``name``.

        Raises ValueError: one of them is missing, their units differ, or the divisor is zero.
        """
        ours, theirs = self._index(name, subject), self.rows[self._index(name, against)]
        row = self.rows[ours]
        if row.unit != theirs.unit or not theirs.value:
            raise ValueError(f"{name}: {subject} and {against} cannot be compared")
        self.rows[ours] = replace(row, ratio=_rounded(row.value / theirs.value), against=against)

    def table(self) -> str:
        """The rows in columns as wide as they need, or "" without rows."""
        cells = [("benchmark", "subject", "value", "unit", "compared")]
        for row in self.rows:
            compared = "" if row.ratio is None else f"{row.ratio:g} × {row.against}"
            compared += "" if row.low is None else f" ({row.low:g} to {row.high:g})"
            cells.append((row.name, row.subject, f"{row.value:g}", row.unit, compared))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{n:<{widths[0]}}  {s:<{widths[1]}}  {v:>{widths[2]}}  {u:<{widths[3]}}  {c}".rstrip()
            for n, s, v, u, c in cells
        ]
        return "\n".join(lines) if self.rows else ""

    def write(self, path: Path) -> None:
        """All rows as a JSON list, there as a whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.new")
        aside.write_text(json.dumps([row.as_json() for row in self.rows], indent=1, ensure_ascii=False) + "\n")
        aside.replace(path)

    def _index(self, name: str, subject: str) -> int:
        for index, row in enumerate(self.rows):
            if (row.name, row.subject) == (name, subject):
                return index
        raise ValueError(f"{name}: no row of {subject}")


def rounds(default: int) -> int:
    """How often what is measured several times is measured: as the user says, or as each benchmark has it."""
    return max(1, int(os.environ.get("VAMBRACE_BENCH_ROUNDS", default)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what ``values`` are a sample of lies, with a confidence of at least 95 percent: from one of
    the values to another, by the binomial distribution alone. Fewer than six allow no such statement: all of them.

    Raises ValueError: no values.
    """
    found = sorted(values)
    if not found:
        raise ValueError("an interval of nothing")
    count, left_out, outside = len(found), 0, 2 * 0.5 ** len(found)
    while outside + 2 * math.comb(count, left_out + 1) * 0.5**count <= 0.05:
        left_out += 1
        outside += 2 * math.comb(count, left_out) * 0.5**count
    return found[left_out], found[count - 1 - left_out]


def _rounded(value: float) -> float:
    """To four significant digits: no benchmark here is repeatable beyond."""
    return float(f"{value:.4g}")
