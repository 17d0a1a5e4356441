"""Connections that stay open between their uses, each lent to one user at a time.

SQLAlchemy opens them; it does not pool them. Its checkout sets every connection up anew, which takes a quarter of the
time of a read by key (docs/performance.md). All are in autocommit mode: who wants a transaction says BEGIN.

Promises: no more than the given number are open. None is lent with a transaction or a lost server in it, and when one
is lost, those that lie idle are given up too: they lead to the same server.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.storage.failures import may_give_up_standby

CONNECTIONS = 16
"""Per process. More would only queue inside PostgreSQL: a transaction takes about a millisecond."""

CHECKOUT_SECONDS = 2.0
"""How long a user waits for a free connection before it counts as unavailable and is retried."""


@dataclass(slots=True, eq=False)
class Lent:
    """A connection in somebody's use, and the driver's own below it."""

    connection: AsyncConnection
    driver: psycopg.AsyncConnection[Any]
    generation: int
    """Of its pool, when it began to be opened: a loss ends a generation."""
    not_durable: bool = False
    """Whether PostgreSQL gave up waiting for its synchronous standby since this was reset; set by `notice`."""
    suspect: bool = False
    """Whether it leads to a server that can no longer serve, though it still answers."""

    def notice(self, diagnostic: Diagnostic) -> None:
        """The driver's notice handler."""
        if may_give_up_standby(diagnostic):
            self.not_durable = True

    async def roll_back(self) -> None:
        """End the transaction, also the one that SQLAlchemy believes to be open; asks the server only if one is."""
        if self.connection.in_transaction():
            await self.connection.rollback()
        elif self.driver.pgconn.transaction_status != TransactionStatus.IDLE:
            await self.driver.rollback()


class Connections:
    """The connections of one engine, which must not pool them itself."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[Lent] = []
        self._generation = 0

    async def take(self) -> Lent:
        """A connection, the one that was used last if any is idle. Raises what connecting raises, and PoolTimeoutError.

        It must be given back.
        """
        if self._room.locked():
            try:
                async with asyncio.timeout(CHECKOUT_SECONDS):
                    await self._room.acquire()
            except TimeoutError:
                raise PoolTimeoutError from None
        else:
            await self._room.acquire()
        try:
            return self._idle.pop() if self._idle else await self._open()
        except BaseException:
            self._room.release()
            raise

    async def give_back(self, lent: Lent) -> None:
        """Take back what was lent, in whatever state it is. May be cancelled: then it is not lent again."""
        good = False
        try:
            good = await self._is_good(lent)
        finally:
            try:
                if good:
                    self._idle.append(lent)
                else:
                    await self._give_up(lent)
            finally:
                self._room.release()

    async def give_up_idle(self) -> None:
        """Lend none of those again that are open now."""
        self._generation += 1
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_close(lent) for lent in idle), return_exceptions=True)

    async def _give_up(self, lent: Lent) -> None:
        try:
            await _close(lent)
        finally:
            if lent.generation == self._generation:
                await self.give_up_idle()

    async def _open(self) -> Lent:
        generation = self._generation
        connection = await self._engine.connect()
        lent = Lent(connection, driver_of(connection), generation)
        lent.driver.add_notice_handler(lent.notice)
        return lent

    async def _is_good(self, lent: Lent) -> bool:
        if lent.suspect or lent.driver.closed:
            return False
        try:
            await lent.roll_back()
        except Exception:  # noqa: BLE001 # whatever it is, this connection is of no more use
            return False
        return not lent.driver.closed and lent.generation == self._generation


def driver_of(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    """The driver's connection below an open one of SQLAlchemy."""
    below = connection.sync_connection
    driver = below and below.connection.driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):
        raise AssertionError("the connection is not open")
    return driver


async def _close(lent: Lent) -> None:
    await lent.connection.invalidate()
    await lent.connection.close()
