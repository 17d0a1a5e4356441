"""PostgreSQL: a connection pool, and the ways to run a transaction or a statement on it.

`write` runs a transaction and returns only when its commit is durable, a synchronous standby included. `read` runs
single statements. Both retry as `retry.py` says; what they run may therefore run more than once. `Statement` runs the
statements of the busiest paths.

No attempt takes longer than our own timer allows: a frozen server answers nothing, and psycopg would wait for it for
ever. So the socket of an attempt that hangs is shut down, and what the server makes of the attempt is found out later,
by looking for what it was to store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row
from sqlalchemy import Executable, Row, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.elements import ClauseElement

from service.storage.database.failures import (
    CommitNotDurableError,
    DatabaseHungError,
    LeftBehindError,
    NotConfirmedError,
    may_give_up_standby,
    spoils_connection,
)
from service.storage.database.fence import Fence, shut_down
from service.storage.database.retry import with_retries

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]
Driver = psycopg.AsyncConnection[Any]

CONNECTIONS = 16
"""Per process. More would only queue inside PostgreSQL: a transaction takes about a millisecond."""

CHECKOUT_SECONDS = 2.0
"""How long an attempt waits for a free connection before the pool counts as unavailable."""

CONNECT_SECONDS = 2
"""How long one host of the URL is tried (libpq knows nothing shorter): after a failover to the next host, a first
host that is frozen costs this much."""

OPENING_SECONDS = 7.0
"""How long all hosts together are tried, the look-up of their names included; and how long a new connection may take
to be set up, by a server that freezes between accepting it and its first answer."""

ATTEMPT_SECONDS = 2.0
"""How long an attempt may take once it has its connection: hundreds of times what a transaction takes, and short
enough for an answer within the deadlines that callers set."""

SESSION_SETTINGS = {
    # A foreign lock on a row is waited for this long; then the transaction is undone and tried again.
    "lock_timeout": "200ms",
    # A transaction whose process froze must not keep its locks for longer than its callers can wait.
    "idle_in_transaction_session_timeout": "10s",
    # What is confirmed is on disk, and on the synchronous standby's if there is one, whatever role or database say.
    "synchronous_commit": "on",
}

PARAMETERS: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "options": " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items()),
    "application_name": "leadkeep",
    # A peer that vanished without a word is noticed after about 15 seconds.
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}

STILL_AT_WORK = text(
    "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(CAST(:pids AS int[])) AND state = 'active'"
    " AND usename = current_user AND query_start < clock_timestamp() - interval '1 s'"
)
"""How many of the backends that we left behind still wait, as one does whose commit waits for a standby. By the age of
the statement, because a new connection may have an old one's process id."""

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy says nothing of its arguments


class Statement:
    """A statement with named parameters, compiled by SQLAlchemy once and run by psycopg itself.

    That takes half the CPU of SQLAlchemy's own execution, which earns 26 % of an UpdateStatus (docs/performance.md).
    It must not expand lists: their length would be compiled in.
    """

    def __init__(self, statement: ClauseElement) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._sql = compiled.string.encode()
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> list[Any]:
        """Run it, and return its rows as named tuples. Raises psycopg's errors."""
        cursor = _driver_of(connection).cursor(row_factory=namedtuple_row)
        await cursor.execute(self._sql, self._fixed | dict(parameters))
        return await cursor.fetchall() if cursor.description else []


