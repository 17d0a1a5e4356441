"""The schema: how it comes to be, what it refuses, and what the role of `serve` may not do."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb
from psycopg import errors

from service.errors import StartRefusedError
from service.storage.database.database import Database
from service.storage.database.session import SETTINGS
from service.storage.diagnosis import excess_rights, in_the_way
from service.storage.schema import APPLICATION_ROLE, REVISION, migrate
from tests.conftest import StartService
from tests.harness.disguises import disguises
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService

TABLES = {
    "access_record",
    "access_chain",
    "access_head",
    "alembic_version",
    "daily_file",
    "file_turn",
    "key_canary",
    "lead",
    "lead_alias",
    "lead_conflict",
    "lead_conversation",
    "lead_event",
    "lead_touch",
    "replica",
    "resubmission",
    "spool_erasure",
    "spool_search",
    "tombstone",
}
NOTES = {"lead_touch", "replica", "spool_erasure", "spool_search"}
"""What is removed again: by renders of the daily files, when a replica is gone for good, or has answered."""


def tables(database: TestDatabase) -> set[str]:
    with psycopg.connect(database.admin_url) as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        return {row[0] for row in connection.execute(query)}


def revision(database: TestDatabase) -> object:
    return value_of(database.admin_url, "SELECT version_num FROM alembic_version")


def set_revision(database: TestDatabase, revision: str) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])


def test_migrate_makes_every_table_in_an_empty_database(postgres_server: TestServer) -> None:
    empty = postgres_server.empty_database()
    assert migrate(empty.admin_url) is None
    assert revision(empty) == REVISION
    assert tables(empty) == TABLES


def test_what_erased_in_the_first_edition_goes_with_the_migration(postgres_server: TestServer) -> None:
    database = postgres_server.database_at("0006")
    former = (
        "erase_lead(uuid, text, text, timestamptz, timestamptz, uuid, bytea)",
        "conflicts_of_lead(uuid, uuid)",
    )
    for function in former:
        execute(database.admin_url, f"CREATE FUNCTION {function} RETURNS uuid[] LANGUAGE sql AS 'SELECT NULL::uuid[]'")
    assert migrate(database.admin_url) == "0006"
    found = [value_of(database.admin_url, f"SELECT to_regprocedure('{function}')") for function in former]
    assert found == [None, None]


@pytest.mark.parametrize("unknown", ["0003", "0006aa", "0013"])
def test_a_schema_of_no_release_is_refused(unknown: str, database: TestDatabase) -> None:
    set_revision(database, unknown)
    with pytest.raises(StartRefusedError, match=f"schema {unknown}"):
        migrate(database.admin_url)


def test_migrate_again_changes_nothing(database: TestDatabase) -> None:
    assert migrate(database.admin_url) == REVISION
    assert revision(database) == REVISION


def test_two_operators_who_migrate_at_once_both_succeed(postgres_server: TestServer, tmp_path: Path) -> None:
    empty = postgres_server.empty_database()
    operator = RunningService(tmp_path / "operator", database_url=empty.admin_url)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: operator.leadkeep("migrate"), range(2)))
    assert [each.returncode for each in done] == [0, 0], done
    assert tables(empty) == TABLES


def test_migrate_gives_the_logins_of_the_service_the_settings_of_a_session(postgres_server: TestServer) -> None:
    empty = postgres_server.empty_database()
    with psycopg.connect(empty.admin_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE given_settings LOGIN IN ROLE leadkeep_app")
    assert migrate(empty.admin_url) is None
    with psycopg.connect(empty.admin_url.replace("postgres@", "given_settings@")) as connection:
        for name, value in SETTINGS.items():
            row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
            assert row == (value,)


def test_migrate_by_a_role_that_may_alter_no_other_role_goes_on(postgres_server: TestServer) -> None:
    empty = postgres_server.empty_database()
    name = empty.admin_url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(empty.admin_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE migrates_only LOGIN")
        connection.execute("CREATE ROLE keeps_settings LOGIN IN ROLE leadkeep_app")
        connection.execute("ALTER ROLE migrates_only SET search_path = elsewhere")
        connection.execute(f"ALTER DATABASE {name} OWNER TO migrates_only".encode())
    assert migrate(empty.admin_url.replace("postgres@", "migrates_only@")) is None
    assert tables(empty) == TABLES


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_migrate_refuses_a_database_that_is_not_utf8(postgres_server: TestServer, encoding: str) -> None:
    admin = postgres_server.postgres.url(user="postgres", database="postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE in_{encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0".encode()
        )
    url = postgres_server.postgres.url(user="postgres", database=f"in_{encoding}".lower())
    with pytest.raises(StartRefusedError, match=f"encoding is {encoding}.*ENCODING 'UTF8'"):
        migrate(url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


def test_migrate_refuses_a_database_of_a_later_release(database: TestDatabase, tmp_path: Path) -> None:
    set_revision(database, "9999")
    refused = RunningService(tmp_path / "operator", database_url=database.admin_url).leadkeep("migrate")
    assert refused.returncode == 1
    assert "newer than this release" in refused.stderr


def test_serve_refuses_a_database_without_schema_and_says_what_to_run(
    postgres_server: TestServer, tmp_path: Path
) -> None:
    empty = postgres_server.empty_database()
    refused = RunningService(tmp_path / "leadkeep", database_url=empty.serve_url).leadkeep("serve")
    assert refused.returncode == 1
    assert "leadkeep migrate" in refused.stderr


@pytest.mark.parametrize(
    ("revision", "advice"), [("0000", "leadkeep migrate"), ("9999", "run the release that migrated it")]
)
def test_serve_refuses_another_schema_and_says_what_to_run(
    revision: str, advice: str, database: TestDatabase, tmp_path: Path
) -> None:
    set_revision(database, revision)
    refused = RunningService(tmp_path / "leadkeep", database_url=database.serve_url).leadkeep("serve")
    assert refused.returncode == 1
    assert revision in refused.stderr
    assert advice in refused.stderr


LEAD = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
TOKEN = "e1.gAAAAAAAAAAAtoken"


@pytest.fixture
def stored(database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A connection as the role of `serve`, to a database with one row in each table."""
    with psycopg.connect(database.serve_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO lead (id, name, phone, nid, address, interested_policy, phone_index, nid_index, created_by,"
            " content_digest) VALUES (%s, 'Rahima', %s, %s, %s, 'Term', %s, %s, 'chatbot', %s)",
            [LEAD, TOKEN, TOKEN, TOKEN, b"p" * 32, b"n" * 32, b"c" * 32],
        )
        connection.execute(
            "INSERT INTO lead_event (type, lead_id, from_status, to_status, actor, version)"
            " VALUES (3, %s, 'new', 'contacted', 'agent', 2)",
            [LEAD],
        )
        connection.execute(
            "INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)"
            " VALUES (%s, %s, %s, 'i1.digest')",
            [LEAD, LEAD, TOKEN],
        )
        connection.execute(
            "INSERT INTO resubmission (lead_id, submission_id, name, phone, nid, address, interested_policy,"
            " actor, content_digest, verified) VALUES (%s, %s, 'R', %s, %s, %s, 'Term', 'chatbot', %s, true)",
            [LEAD, LEAD, TOKEN, TOKEN, TOKEN, b"c" * 32],
        )
        connection.execute(
            "INSERT INTO key_canary (id, sealed, digest, normaliser) VALUES (1, %s, %s, 'any')", [TOKEN, b"d" * 32]
        )
        yield connection


@pytest.mark.parametrize(
    "statement",
    [
        *(f"DELETE FROM {table}" for table in sorted(TABLES - NOTES)),
        *(f"TRUNCATE {table} CASCADE" for table in sorted(TABLES)),
        "UPDATE lead_event SET actor = 'nobody'",
        "UPDATE lead_conversation SET submission_id = gen_random_uuid()",
        "UPDATE key_canary SET database = gen_random_uuid()",
        "UPDATE access_record SET subject = 'nobody'",
        "UPDATE access_chain SET writer = 'nobody'",
        "UPDATE access_head SET number = 0",
        *(f"UPDATE tombstone SET {column} = NULL" for column in ("id", "lead_id", "erased_at", "erased_by", "reason")),
        "UPDATE lead_touch SET quarter = now()",
        "UPDATE alembic_version SET version_num = '9999'",
        "INSERT INTO alembic_version VALUES ('9999')",
        "CREATE TABLE mine (id int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "ALTER TABLE lead ADD COLUMN mine int",
        "ALTER TABLE lead DROP CONSTRAINT ck_lead_sealed",
        "ALTER TABLE lead DISABLE TRIGGER ALL",
        "DROP TABLE lead CASCADE",
        "DROP INDEX ix_lead_created_at",
        "CREATE INDEX mine ON lead (name)",
        "CREATE ROLE mine",
        "SET ROLE postgres",
        "COPY lead TO PROGRAM 'cat'",
    ],
)
def test_the_role_of_serve_may_not(statement: str, stored: psycopg.Connection) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        stored.execute(statement.encode())


def test_the_role_of_serve_cannot_give_itself_rights(stored: psycopg.Connection) -> None:
    stored.execute("GRANT DELETE ON lead TO leadkeep_serve")  # PostgreSQL answers with a warning
    with pytest.raises(errors.InsufficientPrivilege):
        stored.execute("DELETE FROM lead")


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE lead SET status = 'lost'", "ck_lead_status"),
        ("UPDATE lead SET status = 'NEW'", "ck_lead_status"),
        ("UPDATE lead SET version = 0", "ck_lead_version"),
        ("UPDATE lead SET resubmissions = -1", "ck_lead_resubmissions"),
        ("UPDATE lead SET phone_index = 'short'", "ck_lead_blind_indexes"),
        ("UPDATE lead SET nid_index = ''", "ck_lead_blind_indexes"),
        ("UPDATE lead SET phone = '+8801712345678'", "ck_lead_sealed"),
        ("UPDATE lead SET nid = '1990123456789'", "ck_lead_sealed"),
        ("UPDATE lead SET address = '1 Lake Road'", "ck_lead_sealed"),
        ("UPDATE lead SET email = 'rahima@example.com'", "ck_lead_sealed"),
        ("UPDATE lead SET notes = ''", "ck_lead_sealed"),
        ("UPDATE resubmission SET phone = '+8801712345678'", "ck_resubmission_sealed"),
        ("UPDATE resubmission SET notes = 'call me'", "ck_resubmission_sealed"),
        *(
            (
                "INSERT INTO lead_event (type, lead_id, from_status, to_status, actor, version)"
                f" VALUES ({kind}, '{LEAD}', {statuses}, 'agent', 9)",
                constraint,
            )
            for kind, statuses, constraint in (
                (3, "'new', 'lost'", "ck_lead_event_status"),
                (3, "'new', 'new'", "ck_lead_event_status"),
                (3, "'new', NULL", "ck_lead_event_status"),
                (2, "'new', 'contacted'", "ck_lead_event_status"),
                (0, "NULL, NULL", "ck_lead_event_type"),
                (8, "NULL, NULL", "ck_lead_event_type"),
            )
        ),
        ("INSERT INTO key_canary (id, sealed, digest, normaliser) VALUES (2, 's', 'd', 'n')", "ck_key_canary_single"),
    ],
)
def test_a_check_refuses(statement: str, constraint: str, stored: psycopg.Connection) -> None:
    with pytest.raises(errors.CheckViolation) as refused:
        stored.execute(statement.encode())
    assert refused.value.diag.constraint_name == constraint


