"""The settings of a session: the code has those that it relies on, whatever role, database and URL choose."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError
from service.storage.database.database import Database, Work, snapshot
from service.storage.database.failures import (
    DatabaseHungError,
    LeftBehindError,
    StorageFaultError,
    is_transient,
    leaves_nothing,
)
from service.storage.database.session import (
    SETTINGS,
    SessionRefusedError,
    connect,
    hosts_of,
    shown,
    url_is_valid,
)
from service.storage.diagnosis import diagnose
from tests.harness.faults import execute
from tests.harness.pooler import ODD, PgBouncer, pooler, reset_role, set_role
from tests.harness.postgres import REPO, TestDatabase, TestServer


def test_every_setting_has_an_odd_value_here() -> None:
    assert set(ODD) == set(SETTINGS)


async def settings_of(url: str) -> dict[str, str]:
    """What a connection of the service has."""

    async def ask(connection: AsyncConnection) -> dict[str, str]:
        names = ", ".join(f"current_setting('{name}') AS \"{name}\"" for name in [*SETTINGS, "statement_timeout"])
        row = (await connection.execute(text(f"SELECT {names}, current_setting('application_name') AS app"))).one()
        return dict(row._mapping)  # noqa: SLF001 # SQLAlchemy's own name for it

    service = Database(url)
    try:
        return await service.read(ask)
    finally:
        await service.close()


@pytest.fixture
def odd_role(server: TestServer) -> TestDatabase:
    """A database whose role has every setting wrong."""
    database = server.fresh_database()
    reset_role(database.admin_url, **ODD)
    return database


async def test_a_role_with_other_settings_changes_nothing(odd_role: TestDatabase) -> None:
    found = await settings_of(odd_role.serve_url)
    assert {name: found[name] for name in SETTINGS} == SETTINGS


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_database_with_another_setting_changes_nothing(database: TestDatabase, name: str) -> None:
    dbname = database.serve_url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {dbname} SET {name} = {ODD[name]}".encode())
    assert (await settings_of(database.serve_url))[name] == SETTINGS[name]


async def test_options_of_the_url_are_kept_but_for_ours(database: TestDatabase) -> None:
    options = " ".join(
        f"-c {name}={value.replace(' ', '').replace(chr(39), '')}"
        for name, value in ODD.items()
        if name != "client_encoding"
    )
    chosen = quote(f"{options} -c statement_timeout=7s")
    found = await settings_of(
        f"{database.serve_url}&options={chosen}&application_name=mine&client_encoding=LATIN1&connect_timeout=9"
    )
    assert {name: found[name] for name in SETTINGS} == SETTINGS
    assert (found["statement_timeout"], found["app"]) == ("7s", "mine")


async def test_variables_of_libpq_change_nothing(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Dhaka")
    monkeypatch.setenv("PGDATESTYLE", "German")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off -c statement_timeout=7s")
    found = await settings_of(database.serve_url)
    assert {name: found[name] for name in SETTINGS} == SETTINGS
    assert found["statement_timeout"] == "7s"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_is_not_utf8_is_refused(server: TestServer, encoding: str) -> None:
    with psycopg.connect(server.postgres.url(user="postgres", database="postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE odd_{encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0".encode()
        )
    url = server.postgres.url(user="leadkeep_serve", database=f"odd_{encoding}".lower())
    with pytest.raises(SessionRefusedError, match=f"encoding is {encoding}.*ENCODING 'UTF8'"):
        connect(url, "test")


def test_the_role_of_postgres_init_has_the_same_settings() -> None:
    script = (REPO / "deploy" / "postgres-init.sh").read_text()
    expected = [f"ALTER ROLE leadkeep_serve SET {name} = {shown(name)};" for name in SETTINGS]
    assert [line for line in script.splitlines() if line.startswith("ALTER ROLE leadkeep_serve SET")] == expected


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("name", SETTINGS)
async def test_a_pooler_before_a_role_with_another_setting_is_refused(server: TestServer, mode: str, name: str) -> None:
    database = server.fresh_database()
    set_role(database.admin_url, **{name: ODD[name]})
    with pooler(database.serve_url, mode) as front:
        if name in ("client_encoding",):  # PgBouncer passes this one on
            assert (await settings_of(front.url))[name] == SETTINGS[name]
            return
        with pytest.raises(
            SessionRefusedError, match=rf"lost \({name}\).*pooler.*ALTER ROLE … SET {name} = "
        ) as refused:
            connect(front.url, "test")
        assert refused.value.word == "settings_lost"


@pytest.mark.parametrize("mode", [None, "session", "transaction"])
async def test_a_role_whose_sessions_run_no_triggers_is_refused(server: TestServer, mode: str | None) -> None:
    database = server.fresh_database()
    with pooler(database.serve_url, mode) if mode else nullcontext(database) as front:
        for value, taken in (("replica", False), ("local", False), ("origin", True)):
            set_role(database.admin_url)
            with psycopg.connect(database.admin_url, autocommit=True) as connection:
                connection.execute(f"ALTER ROLE leadkeep_serve SET session_replication_role = {value}".encode())
            if isinstance(front, PgBouncer):
                front.reconnect()
            url = front.url if isinstance(front, PgBouncer) else database.serve_url
            if taken:
                connect(url, "test").close()
                continue
            with pytest.raises(SessionRefusedError, match="SET session_replication_role = 'origin'") as refused:
                connect(url, "test")
            assert refused.value.word == "settings_lost"
    reset_role(database.admin_url)


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_pooler_before_a_role_with_our_settings_is_taken(server: TestServer, mode: str) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)
    with pooler(database.serve_url, mode) as front:
        found = await settings_of(front.url)
        assert {name: found[name] for name in SETTINGS} == SETTINGS


@pytest.mark.parametrize(
    ("query", "sqlstate"),
    [("dbname=nowhere", "3D000"), ("user=nobody_at_all", "28000"), ("options=-c%20nope%3D1", "42704")],
)
async def test_a_server_that_refuses_the_connection_is_not_called_away(
    database: TestDatabase, query: str, sqlstate: str
) -> None:
    service = Database(f"{database.serve_url}&{query}")
    assert not (await diagnose(service)).reachable
    refused = await service.why_refused()
    assert refused is not None
    assert refused.word == "connection_refused"
    assert f"SQLSTATE {sqlstate}" in str(refused)
    await service.close()


async def test_a_pooler_that_does_not_take_the_options_of_the_url_is_not_called_away(server: TestServer) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)
    with pooler(database.serve_url, "session") as front:
        service = Database(f"{front.url}?options=-c%20statement_timeout%3D7s")
        assert not (await diagnose(service)).reachable
        refused = await service.why_refused()
        assert refused is not None
        assert "SQLSTATE 08P01" in str(refused)
        assert "ignore_startup_parameters" in str(refused)
        await service.close()


async def test_a_pooler_that_pools_single_statements_is_refused(server: TestServer) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)
    with pooler(database.serve_url, "statement") as front:
        service = Database(front.url)
        assert not (await diagnose(service)).reachable
        assert "SQLSTATE 08P01" in str(await service.why_refused())
        await service.close()


async def test_a_server_that_is_away_is_called_away(tmp_path: Path) -> None:
    service = Database(f"postgresql://someone@/leads?host={tmp_path}")
    assert not (await diagnose(service)).reachable
    assert await service.why_refused() is None
    await service.close()


VALID = [
    "postgresql://",
    "postgres://a:b@h:5432/d",
    "postgresql://h1,h2:1,h3/d?target_session_attrs=read-write",
    "postgresql://[::1]:5/d",
    "postgresql:///d?host=/tmp&hostaddr=",
    "postgresql://h/d?hostaddr=127.0.0.1",
    "postgresql:///d?hostaddr=127.0.0.1,127.0.0.2&port=1,2",
    "postgresql://a@h/d?options=-c%20statement_timeout%3D5s&connect_timeout=3&application_name=x",
]
INVALID = [
    "postgresql://a:b@h:99999/d",
    "postgresql://a:b@h:x/d",
    "postgresql://h1:5,h2:0/d",
    "postgresql://h1,h2/d?port=1,2,3",
    "postgresql://h1,h2,h3/d?port=1,2",
    "postgresql:///d?port=1,2",
    "postgresql://a@h/d?sslmode=maybe",
    "postgresql://a@h/d?target_session_attrs=any-at-all",
    "postgresql://a@h/d?unknown=1",
    "postgresql://a:b%zz@h/d",
    "postgresql://[::1/d",
    "postgresql://a@h/d?connect_timeout=soon",
    "postgresql://a@h/d?tcp_user_timeout=1s",
    "postgresql://a@h/d?options=-c statement_timeout=5s",
]


@pytest.mark.parametrize("url", VALID)
def test_a_url_of_libpq_is_valid(url: str) -> None:
    assert url_is_valid(url)


@pytest.mark.parametrize("url", INVALID)
def test_a_url_that_libpq_cannot_read_is_not_valid(url: str) -> None:
    assert not url_is_valid(url)


@pytest.mark.parametrize(
    ("parameters", "hosts"),
    [
        ({}, [("", "", "")]),
        ({"host": "a", "port": 5}, [("a", "", "5")]),
        ({"host": "a,b", "port": "5"}, [("a", "", "5"), ("b", "", "5")]),
        ({"host": "a,b", "hostaddr": "1.1.1.1,2.2.2.2", "port": "5,6"}, [("a", "1.1.1.1", "5"), ("b", "2.2.2.2", "6")]),
        ({"hostaddr": "1.1.1.1,2.2.2.2"}, [("", "1.1.1.1", ""), ("", "2.2.2.2", "")]),
    ],
)
def test_each_host_has_its_own_address_and_port(
    parameters: dict[str, object], hosts: list[tuple[str, str, str]]
) -> None:
    assert [(each["host"], each["hostaddr"], each["port"]) for each in hosts_of(parameters)] == hosts


async def test_an_exchange_of_the_database_behind_a_pooler_is_noticed_by_the_next_transaction(
    server: TestServer,
) -> None:
    right, wrong = server.fresh_database(), server.fresh_database()
    set_role(right.admin_url)
    identities = []
    for database in (right, wrong):
        with psycopg.connect(database.admin_url, autocommit=True) as connection:
            row = connection.execute(
                "INSERT INTO key_canary (id, sealed, digest, normaliser) VALUES (1, 'a', 'd', 'n') RETURNING database"
            ).fetchone()
            assert row is not None
            identities.append(row[0])

    async def write(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO lead_touch (quarter) VALUES (now())"))

    with pooler(right.serve_url, "transaction") as front:
        service = Database(front.url, guarded=True)
        service.admit(identities[0])
        await service.write(write, alone=True)
        front.lead_to(wrong.serve_url)
        for alone in (True, False):
            with pytest.raises(SessionRefusedError, match="another database"):
                await service.write_once(write, alone=alone)
        with pytest.raises(StorageUnavailableError):
            await service.read(write)
        assert not (await diagnose(service)).reachable
        front.lead_to(right.serve_url)
        await service.write(write, alone=True)
        await service.close()
    with psycopg.connect(wrong.admin_url) as connection:
        assert connection.execute("SELECT count(*) FROM lead_touch").fetchone() == (0,)


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_an_attempt_that_was_left_behind_is_found_by_the_process_id_of_the_server(
    server: TestServer, mode: str
) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)

    async def hang(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT pg_sleep(30)"))

    async def nothing(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT 1"))

    with pooler(database.serve_url, mode) as front:
        service = Database(front.url, attempt_seconds=2)
        with pytest.raises(DatabaseHungError):
            await service.write_once(hang, alone=True)
        with pytest.raises(LeftBehindError):
            await service.write_once(nothing)
        with psycopg.connect(database.admin_url) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        await until_written(service, nothing)
        await service.close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_server_that_ends_in_a_commit_behind_a_pooler_is_a_lost_connection(
    server: TestServer, mode: str
) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)
    execute(
        database.admin_url,
        "CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER ends AFTER INSERT ON lead_touch DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION end_session()",
    )

    async def write(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO lead_touch (quarter) VALUES (now())"))

    with pooler(database.serve_url, mode) as front:
        service = Database(front.url)
        for _ in range(5):
            with pytest.raises(psycopg.Error) as failed:
                await service.write_once(write)
            assert is_transient(failed.value)
            assert not leaves_nothing(failed.value)
        execute(database.admin_url, "DROP TRIGGER ends ON lead_touch")
        await service.write(write)
        await service.close()


async def until_written(service: Database, work: Work[None]) -> None:
    """Write once what was left behind has ended."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await service.write_once(work)
            except LeftBehindError:
                await asyncio.sleep(0.05)


async def test_nothing_is_prepared_on_the_server_behind_a_pooler(server: TestServer) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)

    async def often(connection: AsyncConnection) -> int:
        for _ in range(10):
            await connection.execute(text("SELECT 1"))
        return int((await connection.execute(text("SELECT count(*) FROM pg_prepared_statements"))).scalar_one())

    with pooler(database.serve_url, "session") as front:
        behind, direct = Database(front.url), Database(database.serve_url)
        assert await behind.read(often) == 0
        assert await direct.read(often) > 0
        await behind.close()
        await direct.close()


def test_a_snapshot_waits_for_a_reader_that_pauses(database: TestDatabase) -> None:
    with snapshot(database.serve_url, "test") as connection:
        assert connection.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("0",)


def test_the_driver_prints_nothing_that_postgresql_answered(
    database: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "SELECT CASE WHEN n < 5000 THEN n ELSE CAST('secret' || n AS int) END FROM generate_series(1, 6000) n"

    with (
        suppress(ValueError, StorageFaultError),
        snapshot(database.serve_url, "test") as connection,
        connection.cursor() as cursor,
        cursor.copy(f"COPY ({rows}) TO STDOUT".encode()) as copy,
    ):
        next(iter(copy))
        raise ValueError
    assert caplog.records == []
