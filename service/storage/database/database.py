"""PostgreSQL: the ways to run a transaction or a statement on a connection pool.

`write` runs a transaction and returns only when its commit is durable, a synchronous standby included. `read` runs
single statements. Both retry as `failures.py` says; what they run may therefore run more than once. `Statement` runs
the statements of the busiest paths.

No attempt takes longer than our own timer allows: a frozen server answers nothing, and psycopg would wait for it for
ever. So the socket of an attempt that hangs is shut down, and what the server makes of the attempt is found out later,
by looking for what it was to store.

Each new connection proves its session (session.py). Behind a pooler each attempt is a transaction that begins with that
proof: the pooler may give it another server, or another database, than it gave the one before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Executable, Row, Select, text, tuple_
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ClauseElement

from service.errors import QueryTimeoutError
from service.storage.database.failures import (
    CommitNotDurableError,
    DatabaseHungError,
    LeftBehindError,
    NotConfirmedError,
    StorageFaultError,
    cause_of,
    spoils_connection,
    with_retries,
)
from service.storage.database.fence import Fence
from service.storage.database.pool import CONNECTIONS, ConnectionPool, PooledConnection
from service.storage.database.session import (
    Driver,
    Session,
    SessionRefusedError,
    connect,
    connection_refusal,
    proof,
    prove,
    refusing_sqlstate,
    session_of,
    shut_down,
)

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

ATTEMPT_SECONDS = 2.0
"""How long an attempt may take once it has its connection: hundreds of times what a transaction takes, and short
enough for an answer within the deadlines that callers set."""

PROTOCOL_VIOLATION = "08P01"
"""SQLSTATE with which PgBouncer refuses most things."""

QUERY_CANCELED = "57014"
"""SQLSTATE of a statement that took longer than `statement_timeout`."""

MUCH_AT_ONCE = (
    "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0;"
    " SET LOCAL random_page_cost = 1"
)
"""For statements that read much: planned for their values, because the best index depends on them; not compiled, which
takes longer than it saves; on one processor, because calls that wait need the others; by the index that finds the
fewest rows, even if more of them would lie side by side: where they do, what is sought may be far away."""

STILL_AT_WORK = text(
    "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(CAST(:pids AS int[])) AND state = 'active'"
    " AND usename = current_user AND query_start < clock_timestamp() - interval '1 s'"
)
"""How many of the backends that we left behind still wait, as one does whose commit waits for a standby. By the age of
the statement, because a new connection may have an old one's process id."""

SNAPSHOT_CONNECT_SECONDS = 5
"""Like CONNECT_SECONDS, for commands: no caller waits for them."""

DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy says nothing of its arguments


class Statement:
    """A statement with named parameters, compiled by SQLAlchemy once and run by psycopg itself.

    That takes half the CPU of SQLAlchemy's own execution, which earns 26 % of an UpdateStatus (docs/performance.md).
    It must not expand lists: their length would be compiled in.
    """

    def __init__(self, statement: ClauseElement | str) -> None:
        compiled = (text(statement) if isinstance(statement, str) else statement).compile(dialect=DIALECT)
        self._sql = compiled.string.encode()
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> list[Any]:
        """Run it, and return its rows as named tuples. Raises psycopg's errors."""
        cursor = _driver_of(connection).cursor(row_factory=namedtuple_row)
        await cursor.execute(self._sql, self._fixed | dict(parameters))
        # Not `description`, which makes an object for each column.
        return await cursor.fetchall() if cursor.rownumber is not None else []


def page_of(
    query: Select[Any], keys: Sequence[Any], after: Sequence[Any] | None, *, limit: int, newest_first: bool = False
) -> Select[Any]:
    """At most `limit` rows of a query behind the place `after`, which holds the values of `keys`, in their order."""
    if after is not None:
        row, place = tuple_(*keys), tuple_(*after)
        query = query.where(row < place if newest_first else row > place)
    return query.order_by(*(key.desc() if newest_first else key for key in keys)).limit(limit)


