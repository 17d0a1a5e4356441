"""Many rows through other processes: read in batches, worked on ahead, stored in order, at a pace."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar
from uuid import UUID

from service.storage.rekeying import Stored

BATCH_ROWS = 125
"""Rows a transaction: about 10 ms of PostgreSQL's time, which a live call that wants one of them waits for at most."""

BATCHES_AHEAD = 4
"""Batches that are worked on while one is stored: two for each of two processes."""

T = TypeVar("T")


async def in_batches(read: Callable[[tuple[Any, ...] | None], Awaitable[list[Stored]]]) -> AsyncIterator[list[Stored]]:
    """What `read` answers after the key of the last row before, until nothing is left."""
    after: tuple[Any, ...] | None = None
    while rows := await read(after):
        yield rows
        after = rows[-1].key


async def pump(
    batches: AsyncIterator[list[Stored]],
    work: Callable[[Sequence[tuple[UUID, dict[str, str]]]], list[T]],
    store: Callable[[list[Stored], list[T]], Awaitable[int]],
    workers: Executor,
    *,
    rate: float,
) -> int:
    """One pass: read, work in other processes, store, in the order in which it was read; how many were stored."""
    under_way: deque[tuple[list[Stored], Future[list[T]]]] = deque()
    began, stored, passed = time.monotonic(), 0, 0

    async def store_oldest() -> None:
        nonlocal stored, passed
        rows, worked = under_way.popleft()
        stored += await store(rows, await asyncio.wrap_future(worked))
        passed += len(rows)
        await pace(passed, began, rate=rate)

    async for rows in batches:
        under_way.append((rows, workers.submit(work, [(row.bound_to, row.tokens) for row in rows])))
        if len(under_way) > BATCHES_AHEAD:
            await store_oldest()
    while under_way:
        await store_oldest()
    return stored


async def pace(done: int, began: float, *, rate: float) -> None:
    """Wait until `done` rows since `began` (monotonic) are no more than `rate` a second; 0 is no bound."""
    if rate:
        await asyncio.sleep(max(0.0, done / rate - (time.monotonic() - began)))
