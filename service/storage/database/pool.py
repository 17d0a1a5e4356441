"""The connection pool of one process.

Promise: a connection is used by one attempt at a time, and never waits for a server when it is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from service.storage.database.failures import may_give_up_standby
from service.storage.database.session import Driver, Session, hosts_of, parameters_of, shut_down

CONNECTIONS = 16
"""Per process. More would only queue inside PostgreSQL: a transaction takes about a millisecond."""

CHECKOUT_SECONDS = 2.0
"""How long an attempt waits for a free connection before the pool counts as unavailable."""

OPENING_SECONDS = 7.0
"""How long all hosts together are tried, the look-up of their names included."""

PROVING_SECONDS = 3.0
"""How long a new connection may take to be set up: a server may freeze between accepting it and its first answer, and a
pooler accepts it without a server. The fence takes two seconds of it at most."""


@dataclass(slots=True, eq=False)
class PooledConnection:
    """A connection of the pool in autocommit mode, and the driver's own below it."""

    connection: AsyncConnection
    driver: Driver
    generation: int
    """The pool's generation when this was opened: a lost connection ends a generation."""
    behind_pooler: bool
    server_pid: int | None
    """Process id of the server's side. Behind a pooler that of the transaction, None before it is known."""
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
    ones are closed too: they lead to the same server. `prove` is called with each new connection, and may refuse it;
    `on_failure` with each one that could not be made.
    """

    def __init__(
        self, url: str, prove: Callable[[Driver], Awaitable[Session]], on_failure: Callable[[psycopg.Error, str], None]
    ) -> None:
        self._parameters = parameters_of(url, "leadkeep")
        seconds = float(self._parameters["connect_timeout"]) * len(hosts_of(self._parameters))
        self._opening_seconds = max(OPENING_SECONDS, seconds)
        self._prove = prove
        self._on_failure = on_failure
        self._opened: list[Driver] = []
        self._engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=self._last_opened,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
        )
        event.listen(self._engine.sync_engine, "handle_error", _keep_others)
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

    def place(self, host: str, port: int, *, last: bool) -> None:
        """Put one host of the URL before the others, or behind them: the next connections try them in this order."""
        hosts = hosts_of(self._parameters)
        if len(hosts) > 1:
            found = [(each["host"] or each["hostaddr"]) == host and each["port"] in ("", str(port)) for each in hosts]
            order = sorted(range(len(hosts)), key=lambda number: found[number] == last)
            self._parameters |= {name: ",".join(hosts[number][name] for number in order) for name in hosts[0]}

    async def _open(self) -> PooledConnection:
        generation = self._generation
        conninfo = make_conninfo(**self._parameters)
        try:
            async with asyncio.timeout(self._opening_seconds):
                driver = await Driver.connect(conninfo, autocommit=True)
        except psycopg.Error as error:
            self._on_failure(error, conninfo)
            raise
        timer = asyncio.get_running_loop().call_later(PROVING_SECONDS, shut_down, driver.pgconn)
        try:
            session = await self._prove(driver)
            self._opened.append(driver)
            connection = await self._engine.connect()
            pooled = PooledConnection(connection, driver, generation, session.behind_pooler, session.server_pid)
        except BaseException:
            self.place(driver.info.host, driver.info.port, last=True)
            await driver.close()
            raise
        finally:
            timer.cancel()
        driver.add_notice_handler(pooled.notice)
        # A host before it that is silent would cost each further connection two seconds.
        self.place(driver.info.host, driver.info.port, last=False)
        return pooled

    async def _last_opened(self) -> Driver:
        """What SQLAlchemy calls to connect: it wraps the connection that `_open` has made."""
        return self._opened.pop()


def _keep_others(context: ExceptionContext) -> None:
    """Keep SQLAlchemy from noting when a connection was lost: it refuses those that are older by the wall clock.

    When that clock was set back, it would refuse each new one, until the clock comes to that moment again.
    """
    context.invalidate_pool_on_disconnect = False
