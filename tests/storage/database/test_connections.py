"""Connections that stay open between their uses: what is lent again, and what never is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.database import pool as storage
from service.storage.database.database import Database
from service.storage.database.failures import DatabaseHungError
from service.storage.database.pool import CONNECTIONS, ConnectionPool
from service.storage.database.session import CONNECT_SECONDS, Session
from service.storage.diagnosis import diagnose
from tests.harness.postgres import TestDatabase
from tests.harness.processes import until


async def process_id(connection: AsyncConnection) -> int:
    return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())


def backends(database: TestDatabase) -> int:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        found = connection.execute(
            # Autovacuum may visit the database, too.
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
    assert found is not None
    return int(found[0])


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_connection_is_used_again(connected: Database, database: TestDatabase) -> None:
    assert {await connected.read(process_id) for _ in range(5)} == {await connected.write(process_id)}
    assert backends(database) == 1


async def test_no_more_than_so_many_are_open(connected: Database, database: TestDatabase) -> None:
    together = asyncio.Barrier(CONNECTIONS)

    async def with_all_others(connection: AsyncConnection) -> int:
        await together.wait()
        return await process_id(connection)

    used = await asyncio.gather(*(connected.read(with_all_others) for _ in range(3 * CONNECTIONS)))

    assert len(set(used)) == CONNECTIONS
    assert backends(database) == CONNECTIONS


async def test_who_finds_none_free_waits_no_longer_than_said(
    connected: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, holding = asyncio.Event(), asyncio.Barrier(CONNECTIONS + 1)

    async def hold(_connection: AsyncConnection) -> None:
        await holding.wait()
        await go.wait()

    held = [asyncio.create_task(connected.read_once(hold)) for _ in range(CONNECTIONS)]
    await holding.wait()
    monkeypatch.setattr(storage, "CHECKOUT_SECONDS", 0.1)
    with pytest.raises(PoolTimeoutError):
        await connected.read_once(process_id)
    go.set()
    await asyncio.gather(*held)
    assert await connected.read_once(process_id)


async def test_no_transaction_is_left_in_what_is_lent_again(connected: Database) -> None:
    async def fail(connection: AsyncConnection) -> None:
        await connection.execute(text("SET LOCAL application_name = 'left open'"))
        raise ValueError("undone")

    async def begin(connection: AsyncConnection) -> None:
        await connection.execute(text("BEGIN"))
        await connection.execute(text("SET LOCAL application_name = 'left open'"))

    async def name(connection: AsyncConnection) -> str:
        return str((await connection.execute(text("SHOW application_name"))).scalar_one())

    with pytest.raises(ValueError, match="undone"):
        await connected.write_once(fail)
    assert await connected.read_once(name) == "leadkeep"
    await connected.read_once(begin)
    assert await connected.read_once(name) == "leadkeep"


async def test_when_one_is_lost_those_that_lie_idle_are_not_lent_again(
    connected: Database, database: TestDatabase
) -> None:
    together = asyncio.Barrier(3)

    async def with_two_others(connection: AsyncConnection) -> int:
        await together.wait()
        return await process_id(connection)

    before = set(await asyncio.gather(*(connected.read_once(with_two_others) for _ in range(3))))
    with psycopg.connect(database.admin_url, autocommit=True) as operator:
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'leadkeep'"
        operator.execute(ended)

    with pytest.raises(OperationalError):
        await connected.read_once(process_id)
    assert await connected.read_once(process_id) not in before


async def test_what_the_work_raises_is_told_when_its_connection_was_lost_meanwhile(
    connected: Database, database: TestDatabase
) -> None:
    async def lose_and_fail(connection: AsyncConnection) -> None:
        pid = await process_id(connection)
        with psycopg.connect(database.admin_url, autocommit=True) as operator:
            operator.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        raise ValueError("undone")

    with pytest.raises(ValueError, match="undone"):
        await connected.write_once(lose_and_fail)
    assert await connected.read_once(process_id)


async def test_what_hangs_in_a_rollback_is_left_behind(database: TestDatabase) -> None:
    impatient = Database(database.serve_url, attempt_seconds=2)
    pid = await impatient.read_once(process_id)

    async def freeze_and_fail(connection: AsyncConnection) -> None:
        assert await process_id(connection) == pid
        os.kill(pid, signal.SIGSTOP)
        raise ValueError("undone")

    try:
        with pytest.raises(DatabaseHungError):
            await impatient.write_once(freeze_and_fail)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert await impatient.read(process_id) != pid
    await impatient.close()


async def test_a_closed_database_keeps_nothing_open(database: TestDatabase) -> None:
    opened = Database(database.serve_url)
    await opened.read(process_id)
    await opened.close()

    await until(lambda: backends(database) == 0)


async def test_a_hung_statement_takes_its_connection_with_it(database: TestDatabase) -> None:
    impatient = Database(database.serve_url, attempt_seconds=2)
    pid = await impatient.read_once(process_id)

    with frozen(pid), pytest.raises(DatabaseHungError):
        await impatient.read_once(process_id)

    assert await impatient.read(process_id) != pid
    await impatient.close()


async def test_the_host_that_hung_is_tried_last(database: TestDatabase, tmp_path: Path) -> None:
    first = str(conninfo_to_dict(database.serve_url)["host"])
    second = tmp_path / "second"
    second.symlink_to(first)
    impatient = Database(make_conninfo(database.serve_url, host=f"{first},{second}"), attempt_seconds=2)

    async def host(connection: AsyncConnection) -> str:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, psycopg.AsyncConnection)
        return driver.info.host

    pid = await impatient.read_once(process_id)
    before = await impatient.read_once(host)
    with frozen(pid), pytest.raises(DatabaseHungError):
        await impatient.read_once(process_id)

    assert (before, await impatient.read_once(host)) == (first, str(second))
    await impatient.close()


async def test_a_session_that_an_operator_ended_is_no_outage(connected: Database, database: TestDatabase) -> None:
    for _ in range(3):
        pid = await connected.read_once(process_id)
        with psycopg.connect(database.admin_url, autocommit=True) as operator:
            operator.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert (await diagnose(connected)).reachable


async def test_a_statement_that_an_operator_cancelled_is_tried_again(
    connected: Database, database: TestDatabase
) -> None:
    asked = 0

    async def sleep_once(connection: AsyncConnection) -> None:
        nonlocal asked
        asked += 1
        await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": 30 if asked == 1 else 0})

    reading = asyncio.create_task(connected.read_within(60, sleep_once))
    with psycopg.connect(database.admin_url, autocommit=True) as operator:
        cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await until(lambda: operator.execute(cancel).rowcount == 1)
    await reading
    assert asked == 2


async def test_a_silent_host_is_waited_for_by_the_first_connection_alone(database: TestDatabase) -> None:
    own = conninfo_to_dict(database.serve_url)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never accepts
        hosts, ports = f"127.0.0.1,{own['host']}", f"{silent.getsockname()[1]},{own['port']}"
        service = Database(make_conninfo(database.serve_url, host=hosts, port=ports))
        await service.read_once(process_id)
        await service.close()  # the next one opens a connection
        began = time.monotonic()
        await service.read_once(process_id)
        assert time.monotonic() - began < CONNECT_SECONDS
        await service.close()


async def test_a_server_that_freezes_while_a_connection_is_set_up_is_not_waited_for(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PROVING_SECONDS", 0.3)

    async def hang(driver: psycopg.AsyncConnection[Any]) -> Session:
        await driver.execute("SELECT pg_sleep(60)")
        raise AssertionError("it was not ended")

    pool = ConnectionPool(database.serve_url, hang, lambda _error, _conninfo: None)
    for number in (CONNECTIONS, 1):  # none of the first ones keeps its place
        async with asyncio.timeout(30):
            failures = await asyncio.gather(*(pool.acquire() for _ in range(number)), return_exceptions=True)
        assert {type(each) for each in failures} == {psycopg.OperationalError}


async def test_what_hangs_without_anybody_waiting_for_it_is_left_behind_too(database: TestDatabase) -> None:
    impatient = Database(database.serve_url, attempt_seconds=0.5)
    asleep = asyncio.Semaphore(0)

    async def hang(connection: AsyncConnection) -> None:
        asleep.release()
        await connection.execute(text("SELECT pg_sleep(60)"))

    readers = [asyncio.create_task(impatient.read_once(hang)) for _ in range(CONNECTIONS)]
    for _ in readers:
        await asleep.acquire()
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)

    assert await impatient.read_once(process_id)
    await impatient.close()


async def test_closing_waits_for_nothing_that_hangs(database: TestDatabase) -> None:
    patient = Database(database.serve_url, attempt_seconds=60)
    asleep = asyncio.Event()

    async def hang(connection: AsyncConnection) -> None:
        asleep.set()
        await connection.execute(text("SELECT pg_sleep(60)"))

    reader = asyncio.create_task(patient.read_once(hang))
    await asleep.wait()
    async with asyncio.timeout(30):
        await patient.close()
        with pytest.raises(DatabaseHungError):
            await reader


async def test_a_clock_that_is_set_back_after_a_lost_connection_keeps_nobody_from_connecting(
    connected: Database, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as admin:

        async def terminated(connection: AsyncConnection) -> None:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [await process_id(connection)])
            await connection.execute(text("SELECT 1"))

        with pytest.raises(OperationalError):
            await connected.read_once(terminated)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 86_400)
    assert await connected.read_once(process_id)
