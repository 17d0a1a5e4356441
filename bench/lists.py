"""`python -m bench.lists`: pages of lists at a million leads, by each filter and each pair of filters, in each order.

The leads are those of skewed_rows.py. A page is found as the service finds it, by its own statements and settings, in
this process and with one caller. Writes `bench/lists.md`. Exit code 1: a goal was missed.

With `--folder` the database stays there, and the next run uses it again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from sqlalchemy import Select, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.arithmetic import Spread, pair_ratios, quantile
from bench.cpu import cpu_nanoseconds
from bench.databases import database
from bench.goals import GOALS_HEAD, Goal, Verdict
from bench.growth import LOADING
from bench.growth_rows import APART
from bench.skewed_rows import (
    COMMON_AGENT,
    COMMON_POLICY,
    COMMON_SOURCE,
    FORMER_AGENT,
    FORMER_POLICY,
    IMPORTER,
    SkewedRows,
)
from service.errors import QueryTimeoutError
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring
from service.lead import LeadOrder, LeadStatus
from service.storage.database.database import Database
from service.storage.leads.queries import CONDITIONS, LEAD, LIST_SECONDS, Filters, find_page
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import prepare_own_database
from tests.harness.postgres import folder_for_postgres

COUNT = 1_000_000
PAGE = 50
DEEP = 1000
"""The page that is measured besides the first, or the last one before it that is full."""
TURNS = 100
"""How often each page is found."""
NAME = "lists"

Place = tuple[datetime, UUID]

_BUFFERS = text("SELECT sum(hits + reads) FROM pg_stat_get_backend_io(pg_backend_pid()) WHERE object = 'relation'")
_FLUSH = text("SELECT pg_stat_force_next_flush()")
"""A backend reports what it looked at when it is idle, and no more than once a second unless it is told to."""


@dataclass(frozen=True, slots=True)
class Case:
    """A list."""

    name: str
    wanted: Filters
    order: LeadOrder


class Took(NamedTuple):
    """What a page took."""

    seconds: float
    cpu_seconds: float
    """Of PostgreSQL."""


@dataclass
class Found:
    """What the pages of a list took."""

    case: Case
    rows: int
    """Leads on the first page."""
    timed_out: bool = False
    buffers: float = 0.0
    """Pages of 8 kB that the database looked at for the first page."""
    deep: Place | None = None
    """The lead before the deep page; None: the first page is the only one."""
    deep_buffers: float = 0.0
    first: list[Took] = field(default_factory=list)
    later: list[Took] = field(default_factory=list)
    """Of each turn: of the first page, and of the deep one."""


def singles(rows: SkewedRows) -> dict[str, Filters]:
    """Each filter alone; some with a value that many leads have and one that few have, or that only old ones have."""
    middle, late = rows.created_at(rows.count // 2), rows.created_at(rows.count * 19 // 20)
    early = rows.created_at(rows.count // 20)
    return {
        "no filter": {},
        "status new": {"statuses": (LeadStatus.NEW,)},
        "status converted": {"statuses": (LeadStatus.CONVERTED,)},
        "status new, contacted": {"statuses": (LeadStatus.CONTACTED, LeadStatus.NEW)},
        "assignee, many": {"assignee": COMMON_AGENT},
        "assignee, former": {"assignee": FORMER_AGENT},
        "unassigned": {"unassigned": True},
        "policy, many": {"interested_policy": COMMON_POLICY},
        "policy, former": {"interested_policy": FORMER_POLICY},
        "source, many": {"source": COMMON_SOURCE},
        "source, a campaign": {"source": "campaign-07"},
        "source, nobody's": {"source": "no such source"},
        "created_by, many": {"created_by": "chatbot"},
        "created_by, former": {"created_by": IMPORTER},
        "created_after, half": {"created_after": middle},
        "created_after, 5 %": {"created_after": late},
        "created_before, 5 %": {"created_before": early},
        "updated_after, 5 %": {"updated_after": late},
        "updated_before, half": {"updated_before": middle},
        "updated_before, 5 %": {"updated_before": early},
        "name_prefix": {"name_prefix": "Ana Garcia 000"},
    }


def pairs() -> dict[str, Filters]:
    """Each pair of the five filters: with values that are never together, and with values that often are."""
    never: dict[str, Filters] = {
        "status": {"statuses": (LeadStatus.CONVERTED,)},
        "assignee": {"assignee": COMMON_AGENT},
        "unassigned": {"unassigned": True},
        "policy": {"interested_policy": COMMON_POLICY},
        "source": {"source": COMMON_SOURCE},
    }
    often: dict[str, Filters] = {
        "status": {"statuses": (LeadStatus.NOT_INTERESTED,)},
        "assignee": {"assignee": "agent-01"},
        "unassigned": {"unassigned": True},
        "policy": {"interested_policy": "Term Life 20-Year"},
        "source": {"source": "website"},
    }
    return {
        f"{one} and {other}, {how}": {**values[one], **values[other]}
        for one, other in combinations(never, 2)
        if (one, other) != ("assignee", "unassigned")
        for how, values in (("some", often), ("none", never))
    }


class Lists:
    """The pages of one database."""

    def __init__(self, connected: Database) -> None:
        self._database = connected

    async def page(self, case: Case, after: Place | None) -> int:
        """Find a page as the service does; how many leads are on it."""
        find = partial(find_page, wanted=case.wanted, order=case.order, after=after, limit=PAGE)
        return len(await self._database.read_within(LIST_SECONDS, find))

    async def buffers(self, case: Case, after: Place | None) -> float:
        """How many pages of 8 kB the database looks at for it, by the counter of the one connection that is used."""
        before = await self._counter()
        nothing = await self._counter() - before
        await self.page(case, after)
        return await self._counter() - before - 2 * nothing

    async def _counter(self) -> float:
        await self._database.rows(_FLUSH)
        ((found,),) = await self._database.rows(_BUFFERS)
        return float(found)

    async def place(self, case: Case) -> Place | None:
        """The lead before page DEEP, or before the last full page."""
        moment, lead_id = LEAD.c[case.order.column], LEAD.c.id
        matching = select(moment, lead_id).where(
            moment.is_not(None), *(CONDITIONS[name](value) for name, value in case.wanted.items())
        )
        counted = select(func.count()).select_from(matching.limit(DEEP * PAGE).subquery())
        ((count,),) = await self._long(counted)
        if count < 2 * PAGE:
            return None
        ordering = [each.desc() if case.order.is_descending else each.asc() for each in (moment, lead_id)]
        ((at, found),) = await self._long(matching.order_by(*ordering).offset(count // PAGE * PAGE - PAGE - 1).limit(1))
        return at, found

    async def _long(self, query: Select[Any]) -> Any:
        async def work(connection: AsyncConnection) -> Any:
            return (await connection.execute(query)).all()

        return await self._database.read_within(60, work)

    async def measure(self, case: Case) -> Found:
        """Both pages in turns; of a list that takes longer than a page may, nothing but that."""
        try:
            found = Found(case, await self.page(case, None), deep=await self.place(case))
        except QueryTimeoutError:
            return Found(case, 0, timed_out=True)
        found.buffers = await self.buffers(case, None)
        if found.deep:
            found.deep_buffers = await self.buffers(case, found.deep)
        for _ in range(TURNS):
            found.first.append(await self._took(case, None))
            if found.deep:
                found.later.append(await self._took(case, found.deep))
        return found

    async def _took(self, case: Case, after: Place | None) -> Took:
        ((pid,),) = await self._database.rows(text("SELECT pg_backend_pid()"))
        began, used = time.perf_counter(), cpu_nanoseconds(pid)
        await self.page(case, after)
        return Took(time.perf_counter() - began, (cpu_nanoseconds(pid) - used) / 1e9)


def cases(rows: SkewedRows) -> list[Case]:
    """Every list that is measured: each filter alone in each order, each pair by creation and by change."""
    alone = [Case(name, wanted, order) for name, wanted in singles(rows).items() for order in LeadOrder]
    orders = (LeadOrder.CREATED_DESC, LeadOrder.UPDATED_DESC)
    return alone + [Case(name, wanted, order) for name, wanted in pairs().items() for order in orders]


@contextmanager
def loaded(folder: Path, count: int) -> Iterator[tuple[EmbeddedPostgres, SkewedRows]]:
    """The server with the database of so many leads, which is made unless it is there."""
    postgres = EmbeddedPostgres(folder / "data", settings=LOADING, root_base=folder / "root-base")
    is_new = not EmbeddedPostgres.has_database(folder / "data", root_base=folder / "root-base")
    postgres.start()
    try:
        # The tokens are never opened.
        rows = SkewedRows(count, EncryptionService(Keyring.generate(now=datetime.now(UTC))), epoch=1)
        url = postgres.url(user="postgres", database=NAME)
        if is_new:
            prepare_own_database(postgres)
            database(postgres, NAME)
            rows.load(url)
        with psycopg.connect(url) as connection:
            ((rows.newest,),) = connection.execute("SELECT max(created_at) FROM lead").fetchall()
        rows.newest += APART
        yield postgres, rows
    finally:
        postgres.stop()


async def measured(url: str, rows: SkewedRows, chosen: str) -> list[Found]:
    """Every case whose name holds `chosen`."""
    connected = Database(url)
    lists = Lists(connected)
    found = []
    for case in cases(rows):
        if chosen in case.name:
            found.append(await lists.measure(case))
            print(row_of(found[-1]), file=sys.stderr, flush=True)
    await connected.close()
    return found


def row_of(found: Found) -> str:
    """A line of the table."""
    if found.timed_out:
        return f"| {found.case.name} | {found.case.order.name} | **QUERY_TIMEOUT** | | | | | | | |"
    rows = f"{found.buffers / found.rows:.1f}" if found.rows else f"{found.buffers:.0f} in all"
    deep = f"{found.deep_buffers / PAGE:.1f}" if found.deep else ""
    ratio = ratio_of(found)
    times = [
        f"{1000 * quantile([each.seconds for each in took], share):.2f}" if took else ""
        for took in (found.first, found.later)
        for share in (0.5, 0.99)
    ]
    cells = (
        found.case.name,
        found.case.order.name,
        str(found.rows),
        rows,
        deep,
        *times,
        ratio.text(2) if ratio else "",
    )
    return f"| {' | '.join(cells)} |"


def ratio_of(found: Found) -> Spread | None:
    """How much more of PostgreSQL's CPU the deep page takes, turn by turn."""
    if not found.later:
        return None
    return pair_ratios([each.cpu_seconds for each in found.later], [each.cpu_seconds for each in found.first])


