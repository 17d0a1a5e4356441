"""Reads of single things, gathered: those that come while one is under way share the next statement.

There is one statement at a time. Two would split between them what comes (docs/performance.md), and neither would go on
while the server hangs.

Promises: a read sees everything that was committed before it was asked for, since it never joins a statement that was
sent already. A read that comes alone behind another one that did does not wait for others. Each read is retried for its
own caller's time, and a caller that hangs up costs the others nothing. No read outlives the task that was to answer it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError
from service.storage.database import Database
from service.storage.gathering import Gathering
from service.storage.retry import with_retries

T = TypeVar("T")
_Waiting = tuple[UUID, asyncio.Future[T | None]]
Read = Callable[[Sequence[UUID], AsyncConnection], Awaitable[Mapping[UUID, T]]]

LARGEST_BATCH = 128
"""Ids in a statement: it takes a few milliseconds, which those behind it wait for."""


class GatheredReads(Generic[T]):
    """What one kind of id leads to. `read` answers what it found of many ids."""

    def __init__(self, database: Database, read: Read[T]) -> None:
        self._database = database
        self._read = read
        self._waiting: deque[_Waiting[T]] = deque()
        self._gathering = Gathering(self._waiting, LARGEST_BATCH)
        self._answering: asyncio.Task[None] | None = None

    async def get(self, wanted: UUID) -> T | None:
        """What the id leads to. Raises like `Database.read`."""
        return await with_retries(partial(self._join, wanted))

    async def _join(self, wanted: UUID) -> T | None:
        answer: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_until_none_wait())
        return await answer

    async def _answer_until_none_wait(self) -> None:
        batch: list[_Waiting[T]] = []
        try:
            while self._waiting:
                await self._gathering.wait()
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), LARGEST_BATCH))]
                await self._answer(batch)
        except Exception as error:  # noqa: BLE001 # nobody waits for this task, only for the answers
            structlog.get_logger("leadkeep.storage").error("gathered reads failed", error=type(error).__qualname__)
        finally:
            # At once: a read that came before a callback ran would count on this task.
            self._answering = None
            # None are left unless this task was cancelled or has a fault; nobody else would answer them.
            for _, answer in (*batch, *self._waiting):
                if not answer.done():
                    answer.set_exception(StorageUnavailableError())
            self._waiting.clear()

    async def _answer(self, batch: Sequence[_Waiting[T]]) -> None:
        read = partial(self._read, list({wanted for wanted, _ in batch}))
        try:
            with self._gathering.under_way(len(batch)):
                found = await self._database.read_once(read)
        except Exception as error:  # noqa: BLE001 # each caller decides by itself what to do about it
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for wanted, answer in batch:
                if not answer.done():
                    answer.set_result(found.get(wanted))
