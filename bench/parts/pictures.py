"""Pictures of a run's rows for the documentation.

    python3 -m bench.parts.pictures build/bench.json docs
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from vambrace.client.curves import Chart
from vambrace.files import write_whole

PROGRAM = "native/program/"


def slowdown(rows: list[dict[str, Any]]) -> str:
    """An SVG document: for each program how many times longer it ran, on a logarithmic scale, over the percentage."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        parts = str(row["name"]).removeprefix(PROGRAM).split("/")
        if str(row["name"]).startswith(PROGRAM) and len(parts) == 2:
            curves.setdefault(parts[0], []).append((int(parts[1]), max(1.0, float(row["ratio"]))))
    longest = max((ratio for points in curves.values() for _, ratio in points), default=2.0)
    powers = max(1, math.ceil(math.log2(longest)))
    chart = Chart("How many times longer a program runs", "of its memory encrypted at least")
    for power in range(powers + 1):
        chart.level(power / powers, f"{2**power} ×")
    for name, points in curves.items():
        chart.curve(name, [(percent, math.log2(ratio) / powers) for percent, ratio in sorted(points)])
    return chart.document()


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text())
    write_whole(Path(sys.argv[2]) / "slowdown.svg", slowdown(rows).encode(), mode=0o644)


if __name__ == "__main__":
    main()
