"""A database of the first edition, with what is in it, after `migrate`."""

from __future__ import annotations

import psycopg
import pytest

from service.lead import SealedSubmission
from service.storage import schema
from service.storage.database.database import Database
from service.storage.leads.decision import Created
from service.storage.leads.submissions import SubmissionStore
from tests.harness.faults import value_of
from tests.harness.postgres import TestDatabase, TestServer
from tests.storage.conftest import Submit

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


def test_every_daily_file_is_rendered_anew_after(old: TestDatabase, submit: Submit) -> None:
    insert(old, submit())

    schema.migrate(old.admin_url)

    quarters = "SELECT count(*) FROM lead JOIN lead_touch ON quarter = date_bin('15 min', created_at, 'epoch')"
    assert value_of(old.admin_url, quarters) == 1
