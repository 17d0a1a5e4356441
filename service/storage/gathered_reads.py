"""Reads of single things, gathered: those that come while one is under way share the next statement.

There is one statement at a time. Two would split between them what comes (docs/performance.md), and neither would go on
while the server hangs.

Promises: a read sees everything that was committed before it was asked for, since it never joins a statement that was
sent already. A read that comes alone behind another one that did does not wait for others. Each read is retried for its
own caller's time, and a caller that hangs up costs the others nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.database import Database
from service.storage.gathering import Gathering
from service.storage.retry import with_retries

T = TypeVar("T")
Read = Callable[[Sequence[UUID], AsyncConnection], Awaitable[Mapping[UUID, T]]]

LARGEST_BATCH = 128
"""Ids in a statement: it takes a few milliseconds, which those behind it wait for."""


class GatheredReads(Generic[T]):
    """What one kind of id leads to. `read` answers what it found of many ids."""

    def __init__(self, database: Database, read: Read[T]) -> None:
        self._database = database
        self._read = read
        self._waiting: deque[tuple[UUID, asyncio.Future[T | None]]] = deque()
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
        try:
            while self._waiting:
                await self._gathering.wait()
                await self._answer([self._waiting.popleft() for _ in range(min(len(self._waiting), LARGEST_BATCH))])
        finally:
            # At once: a read that came before a callback ran would count on this task.
            self._answering = None

    async def _answer(self, batch: Sequence[tuple[UUID, asyncio.Future[T | None]]]) -> None:
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
