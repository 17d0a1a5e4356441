"""Failures are provoked on the real PostgreSQL wherever it can be made to fail like that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.errors import LeadNotFoundError
from service.storage.database.failures import (
    CommitNotDurableError,
    NotStoredError,
    StorageFaultError,
    cause_of,
    is_driver_error,
    is_transient,
    spoils_connection,
    violated_constraint,
)
from tests.harness.postgres import TestDatabase


def engine_of(url: str, **parameters: Any) -> AsyncEngine:
    connect = partial(psycopg.AsyncConnection.connect, url, **parameters)
    return create_async_engine("postgresql+psycopg://", async_creator=connect, hide_parameters=True)


async def error_of(database: TestDatabase, *statements: str) -> DBAPIError:
    """What the last of these statements raises, as the database's owner."""
    engine = engine_of(database.admin_url)
    try:
        async with engine.connect() as connection:
            for statement in statements[:-1]:
                await connection.execute(text(statement))
            with pytest.raises(DBAPIError) as raised:
                await connection.execute(text(statements[-1]))
    finally:
        await engine.dispose()
    return raised.value


class TestProvoked:
    async def test_a_lock_that_is_held_may_pass(self, database: TestDatabase) -> None:
        with psycopg.connect(database.admin_url) as foreign:
            foreign.execute("LOCK TABLE lead")
            error = await error_of(database, "SET lock_timeout = '10ms'", "SELECT 1 FROM lead")

        assert (is_transient(error), cause_of(error)) == (True, "55P03")
        assert not spoils_connection(error)

    async def test_a_cancelled_statement_may_pass(self, database: TestDatabase) -> None:
        error = await error_of(database, "SET statement_timeout = '10ms'", "SELECT pg_sleep(5)")

        assert (is_transient(error), cause_of(error)) == (True, "57014")
        assert not spoils_connection(error)

    async def test_a_connection_that_an_operator_ended_may_pass_and_is_spoilt(self, database: TestDatabase) -> None:
        error = await error_of(database, "SELECT pg_terminate_backend(pg_backend_pid())")

        assert (is_transient(error), cause_of(error)) == (True, "57P01")
        assert spoils_connection(error)

    @pytest.mark.parametrize(
        ("setting", "sqlstate"),
        [("idle_in_transaction_session_timeout", "25P03"), ("transaction_timeout", "25P04")],
    )
    async def test_a_session_that_the_server_ended_for_its_age_may_pass_and_is_spoilt(
        self, database: TestDatabase, setting: str, sqlstate: str
    ) -> None:
        engine = engine_of(database.serve_url)
        async with engine.connect() as connection:
            await connection.execute(text(f"SET LOCAL {setting} = '10ms'"))
            await asyncio.sleep(0.2)
            with pytest.raises(DBAPIError) as raised:
                await connection.execute(text("SELECT 1"))
        await engine.dispose()

        assert is_transient(raised.value)
        # The driver does not always read the server's last word; it knows then that the connection is lost.
        assert cause_of(raised.value) == "connection" or (
            cause_of(raised.value) == sqlstate and spoils_connection(raised.value)
        )

    async def test_a_demoted_primary_may_pass_and_its_connection_is_spoilt(self, database: TestDatabase) -> None:
        error = await error_of(database, "SET transaction_read_only = on", "CREATE TABLE t (id int)")

        assert (is_transient(error), cause_of(error)) == (True, "25006")
        assert spoils_connection(error)

    async def test_a_server_that_is_not_there_may_pass(self) -> None:
        engine = engine_of("postgresql://nobody@127.0.0.1:1/nothing")
        with pytest.raises(DBAPIError) as raised:
            async with engine.connect():
                pass
        await engine.dispose()

        assert (is_transient(raised.value), cause_of(raised.value)) == (True, "connection")

    async def test_a_database_that_is_being_restored_may_pass(self, database: TestDatabase) -> None:
        engine = engine_of(database.admin_url, dbname="not_there")
        with pytest.raises(DBAPIError) as raised:
            async with engine.connect():
                pass
        await engine.dispose()

        assert is_transient(raised.value)

    @pytest.mark.parametrize(
        ("statement", "sqlstate"),
        [
            ("SELECT nothing FROM lead", "42703"),
            ("SELECT 1/0", "22012"),
            ("INSERT INTO key_canary VALUES (2, '', '', '')", "23514"),
            ("SELECT convert_from('\\xff', 'UTF8')", "22021"),
        ],
    )
    async def test_what_the_same_again_would_not_mend_is_permanent(
        self, database: TestDatabase, statement: str, sqlstate: str
    ) -> None:
        error = await error_of(database, statement)

        assert (is_transient(error), cause_of(error)) == (False, sqlstate)
        assert not spoils_connection(error)

    async def test_a_violated_constraint_is_recognised_by_name(self, database: TestDatabase) -> None:
        one = "INSERT INTO key_canary (id, sealed, digest, normaliser) VALUES (1, '', '', '')"
        error = await error_of(database, one, one)

        assert isinstance(error, IntegrityError)
        assert violated_constraint(error) == "pk_key_canary"

    async def test_a_deadlock_may_pass(self, database: TestDatabase) -> None:
        engine = engine_of(database.serve_url)
        both_hold_one = asyncio.Barrier(2)

        async def lock(connection: AsyncConnection, number: int) -> None:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({number})"))

        errors_seen: list[DBAPIError] = []

        async def crossed(one: int, other: int) -> None:
            async with engine.connect() as connection:
                await connection.execute(text("SET lock_timeout = 0"))
                await lock(connection, one)
                await both_hold_one.wait()
                try:
                    await lock(connection, other)
                except DBAPIError as error:
                    errors_seen.append(error)

        await asyncio.gather(crossed(1, 2), crossed(2, 1))
        await engine.dispose()

        [error] = errors_seen
        assert (is_transient(error), cause_of(error)) == (True, "40P01")


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: CommitNotDurableError(), "not_durable"),
        (lambda: PoolTimeoutError("no connection for +8801712345678"), "pool_timeout"),
        (lambda: OSError("reset at +8801712345678"), "connection"),
        (lambda: psycopg.OperationalError("the server closed the connection"), "connection"),
        (lambda: errors.SerializationFailure(), "40001"),
        (lambda: errors.AdminShutdown(), "57P01"),
        (lambda: errors.CannotConnectNow(), "57P03"),
        (lambda: errors.TooManyConnections(), "53300"),
        (lambda: errors.DiskFull(), "53100"),
        (lambda: errors.IoError(), "58030"),
        (lambda: errors.ConnectionFailure(), "08006"),
        (lambda: errors.InvalidCatalogName(), "3D000"),
    ],
)
def test_what_may_pass(make: Callable[[], Exception], cause: str) -> None:
    assert (is_transient(make()), cause_of(make())) == (True, cause)


