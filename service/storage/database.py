"""The connections to PostgreSQL, and the two ways to use one.

`write` runs a transaction and answers only when its commit is durable, a synchronous standby included. `read` runs
single statements. Both retry as `retry.py` says; what they are given may therefore run more than once. No attempt is
waited for longer than our own timer says, and none is cancelled on the server: one that hangs is left behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from service.storage.attempts import ATTEMPT_SECONDS, Attempt, Hosts, LeftBehind
from service.storage.connections import Connections, Lent
from service.storage.database_url import sqlalchemy_url
from service.storage.failures import (
    CommitNotDurableError,
    DatabaseHungError,
    LeftBehindError,
    NotConfirmedError,
)
from service.storage.retry import with_retries

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

CONNECT_SECONDS = 2
"""How long one host of the URL is tried (libpq knows nothing shorter): after a failover to the next host, a first
host that is frozen costs this much."""

SESSION_SETTINGS = {
    # A foreign lock on a row is waited for this long; then the transaction is undone and tried again.
    "lock_timeout": "200ms",
    # A transaction whose process froze must not keep its locks for longer than its callers can wait.
    "idle_in_transaction_session_timeout": "10s",
    # What is confirmed is on disk, and on the synchronous standby's if there is one, whatever role or database say.
    "synchronous_commit": "on",
}

STILL_AT_WORK = text(
    "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(CAST(:pids AS int[])) AND state = 'active'"
    " AND usename = current_user AND query_start < clock_timestamp() - interval '1 s'"
)
"""Which of the backends that we left behind wait still, as one does whose commit waits for a standby. By the age of
the statement, because a new connection may have an old one's process id."""


class Database:
    """A pool of connections as the role of `serve`. Connects when it is first used.

    With `guarded`, nothing is read or written before `admit` has named the right database, and every new connection is
    checked for it: no failover and no restore can put leads into another one unnoticed.
    """

    def __init__(self, url: str, *, guarded: bool = False, attempt_seconds: float = ATTEMPT_SECONDS) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
        self._guarded = guarded
        self._attempt_seconds = attempt_seconds
        self._identity: UUID | None = None
        self._running: set[Attempt[Any]] = set()
        self._left_behind: set[int] = set()
        self._hosts = Hosts()
        self._engine = create_async_engine(
            sqlalchemy_url(url),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "options": options,
                "application_name": "leadkeep",
                # A peer that vanished without a word is noticed after about 15 seconds.
                "keepalives_idle": 5,
                "keepalives_interval": 5,
                "keepalives_count": 2,
                "tcp_user_timeout": 15_000,
            },
        )
        event.listen(self._engine.sync_engine, "do_connect", self._hosts.order)
        event.listen(self._engine.sync_engine, "connect", self._on_connect)
        self._connections = Connections(self._engine)

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
        StorageUnavailableError when it cannot be had in time, and what `work` itself raises.
        """
        return await with_retries(partial(self.write_once, work, alone=alone))

    async def write_once(self, work: Work[T], *, alone: bool = False) -> T:
        """Like `write` without retries: raises what went wrong, see failures.py, and of a hung server the like."""

        async def transaction(lent: Lent) -> T:
            if self._left_behind:
                await self._see_what_was_left_behind(lent.connection)
            if alone:
                lent.not_durable = False
                result = await work(lent.connection)
            else:
                await lent.driver.execute("BEGIN")
                result = await work(lent.connection)
                lent.not_durable = False
                await lent.driver.commit()
            if lent.not_durable:
                raise CommitNotDurableError
            return result

        return await self._once(transaction)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, whose statements each stand alone. Raises like `write`."""
        return await with_retries(partial(self.read_once, work))

    async def read_once(self, work: Work[T]) -> T:
        """Like `read` without retries: raises what went wrong, see failures.py, and of a hung server the like."""
        return await self._once(lambda lent: work(lent.connection))

    async def answers(self) -> bool:
        """Whether the database can be reached and takes writes now. Tries once."""

        async def ask(lent: Lent) -> bool:
            return not (await lent.connection.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()

        try:
            return await self._once(ask)
        except Exception:  # noqa: BLE001 # whatever the cause, the answer is no
            return False

    async def close(self) -> None:
        """Close every connection; what is still at work on one is left behind."""
        for attempt in tuple(self._running):
            attempt.leave_behind()
        await self._connections.give_up_idle()

    async def _once(self, work: Callable[[Lent], Awaitable[T]]) -> T:
        if not self.admitted:
            raise NotConfirmedError
        attempt = Attempt(
            self._connections, work, self._attempt_seconds, on_end=self._running.discard, on_left=self._note_left_behind
        )
        self._running.add(attempt)
        if await attempt.finished():
            return attempt.result()
        # What lies idle leads to the same server.
        await self._connections.give_up_idle()
        raise DatabaseHungError

    def _note_left_behind(self, left: LeftBehind) -> None:
        self._left_behind.add(left.pid)
        self._hosts.suspect = (left.host, left.port)

    async def _see_what_was_left_behind(self, connection: AsyncConnection) -> None:
        pids = list(self._left_behind)
        if (await connection.execute(STILL_AT_WORK, {"pids": pids})).scalar_one():
            raise LeftBehindError
        self._left_behind.difference_update(pids)

    def _on_connect(self, driver_connection: Any, _entry: ConnectionPoolEntry) -> None:
        if self._identity is None:
            return
        cursor = driver_connection.cursor()
        cursor.execute("SELECT database FROM key_canary")
        found = cursor.fetchone()
        cursor.close()
        driver_connection.rollback()
        if found is None or found[0] != self._identity:
            raise NotConfirmedError
