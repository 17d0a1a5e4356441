"""The picture of a history: answers a second and how long they took, with the faults shaded. SVG, written by hand."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from tests.faults.chaos.history import SERVICE_DOWN, Call, History, Window

WIDTH, HEIGHT = 960, 560
LEFT, RIGHT = 70, 20
TOP_PANEL = (70, 290)
"""From and to, in pixels from the top: answers a second."""
BOTTOM_PANEL = (340, 510)
"""How long they took."""

FASTEST, SLOWEST = 0.001, 10.0
"""Seconds at the ends of the lower panel, whose scale is logarithmic."""

INK, GRID = "#222", "#999"
LATENCIES = {"1 ms": 0.001, "10 ms": 0.01, "100 ms": 0.1, "1 s": 1.0, "10 s": 10.0}
KINDS = {"SAVED": "#2f6db5", "DELAYED": "#e39a35", "refused duplicate": "#8a8a8a", "failed": "#b8433a"}
SHADES = {SERVICE_DOWN: "#d9d2e9"}
SHADE = "#e4e4e4"
QUANTILES = {"median": (0.5, "#2f6db5"), "99th percentile": (0.99, "#b8433a")}

Scale = Callable[[float], float]
"""From seconds to pixels."""


def draw(history: History, beginning: float = 0.0) -> str:
    """Everything from `beginning` seconds after the first call."""
    calls = [call for call in history.calls if call.rpc == "CreateLead" and not call.hung_up]
    zero = min(call.began for call in calls) + beginning
    # Whole seconds only: the last one ends when the callers do.
    seconds = math.floor(max(call.ended for call in calls) - zero)
    answers: dict[int, Counter[str]] = defaultdict(Counter)
    times: dict[int, list[float]] = defaultdict(list)
    for call in calls:
        second = math.floor(call.ended - zero)
        answers[second][_kind(call)] += 1
        times[second].append(call.ended - call.began)
    most = max(sum(of.values()) for of in answers.values())

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(second / seconds, 0), 1)

    parts = [
        *_shades(history.windows, zero, x),
        *_bars(answers, seconds, most, x),
        *_lines(times, seconds, x),
        *_frame(seconds, most, x),
        *_legend(),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#222" role="img" aria-label="Answers a second and their latency through faults">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *parts, "</svg>", ""])


def _kind(call: Call) -> str:
    return call.state or ("refused duplicate" if call.code == "ALREADY_EXISTS" else "failed")


def _shades(windows: Sequence[Window], zero: float, x: Scale) -> Iterator[str]:
    for window in windows:
        left, right = x(window.began - zero), x(window.ended - zero)
        top, bottom = TOP_PANEL[0], BOTTOM_PANEL[1]
        yield _rect(left, top, max(right - left, 2), bottom - top, SHADES.get(window.kind, SHADE))
        # The service's own faults are named in a line below, since they fall into those of PostgreSQL.
        above = 6 if window.kind == SERVICE_DOWN else 20
        yield _text((left + right) / 2, top - above, window.kind, "middle")


def _bars(answers: Mapping[int, Counter[str]], seconds: int, most: int, x: Scale) -> Iterator[str]:
    top, bottom = TOP_PANEL
    for second in range(seconds):
        y = float(bottom)
        for kind, colour in KINDS.items():
            if number := answers[second][kind]:
                height = (bottom - top) * number / _ceiling(most)
                y -= height
                yield _rect(x(second), y, x(second + 1) - x(second) - 1, height, colour)


def _lines(times: Mapping[int, list[float]], seconds: int, x: Scale) -> Iterator[str]:
    for share, colour in QUANTILES.values():
        points = [
            (second, _latency_y(sorted(times[second])[int(share * (len(times[second]) - 1))]))
            for second in range(seconds)
            if times[second]
        ]
        for (one, y1), (other, y2) in pairwise(points):
            # A second without any answer breaks the line.
            if other == one + 1:
                yield _line(x(one + 0.5), y1, x(other + 0.5), y2, colour, 1.8)


def _frame(seconds: int, most: int, x: Scale) -> Iterator[str]:
    right = WIDTH - RIGHT
    for top, bottom in (TOP_PANEL, BOTTOM_PANEL):
        yield _line(LEFT, top, LEFT, bottom, INK, 1)
        yield _line(LEFT, bottom, right, bottom, INK, 1)
    top, bottom = TOP_PANEL
    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        yield _text(LEFT - 8, y + 4, f"{_ceiling(most) * part // 4}", "end")
        yield _line(LEFT, y, right, y, GRID, 0.4)
    for label, latency in LATENCIES.items():
        y = _latency_y(latency)
        yield _text(LEFT - 8, y + 4, label, "end")
        yield _line(LEFT, y, right, y, GRID, 0.4)
    for second in range(0, seconds + 1, 10):
        yield _text(x(second), BOTTOM_PANEL[1] + 18, f"{second}", "middle")
        yield _line(x(second), BOTTOM_PANEL[1], x(second), BOTTOM_PANEL[1] + 4, INK, 1)
    yield _text((LEFT + right) / 2, HEIGHT - 12, "seconds", "middle")


def _legend() -> Iterator[str]:
    yield _text(LEFT, 22, "CreateLead, answers a second, 64 callers:", "start", bold=True)
    at = LEFT + 290
    for kind, colour in KINDS.items():
        yield _rect(at, 12, 12, 12, colour)
        yield _text(at + 17, 22, kind, "start")
        at += 40 + 8 * len(kind)
    y, at = BOTTOM_PANEL[0] - 12, LEFT + 140
    yield _text(LEFT, y, "time to the answer:", "start", bold=True)
    for name, (_, colour) in QUANTILES.items():
        yield _line(at, y - 4, at + 18, y - 4, colour, 2)
        yield _text(at + 24, y, name, "start")
        at += 50 + 8 * len(name)


def _latency_y(seconds: float) -> float:
    top, bottom = BOTTOM_PANEL
    share = math.log(min(max(seconds, FASTEST), SLOWEST) / FASTEST) / math.log(SLOWEST / FASTEST)
    return bottom - (bottom - top) * share


def _ceiling(most: int) -> int:
    """The next number of which the quarters look well."""
    step = 4 * int(10 ** max(0, math.floor(math.log10(max(most, 1))) - 1))
    return math.ceil(most / step) * step


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, content: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{content}</text>'