@pytest.mark.parametrize(
    "error",
    [
        NotStoredError(),
        errors.UniqueViolation(),
        errors.InsufficientPrivilege(),
        errors.UndefinedTable(),
        errors.InvalidPassword(),
        psycopg.ProgrammingError("the query has 0 placeholders"),
        psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"),
        LeadNotFoundError(),
        ValueError("anything"),
    ],
)
def test_what_does_not_pass(error: Exception) -> None:
    assert not is_transient(error)


def test_an_error_means_the_same_whether_sqlalchemy_wrapped_it_or_not() -> None:
    bare = errors.LockNotAvailable()
    wrapped = OperationalError("SELECT 1", None, bare)

    assert (is_transient(wrapped), cause_of(wrapped)) == (is_transient(bare), cause_of(bare))
    assert is_driver_error(wrapped)
    assert is_driver_error(bare)


@pytest.mark.parametrize("error", [LeadNotFoundError(), ValueError("x"), CommitNotDurableError(), OSError()])
def test_what_does_not_come_from_the_driver(error: Exception) -> None:
    assert not is_driver_error(error)


def test_a_cause_holds_nothing_of_the_drivers_text() -> None:
    error = OperationalError(
        "INSERT", {"phone": "+8801712345678"}, errors.UniqueViolation("Key (phone)=(+8801712345678) already exists.")
    )

    assert cause_of(error) == "23505"
    assert str(StorageFaultError(cause_of(error))) == "the database refused a statement (SQLSTATE 23505)"
