"""Pictures of a run's rows for the documentation.

    python3 -m bench.parts.pictures build/bench.json docs
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

from vambrace.client.curves import COLOURS
from vambrace.files import write_whole

WIDTH, HEIGHT = 760, 440
LEFT, TOP, RIGHT, BOTTOM = 70, 44, 190, 52
PROGRAM = "native/program/"


def slowdown(rows: list[dict[str, Any]]) -> str:
    """An SVG document: for each program how many times longer it ran, on a logarithmic scale, over the percentage."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        parts = str(row["name"]).removeprefix(PROGRAM).split("/")
        if str(row["name"]).startswith(PROGRAM) and len(parts) == 2:
            curves.setdefault(parts[0], []).append((int(parts[1]), max(1.0, float(row["ratio"]))))
    top = math.ceil(math.log2(max((ratio for points in curves.values() for _, ratio in points), default=2)))

    def place(percent: int, ratio: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * percent / 100
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log2(ratio) / max(1, top)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        '  font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">How many times longer a program runs</text>',
    ]
    for step in range(0, 101, 25):
        x, _ = place(step, 1).split(",")
        parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step} %</text>')
    for power in range(top + 1):
        _, y = place(0, 2**power).split(",")
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{2**power} ×</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">of its memory encrypted at least</text>')
    for index, (name, points) in enumerate(curves.items()):
        colour, label = COLOURS[index % len(COLOURS)], TOP + 16 + 20 * index
        places = " ".join(place(*point) for point in sorted(points))
        parts += [
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<path d="M{WIDTH - RIGHT + 14} {label - 4}h18" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT + 38}" y="{label}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text())
    write_whole(Path(sys.argv[2]) / "slowdown.svg", slowdown(rows).encode(), mode=0o644)


if __name__ == "__main__":
    main()