@dataclass(slots=True, eq=False)
class PooledConnection:
    """A connection of the pool in autocommit mode, and the driver's own below it."""

    connection: AsyncConnection
    driver: Driver
    generation: int
    """The pool's generation when this was opened: a lost connection ends a generation."""
    not_durable: bool = False
    """Whether PostgreSQL gave up waiting for its synchronous standby since this was reset; set by `notice`."""
    suspect: bool = False
    """Whether it leads to a server that can no longer serve, though it still answers."""
    hung: bool = False
    """Whether the attempt that used it was left behind."""

    def notice(self, diagnostic: Diagnostic) -> None:
        """The driver's notice handler."""
        if may_give_up_standby(diagnostic):
            self.not_durable = True

    async def is_reusable(self) -> bool:
        """Whether another attempt can use it. Ends its transaction, also one that only SQLAlchemy believes in."""
        if self.suspect or self.driver.closed:
            return False
        try:
            if self.connection.in_transaction():
                await self.connection.rollback()
            elif self.driver.pgconn.transaction_status != TransactionStatus.IDLE:
                await self.driver.rollback()
        except Exception:  # noqa: BLE001 # whatever it is, this connection is of no more use
            return False
        return not (self.hung or self.driver.closed)

    async def close(self) -> None:
        """Close it. Never waits for the server."""
        await self.connection.invalidate()
        await self.connection.close()


