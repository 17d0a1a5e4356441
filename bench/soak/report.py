"""`bench/soak.md` and its picture, made of the samples."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.goals import GOALS_HEAD
from bench.soak.flatness import Verdict, back_to_rest, flat_count, flat_memory
from bench.soak.plot import panels
from bench.soak.sampling import Sample

MEMORY = {"resident": "resident", "anonymous": "heap and stacks", "children": "its children, resident"}
COUNTS = {
    "tasks": ("tasks of the event loop", 10),
    "in_flight": ("calls in flight", 5),
    "threads": ("threads", 2),
    "handles": ("open file handles", 10),
    "sockets": ("sockets", 10),
    "connections": ("PostgreSQL connections", 2),
}
"""What is counted, and by how many the last third may exceed the first: some client is always just being replaced, and
the rude one has a dozen connections. What stays for ever is seen at rest, too."""

ALLOWED_AT_REST = 1
"""An idle service does some things once a second, and may be seen doing one."""

_INTRODUCTION = """# Leadkeep under steady load, with outages of clients

Written by `python -m bench.soak`: {minutes:.3g} minutes, of which the first {warm_up:.1f} warm up and are not judged;
{cores} cores shared by clients, service and PostgreSQL (Python {python}). {rate:.0f} calls a second were answered;
{killed} client processes were killed with SIGKILL. [docs/bench.md](../docs/bench.md) describes what the clients do.

## Goals

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """What one run brought."""

    before: Sample
    """Idle, with everything warm."""
    samples: Sequence[Sample]
    after: Sample
    """Idle again."""
    warm_up: float
    """Seconds."""
    killed: int
    ended: Sequence[int]
    """Exit codes of clients that ended by themselves."""

    @property
    def judged(self) -> list[Sample]:
        """What came behind the warm-up."""
        return [each for each in self.samples if each.at >= self.warm_up]


def verdicts(soak: Soak) -> Iterator[Verdict]:
    """Every goal, and how near this run came to it."""
    judged = soak.judged
    seconds = [each.at for each in judged]
    for name, text in MEMORY.items():
        yield flat_memory(f"memory, {text}", seconds, [getattr(each, name) for each in judged])
    for name, (text, allowed) in COUNTS.items():
        yield flat_count(f"{text}, first third → last third", [getattr(each, name) for each in judged], allowed)
    for name, (text, _) in COUNTS.items():
        before, after = getattr(soak.before, name), getattr(soak.after, name)
        yield back_to_rest(f"{text}, idle before → idle after", before, after, ALLOWED_AT_REST)
    ended = len(soak.ended)
    yield Verdict("clients that ended by themselves", str(ended), "0", ended == 0)


def text_of(soak: Soak) -> str:
    """The report."""
    end = soak.samples[-1]
    introduction = _INTRODUCTION.format(
        minutes=end.at / 60,
        warm_up=soak.warm_up / 60,
        cores=os.cpu_count(),
        python=platform.python_version(),
        rate=(sum(end.calls.values()) - sum(soak.before.calls.values())) / end.at,
        killed=soak.killed,
    )
    goals = (GOALS_HEAD, *(verdict.row() for verdict in verdicts(soak)))
    return introduction + "\n".join((*goals, *_looks(soak), *_calls(soak))) + "\n"


def picture(soak: Soak) -> str:
    """Memory and counts against time, as SVG."""

    def points(name: str) -> list[tuple[float, float]]:
        return [(each.at, getattr(each, name)) for each in soak.samples]

    return panels(
        ("Memory of the service, MB", "What it holds open"),
        (
            {text: points(name) for name, text in MEMORY.items()},
            {text: points(name) for name, (text, _) in COUNTS.items()},
        ),
        soak.warm_up,
    )


def write(soak: Soak, folder: Path) -> None:
    """Write the report and its picture."""
    (folder / "soak.svg").write_text(picture(soak))
    (folder / "soak.md").write_text(f"{text_of(soak)}\n![memory and counts against time](soak.svg)\n")


def _looks(soak: Soak) -> Iterator[str]:
    """What was held before, in the course of the run, and after it."""
    judged = soak.judged
    looks = [soak.before, judged[0], judged[len(judged) // 2], judged[-1], soak.after]
    minutes = " | ".join(f"after {look.at / 60:.1f} min" for look in looks[1:-1])
    yield f"\n## What it held\n\n| | idle before | {minutes} | idle after |"
    yield "|---|" + "---|" * len(looks)
    for name, text in MEMORY.items():
        yield f"| memory, {text}, MB | {' | '.join(f'{getattr(look, name):.1f}' for look in looks)} |"
    for name, (text, _) in COUNTS.items():
        yield f"| {text} | {' | '.join(f'{getattr(look, name):g}' for look in looks)} |"


def _calls(soak: Soak) -> Iterator[str]:
    """What was answered; a code that nobody met is not there."""
    yield "\n## What was answered\n\n| rpc | code | calls |\n|---|---|---|"
    for (rpc, code), count in sorted(soak.after.calls.items()):
        if answered := count - soak.before.calls.get((rpc, code), 0.0):
            yield f"| {rpc} | {code} | {answered:,.0f} |"
