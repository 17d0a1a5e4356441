"""One attempt at the database, bounded by our own timer.

A frozen server answers nothing, and psycopg would go on waiting even when its task is cancelled: it asks the server to
cancel the statement and waits for the end. So an attempt that hangs is left behind: its socket is closed under it,
and what the server makes of it is found out later, by looking for what it was to store. The timer belongs to the
attempt, not to whoever waits for it: one whose waiter was cancelled holds its connection no longer than any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import psycopg

from service.storage.connections import Connections, Lent
from service.storage.failures import spoils_connection

T = TypeVar("T")

ATTEMPT_SECONDS = 2.0
"""How long an attempt may take once it has its connection: hundreds of times what a transaction takes, and short
enough for an answer within the deadlines that callers set."""

CONNECTING_SECONDS = 7.0
"""How long an attempt may wait for its connection. The pool and the driver bound that themselves, each host of the
URL apart; this is for a server that freezes between accepting a connection and its first answer."""


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """The server process that an attempt was left with, and where it runs."""

    pid: int
    host: str
    port: int


class Attempt(Generic[T]):
    """Some work on a connection of its own, begun at once."""

    def __init__(
        self,
        connections: Connections,
        work: Callable[[Lent], Awaitable[T]],
        seconds: float,
        *,
        on_end: Callable[[Attempt[Any]], None],
        on_left: Callable[[LeftBehind], None],
    ) -> None:
        self._connections = connections
        self._work = work
        self._seconds = seconds
        self._on_end = on_end
        self._on_left = on_left
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(CONNECTING_SECONDS, self.leave_behind)
        self._left = False
        self._driver: psycopg.AsyncConnection[Any] | None = None
        self._task = asyncio.create_task(self._run())

    async def finished(self) -> bool:
        """Wait for the end of the work; False when it was left behind."""
        try:
            await self._over
        finally:
            if self._task.done():
                _ignore_outcome(self._task)
            else:
                self._task.add_done_callback(_ignore_outcome)
        return not self._left

    def result(self) -> T:
        """What the finished work answered or raised."""
        return self._task.result()

    def leave_behind(self) -> None:
        """Close the connection under the work, and wait for it no more."""
        self._left = True
        if self._driver is not None and not self._driver.closed:
            info = self._driver.info
            self._on_left(LeftBehind(info.backend_pid, info.host, info.port))
            # Its number may be given to another socket before the task has heard of its end.
            self._loop.remove_reader(self._driver.pgconn.socket)
            self._loop.remove_writer(self._driver.pgconn.socket)
            # Before the task is cancelled: with the socket open, psycopg would wait for the server once more.
            self._driver.pgconn.finish()
        self._task.cancel()
        self._end()

    async def _run(self) -> T:
        try:
            return await self._work_on_loan()
        finally:
            # The task is done before anybody who waits for this can run: a turn of the loop less than a callback takes.
            self._end()

    async def _work_on_loan(self) -> T:
        lent = await self._connections.take()
        try:
            self._driver = lent.driver
            self._timer.cancel()
            self._timer = self._loop.call_later(self._seconds, self.leave_behind)
            return await self._work(lent)
        except Exception as error:
            lent.suspect = spoils_connection(error)
            raise
        finally:
            await self._connections.give_back(lent)

    def _end(self) -> None:
        self._timer.cancel()
        self._on_end(self)
        if not self._over.done():
            self._over.set_result(None)


class Hosts:
    """The order in which the hosts of a URL are tried: the one that hung last comes last."""

    def __init__(self) -> None:
        self.suspect: tuple[str, int] | None = None

    def order(self, _dialect: Any, _entry: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        """SQLAlchemy's `do_connect`: put the suspect behind the others."""
        hosts = str(parameters.get("host", "")).split(",")
        if self.suspect is None or len(hosts) < 2:
            return
        ports = str(parameters.get("port", "")).split(",")
        pairs = list(zip(hosts, ports if len(ports) == len(hosts) else [ports[0]] * len(hosts), strict=True))
        pairs.sort(key=lambda pair: pair == (self.suspect[0], str(self.suspect[1])) if self.suspect else False)
        parameters["host"] = ",".join(host for host, _ in pairs)
        parameters["port"] = ",".join(port for _, port in pairs)


def _ignore_outcome(task: asyncio.Task[Any]) -> None:
    # Asking for it keeps asyncio from printing the exception, whose text may hold values.
    if not task.cancelled():
        task.exception()
