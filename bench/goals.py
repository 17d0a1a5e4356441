"""The goals, each with the figure that this run gives it. A figure that is not there was not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.arithmetic import Spread, pair_ratios
from bench.operations import Operation
from bench.sampling import OPEN_LOOP, SINGLE, Sample

Select = Callable[..., list[float]]


class Verdict(StrEnum):
    """What a run shows of a goal."""

    MET = "met"
    MISSED = "**missed**"
    NOT_SHOWN = "**not shown**"


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal, and how near this run came to it."""

    text: str
    figure: Spread
    limit: float
    at_least: bool = False

    @property
    def verdict(self) -> Verdict:
        """What the confidence interval says: on one side of the limit, on the other, or across it."""
        low, high = self.figure.low, self.figure.high
        if self.at_least:
            low, high = -high, -low
        limit = -self.limit if self.at_least else self.limit
        if high <= limit:
            return Verdict.MET
        return Verdict.MISSED if low > limit else Verdict.NOT_SHOWN

    def row(self) -> str:
        """A line of the goals' table."""
        sign = "≥" if self.at_least else "≤"
        return f"| {self.text} | {self.figure.text(2)} | {sign} {self.limit:g} | {self.verdict} |"


GOALS_HEAD = "| goal | median of the pairs, 95 % interval | limit | |\n|---|---|---|---|"


def select(samples: Sequence[Sample], name: str, operation: str, contender: str, callers: int) -> list[float]:
    """One figure of one contender, round by round."""
    chosen = [s for s in samples if (s.operation, s.contender, s.callers) == (operation, contender, callers)]
    return [float(getattr(s, name)) for s in sorted(chosen, key=lambda s: s.round)]


def goals(samples: Sequence[Sample]) -> list[Goal]:
    """Every goal whose operations were measured."""

    def of(name: str, operation: str, contender: str, callers: int) -> list[float]:
        return select(samples, name, operation, contender, callers)

    found: list[Goal] = []
    create = Operation.CREATE
    if of("rate", create, "a", 64) and of("rate", create, "c", 64):
        ratio = pair_ratios(of("rate", create, "a", 64), of("rate", create, "c", 64))
        found.append(Goal("CreateLead, 64 callers: throughput of (a) / (c)", ratio, 4.0, at_least=True))
    if of("p99", OPEN_LOOP, "a", 64):
        ratio = pair_ratios(of("p99", OPEN_LOOP, "a", 64), of("p99", OPEN_LOOP, "c", 64))
        found.append(Goal("CreateLead, open loop at half of (c)'s capacity: p99 of (a) / (c)", ratio, 0.5))
    for operation in (create, Operation.GET):
        if of("service_cpu", operation, "a", 64) and of("service_cpu", operation, "d", 64):
            ratio = pair_ratios(of("service_cpu", operation, "a", 64), of("service_cpu", operation, "d", 64))
            found.append(Goal(f"{operation}, 64 callers: CPU of the service a call, (a) / (d)", ratio, 2.0))
    if of("p50", create, "a", 1) and of("p50", create, "d", 1) and of("p50", create, SINGLE, 1):
        empty, single = of("p50", create, "d", 1), of("p50", create, SINGLE, 1)
        possible = [call + 2.5 * commit for call, commit in zip(empty, single, strict=True)]
        ratio = pair_ratios(of("p50", create, "a", 1), possible)
        found.append(Goal("CreateLead, 1 caller: p50 of (a) / (p50 of (d) + 2.5 of pgbench's)", ratio, 1.0))
    return found