# What a dump must not hold.

SECRET = {
    "phone": "+8801798765432",
    "nid": "1985120394857",
    "address": "47 Shapla Housing, Mirpur, Dhaka",
    "email": "farzana.akter@example.org",
    "notes": "Has two children and a heart condition",
}
CORRECTED = {"phone": "+8801655544433", "address": "Road 11, Banani, Dhaka"}
RESUBMITTED = {"email": "other.mail@example.net", "notes": "Asks again about the premium"}
NAME = "Farzana Akter Chowdhury"


def dump(server: TestServer, database: TestDatabase) -> bytes:
    command: list[str | Path] = [server.postgres.bin_dir / "pg_dump", "--dbname", database.admin_url]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.fixture
def dumped(postgres_server: TestServer, database: TestDatabase, start_service: StartService) -> bytes:
    """A dump after a lead was created, met, corrected, moved and assigned."""
    service = start_service(database_url=database.serve_url)
    metadata = service.metadata("admin")
    with service.channel() as channel:
        stub = service.stub(channel)
        lead = somebody(name=NAME, conversation_id="chat-1", **SECRET)
        made = stub.CreateLead(pb.CreateLeadRequest(lead=lead, request_id="r-1"), metadata=metadata, timeout=10)
        again = pb.Lead()
        again.CopyFrom(lead)
        again.MergeFrom(pb.Lead(**RESUBMITTED))  # type: ignore[arg-type] # strings only
        with pytest.raises(Exception, match="ALREADY_EXISTS"):
            stub.CreateLead(pb.CreateLeadRequest(lead=again), metadata=metadata, timeout=10)
        correction = pb.UpdateLeadRequest(lead=pb.Lead(id=made.id, **CORRECTED))  # type: ignore[arg-type]
        correction.update_mask.paths.extend(CORRECTED)
        stub.UpdateLead(correction, metadata=metadata, timeout=10)
        moved = pb.UpdateStatusRequest(id=made.id, status=pb.LEAD_STATUS_CONTACTED, reason="called")
        stub.UpdateStatus(moved, metadata=metadata, timeout=10)
        stub.AssignLead(pb.AssignLeadRequest(id=made.id, assignee="rahima"), metadata=metadata, timeout=10)
    return dump(postgres_server, database)


