"""A database of the first edition, with what is in it, after `migrate`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from service.lead import LeadEventType, SealedSubmission
from service.storage import schema
from service.storage.database.database import Database
from service.storage.leads.changes import LeadHistory
from service.storage.leads.decision import Created
from service.storage.leads.submissions import SubmissionStore
from service.storage.schema import BATCH_LEADS
from tests.harness import histories
from tests.harness.faults import execute, value_of
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.storage.conftest import Submit

MIGRATION_LOCK = 0x4C4B_4D49
FIRST_EDITION = "0006"


@pytest.fixture
def old(postgres_server: TestServer) -> TestDatabase:
    """An empty database of the first edition."""
    return postgres_server.database_at(FIRST_EDITION)


def insert(database: TestDatabase, submission: SealedSubmission) -> None:
    """Store a lead as the first edition did, and settle its touch as a render does."""
    columns = {
        **submission.fields,
        "id": submission.id,
        "created_by": submission.created_by,
        "request_id": submission.request_id,
        "content_digest": submission.content_digest,
        "phone_index": submission.indexes.phones[0],
        "nid_index": submission.indexes.nids[0],
    }
    names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(f"INSERT INTO lead ({names}) VALUES ({places})".encode(), list(columns.values()))
        connection.execute("DELETE FROM lead_touch")


async def test_a_request_of_before_is_repeated_after(old: TestDatabase, submit: Submit) -> None:
    details = {"name": "Rahima", "phone": "+8801799123456", "nid": "19991234567890123", "request_id": "r-1"}
    first = submit(**details)
    insert(old, first)

    schema.migrate(old.admin_url)

    connected = Database(old.admin_url)
    outcome = await SubmissionStore(connected).create(submit(**details))
    await connected.close()
    assert isinstance(outcome, Created)
    assert (outcome.lead.id, outcome.is_new) == (first.id, False)


LEADS = 2500
"""Three batches of `migrate`."""

HISTORIES_OF_BEFORE = (
    "SET session_replication_role = replica",
    f"""INSERT INTO lead (id, name, phone, nid, address, interested_policy, phone_index, nid_index, created_by,
            created_at, content_digest, version, status, assignee)
        SELECT gen_random_uuid(), 'Somebody', token, token, token, 'Term', sha256(convert_to('p' || n, 'UTF8')),
            sha256(convert_to('n' || n, 'UTF8')), 'bot-' || n % 3, now() - n * interval '1 min', 'digest', 3,
            'contacted', 'rahima'
        FROM generate_series(1, {LEADS}) AS n, (SELECT 'e1.gAAAAAAAAAAAtoken' AS token) AS any_token""",
    """INSERT INTO status_change (lead_id, from_status, to_status, actor, reason, changed_at, version)
        SELECT id, 'new', 'contacted', 'agent', 'called', created_at + interval '1 h', 2 FROM lead""",
    """INSERT INTO assignment_change (lead_id, to_assignee, actor, changed_at, version)
        SELECT id, 'rahima', 'boss', created_at + interval '2 h', 3 FROM lead""",
)
STATUS_CHANGES = (
    "SELECT lead_id, from_status, to_status, actor, reason, {} AS changed_at, version FROM {} ORDER BY 1, 7"
)
ASSIGNMENTS = (
    "SELECT lead_id, from_assignee, to_assignee, actor, reason, {} AS changed_at, version FROM {} ORDER BY 1, 7"
)


def rows_of(database: TestDatabase, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database.admin_url) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.fixture
def with_histories(old: TestDatabase) -> TestDatabase:
    """A database from before there was one history, with many leads."""
    with psycopg.connect(old.admin_url) as connection:
        for statement in HISTORIES_OF_BEFORE:
            connection.execute(statement.encode())
    return old


class Turns:
    """Lets a process that migrates make one transaction after another: each of them takes the same lock."""

    def __init__(self, database: TestDatabase, threads: ThreadPoolExecutor) -> None:
        self._threads, self._url = threads, database.admin_url
        self._holding, self._next = (psycopg.connect(database.admin_url, autocommit=True) for _ in range(2))
        self._holding.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])

    def wait_for(self, waiting: int) -> None:
        """Wait until so many wait for the turn."""
        query = (
            f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {MIGRATION_LOCK} AND NOT granted"
        )
        assert eventually(lambda: value_of(self._url, query) == waiting, within=30)

    def give(self) -> None:
        """Let the one that waits make one transaction, and hold it up before the next."""
        self.wait_for(1)
        turn = self._threads.submit(self._next.execute, "SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        self.wait_for(2)
        self._holding.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])
        turn.result(timeout=60)
        self._holding, self._next = self._next, self._holding

    def end(self) -> None:
        for connection in (self._holding, self._next):
            connection.close()


def test_histories_that_move_in_a_migration_that_is_killed_are_whole_after_the_next(
    with_histories: TestDatabase, tmp_path: Path
) -> None:
    database = with_histories
    before = [
        rows_of(database, STATUS_CHANGES.format("changed_at", "status_change")),
        rows_of(database, ASSIGNMENTS.format("changed_at", "assignment_change")),
    ]
    settings = {"LEADKEEP_ADMIN_DATABASE_URL": database.admin_url}
    operator = RunningService(tmp_path / "leadkeep", database_url=database.serve_url, settings=settings)
    with ThreadPoolExecutor(1) as threads:
        turns = Turns(database, threads)
        migrating = operator.begin("migrate")
        turns.give()  # creates the table
        turns.give()  # moves the first leads
        turns.wait_for(1)
        migrating.kill()
        migrating.wait()
        turns.end()
    moved = value_of(database.admin_url, "SELECT count(DISTINCT lead_id) FROM lead_event")
    refused = operator.leadkeep("serve")
    for history in ("status_change", "assignment_change"):
        with pytest.raises(InsufficientPrivilege):  # what was added now would be lost
            execute(database.serve_url, f"INSERT INTO {history} DEFAULT VALUES")

    schema.migrate(database.admin_url)

    assert moved == BATCH_LEADS < LEADS
    assert (refused.returncode, "leadkeep migrate" in refused.stderr) == (1, True)
    after = [
        rows_of(database, STATUS_CHANGES.format("at", "lead_event WHERE type = 3")),
        rows_of(database, ASSIGNMENTS.format("at", "lead_event WHERE type = 4")),
    ]
    assert after == before
    assert len(before[0]) == LEADS
    assert value_of(database.admin_url, histories.WRONG) == 0
    assert value_of(database.admin_url, "SELECT count(*) = count(DISTINCT id) FROM lead_event")
    largest = """
        SELECT max(leads) FROM (
            SELECT count(DISTINCT lead_id) AS leads FROM lead_event GROUP BY transaction_id) AS one"""
    assert value_of(database.admin_url, largest) == BATCH_LEADS


async def test_a_lead_of_before_shows_its_histories_as_before(with_histories: TestDatabase) -> None:
    schema.migrate(with_histories.admin_url)
    lead_id, created_at = rows_of(with_histories, "SELECT id, created_at FROM lead WHERE created_by = 'bot-2' LIMIT 1")[
        0
    ]

    connected = Database(with_histories.serve_url)
    history = LeadHistory(connected)
    (moved,) = await history.of_type(UUID(str(lead_id)), LeadEventType.STATUS_CHANGED)
    (assigned,) = await history.of_type(UUID(str(lead_id)), LeadEventType.ASSIGNED)
    page = await history.page(UUID(str(lead_id)), after=None, limit=9, newest_first=False, with_accesses=False)
    await connected.close()

    assert (moved.from_status, moved.to_status, moved.reason, moved.version) == ("new", "contacted", "called", 2)
    assert (assigned.from_assignee, assigned.to_assignee, assigned.actor, assigned.version) == (
        None,
        "rahima",
        "boss",
        3,
    )
    created = page[0][0]
    assert [event for event, _ in page] == [created, moved, assigned]
    assert (created.type, created.actor, created.at) == (LeadEventType.CREATED, "bot-2", created_at)


def test_a_lead_that_was_changed_before_it_was_created_was_changed_when_it_was_created(
    old: TestDatabase, submit: Submit
) -> None:
    """It had waited in the spool of a machine whose clock was ahead; lists take for granted that there is none."""
    insert(old, submit())
    execute(old.admin_url, "UPDATE lead SET created_at = now() + interval '5 min'")

    schema.migrate(old.admin_url)

    assert value_of(old.admin_url, "SELECT updated_at = created_at FROM lead") is True


def test_every_daily_file_is_rendered_anew_after(old: TestDatabase, submit: Submit) -> None:
    insert(old, submit())

    schema.migrate(old.admin_url)

    quarters = (
        "SELECT count(DISTINCT lead.id) FROM lead JOIN lead_touch ON quarter = date_bin('15 min', created_at, 'epoch')"
    )
    assert value_of(old.admin_url, quarters) == 1


def test_a_lead_takes_over_what_the_lead_of_before_that_had_it_left_behind(old: TestDatabase, submit: Submit) -> None:
    first, beside, alone = submit(), submit(), submit()
    for each in (first, beside, alone):
        insert(old, each)
    execute(
        old.admin_url,
        "UPDATE lead SET phone_shared = true, phone_index = (SELECT phone_index FROM lead WHERE id = "
        f"'{first.id}') WHERE id = '{beside.id}'",
        f"UPDATE lead SET phone_shared = true, nid_shared = true WHERE id = '{alone.id}'",
    )

    schema.migrate(old.admin_url)

    shared = {lead_id for (lead_id,) in rows_of(old, "SELECT id FROM lead WHERE phone_shared OR nid_shared")}
    assert shared == {beside.id}


def test_nobody_but_the_service_may_erase(database: TestDatabase) -> None:
    may_execute = """
        SELECT proname, grantee::regrole::text FROM pg_proc, aclexplode(proacl)
        WHERE proname IN ('lock_for_erasure', 'erase_lead') AND grantee <> proowner ORDER BY 1"""
    assert rows_of(database, may_execute) == [("erase_lead", "leadkeep_app"), ("lock_for_erasure", "leadkeep_app")]
