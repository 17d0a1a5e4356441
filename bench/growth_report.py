"""`bench/growth.md`, made of what bench/growth.py found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arithmetic import Spread
from bench.explained import Explained
from bench.goals import GOALS_HEAD, Goal, Verdict

GOAL = 1.25
STATEMENT_SHOWN = 110
"""Characters of a statement that tell which one it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What so many leads take, in bytes; heap with TOAST, and indexes, of each table."""

    count: int
    loaded_in: float
    tables: Mapping[str, tuple[int, int]]
    indexes: Mapping[str, int]
    dead: int
    vacuums: int
    analyses: int
    service_megabytes: float

    @property
    def total(self) -> int:
        """All tables and indexes."""
        return sum(heap + index for heap, index in self.tables.values())


def write(
    latencies: Mapping[int, Mapping[str, Sequence[float]]],
    ratios: Mapping[str, Spread],
    disks: Sequence[Disk],
    plans: Sequence[Explained],
    path: Path | None,
) -> bool:
    """Print the report, and write it when there is a path; whether every goal was reached."""
    goals = [Goal(text, ratio, GOAL) for text, ratio in ratios.items()]
    whole = [plan for plan in plans if plan.whole_tables]
    sizes = list(latencies)
    operations = list(latencies[sizes[0]])
    lines = [
        "# Leadkeep as it grows",
        "",
        "Written by `python -m bench.growth`. One caller; medians of interleaved rounds, the lowest and highest in",
        "brackets. Leads are loaded by COPY: [growth_rows.py](growth_rows.py) tells which of them are truly sealed.",
        "",
        "## Goals",
        "",
        GOALS_HEAD,
        *(goal.row() for goal in goals),
        f"| queries that read a large table as a whole | {len(whole)} | 0 | {'**missed**' if whole else 'met'} |",
        "",
        "## Latency, ms",
        "",
        f"| | {' | '.join(f'{size:,} leads' for size in sizes)} |",
        f"|---|{'---|' * len(sizes)}",
    ]
    for operation in operations:
        cells = (Spread.of([1000 * value for value in latencies[size][operation]]).text(2) for size in sizes)
        lines.append(f"| {operation} | {' | '.join(cells)} |")
    lines += ["", "## Disk and memory", "", f"| | {' | '.join(f'{disk.count:,} leads' for disk in disks)} |"]
    lines.append(f"|---|{'---|' * len(disks)}")
    lines += [
        _row("bytes a lead, everything", disks, lambda disk: f"{disk.total / disk.count:,.0f}"),
        *(_row(f"table {name}, MB: heap + indexes", disks, _table_cell(name)) for name in disks[-1].tables),
        *(_row(f"index {name}, MB", disks, _index_cell(name)) for name in disks[-1].indexes),
        _row("dead rows of lead afterwards", disks, lambda disk: f"{disk.dead:,}"),
        _row("autovacuum, autoanalyze", disks, lambda disk: f"{disk.vacuums}, {disk.analyses}"),
        _row("memory of the service, MB", disks, lambda disk: f"{disk.service_megabytes:,.0f}"),
        _row("loaded in, s", disks, lambda disk: f"{disk.loaded_in:,.0f}"),
    ]
    lines += [
        "",
        f"## Every query at {sizes[-1]:,} leads",
        "",
        "| statement | indexes | read as a whole |",
        "|---|---|---|",
    ]
    for plan in plans:
        statement = _shortened(plan.statement)
        lines.append(f"| `{statement}` | {', '.join(plan.indexes)} | {', '.join(plan.whole_tables)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if path is not None:
        path.write_text(text)
    return not whole and all(goal.verdict is Verdict.MET for goal in goals)


def _shortened(statement: str) -> str:
    """The part that tells statements apart: a list of columns does not."""
    if statement.startswith("SELECT lead.id, lead.name"):
        statement = f"SELECT … {statement[statement.index(' FROM ') + 1 :]}"
    return statement[:STATEMENT_SHOWN].replace("|", "\\|")


def _table_cell(name: str) -> Callable[[Disk], str]:
    return lambda disk: _megabytes(disk.tables[name])


def _index_cell(name: str) -> Callable[[Disk], str]:
    return lambda disk: f"{disk.indexes.get(name, 0) / 1e6:,.1f}"


def _row(name: str, disks: Sequence[Disk], cell: Callable[[Disk], str]) -> str:
    return f"| {name} | {' | '.join(cell(disk) for disk in disks)} |"


def _megabytes(sizes: tuple[int, int]) -> str:
    return f"{sizes[0] / 1e6:,.1f} + {sizes[1] / 1e6:,.1f}"
