"""What "flat" means, and whether a row of samples is.

Memory: a straight line is fitted by least squares. How far its slope may be from the truth is told by bootstrap: the
residuals are drawn again a minute at a time, because samples that follow each other resemble each other, and the line
is fitted anew. Memory is flat when that interval reaches down to 0, or when the line rises by less than 2 % over the
run.

Caveats: the second clause forgives a leak of some MB an hour, so that the slope stands in the report whatever the
verdict is. And a leak first fills what room a burst has left free in the heap, some MB, before memory tells of it.

Counts: the median of the last third is at most that of the first third and a small constant.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.arithmetic import quantile

HOUR = 3600.0
BLOCK = 6
"""Samples that are drawn together: a minute of them."""

DRAWS = 1000
FORGIVEN = 0.02
"""Of what is held: allocators and caches never stand quite still."""


@dataclass(frozen=True, slots=True)
class Slope:
    """How fast something grows, an hour, and the interval of 95 % for it."""

    an_hour: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was asked, what was found, and whether that is good; a row of the table of goals."""

    text: str
    measured: str
    limit: str
    met: bool

    def row(self) -> str:
        return f"| {self.text} | {self.measured} | {self.limit} | {'met' if self.met else '**missed**'} |"


def slope_of(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """The line through these values, of which there must be at least four."""
    hours = [second / HOUR for second in seconds]
    line = statistics.linear_regression(hours, values)
    fitted = [line.intercept + line.slope * hour for hour in hours]
    residuals = [value - fit for value, fit in zip(values, fitted, strict=True)]
    length = min(BLOCK, len(values) // 4)
    draw = random.Random(1)  # the same samples, the same verdict
    slopes = []
    for _ in range(DRAWS):
        drawn: list[float] = []
        while len(drawn) < len(values):
            first = draw.randrange(len(residuals) - length + 1)
            drawn += residuals[first : first + length]
        again = [fit + residual for fit, residual in zip(fitted, drawn, strict=False)]
        slopes.append(statistics.linear_regression(hours, again).slope)
    return Slope(line.slope, quantile(slopes, 0.025), quantile(slopes, 0.975))


def flat_memory(text: str, seconds: Sequence[float], megabytes: Sequence[float]) -> Verdict:
    """Whether memory stays where it is."""
    slope = slope_of(seconds, megabytes)
    held = statistics.median(megabytes)
    growth = slope.an_hour * (seconds[-1] - seconds[0]) / HOUR
    return Verdict(
        text,
        f"{slope.an_hour:+.1f} MB an hour ({slope.low:+.1f} to {slope.high:+.1f}): {growth:+.1f} of {held:.0f} MB",
        f"interval reaches 0, or < {FORGIVEN:.0%}",
        slope.low <= 0 or growth < FORGIVEN * held,
    )


def flat_count(text: str, counts: Sequence[float], allowed: float) -> Verdict:
    """Whether a count is, in the last third, about what it was in the first."""
    third = max(1, len(counts) // 3)
    first, last = statistics.median(counts[:third]), statistics.median(counts[-third:])
    return Verdict(text, f"{first:g} → {last:g}", f"≤ {first + allowed:g}", last <= first + allowed)


def back_to_rest(text: str, before: float, after: float, allowed: float) -> Verdict:
    """Whether a count is, after the load, what it was before it."""
    return Verdict(text, f"{before:g} → {after:g}", f"≤ {before + allowed:g}", after <= before + allowed)