class Database:
    """The database as the role of `serve` uses it. Connects when it is first used.

    With `guarded`, nothing is read or written before `admit` has named the right database, and every new connection,
    behind a pooler every transaction, is checked for it: no failover, no restore and no exchange of the server can put
    leads into another one unnoticed. With a `fence`, superseded servers are not used.
    """

    def __init__(
        self, url: str, *, guarded: bool = False, fence: Fence | None = None, attempt_seconds: float = ATTEMPT_SECONDS
    ) -> None:
        self._guarded = guarded
        self._attempt_seconds = attempt_seconds
        self.identity: UUID | None = None
        """Which database was confirmed."""
        self._running: set[asyncio.Task[Any]] = set()
        self._in_use: set[PooledConnection] = set()
        self._left_behind: set[int] = set()
        self._pool = ConnectionPool(url, self._prove, self._on_failure)
        self._long_reads = asyncio.Semaphore(CONNECTIONS // 2)  # new leads find a connection at any time
        self._fence = fence
        if fence is not None:
            fence.on_promotion.append(self._pool.close_idle)
        self._diagnosis: asyncio.Task[None] | None = None
        self.refusal: SessionRefusedError | None = None
        """Why the last new session was refused, by the server or by its proof."""

    def admit(self, identity: UUID) -> None:
        """Use the database, which was confirmed to be this one."""
        self.identity = identity

    @property
    def admitted(self) -> bool:
        """Whether the database was confirmed."""
        return self.identity is not None or not self._guarded

    async def write(self, work: Work[T], *, alone: bool = False) -> T:
        """Run `work` in one transaction; the result is returned only when the commit is durable.

        `alone` says that the work is a single statement: it commits itself, which saves two round trips. Raises
        StorageUnavailableError when the database does not answer in time, and what `work` itself raises.
        """
        return await with_retries(partial(self.write_once, work, alone=alone))

    async def write_once(self, work: Work[T], *, alone: bool = False) -> T:
        """Like `write` without retries: raises what went wrong, see failures.py, and of a hung server the like."""

        async def transaction(pooled: PooledConnection) -> T:
            if self._left_behind:
                await self._see_what_was_left_behind(pooled.connection)
            result = await self._work(work, pooled, alone=alone)
            if pooled.not_durable:
                raise CommitNotDurableError
            return result

        return await self._once(transaction)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, whose statements each stand alone. Raises like `write`."""
        return await with_retries(partial(self.read_once, work))

    async def read_once(self, work: Work[T]) -> T:
        """Like `read` without retries: raises what went wrong, see failures.py, and of a hung server the like."""
        return await self._once(partial(self._work, work, alone=True))

    async def read_within(self, seconds: float, work: Work[T]) -> T:
        """Run `work`, which reads much, in one transaction; the server ends each statement after so many seconds.

        Raises QueryTimeoutError, and like `write`.
        """
        settings = f"; SET LOCAL statement_timeout = {round(seconds * 1000)}; {MUCH_AT_ONCE}"

        async def transaction(pooled: PooledConnection) -> T:
            began = time.monotonic()
            try:
                return await self._work(work, pooled, settings=settings)
            except Exception as error:
                # Sooner it was an operator who cancelled it (pg_cancel_backend), or a pooler.
                if cause_of(error) == QUERY_CANCELED and time.monotonic() - began > 0.9 * seconds:
                    raise QueryTimeoutError from None
                raise

        async def attempt() -> T:
            async with self._long_reads:
                return await self._once(transaction, longer=seconds)

        return await with_retries(attempt)

    async def rows(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows of one statement. Raises like `write`."""

        async def work(connection: AsyncConnection) -> Sequence[Row[Any]]:
            return (await connection.execute(query, parameters)).all()

        return await self.read(work)

    async def why_refused(self) -> SessionRefusedError | None:
        """Why the last new session was refused, once that is found out; None when the database is only away."""
        if self._diagnosis is not None:
            await self._diagnosis
        return self.refusal

    async def close(self) -> None:
        """Close every connection; an attempt that still runs is left behind."""
        for pooled in self._in_use:
            self._leave_behind(pooled)
        await self._pool.close_idle()

    async def _once(self, work: Callable[[PooledConnection], Awaitable[T]], *, longer: float = 0) -> T:
        if not self.admitted:
            raise NotConfirmedError
        # In a task of its own, which goes on when its caller is cancelled: a cancelled psycopg asks the server to
        # cancel the statement, and waits for a frozen one.
        attempt = asyncio.create_task(self._attempt(work, self._attempt_seconds + longer))
        self._running.add(attempt)
        attempt.add_done_callback(self._running.discard)
        return await asyncio.shield(attempt)

    async def _attempt(self, work: Callable[[PooledConnection], Awaitable[T]], seconds: float) -> T:
        try:
            pooled = await self._pool.acquire()
        except Exception as error:
            self._note_violation(error)
            raise
        timer = asyncio.get_running_loop().call_later(seconds, self._leave_behind, pooled)
        self._in_use.add(pooled)
        try:
            return await work(pooled)
        except Exception as error:
            pooled.suspect = spoils_connection(error)
            self._note_violation(error)
            raise
        finally:
            await self._pool.release(pooled)
            timer.cancel()
            self._in_use.discard(pooled)
            if pooled.hung:
                raise DatabaseHungError from None

    def _leave_behind(self, pooled: PooledConnection) -> None:
        pooled.hung = True
        if not pooled.driver.closed:
            info = pooled.driver.info
            if pooled.server_pid is not None:
                self._left_behind.add(pooled.server_pid)
            self._pool.place(info.host, info.port, last=True)
            shut_down(pooled.driver.pgconn)

    async def _see_what_was_left_behind(self, connection: AsyncConnection) -> None:
        pids = list(self._left_behind)
        if (await connection.execute(STILL_AT_WORK, {"pids": pids})).scalar_one():
            raise LeftBehindError
        self._left_behind.difference_update(pids)

    async def _work(self, work: Work[T], pooled: PooledConnection, *, alone: bool = False, settings: str = "") -> T:
        """Run `work` in a transaction with settings of its own; without one if its statements stand alone.

        Behind a pooler, these need one too. `not_durable` of the connection is that of the commit.
        """
        if alone and not pooled.behind_pooler:
            pooled.not_durable = False
            return await work(pooled.connection)
        await self._begin(pooled, settings)
        result = await work(pooled.connection)
        pooled.not_durable = False
        await pooled.driver.commit()
        return result

    async def _begin(self, pooled: PooledConnection, settings: str = "") -> None:
        """Begin a transaction, which behind a pooler proves its session first, with settings of its own."""
        if not pooled.behind_pooler:
            await pooled.driver.execute(f"BEGIN{settings}".encode())
            return
        pooled.server_pid = None
        query = f"BEGIN; {proof(None, identity=self.identity is not None)}{settings}"
        with self._noting_refusal():
            cursor = await pooled.driver.execute(query.encode())
            cursor.nextset()
            session = session_of(await cursor.fetchone(), pooled.driver.info.backend_pid, self.identity)
        pooled.server_pid = session.server_pid

    async def _prove(self, driver: Driver) -> Session:
        with self._noting_refusal():
            if self._fence is not None:
                await self._fence.check(driver)
            return await prove(driver, self.identity)

    @contextmanager
    def _noting_refusal(self) -> Iterator[None]:
        try:
            yield
        except SessionRefusedError as refused:
            self.refusal = refused
            raise
        self.refusal = None

    def _note_violation(self, error: Exception) -> None:
        """Note that a pooler which took the connection refuses what is sent on it, or has no server for it."""
        if cause_of(error) == PROTOCOL_VIOLATION:
            self.refusal = connection_refusal(PROTOCOL_VIOLATION)

    def _on_failure(self, error: psycopg.Error, conninfo: str) -> None:
        # Without a connection object no server was found to ask, and one that did not answer in time would not again.
        asks = error.pgconn is not None and not isinstance(error, psycopg.errors.ConnectionTimeout)
        if asks and (self._diagnosis is None or self._diagnosis.done()):
            self._diagnosis = asyncio.create_task(self._diagnose(conninfo))

    async def _diagnose(self, conninfo: str) -> None:
        sqlstate = await asyncio.to_thread(refusing_sqlstate, conninfo)
        self.refusal = None if sqlstate is None else connection_refusal(sqlstate)


def _driver_of(connection: AsyncConnection) -> Driver:
    below = connection.sync_connection
    driver = below and below.connection.driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):
        raise AssertionError("the connection is not open")
    return driver


@contextmanager
def snapshot(url: str, name: str) -> Iterator[psycopg.Connection]:
    """One read-only snapshot of the database, for as long as its reader takes; for commands without an event loop.

    Raises SessionRefusedError, and StorageFaultError, also for what the reader does: a driver's text may hold values.
    """
    try:
        with connect(url, name, connect_timeout=SNAPSHOT_CONNECT_SECONDS) as connection:
            connection.autocommit = False
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            # The reader of an export may pause; it holds no locks that calls want.
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield connection
    except psycopg.Error as error:
        raise StorageFaultError(cause_of(error)) from None
