"""`bench/report.md` and its plots, made from the samples."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from bench.arithmetic import Spread
from bench.goals import GOALS_HEAD, Goal, select
from bench.operations import Operation
from bench.plot import lines
from bench.sampling import BATCHED, CALLERS, OPEN_LOOP, SECONDS, SINGLE, Sample

TITLES = {
    "a": "(a) Leadkeep, gRPC",
    "b": "(b) Leadkeep, POST /api/leads/",
    "c": "(c) the story's design",
    "d": "(d) empty gRPC call",
    SINGLE: "(e) pgbench, a row a commit",
    BATCHED: f"(e) pgbench, {BATCHED[1:]} rows a commit",
}

_INTRODUCTION = """# Leadkeep beside its peers

Written by `make bench`; {rounds} interleaved rounds of {seconds:g} s a figure, {cores} cores shared by callers, service
and PostgreSQL (Python {python}). Medians, with the lowest and highest round in brackets. Only figures of one run are
comparable: [docs/bench.md](../docs/bench.md) describes each contender, and what is not measured.

## Goals

"""


def write(samples: Sequence[Sample], reached: Sequence[Goal], folder: Path) -> None:
    """Write the report and its plots."""
    rounds: dict[str, int] = {}
    for each in samples:
        rounds[each.operation] = max(rounds.get(each.operation, 0), each.round + 1)
    numbers = sorted(set(rounds.values()))
    text = _INTRODUCTION.format(
        rounds=" or ".join(map(str, numbers)),
        seconds=SECONDS,
        cores=os.cpu_count(),
        python=platform.python_version(),
    )
    text += "\n".join((GOALS_HEAD, *(goal.row() for goal in reached))) + "\n"
    if failures := sum(each.failures for each in samples):
        text += f"\n**{failures} calls failed.** The figures do not count them.\n"
    text += tables(samples)
    for name, title, unit, factor, field in (
        ("throughput", "CreateLead: leads a second", "", 1.0, "rate"),
        ("latency", "CreateLead: median latency", "ms", 1000.0, "p50"),
    ):
        series = _series(samples, field, factor)
        if series:
            (folder / f"{name}.svg").write_text(lines(title, unit, series, CALLERS))
            text += f"\n![{title}]({name}.svg)\n"
    (folder / "report.md").write_text(text)


def tables(samples: Sequence[Sample]) -> str:
    """A table for each operation that was measured."""
    text = ""
    for operation in [*Operation, OPEN_LOOP]:
        chosen = [each for each in samples if each.operation == operation]
        if chosen:
            text += f"\n## {operation}\n\n{_table(chosen, operation)}\n"
    return text


def _series(samples: Sequence[Sample], field: str, factor: float) -> dict[str, dict[int, Spread]]:
    found: dict[str, dict[int, Spread]] = {}
    for contender, title in TITLES.items():
        for callers in CALLERS:
            if values := select(samples, field, Operation.CREATE, contender, callers):
                found.setdefault(title, {})[callers] = Spread.of([value * factor for value in values])
    return found


def _table(samples: Sequence[Sample], operation: str) -> str:
    rows = [
        "| callers | contender | a second | p50, ms | p99, ms | CPU a call, µs: service | with children | PostgreSQL "
        "| generator |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for callers in CALLERS:
        for contender, title in TITLES.items():
            chosen = [each for each in samples if (each.callers, each.contender) == (callers, contender)]
            if not chosen:
                continue

            def of(name: str, factor: float, digits: int, chosen: Sequence[Sample] = chosen) -> str:
                values = [value * factor for each in chosen if (value := getattr(each, name)) is not None]
                return Spread.of(values).text(digits) if values else ""

            cells = (
                of("rate", 1, 0),
                of("p50", 1e3, 2),
                of("p99", 1e3, 1),
                of("service_cpu", 1e6, 0),
                *(of(name, 1e6, 0).split(" ")[0] for name in ("family_cpu", "postgres_cpu", "generator_cpu")),
            )
            shown = "64 connections" if operation == OPEN_LOOP else str(callers)
            rows.append(f"| {shown} | {title} | {' | '.join(cells)} |")
    return "\n".join(rows)