def write(found: list[Found], count: int, size: Sequence[tuple[str, int]], path: Path | None) -> bool:
    """Print the report, and write it when there is a path; whether every goal was reached."""
    ratios = [(ratio, each) for each in found if (ratio := ratio_of(each))]
    worst, where = max(ratios, key=lambda pair: pair[0].high)
    goal = Goal(
        f"CPU of PostgreSQL, deep / first page, the worst of {len(ratios)}: {where.case.name}, {where.case.order.name}",
        worst,
        1.25,
    )
    lines = [
        "# Pages of lists",
        "",
        f"Written by `python -m bench.lists`: {count:,} leads of [skewed_rows.py](skewed_rows.py), {PAGE} a page,",
        f"found by the service's own statements, {TURNS} times each, by one caller. *Deep* is page {DEEP:,}, or the",
        "last full one. Buffers are pages of 8 kB, those of the catalogue included; times are milliseconds, without",
        "gRPC and without opening the leads. The last column is of the CPU time of PostgreSQL, which says more than a",
        f"clock on a machine that others use: 2 cores, load average at the end {os.getloadavg()[0]:.1f}.",
        "",
        GOALS_HEAD,
        goal.row(),
        "",
        "| filter | order | leads | buffers a lead | deep | p50 | p99 | deep p50 | deep p99 | deep / first |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(row_of, found),
        "",
        "| index of the table lead | bytes a lead |",
        "|---|---|",
        *(f"| {name} | {taken / count:.0f} |" for name, taken in size),
    ]
    report = "\n".join(lines) + "\n"
    print(report)
    if path is not None:
        path.write_text(report)
    return goal.verdict is Verdict.MET


def sizes(url: str) -> list[tuple[str, int]]:
    """The indexes of the leads, the largest first, in bytes."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT indexrelname, pg_relation_size(indexrelid) FROM pg_stat_user_indexes WHERE relname = 'lead'"
            " ORDER BY 2 DESC"
        ).fetchall()


def main() -> int:
    """Load, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m bench.lists", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default="", help="measure only the lists with this in their name; writes no report")
    options = parser.parse_args()
    with folder_for_postgres() as temporary, loaded(options.folder or temporary, options.count) as (postgres, rows):
        found = asyncio.run(measured(postgres.url(user="postgres", database=NAME), rows, options.only))
        size = sizes(postgres.url(user="postgres", database=NAME))
    whole = options.count == COUNT and not options.only
    return 0 if write(found, options.count, size, Path(__file__).with_name("lists.md") if whole else None) else 1


if __name__ == "__main__":
    sys.exit(main())
