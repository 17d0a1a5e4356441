"""Which warnings of PostgreSQL mean that a commit is not durable: the standby's, and one that names no function."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from leadkeep.v1 import lead_service_pb2 as pb
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.database.database import Database
from service.storage.database.failures import CommitNotDurableError
from tests.conftest import StartService
from tests.harness import faults
from tests.harness.postgres import TestDatabase, TestServer, own_postgres

SOURCE_FUNCTION, SEVERITY = b"R", b"V"
"""Fields of a NoticeResponse; a severity that is translated stays."""

BOTH_PATHS = pytest.mark.parametrize("alone", [True, False], ids=["single statement", "transaction"])


async def insert(connection: AsyncConnection) -> None:
    await connection.execute(text("INSERT INTO lead_touch (quarter) VALUES (now())"))


def rows_of(database: TestDatabase) -> object:
    return faults.value_of(database.admin_url, "SELECT count(*) FROM lead_touch")


WARN = """CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE WARNING 'the quota is nearly used up'; RETURN NULL; END $$"""


def warn_at_commit(database: TestDatabase, *, severity: str = "WARNING") -> None:
    faults.execute(
        database.admin_url,
        WARN.replace("WARNING", severity),
        "CREATE CONSTRAINT TRIGGER warns AFTER INSERT ON lead_touch DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION warn()",
    )


@BOTH_PATHS
async def test_a_triggers_warning_does_not_count(alone: bool, connected: Database, database: TestDatabase) -> None:
    warn_at_commit(database)

    await connected.write_once(insert, alone=alone)

    assert rows_of(database) == 1


def test_a_lead_is_saved_though_every_insert_warns(start_service: StartService, database: TestDatabase) -> None:
    trigger = "CREATE TRIGGER warns BEFORE INSERT ON lead FOR EACH STATEMENT EXECUTE FUNCTION warn()"
    faults.execute(database.admin_url, WARN, trigger)
    service = start_service(database_url=database.serve_url)

    assert service.create().state == pb.SAVE_STATE_SAVED


@pytest.fixture(scope="module")
def without_its_standby() -> Iterator[TestServer]:
    """A server whose commits wait for a synchronous standby that never comes."""
    with own_postgres() as server:
        yield server


@BOTH_PATHS
async def test_a_cancelled_wait_for_the_standby_counts(alone: bool, without_its_standby: TestServer) -> None:
    database = without_its_standby.fresh_database()
    service = Database(database.serve_url)
    faults.execute(
        database.admin_url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"
    )
    try:
        writing = asyncio.create_task(service.write_once(insert, alone=alone))
        await cancel_the_wait(database)
        with pytest.raises(CommitNotDurableError):
            await writing
    finally:
        faults.execute(database.admin_url, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        await service.close()
    assert rows_of(database) == 1


async def cancel_the_wait(database: TestDatabase) -> None:
    query = (
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity"
        " WHERE wait_event = 'SyncRep' AND application_name = 'leadkeep'"
    )
    async with asyncio.timeout(10):
        while not faults.value_of(database.admin_url, query):  # noqa: ASYNC110 # a wait that begins sends no event
            await asyncio.sleep(0.02)


@BOTH_PATHS
@pytest.mark.parametrize("dropped", [{SOURCE_FUNCTION}, {SOURCE_FUNCTION, SEVERITY}], ids=["function", "both"])
async def test_a_warning_that_does_not_name_its_function_counts(
    dropped: set[bytes], alone: bool, database: TestDatabase, tmp_path: Path
) -> None:
    warn_at_commit(database)

    async with pooler_that_drops(dropped, database, tmp_path) as service:
        with pytest.raises(CommitNotDurableError):
            await service.write_once(insert, alone=alone)
    assert rows_of(database) == 1


@BOTH_PATHS
async def test_the_next_commit_on_the_same_connection_is_durable(
    alone: bool, database: TestDatabase, tmp_path: Path
) -> None:
    warn_at_commit(database)

    async with pooler_that_drops({SOURCE_FUNCTION}, database, tmp_path) as service:
        with pytest.raises(CommitNotDurableError):
            await service.write_once(insert, alone=alone)
        faults.execute(database.admin_url, "DROP TRIGGER warns ON lead_touch")
        await service.write_once(insert, alone=alone)


async def test_a_warning_before_the_commit_of_a_transaction_does_not_count(
    database: TestDatabase, tmp_path: Path
) -> None:
    trigger = "CREATE TRIGGER warns BEFORE INSERT ON lead_touch FOR EACH STATEMENT EXECUTE FUNCTION warn()"
    faults.execute(database.admin_url, WARN, trigger)

    async with pooler_that_drops({SOURCE_FUNCTION}, database, tmp_path) as service:
        await service.write_once(insert)


async def test_a_notice_below_a_warning_does_not_count(database: TestDatabase, tmp_path: Path) -> None:
    warn_at_commit(database, severity="NOTICE")

    async with pooler_that_drops({SOURCE_FUNCTION}, database, tmp_path) as service:
        await service.write_once(insert)


@asynccontextmanager
async def pooler_that_drops(fields: set[bytes], database: TestDatabase, folder: Path) -> AsyncIterator[Database]:
    """The database behind a proxy that leaves fields out of every notice."""
    parts = urlsplit(database.serve_url)
    socket = Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432"

    async def serve(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(str(socket))
        requests = asyncio.create_task(copy(from_client, to_server))
        while header := await from_server.read(1):
            length = await from_server.readexactly(4)
            body = await from_server.readexactly(struct.unpack(">I", length)[0] - 4)
            if header == b"N":
                body = b"\0".join(each for each in body.split(b"\0") if each[:1] not in fields)
            to_client.write(header + struct.pack(">I", len(body) + 4) + body)
        await requests
        to_server.close()
        to_client.close()

    server = await asyncio.start_unix_server(serve, folder / ".s.PGSQL.5432")
    # What is tried is what it makes of an answer, however long that takes.
    service = Database(parts._replace(query=f"host={folder}&port=5432").geturl(), attempt_seconds=60)
    yield service
    await service.close()
    server.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
