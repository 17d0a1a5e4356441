"""The results of a run as a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from tests.faults.chaos.stage import Result

SHOWN = 20
"""Broken promises that are listed for a scenario; more of them say no more."""

ABOUT = """\
# What faults do to Leadkeep

Written by `make faults` (`python -m tests.faults.chaos`), which runs the real service in front of a real PostgreSQL,
kills and freezes both under load, and compares everything that callers were told with what is stored in the end.
`--seed` repeats a run: the same faults in the same order, the same leads.
"""
PROMISES = """\
A promise is broken when an acknowledged lead is in no table, or in two rows; when two ids were acknowledged for one
request; when an acknowledged id was answered NOT_FOUND; when an acknowledged request was refused later (but for what
[clients.md](clients.md) says of a service that was killed while PostgreSQL is away); when a request was never settled,
or a call ended with an answer that no fault explains; and when less than 99.9 % of the calls carried a status made by
the service before their deadline. Calls under way while the service itself was killed or down do not count there, and
neither do callers that hung up.
"""


def page(results: Sequence[Result], *, seed: int, at: datetime, minutes: float, cores: int) -> str:
    """The whole page, Markdown."""
    return "\n".join(_lines(results, seed, at, minutes, cores)) + "\n"


def _lines(results: Sequence[Result], seed: int, at: datetime, minutes: float, cores: int) -> Iterator[str]:
    yield ABOUT
    yield f"Seed {seed}, {at:%Y-%m-%d}, {minutes:.0f} minutes on {cores} cores, which callers and PostgreSQL shared."
    yield ""
    yield "| scenario | what was done | broken promises |"
    yield "|---|---|---|"
    for result in results:
        link = f"[{result.name}](#{result.name.replace(' ', '-')})"
        yield f"| {link} | {result.done} | {len(result.violations) or 'none'} |"
    yield ""
    yield PROMISES
    if any(result.plot for result in results):
        yield "![Answers a second and their latency through one fault of each kind](faults.svg)"
        yield ""
    for result in results:
        yield from _section(result)


def _section(result: Result) -> Iterator[str]:
    yield f"## {result.name}"
    yield ""
    yield f"{result.done[0].upper()}{result.done[1:]}."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in result.counts.items())
    yield ""
    if result.violations:
        yield f"**Broken promises: {len(result.violations)}**"
        yield ""
        yield from (f"- {violation}" for violation in result.violations[:SHOWN])
        yield ""