class ConnectionPool:
    """Connections that stay open between their uses, at most CONNECTIONS, each used by one attempt at a time.

    SQLAlchemy's own pool sets each connection up anew at every checkout (docs/performance.md). When one is lost, idle
    ones are closed too: they lead to the same server. `check` is called with each new connection, and may refuse it.
    """

    def __init__(self, url: str, check: Callable[[Driver], Awaitable[None]]) -> None:
        self._parameters: dict[str, Any] = conninfo_to_dict(url, **PARAMETERS)
        self._check = check
        self._opened: list[Driver] = []
        self._engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=self._last_opened,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
        )
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[PooledConnection] = []
        self._generation = 0

    async def acquire(self) -> PooledConnection:
        """A connection, the one that was used last if any is idle. It must be released.

        Raises what connecting raises, and PoolTimeoutError.
        """
        try:
            async with asyncio.timeout(CHECKOUT_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise PoolTimeoutError from None
        try:
            return self._idle.pop() if self._idle else await self._open()
        except BaseException:
            self._free.release()
            raise

    async def release(self, pooled: PooledConnection) -> None:
        """Take a connection back, in whatever state it is."""
        try:
            reusable = await pooled.is_reusable()
            if reusable and pooled.generation == self._generation:
                self._idle.append(pooled)
                return
            await pooled.close()
            if not reusable and pooled.generation == self._generation:
                await self.close_idle()
        finally:
            self._free.release()

    async def close_idle(self) -> None:
        """Close idle connections now, and those in use when they are released."""
        self._generation += 1
        idle, self._idle = self._idle, []
        for pooled in idle:
            await pooled.close()

    def try_last(self, host: str, port: int) -> None:
        """Put one host of the URL behind the others: the next connections try it last."""
        hosts, ports = (str(self._parameters.get(name) or "").split(",") for name in ("host", "port"))
        pairs = list(zip(hosts, ports if len(ports) == len(hosts) else ports * len(hosts), strict=False))
        pairs.sort(key=lambda pair: pair[0] == host and pair[1] in ("", str(port)))
        if len(pairs) > 1:
            self._parameters |= {
                "host": ",".join(each[0] for each in pairs),
                "port": ",".join(each[1] for each in pairs),
            }

    async def _open(self) -> PooledConnection:
        generation = self._generation
        async with asyncio.timeout(OPENING_SECONDS):
            driver = await Driver.connect(make_conninfo(**self._parameters), autocommit=True)
        timer = asyncio.get_running_loop().call_later(OPENING_SECONDS, shut_down, driver)
        try:
            await self._check(driver)
            self._opened.append(driver)
            pooled = PooledConnection(await self._engine.connect(), driver, generation)
        except BaseException:
            self.try_last(driver.info.host, driver.info.port)
            await driver.close()
            raise
        finally:
            timer.cancel()
        driver.add_notice_handler(pooled.notice)
        return pooled

    async def _last_opened(self) -> Driver:
        """What SQLAlchemy calls to connect: it wraps the connection that `_open` has made."""
        return self._opened.pop()


class Database:
    """The database as the role of `serve` uses it. Connects when it is first used.

    With a `fence`, servers that it refuses are not used. With `guarded`, nothing is read or written before `admit` has
    named the right database, and every new connection is checked for it: no failover and no restore can put leads into
    another one unnoticed.
    """

    def __init__(
        self, url: str, *, guarded: bool = False, fence: Fence | None = None, attempt_seconds: float = ATTEMPT_SECONDS
    ) -> None:
        self._guarded = guarded
        self._attempt_seconds = attempt_seconds
        self._identity: UUID | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._in_use: set[PooledConnection] = set()
        self._left_behind: set[int] = set()
        self._fence = fence
        self._pool = ConnectionPool(url, self._require_right_server)
        if fence is not None:
            fence.on_promotion.append(self._pool.close_idle)

    def admit(self, identity: UUID) -> None:
        """Use the database, which was confirmed to be this one."""
        self._identity = identity

    @property
    def admitted(self) -> bool:
        """Whether the database was confirmed."""
        return self._identity is not None or not self._guarded

    @property
    def identity(self) -> UUID | None:
        """Which database was confirmed."""
        return self._identity

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
            if alone:
                pooled.not_durable = False
                result = await work(pooled.connection)
            else:
                await pooled.driver.execute("BEGIN")
                result = await work(pooled.connection)
                pooled.not_durable = False
                await pooled.driver.commit()
            if pooled.not_durable:
                raise CommitNotDurableError
            return result

        return await self._once(transaction)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, whose statements each stand alone. Raises like `write`."""
        return await with_retries(partial(self.read_once, work))

    async def read_once(self, work: Work[T]) -> T:
        """Like `read` without retries: raises what went wrong, see failures.py, and of a hung server the like."""
        return await self._once(lambda pooled: work(pooled.connection))

    async def rows(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows of one statement. Raises like `write`."""

        async def work(connection: AsyncConnection) -> Sequence[Row[Any]]:
            return (await connection.execute(query, parameters)).all()

        return await self.read(work)

    async def answers(self) -> bool:
        """Whether the database can be reached and takes writes now. Tries once."""

        async def ask(connection: AsyncConnection) -> bool:
            return not (await connection.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()

        try:
            return await self.read_once(ask)
        except Exception:  # noqa: BLE001 # whatever the cause, the answer is no
            return False

    async def close(self) -> None:
        """Close every connection; an attempt that still runs is left behind."""
        for pooled in self._in_use:
            self._leave_behind(pooled)
        await self._pool.close_idle()

    async def _once(self, work: Callable[[PooledConnection], Awaitable[T]]) -> T:
        if not self.admitted:
            raise NotConfirmedError
        # In a task of its own, which goes on when its caller is cancelled: a cancelled psycopg asks the server to
        # cancel the statement, and waits for a frozen one.
        attempt = asyncio.create_task(self._attempt(work))
        self._running.add(attempt)
        attempt.add_done_callback(self._running.discard)
        return await asyncio.shield(attempt)

    async def _attempt(self, work: Callable[[PooledConnection], Awaitable[T]]) -> T:
        pooled = await self._pool.acquire()
        timer = asyncio.get_running_loop().call_later(self._attempt_seconds, self._leave_behind, pooled)
        self._in_use.add(pooled)
        try:
            return await work(pooled)
        except Exception as error:
            pooled.suspect = spoils_connection(error)
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
            self._left_behind.add(info.backend_pid)
            self._pool.try_last(info.host, info.port)
            shut_down(pooled.driver)

    async def _see_what_was_left_behind(self, connection: AsyncConnection) -> None:
        pids = list(self._left_behind)
        if (await connection.execute(STILL_AT_WORK, {"pids": pids})).scalar_one():
            raise LeftBehindError
        self._left_behind.difference_update(pids)

    async def _require_right_server(self, driver: Driver) -> None:
        if self._fence is not None:
            await self._fence.check(driver)
        if self._identity is None:
            return
        found = await (await driver.execute("SELECT database FROM key_canary")).fetchone()
        if found is None or found[0] != self._identity:
            raise NotConfirmedError


def _driver_of(connection: AsyncConnection) -> Driver:
    below = connection.sync_connection
    driver = below and below.connection.driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):
        raise AssertionError("the connection is not open")
    return driver
