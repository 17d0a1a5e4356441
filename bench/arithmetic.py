"""The bench's sums: quantiles, medians with their spread, and ratios pair by pair."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between a low and a high value: those of all rounds, or the ends of a confidence interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 1) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed; of no values: not a number."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def pair_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Median of the ratios within each round, with its 95 % confidence interval as `low` and `high`.

    What else the machine did in a round concerned both of its sides.
    """
    return median_interval([one / other for one, other in zip(ours, theirs, strict=True)])


def median_interval(values: Sequence[float]) -> Spread:
    """The median, and an interval that holds the true one with 95 % confidence, whatever the distribution.

    The interval ends at order statistics (the sign test): the number of values below the true median is binomial. Fewer
    than 6 values give their lowest and highest, which is less than 95 %.
    """
    ordered, count = sorted(values), len(values)
    outside, tail = 0, 0.5**count
    while tail <= 0.025:
        outside += 1
        tail += math.comb(count, outside) * 0.5**count
    first = max(outside - 1, 0)
    return Spread(statistics.median(ordered), ordered[first], ordered[-1 - first])
