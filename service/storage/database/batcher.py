"""Batches: items that arrive while a batch is in flight are handled together in the next one.

Used for inserts of leads (group commit), for access records, and for reads by id.

Promises: one batch is in flight at a time, and an item never joins one that has begun. A lone caller never waits. An
item whose caller was cancelled is left out. No batch is larger than the given size.

Under load a process receives its calls one by one, and a statement takes less time than accepting a call. A batch that
began as soon as it could would hold one or two of sixty that are on their way. So while several callers are active, a
batch waits until as many have arrived as there were recently.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from service.errors import StorageUnavailableError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

LONGEST_WINDOW = 0.02
"""Seconds that a batch waits for more items, at most."""

WINDOW_EACH = 0.002
"""Seconds for each recent arrival, while there are few: a call takes up to this long to come this far under load. With
a quarter of it a busy machine wrote and read almost each lead alone (docs/performance.md)."""


@dataclass(slots=True, eq=False)
class Entry(Generic[Item, Answer]):
    """An item in the queue, and the future of its answer; the first answer counts."""

    item: Item
    answer: asyncio.Future[Answer]

    def resolve(self, answer: Answer) -> None:
        """Answer the caller."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Raise an error to the caller."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher(Generic[Item, Answer]):
    """A queue whose items `handle` gets in batches.

    `handle` must see to it that each entry is answered, now or later; whatever it raises ends `run`. A batch is full
    when the sizes of its items reach `largest`.
    """

    def __init__(
        self,
        handle: Callable[[list[Entry[Item, Answer]]], Awaitable[None]],
        *,
        largest: int,
        size: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self._handle = handle
        self._largest = largest
        self._size = size
        self._waiting: deque[Entry[Item, Answer]] = deque()
        self._in_flight: list[Entry[Item, Answer]] = []
        self._recent_arrivals = 0
        self._enough = 1
        """So many waiting entries begin a batch."""
        self._arrived = asyncio.Event()
        self._finishing = False

    async def submit(self, item: Item) -> Answer:
        """Wait for an item's answer. Raises what it failed with, and StorageUnavailableError after `finish`."""
        if self._finishing:
            raise StorageUnavailableError
        entry = Entry[Item, Answer](item, asyncio.get_running_loop().create_future())
        self.add([entry])
        return await entry.answer

    def add(self, entries: Iterable[Entry[Item, Answer]]) -> None:
        """Put entries at the end of the queue."""
        self._waiting.extend(entries)
        if len(self._waiting) >= self._enough:
            self._arrived.set()

    def put_back(self, entries: Iterable[Entry[Item, Answer]]) -> None:
        """Put entries of a batch back at the front of the queue."""
        self._waiting.extendleft(reversed(list(entries)))
        self._arrived.set()

    async def run(self) -> None:
        """Handle what arrives, until `finish` and until nothing waits."""
        while self._waiting or not self._finishing:
            await self._wait_for(1)
            await self.run_until_idle()

    async def run_until_idle(self) -> None:
        """Handle what arrives until nothing waits."""
        while self._waiting:
            expected = min(self._recent_arrivals, self._largest)
            await self._wait_for(expected, seconds=min(LONGEST_WINDOW, expected * WINDOW_EACH))
            self._in_flight = self._take()
            if self._in_flight:
                await self._handle(self._in_flight)
            self._recent_arrivals = len(self._in_flight) + len(self._waiting)
            self._in_flight = []

    def finish(self) -> None:
        """Refuse new items, and let `run` return when none waits."""
        self._finishing = True
        self._arrived.set()

    def fail_all(self) -> None:
        """Answer StorageUnavailableError to whatever has no answer yet."""
        for entry in (*self._in_flight, *self._waiting):
            entry.fail(StorageUnavailableError())
        self._waiting.clear()

    async def _wait_for(self, enough: int, *, seconds: float | None = None) -> None:
        self._enough = enough
        if len(self._waiting) < enough and not self._finishing:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._arrived.wait()

    def _take(self) -> list[Entry[Item, Answer]]:
        batch: list[Entry[Item, Answer]] = []
        size = 0
        while self._waiting and size < self._largest:
            entry = self._waiting.popleft()
            if not entry.answer.done():
                batch.append(entry)
                size += self._size(entry.item)
        return batch


class OnDemandBatcher(Batcher[Item, Answer]):
    """A batcher that needs no background task: it starts one when an item arrives and ends it when none waits."""

    _task: asyncio.Task[None] | None = None

    def add(self, entries: Iterable[Entry[Item, Answer]]) -> None:
        """See Batcher."""
        super().add(entries)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self.run_until_idle()
        except Exception as error:  # noqa: BLE001 # nobody waits for this task, only for the answers
            structlog.get_logger("leadkeep.storage").error("a batch failed", error=type(error).__qualname__)
        finally:
            # Nothing waits now unless this task was cancelled or has a fault.
            self.fail_all()
