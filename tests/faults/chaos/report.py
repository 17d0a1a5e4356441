"""The results of a run as a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from tests.faults.chaos.stage import Result

SHOWN = 20
"""Broken promises that are listed for a scenario; more of them say no more."""

NAMED = "calls", "ids acknowledged", "DELAYED at first"
"""The counts that are compared in the table of all scenarios."""

ABOUT = """\
# What faults do to Leadkeep

`make faults` (`python -m tests.faults.chaos`) writes this page: the real service in front of a real PostgreSQL, both
killed and frozen under load, and every answer compared with what is stored in the end. `--seed` repeats a run.
"""
PROMISES = """\
The promises: an acknowledged lead is in exactly one row. A request has one acknowledged id, which is found, and it is
not refused later (but after a kill without PostgreSQL, if [a duplicate waits](architecture.md#the-spool)). Each call
ends, with an answer that a fault explains; 99.9 % of those that found the service running, in time.
"""


def page(results: Sequence[Result], *, seed: int, at: datetime, minutes: float, cores: int) -> str:
    """The whole page, Markdown."""
    return "\n".join(_lines(results, seed, at, minutes, cores)) + "\n"


def _lines(results: Sequence[Result], seed: int, at: datetime, minutes: float, cores: int) -> Iterator[str]:
    yield ABOUT
    yield f"Seed {seed}, {at:%Y-%m-%d}, {minutes:.0f} minutes on {cores} cores, which callers and PostgreSQL shared."
    yield ""
    yield PROMISES
    yield from _table(
        ("scenario", "what was done", *NAMED, "broken promises"),
        (
            (
                result.name,
                result.done,
                *(result.counts.get(name, "") for name in NAMED),
                len(result.violations) or "none",
            )
            for result in results
        ),
    )
    if any(result.plot for result in results):
        yield "![Answers a second and their latency through one fault of each kind](faults.svg)"
        yield ""
    for result in results:
        yield from _section(result)


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def _section(result: Result) -> Iterator[str]:
    """What else was counted, unless it is nothing, and the broken promises."""
    counted = (f"{name} {count}" for name, count in result.counts.items() if name not in NAMED and count)
    yield f"**{result.name}**: {'; '.join(counted)}."
    yield ""
    if result.violations:
        yield f"**Broken promises of {result.name}: {len(result.violations)}**"
        yield ""
        yield from (f"- {violation}" for violation in result.violations[:SHOWN])
        yield ""
