"""Curves over the encrypted percentage as a picture: SVG, without a drawing library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vambrace.advice import Advice
from vambrace.files import write_whole

WIDTH, HEIGHT = 760, 440
LEFT, TOP, RIGHT, BOTTOM = 70, 44, 190, 52
#: Told apart by those who do not see all colours, too (Okabe and Ito, Color Universal Design).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class Chart:
    """A picture with the percentage, 0 to 100, from left to right, and a height from 0 to 1."""

    def __init__(self, title: str, across: str) -> None:
        middle = (LEFT + WIDTH - RIGHT) / 2
        self._names = 0
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
            '  font-family="sans-serif" font-size="13">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
            f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>',
        ]
        for percent in range(0, 101, 25):
            x = _x(percent)
            self._parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
            self._parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{percent} %</text>')

    def level(self, height: float, label: str) -> None:
        """A line across, and what it means."""
        y = _y(height)
        self._parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        self._parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')

    def curve(self, name: str, points: Sequence[tuple[float, float]], dot: tuple[float, float] | None = None) -> None:
        """A curve through ``points`` (percent, height) with its name beside, and perhaps a dot."""
        colour, label = COLOURS[self._names % len(COLOURS)], self._named(name)
        places = " ".join(f"{_x(percent)},{_y(height)}" for percent, height in points)
        self._parts += [
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<path d="M{WIDTH - RIGHT + 14} {label - 4}h18" stroke="{colour}" stroke-width="2"/>',
        ]
        if dot:
            self._parts.append(f'<circle cx="{_x(dot[0])}" cy="{_y(dot[1])}" r="4" fill="{colour}"/>')

    def without(self, name: str) -> None:
        """A name that has no curve."""
        self._named(name)

    def _named(self, name: str) -> int:
        """Put the next name beside the picture; returns its height."""
        label = TOP + 16 + 20 * self._names
        self._names += 1
        self._parts.append(f'<text x="{WIDTH - RIGHT + 38}" y="{label}">{escape(name)}</text>')
        return label

    def document(self) -> str:
        return "\n".join([*self._parts, "</svg>"]) + "\n"


def draw(path: Path, found: Sequence[Advice]) -> None:
    """Writes ``picture`` into a file, whole or not at all."""
    write_whole(path, picture(found).encode(), mode=0o644)


def picture(found: Sequence[Advice]) -> str:
    """An SVG document: for each zone the share of time in faults over the percentage, with a dot where it is now.

    Of a zone that was idle there is nothing to draw: a curve along zero would say that encryption costs it nothing.
    """
    chart = Chart("What encryption costs: share of time in page faults", "encrypted at least")
    for quarter in range(5):
        chart.level(quarter / 4, f"{25 * quarter} %")
    for one in found:
        if not one.tells:
            chart.without(f"{one.zone}: idle")
            continue
        points = [(percent, one.share(percent)) for percent in range(101)]
        chart.curve(one.zone, points, dot=points[one.percent])
    return chart.document()


def _x(percent: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * percent / 100, 1)


def _y(height: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - height), 1)
