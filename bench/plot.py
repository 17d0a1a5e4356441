"""Plots as SVG, written by hand: one figure against the number of callers, a line for each contender."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bench.arithmetic import Spread

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 50, 50
COLOURS = ("#2f6db5", "#e39a35", "#b8433a", "#5b8f3a", "#7a5ba6", "#555555", "#c27ba0")
INK, GRID = "#222", "#ccc"


def lines(title: str, unit: str, series: Mapping[str, Mapping[int, Spread]], callers: Sequence[int]) -> str:
    """A logarithmic plot of medians, with the spread as a bar at each point."""
    values = [v for points in series.values() for s in points.values() for v in (s.low, s.high) if v > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, len(callers) - 1)

    def y(value: float) -> float:
        share = (math.log10(max(value, 10**low)) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [f'<text x="{LEFT}" y="24" font-size="15">{title}</text>']
    for power in range(low, high + 1):
        at = y(10**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:,g} {unit}</text>')
    for index, count in enumerate(callers):
        parts.append(f'<text x="{x(index):.1f}" y="{HEIGHT - 26}" text-anchor="middle">{count}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">callers</text>')
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [(x(index), points[count]) for index, count in enumerate(callers) if count in points]
        path = " ".join(f"{at:.1f},{y(spread.median):.1f}" for at, spread in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, spread in placed:
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(spread.low):.1f}" y2="{y(spread.high):.1f}" '
                f'stroke="{colour}"/><circle cx="{at:.1f}" cy="{y(spread.median):.1f}" r="3" fill="{colour}"/>'
            )
        legend = TOP + 18 * number
        parts.append(
            f'<rect x="{WIDTH - RIGHT + 20}" y="{legend}" width="12" height="12" fill="{colour}"/>'
            f'<text x="{WIDTH - RIGHT + 38}" y="{legend + 11}">{name}</text>'
        )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}" role="img" aria-label="{title}">'
    )
    return "\n".join((head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"))