def test_a_dump_holds_no_value_of_a_sensitive_field_in_any_disguise(dumped: bytes) -> None:
    assert NAME.encode() in dumped, "the dump has no leads"
    secrets = [*SECRET.values(), *CORRECTED.values(), *RESUBMITTED.values()]
    assert [value for value in secrets if any(disguise in dumped for disguise in disguises(value))] == []


@pytest.mark.parametrize("value", SECRET.values())
@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
def test_the_search_finds_a_value_that_hides(value: str, before: str) -> None:
    hidden = f"{before}{value} and more".encode()
    for found in (hidden, base64.b64encode(hidden), hidden.hex().encode(), hidden[::-1]):
        assert any(disguise in found for disguise in disguises(value))


async def test_no_trigger_of_the_migrations_is_called_foreign(connected: Database) -> None:
    assert await in_the_way(connected) == []


@pytest.mark.parametrize(
    ("right", "may"),
    [
        *(
            (f"UPDATE ({column}) ON {table}", f"change {table}")
            for table, column in (
                *(("access_record", "reason"), ("access_chain", "writer"), ("access_head", "ended")),
                *(("lead_event", "actor"), ("lead_alias", "lead_id"), ("alembic_version", "version_num")),
            )
        ),
        *((f"DELETE ON {table}", f"delete from {table}") for table in sorted(TABLES - NOTES)),
        ("CREATE ON SCHEMA public", "create tables"),
    ],
)
async def test_a_right_that_serve_does_not_need_is_named(
    database: TestDatabase, connected: Database, right: str, may: str
) -> None:
    assert await excess_rights(connected) == []
    execute(database.admin_url, f"GRANT {right} TO {APPLICATION_ROLE}")
    assert await excess_rights(connected) == [may]
