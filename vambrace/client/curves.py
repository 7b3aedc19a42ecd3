"""Curves of advice as a picture: SVG, without a drawing library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vambrace.client.advice import Advice
from vambrace.files import write_whole

WIDTH, HEIGHT = 720, 420
LEFT, TOP, RIGHT, BOTTOM = 64, 40, 170, 52
#: Told apart by those who do not see all colours, too (Okabe and Ito, Color Universal Design).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(path: Path, found: Sequence[Advice]) -> None:
    """Writes ``picture`` into a file, whole or not at all."""
    write_whole(path, picture(found).encode(), mode=0o644)


def picture(found: Sequence[Advice]) -> str:
    """An SVG document: for each zone the share of time in faults over the percentage, with a dot where it is now."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        '  font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">What encryption costs: share of time in page faults</text>',
    ]
    for step in range(0, 101, 25):
        x, y = _x(step), _y(step / 100)
        parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd" fill="none"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step} %</text>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{step} %</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">encrypted at least</text>')
    for index, one in enumerate(found):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join(f"{_x(percent)},{_y(one.share(percent))}" for percent in range(101))
        label = TOP + 16 + 20 * index
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{_x(one.percent)}" cy="{_y(one.share(one.percent))}" r="4" fill="{colour}"/>',
            f'<path d="M{WIDTH - RIGHT + 14} {label - 4}h18" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT + 38}" y="{label}">{escape(one.zone)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(percent: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * percent / 100, 1)


def _y(share: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)
