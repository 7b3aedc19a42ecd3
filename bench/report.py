"""The rows that benchmarks add, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


class Unavailable(Exception):
    """This machine cannot run the benchmark; the message says what is missing."""


@dataclass(frozen=True)
class Row:
    """One figure. ``ratio`` is ``value`` over that of ``against``, where two subjects are compared."""

    name: str
    subject: str
    value: float
    unit: str
    ratio: float | None = None
    against: str | None = None

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
    ) -> None:
        """Raises ValueError: a figure that is not finite, or a ratio without what it is against."""
        if (ratio is None) != (against is None):
            raise ValueError(f"{name}: ratio and against come together")
        if not math.isfinite(value) or (ratio is not None and not math.isfinite(ratio)):
            raise ValueError(f"{name}: not a finite figure")
        row = Row(name, subject, _rounded(value), unit, None if ratio is None else _rounded(ratio), against)
        self.rows.append(row)
        self._added(row)

    def compare(self, name: str, subject: str, against: str) -> None:
        """Replaces the row of ``subject`` by one with its ratio to the row of ``against``, both of ``name``.

        Raises ValueError: one of them is missing, their units differ, or the divisor is zero.
        """
        ours, theirs = self._index(name, subject), self.rows[self._index(name, against)]
        row = self.rows[ours]
        if row.unit != theirs.unit or not theirs.value:
            raise ValueError(f"{name}: {subject} and {against} cannot be compared")
        ratio = _rounded(row.value / theirs.value)
        self.rows[ours] = Row(row.name, row.subject, row.value, row.unit, ratio, against)

    def table(self) -> str:
        """The rows in columns as wide as they need, or "" without rows."""
        cells = [("benchmark", "subject", "value", "unit", "compared")]
        for row in self.rows:
            compared = "" if row.ratio is None else f"{row.ratio:g} × {row.against}"
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


def _rounded(value: float) -> float:
    """To four significant digits: no benchmark here is repeatable beyond."""
    return float(f"{value:.4g}")
