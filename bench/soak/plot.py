"""The picture of a soak: memory above, counts below, both from 0 and against the minutes. SVG, written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.plot import COLOURS, GRID, INK

WIDTH, HEIGHT = 760, 480
LEFT, RIGHT = 60, 230
PANELS = ((50, 220), (280, 430))
"""From and to, in pixels from the top."""

WARMING = "#eee"


def panels(titles: Sequence[str], series: Sequence[Mapping[str, Sequence[tuple[float, float]]]], warm_up: float) -> str:
    """A panel for each mapping of names to points (seconds, value); the warm-up is shaded."""
    end = max(at for panel in series for points in panel.values() for at, _ in points)

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * second / end

    parts: list[str] = []
    for title, panel, (top, bottom) in zip(titles, series, PANELS, strict=True):
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{x(warm_up) - LEFT:.1f}" height="{bottom - top}" fill="{WARMING}"/>'
        )
        parts.append(f'<text x="{LEFT}" y="{top - 14}" font-size="15">{title}</text>')
        parts += _panel(panel, top, bottom, x)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = x(end * share)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 30}" text-anchor="middle">{end * share / 60:.3g}</text>')
    parts.append(f'<text x="{x(end / 2):.1f}" y="{HEIGHT - 10}" text-anchor="middle">minutes; grey: warm-up</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}" role="img" aria-label="{"; ".join(titles)}">'
    )
    return "\n".join((head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"))


def _panel(
    panel: Mapping[str, Sequence[tuple[float, float]]], top: int, bottom: int, x: Callable[[float], float]
) -> Iterator[str]:
    highest = 1.1 * max(1.0, *(value for points in panel.values() for _, value in points))

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / highest

    for share in (0.0, 0.5, 1.0):
        at = y(highest * share)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{GRID}"/>'
        yield f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{highest * share:,.0f}</text>'
    for number, (name, points) in enumerate(panel.items()):
        colour, legend = COLOURS[number % len(COLOURS)], top + 18 * number
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield f'<rect x="{WIDTH - RIGHT + 20}" y="{legend}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{WIDTH - RIGHT + 38}" y="{legend + 11}">{name}</text>'
