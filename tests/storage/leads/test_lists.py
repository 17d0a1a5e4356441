"""Pages of lists: what every filter finds, in every order, page by page, compared with the same done in Python."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import combinations
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import LeadValidationError, QueryTimeoutError
from service.lead import LeadOrder, LeadStatus
from service.storage import models, schema
from service.storage.database.database import Database
from service.storage.database.pool import CONNECTIONS
from service.storage.leads.queries import CONDITIONS, MOST_MATCHES, Filters, columns_of, find_page, index_columns
from service.storage.leads.submissions import SubmissionStore
from service.validation.reference import REFERENCE_BYTES
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import until
from tests.storage.conftest import Submit, Talk

COUNT = 150
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = (
    *("Md. Rahman", "MD. ABDUL", "md_x", "md%y", "md\\z", "M", "রহিমা", "রহিম উদ্দিন", "Émile", "ÉMILE ZOLA", "Emile"),
    *("Zoë", "ZOË", "Őri", "Ирина", "ИРИНА", "Σοφία", "ΣΟΦΊΑ", "Λουκάς Δ", "ΛΟΥΚΆΣ Δ", "Straße", "\U0010fffd"),
)
PREFIXES = (
    *("md", "MD.", "md_", "md%", "md\\", "রহ", "রহিমা", "émi", "ÉM", "ZO", "őr", "ири", "ΣΟ", "stras"),
    *("Λουκάς", "ΛΟΥΚΆΣ", "λουκάς δ", "ΛΟΥΚΆΣ Δ"),
)

Row = Mapping[str, Any]


def one_sigma(text: str) -> str:
    """In lower case, where Greek has two forms of this letter."""
    return text.lower().replace("\N{GREEK SMALL LETTER FINAL SIGMA}", "\N{GREEK SMALL LETTER SIGMA}")


MEETS: dict[str, Callable[[Row, Any], bool]] = {
    "statuses": lambda row, wanted: row["status"] in wanted,
    "assignee": lambda row, wanted: row["assignee"] == wanted,
    "unassigned": lambda row, _: row["assignee"] is None,
    "interested_policy": lambda row, wanted: row["interested_policy"] == wanted,
    "source": lambda row, wanted: row["source"] == wanted,
    "created_by": lambda row, wanted: row["created_by"] == wanted,
    "reader": lambda row, wanted: row["created_by"] == wanted,
    "created_after": lambda row, wanted: row["created_at"] >= wanted,
    "created_before": lambda row, wanted: row["created_at"] < wanted,
    "updated_after": lambda row, wanted: row["updated_at"] >= wanted,
    "updated_before": lambda row, wanted: row["updated_at"] < wanted,
    "name_prefix": lambda row, wanted: one_sigma(row["name"]).startswith(one_sigma(wanted)),
    "phone": lambda row, wanted: row["phone_index"] in wanted,
    "nid": lambda row, wanted: row["nid_index"] in wanted,
    "email": lambda row, wanted: row["email_index"] in wanted,
    "reference": lambda row, wanted: row["id"].bytes.endswith(wanted),
    "conversation_id": lambda row, wanted: row["talk"] == wanted[0],
}


@pytest.fixture(scope="module")
def listed(postgres_server: TestServer) -> TestDatabase:
    return postgres_server.fresh_database()


@pytest.fixture(scope="module")
def rows(listed: TestDatabase, submit: Submit) -> list[Row]:
    """Skewed leads, many of one moment; one conversation in ten is `talk`."""
    chance = random.Random(20)

    def moment() -> datetime:
        return NOON + timedelta(minutes=chance.randrange(40))

    made: list[Row] = []
    with psycopg.connect(listed.admin_url) as connection:
        connection.execute("SET session_replication_role = replica")
        for number in range(COUNT):
            talk = "talk" if number % 10 == 0 else None
            submission = submit(
                name=chance.choice(NAMES),
                interested_policy=chance.choice(("Term", "Term", "Term", "Whole", None)),
                source=chance.choice(("ad", "web", "web", None)),
                created_by=chance.choices(("bot", "other-bot", "import"), (6, 3, 1))[0],
                conversation_id=talk,
                email="somebody@example.com" if number % 9 == 7 else None,
            )
            row: dict[str, Any] = {
                **columns_of(submission),
                **index_columns(submission.indexes),
                "id": submission.id,
                "created_by": submission.created_by,
                "status": chance.choices([status.value for status in LeadStatus], (60, 25, 5, 10))[0],
                "assignee": chance.choice((None, None, "sam", "sam", "kim")),
                "created_at": (created := moment()),
                "updated_at": created if chance.random() < 0.4 else max(created, moment()),
                "resubmitted_at": moment() if chance.random() < 0.2 else None,
            }
            insert(connection, row)
            if indexes := submission.indexes.conversation:
                connection.execute(
                    "INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)"
                    " VALUES (%s, %s, %s, %s)",
                    [row["id"], row["id"], row["conversation_id"], indexes[0]],
                )
            made.append({**row, "talk": talk})
    return made


def insert(connection: psycopg.Connection, row: Row) -> None:
    places = ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO lead ({', '.join(row)}) VALUES ({places})".encode(), row)


@pytest.fixture
async def leads(listed: TestDatabase) -> AsyncIterator[Database]:
    opened = Database(listed.serve_url)
    yield opened
    await opened.close()


def values(rows: list[Row], talk: Talk) -> dict[str, list[Any]]:
    """For each filter, values that many leads have, that few have, and that none has."""
    quarters = [NOON + timedelta(minutes=minutes) for minutes in (10, 35)]
    return {
        "statuses": [(LeadStatus.NEW,), (LeadStatus.CONVERTED,), (LeadStatus.CONTACTED, LeadStatus.NOT_INTERESTED)],
        "assignee": ["sam", "nobody known"],
        "unassigned": [True],
        "interested_policy": ["Term", "Whole"],
        "source": ["web", "ad"],
        "created_by": ["bot", "import"],
        "reader": ["other-bot"],
        **{f"{change}_{side}": quarters for change in ("created", "updated") for side in ("after", "before")},
        "name_prefix": list(PREFIXES),
        "phone": [(rows[7]["phone_index"],)],
        "nid": [(rows[7]["nid_index"],)],
        "email": [(rows[7]["email_index"],)],
        "reference": [rows[7]["id"].bytes[-REFERENCE_BYTES:]],
        "conversation_id": [talk],
    }


def in_python(rows: list[Row], wanted: Filters, order: LeadOrder) -> list[UUID]:
    found = [row for row in rows if row[order.column] and all(MEETS[name](row, wanted[name]) for name in wanted)]
    found.sort(key=lambda row: (row[order.column], row["id"]), reverse=order.is_descending)
    return [row["id"] for row in found]


async def walked(connection: AsyncConnection, wanted: Filters, order: LeadOrder, size: int) -> list[UUID]:
    """The leads of all pages."""
    found: list[UUID] = []
    after = None
    while True:
        page = await find_page(connection, wanted, order, after=after, limit=size)
        found += [lead.id for _, lead in page]
        if len(page) < size:
            return found
        after = (page[-1][0], page[-1][1].id)


def test_every_filter_is_compared(rows: list[Row], talk: Talk) -> None:
    assert set(values(rows, talk)) == set(MEETS) == set(CONDITIONS)


async def test_every_filter_in_each_order_and_every_pair_finds_what_python_finds(
    leads: Database, rows: list[Row], talk: Talk
) -> None:
    known = values(rows, talk)
    alone: list[Filters] = [{}, *({name: value} for name, each in known.items() for value in each)]
    pairs: list[Filters] = [{one: known[one][0], other: known[other][0]} for one, other in combinations(known, 2)]
    orders = list(LeadOrder)

    async def compare(connection: AsyncConnection) -> None:
        wanted = [(filters, order) for filters in alone for order in orders]
        wanted += [(filters, orders[number % len(orders)]) for number, filters in enumerate(pairs)]
        for filters, order in wanted:
            assert await walked(connection, filters, order, 61) == in_python(rows, filters, order), (filters, order)

    await leads.read_within(60, compare)


async def test_any_filters_together_find_page_by_page_what_python_finds(
    leads: Database, rows: list[Row], talk: Talk
) -> None:
    known, chance = values(rows, talk), random.Random(20)

    async def compare(connection: AsyncConnection) -> None:
        for _ in range(80):
            names = chance.sample(sorted(known), chance.choice((1, 1, 2, 3, 4, 6)))
            filters = {name: chance.choice(known[name]) for name in names}
            order, size = chance.choice(list(LeadOrder)), chance.choice((7, 30))
            found = await walked(connection, filters, order, size)
            assert found == in_python(rows, filters, order), (filters, order, size)

    await leads.read_within(60, compare)


@pytest.mark.parametrize("filters", [{"created_by": "bot"}, {"statuses": (LeadStatus.NEW, LeadStatus.CONTACTED)}])
async def test_a_span_of_one_time_holds_on_every_page_in_the_order_of_the_other(
    leads: Database, rows: list[Row], filters: Filters
) -> None:
    # Many leads on either side of it, so that a page ends on each side.
    span = NOON + timedelta(minutes=20)

    async def compare(connection: AsyncConnection) -> None:
        for name in ("created_after", "created_before", "updated_after", "updated_before"):
            for order in LeadOrder:
                wanted = {**filters, name: span}
                assert await walked(connection, wanted, order, 7) == in_python(rows, wanted, order), (name, order)

    await leads.read_within(60, compare)


async def test_a_list_of_too_many_to_sort_is_refused_and_another_filter_helps(
    connected: Database, store: SubmissionStore, submit: Submit, database: TestDatabase
) -> None:
    await store.create_all_once([submit(name="Md. Abdul")])
    copies = "SELECT gen_random_uuid() AS id, sha256(n::text::bytea) AS index, n FROM generate_series(1, %s) n"
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("SET session_replication_role = replica")
        columns = [each.name for each in models.lead.c if each.name not in ("id", "phone_index", "nid_index", "source")]
        admin.execute(
            f"INSERT INTO lead (id, phone_index, nid_index, source, {', '.join(columns)})"
            f" SELECT copy.id, copy.index, copy.index, CASE WHEN n %% 2 = 0 THEN 'ad' END, {', '.join(columns)}"
            f" FROM lead, ({copies}) AS copy".encode(),
            [MOST_MATCHES],
        )

    async def found(**wanted: Any) -> int:
        find = partial(find_page, wanted=wanted, order=LeadOrder.UPDATED_ASC, after=None, limit=5000)
        return len(await connected.read_within(5, find))

    assert await found(name_prefix="md", source="ad") == MOST_MATCHES // 2
    with pytest.raises(LeadValidationError) as refusal:
        await found(name_prefix="md")
    assert [each.field for each in refusal.value.violations] == [("name_prefix")]


async def test_a_name_is_found_by_its_own_letters_where_only_ascii_has_two_cases(
    postgres_server: TestServer, submit: Submit
) -> None:
    database = postgres_server.empty_database("LOCALE_PROVIDER libc LOCALE 'C'")
    schema.migrate(database.admin_url)
    names = {submit(name=name).id: name for name in NAMES}
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("SET session_replication_role = replica")
        for lead_id, name in names.items():
            submission = submit(name=name)
            row = {**columns_of(submission), **index_columns(submission.indexes)}
            insert(connection, {**row, "id": lead_id, "created_by": submission.created_by})
    connected = Database(database.serve_url)
    for lead_id, name in names.items():
        find = partial(find_page, wanted={"name_prefix": name}, order=LeadOrder.CREATED_DESC, after=None, limit=100)
        assert lead_id in [lead.id for _, lead in await connected.read_within(60, find)], name
    await connected.close()


async def test_a_list_ends_at_its_time(leads: Database, rows: list[Row]) -> None:
    async def sleep(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(QueryTimeoutError):
        await leads.read_within(0.1, sleep)

    find = partial(find_page, wanted={}, order=LeadOrder.CREATED_DESC, after=None, limit=len(rows) + 1)
    assert len(await leads.read_within(60, find)) == len(rows)
    [(timeout,)] = await leads.rows(text("SHOW statement_timeout"))
    assert timeout == "0", "what comes next on this connection has its own time"


async def test_lists_leave_half_of_the_connections_to_others(connected: Database) -> None:
    running, release = 0, asyncio.Event()

    async def hold(_connection: AsyncConnection) -> None:
        nonlocal running
        running += 1
        await release.wait()

    lists = [asyncio.create_task(connected.read_within(30, hold)) for _ in range(CONNECTIONS + 1)]
    await until(lambda: running == CONNECTIONS // 2)
    [row] = await connected.rows(text("SELECT 1"))
    release.set()
    await asyncio.gather(*lists)
    assert (row[0], running) == (1, CONNECTIONS + 1)
