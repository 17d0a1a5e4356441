"""The one writer of the access record in a process: looks that wait together are recorded in one transaction.

Promises: `record` returns only when the entries are committed, all of a call in one transaction; whatever it raises
means that no value may be shown. An idle writer lets nobody wait; while a commit is under way the next batch gathers.
An entry whose caller can wait no longer fails alone. No caller cancels anything here.

A transaction whose end is not known is not repeated: its entries may be committed, so the next attempt begins a chain
of its own and records them again. A look may be recorded twice, but never not at all.

The limit: a subject's entries of the last hour are counted and added to in one transaction, under a lock of the
subject, so that no subject has more than `limit` entries in any hour, whatever the number of replicas and of calls at
once (by the services' clocks, and over entries that were recorded twice: these count twice).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError, UnmaskLimitError
from service.storage.access_records import HOUR, Access, AccessRecords, Chain
from service.storage.database import Database
from service.storage.failures import Failure, cause_of, classify, is_driver_error, leaves_nothing
from service.storage.gathering import Gathering
from service.storage.retry import FIRST_WAIT, LONGEST_WAIT, PATIENCE, Retry, RetryScope, retry_scope

LARGEST_BATCH = 1000
"""Entries of one transaction, if more than one call waits: it takes about 30 ms."""

FAILING_SECONDS = 1.0
"""For how long after a failed attempt a caller who would rather not wait is not let in."""


@dataclass(slots=True, eq=False)
class _Look:
    """The accesses of one call, which are recorded together or not at all."""

    accesses: Sequence[Access]
    answer: asyncio.Future[None]
    on_retry: Callable[[Retry], None]
    attempts: int = 0

    def resolve(self) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class AccessWriter:
    """Writes the access record of one process, as chains of this `writer` (`serve@host`, or a command).

    With `limit`, that many leads a subject may be shown unmasked within an hour. `on_chain` hears of each chain that
    has got its first entries, and of its end; `on_refusal` why entries are refused that no repetition gets in: an
    SQLSTATE, or the type of another error.
    """

    def __init__(
        self,
        database: Database,
        records: AccessRecords,
        *,
        writer: str,
        new_id: Callable[[], UUID],
        limit: int | None = None,
        on_chain: Callable[[Chain], None] = lambda _: None,
        on_refusal: Callable[[str], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._records = records
        self._writer = writer
        self._new_id = new_id
        self._limit = limit
        self._on_chain = on_chain
        self._on_refusal = on_refusal
        self._now = now
        self._chain: Chain | None = None
        self._waiting: deque[_Look] = deque()
        self._unanswered: set[_Look] = set()
        self._gathering = Gathering(self._waiting, LARGEST_BATCH)
        self._arrived = asyncio.Event()
        self._failed_at = float("-inf")
        self._stopping = False

    @property
    def chain(self) -> Chain | None:
        """The chain that is being written."""
        return self._chain

    def finish(self) -> None:
        """Take no new looks; `run` returns when none waits."""
        self._stopping = True
        self._arrived.set()

    async def stop(self) -> None:
        """Refuse what still waits, and whatever comes."""
        self._stopping = True
        for look in self._unanswered:
            look.fail(StorageUnavailableError())

    async def end_chain(self) -> None:
        """Say in the record that nothing comes after; to be called when `run` has ended.

        A chain without an end is one whose writer was killed: nothing is lost with it.
        """
        if self._chain is not None:
            with contextlib.suppress(Exception):
                self._on_chain(await self._records.end(self._chain))
            self._chain = None

    async def record(self, accesses: Sequence[Access], *, patience: float = PATIENCE) -> None:
        """Commit the entries before a value is shown; in `patience` seconds at most, or in no time if the last attempt
        failed just now and `patience` is less than a storage call's.

        Raises StorageUnavailableError and UnmaskLimitError.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        scope = retry_scope.get() or RetryScope(now + PATIENCE, lambda _: None)
        if self._stopping or (patience < PATIENCE and now < self._failed_at + FAILING_SECONDS):
            raise StorageUnavailableError
        look = _Look(accesses, loop.create_future(), scope.on_retry)
        timer = loop.call_later(max(0.0, min(patience, scope.deadline - now)), look.fail, StorageUnavailableError())
        self._waiting.append(look)
        self._unanswered.add(look)
        self._arrived.set()
        try:
            await look.answer
        finally:
            timer.cancel()
            self._unanswered.discard(look)

    async def require_room(self, subject: str, leads: int) -> None:
        """Raise UnmaskLimitError if a subject may not be shown so many more leads within this hour."""
        if self._limit is None:
            return
        limit = self._limit

        async def work(connection: AsyncConnection) -> None:
            now = self._now()
            used = (await self._records.used_within(connection, [subject], now))[subject]
            if used + leads > limit:
                raise await self._refusal(connection, subject, now, limit, excess=used + leads - limit)

        await self._database.read(work)

    async def run(self) -> None:
        """Write until `finish`."""
        longest = FIRST_WAIT
        while not (self._stopping and not self._waiting):
            await self._arrived.wait()
            await self._gathering.wait()
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            if not batch:
                continue
            try:
                with self._gathering.under_way(len(batch)):
                    await self._write(batch)
                longest = FIRST_WAIT
            except Exception as error:  # noqa: BLE001 # whatever it is, it is told to those whom it concerns
                # The latter: somebody else has taken the chain's next number, and no entry of ours fits there.
                if not leaves_nothing(error) or isinstance(error, IntegrityError):
                    self._chain = None
                if classify(error) is Failure.PERMANENT:
                    self._refuse(batch, error)
                    continue
                self._failed_at = time.monotonic()
                wait = random.uniform(0, longest)  # noqa: S311 # spreads attempts, guards nothing
                longest = min(longest * 2, LONGEST_WAIT)
                self._try_again(batch, wait, cause_of(error))
                await asyncio.sleep(wait)

    def _take(self) -> list[_Look]:
        batch: list[_Look] = []
        entries = 0
        while self._waiting and entries < LARGEST_BATCH:
            look = self._waiting.popleft()
            if not look.answer.done():
                batch.append(look)
                entries += len(look.accesses)
        return batch

    async def _write(self, batch: list[_Look]) -> None:
        now = self._now()

        async def work(connection: AsyncConnection) -> tuple[Chain | None, dict[_Look, UnmaskLimitError]]:
            refused = await self._beyond_the_limit(connection, batch, now)
            accesses = [access for look in batch if look not in refused for access in look.accesses]
            if not accesses:
                return self._chain, refused
            chain = self._chain or await self._records.begin_within(connection, self._new_id(), self._writer, now)
            return await self._records.add_within(connection, chain, accesses, now), refused

        before = self._chain
        alone = self._limit is None and before is not None
        self._chain, refused = await self._database.write_once(work, alone=alone)
        for look in batch:
            if look in refused:
                look.fail(refused[look])
            else:
                look.resolve()
        if self._chain is not None and before is None:
            self._on_chain(self._chain)

    async def _beyond_the_limit(
        self, connection: AsyncConnection, batch: Sequence[_Look], now: datetime
    ) -> dict[_Look, UnmaskLimitError]:
        if self._limit is None:
            return {}
        subjects = {look.accesses[0].subject for look in batch}
        used = await self._records.used_within(connection, sorted(subjects), now, alone=True)
        refused: dict[_Look, UnmaskLimitError] = {}
        for look in batch:
            subject, leads = look.accesses[0].subject, len(look.accesses)
            if used[subject] + leads <= self._limit:
                used[subject] += leads
            else:
                excess = used[subject] + leads - self._limit
                refused[look] = await self._refusal(connection, subject, now, self._limit, excess=excess)
        return refused

    async def _refusal(
        self, connection: AsyncConnection, subject: str, now: datetime, limit: int, *, excess: int
    ) -> UnmaskLimitError:
        leaves = None
        if excess <= limit:
            leaves = await self._records.leaves_within(connection, subject, now, behind=excess - 1)
        return UnmaskLimitError(limit, max(1.0, ((leaves or now + HOUR) - now).total_seconds()))

    def _refuse(self, batch: Sequence[_Look], error: Exception) -> None:
        self._on_refusal(cause_of(error) if is_driver_error(error) else type(error).__qualname__)
        for look in batch:
            look.fail(StorageUnavailableError())

    def _try_again(self, batch: Sequence[_Look], wait: float, cause: str) -> None:
        for look in reversed(batch):
            if not look.answer.done():
                look.attempts += 1
                look.on_retry(Retry(look.attempts, wait, cause))
                self._waiting.appendleft(look)
        self._arrived.set()
