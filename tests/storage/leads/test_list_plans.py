"""Which leads a page and a summary look at: those on the page, and none, whatever the filters have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import LeadGroup, LeadOrder, LeadStatus
from service.storage.database.database import Database, Work
from service.storage.leads.queries import Filters, find_page
from service.storage.leads.summaries import LeadSummaries
from tests.harness.postgres import TestDatabase, TestServer

T = TypeVar("T")

COUNT = 4000
PAGE = 20
SORTED_TOGETHER = 32
"""Leads that PostgreSQL reads at once to sort those of one moment by id (its incremental sort)."""
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

# Of ten leads one each is converted, of sam, of nobody, of the policy Travel, from a branch: no two of these together.
MANY = f"""
    INSERT INTO lead (id, name, phone, phone_index, created_by, content_digest, status, assignee, interested_policy,
        source, created_at, updated_at, version, resubmitted_at)
    SELECT gen_random_uuid(), 'Somebody', 'k.gAAAAAAAAAAA', sha256(n::text::bytea),
        CASE WHEN n % 100 < 50 THEN 'bot' ELSE 'shop' END, '',
        CASE WHEN n % 10 = 1 THEN 'converted' WHEN n < 3800 THEN 'contacted' ELSE 'new' END,
        CASE n % 10 WHEN 2 THEN 'sam' WHEN 3 THEN NULL ELSE 'kim' END,
        CASE n % 10 WHEN 4 THEN 'Travel' ELSE 'Motor' END,
        CASE n % 10 WHEN 5 THEN 'branch' WHEN 6 THEN NULL ELSE 'web' END,
        at, CASE WHEN n % 20 < 10 THEN at ELSE at + n % 97 * interval '1 h' + interval '1 s' END,
        CASE WHEN n % 20 < 10 THEN 1 ELSE 2 END, CASE WHEN n % 3 = 0 THEN at + n % 31 * interval '1 d' END
    FROM (SELECT n, timestamptz '{NOON}' + n * interval '1 min' AS at FROM generate_series(1, {COUNT}) n) numbers
"""

ALONE: dict[str, Filters] = {
    "no filter": {},
    "status": {"statuses": (LeadStatus.CONVERTED,)},
    "a status that only the newest have": {"statuses": (LeadStatus.NEW,)},
    "assignee": {"assignee": "sam"},
    "unassigned": {"unassigned": True},
    "policy": {"interested_policy": "Travel"},
    "source": {"source": "branch"},
    "created_by": {"created_by": "shop"},
}
PAIRED = ("status", "assignee", "unassigned", "policy", "source")
PAIRS = [pair for pair in combinations(PAIRED, 2) if pair != ("assignee", "unassigned")]


@pytest.fixture(scope="module")
def many(postgres_server: TestServer) -> TestDatabase:
    """Leads enough that no list is read as a whole, half of them changed since they were created; vacuumed."""
    database = postgres_server.fresh_database()
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(MANY.encode())
        connection.execute("VACUUM (ANALYZE) lead")
    return database


@pytest.fixture
async def leads(many: TestDatabase) -> AsyncIterator[Database]:
    opened = Database(many.serve_url)
    yield opened
    await opened.close()


async def looked_at(connection: AsyncConnection) -> int:
    """How many leads this transaction has looked at so far."""
    counter = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'lead'"
    return int((await connection.execute(text(counter))).scalar_one())


async def page(
    connection: AsyncConnection, wanted: Filters, order: LeadOrder, *, after_pages: int = 0
) -> tuple[int, int]:
    """How many leads a page has, and how many were looked at for it."""
    after: Any = None
    for _ in range(after_pages):
        *_, (at, last) = await find_page(connection, wanted, order, after=after, limit=PAGE)
        after = at, last.id
    before = await looked_at(connection)
    found = await find_page(connection, wanted, order, after=after, limit=PAGE)
    return len(found), await looked_at(connection) - before


async def measured(
    leads: Database, lists: Mapping[str, Filters], *, after_pages: int = 0
) -> dict[str, tuple[int, int]]:
    """Of each list in each order: how many leads a page has, and how many were looked at for it."""

    async def find(connection: AsyncConnection) -> dict[str, tuple[int, int]]:
        # A table of this size is rightly read by other ways, which are no ways at a million leads.
        await connection.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"))
        return {
            f"{name}, {order.name}": await page(connection, wanted, order, after_pages=after_pages)
            for name, wanted in lists.items()
            for order in LeadOrder
        }

    return await leads.read_within(30, find)


@pytest.mark.parametrize("after_pages", [0, 2])
async def test_a_page_by_one_filter_looks_at_its_leads_alone(leads: Database, after_pages: int) -> None:
    pages = await measured(leads, ALONE, after_pages=after_pages)

    assert {found for found, _ in pages.values()} == {PAGE}
    assert {name: looked for name, (_, looked) in pages.items() if looked > PAGE + SORTED_TOGETHER} == {}


async def test_two_filters_that_no_lead_matches_look_at_none(leads: Database) -> None:
    pairs = {f"{one}, {other}": {**ALONE[one], **ALONE[other]} for one, other in PAIRS}

    assert set((await measured(leads, pairs)).values()) == {(0, 0)}


class Watched:
    """A database that counts the leads which it looks at."""

    def __init__(self, leads: Database) -> None:
        self._leads = leads
        self.looked_at = -1

    async def read_within(self, seconds: float, work: Work[T]) -> T:
        async def watched(connection: AsyncConnection) -> T:
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            found = await work(connection)
            self.looked_at = await looked_at(connection)
            return found

        return await self._leads.read_within(seconds, watched)


@pytest.mark.parametrize("group", LeadGroup)
async def test_a_summary_looks_at_no_lead(leads: Database, group: LeadGroup) -> None:
    watched, end = Watched(leads), datetime(2027, 1, 1, tzinfo=UTC)
    summaries = LeadSummaries(watched)  # type: ignore[arg-type] # all that it needs of a database

    if group is LeadGroup.DAY:
        assert await summaries.by_day([NOON], end, None) == [COUNT]
    else:
        assert (await summaries.by_value(group, NOON, end, None)).total == COUNT
    assert watched.looked_at == 0
