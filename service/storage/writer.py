"""The one writer of a process: leads that wait together are written in one statement.

Promises: an answer says what is durable, in the database or in the spool. A lead that comes alone does not wait for
others; while a commit is under way the next batch gathers. A batch that fails for one of its entries, or for a rival,
is split and costs only that entry. An entry whose caller can wait no longer goes to the spool alone and lets the others
go on. While the database is away for longer than a blip, everything goes to the spool at once. No caller cancels
anything here. A submission is sealed when it is taken for a batch: sealing one after the other costs less than sealing
each between other work (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from service.backoff_wait import jittered_wait
from service.errors import StorageUnavailableError
from service.lead import SealedSubmission
from service.storage.failures import Failure, StorageFaultError, cause_of, classify, is_busy, is_driver_error
from service.storage.gathering import Gathering
from service.storage.memory import RequestMemory
from service.storage.outage import Outage
from service.storage.outcomes import Created, Outcome, Waiting
from service.storage.repository import LeadRepository
from service.storage.retry import FIRST_WAIT, LONGEST_WAIT, PATIENCE, Retry, RetryScope, retry_scope
from service.storage.spool import Spool
from service.storage.spool_file import SpoolError

LARGEST_BATCH = 256
"""A transaction of this size takes about 40 ms, which those behind it wait for; more would share the commit's fsync
no better."""

ALONE_AT_ONCE = 8
"""Entries of split batches that are written beside the batches; half of the connections stay for reads."""

RIVAL_SECONDS = 0.05
"""After which an entry looks again whether a spooled one that it meets is drained."""

ANSWER_SECONDS = 0.5
"""Kept free at the end of an entry's time, a quarter of it at most: enough to spool it even when the disk is busy."""


@dataclass(slots=True, eq=False)
class _Entry:
    seal: Callable[[], SealedSubmission]
    answer: asyncio.Future[Outcome]
    gives_up_at: float
    on_retry: Callable[[Retry], None]
    attempts: int = 0

    @property
    def submission(self) -> SealedSubmission:
        return self.seal()

    def seal_or_fail(self) -> bool:
        """Whether it is sealed now; if that cannot be done, it is told to the caller."""
        try:
            self.seal()
        except Exception as error:  # noqa: BLE001 # told to the caller, by the chain
            self.fail(error)
            return False
        return True

    def resolve(self, outcome: Outcome) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def failed_attempt(self, wait: float, cause: str) -> None:
        self.attempts += 1
        self.on_retry(Retry(self.attempts, wait, cause))


class LeadWriter:
    """Writes the leads of one process. `on_batch` hears how many entries each transaction carried,
    `on_delayed` of each entry that was spooled."""

    def __init__(
        self,
        repository: LeadRepository,
        spool: Spool,
        outage: Outage,
        memory: RequestMemory,
        *,
        on_batch: Callable[[int], None] = lambda _: None,
        on_delayed: Callable[[], None] = lambda: None,
    ) -> None:
        self._repository = repository
        self._spool = spool
        self._outage = outage
        self._log = structlog.get_logger("leadkeep.storage")
        self._on_batch = on_batch
        self._on_delayed = on_delayed
        self._memory = memory
        self._waiting: deque[_Entry] = deque()
        self._gathering = Gathering(self._waiting, LARGEST_BATCH)
        self._to_spool: list[_Entry] = []
        self._unanswered: set[_Entry] = set()
        self._arrived = asyncio.Event()
        self._given_up = asyncio.Event()
        self._alone = asyncio.Semaphore(ALONE_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def stop(self) -> None:
        """Write no more, and spool what waits; new entries are refused. To be called when both tasks have ended."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Also what was in a transaction whose end we did not wait for: the drain finds out by its id.
        unanswered = [entry for entry in self._unanswered if not entry.answer.done()]
        unanswered = [entry for entry in unanswered if entry.seal_or_fail()]
        try:
            await self._put(unanswered, had_room=True)
        except Exception as error:  # noqa: BLE001 # a fault of ours, perhaps with one of them: the others are spooled
            self._log.error("the spool writer failed", error=type(error).__qualname__)
            for entry in unanswered:
                await self._put_or_fail(entry)

    async def _put_or_fail(self, entry: _Entry) -> None:
        try:
            await self._put([entry], had_room=True)
        except Exception:  # noqa: BLE001 # it was logged with the others
            entry.fail(StorageUnavailableError())

    @property
    def busy(self) -> bool:
        """Whether entries wait for the database now."""
        return bool(self._unanswered) and not self._outage.lasting

    async def create(self, seal: Callable[[], SealedSubmission]) -> Outcome:
        """Make a submission durable, or find out what it meets. Safe to repeat.

        `seal` makes the submission, the same one each time. Raises what it raises, StorageUnavailableError when
        durability cannot be had anywhere, StorageFaultError for what the database refuses whatever we do.
        """
        if self._stopped:
            raise StorageUnavailableError
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        scope = retry_scope.get() or RetryScope(now + PATIENCE, lambda _: None)
        time_left = scope.deadline - now
        gives_up_at = min(now + PATIENCE, scope.deadline - min(ANSWER_SECONDS, time_left / 4))
        entry = _Entry(seal, loop.create_future(), gives_up_at, scope.on_retry)
        timer = loop.call_later(gives_up_at - now, self._give_up, entry)
        self._unanswered.add(entry)
        self._queue(entry)
        try:
            return await entry.answer
        finally:
            timer.cancel()
            self._unanswered.discard(entry)

    def _queue(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._arrived.set()

    def _give_up(self, entry: _Entry) -> None:
        if not entry.answer.done() and entry.seal_or_fail():
            self._to_spool.append(entry)
            self._given_up.set()

    async def run(self) -> None:
        """Write what arrives."""
        while True:
            await self._arrived.wait()
            await self._gathering.wait()
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            if self._outage.lasting:
                self._give_up_all(batch)
            elif batch:
                try:
                    with self._gathering.under_way(len(batch)):
                        await self._write(await self._unmet(batch))
                except Exception as error:  # noqa: BLE001 # a fault of ours must not end the writing
                    self._log.error("the writer failed", error=type(error).__qualname__)
                    self._give_up_all(batch)

    def _take(self) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < LARGEST_BATCH:
            entry = self._waiting.popleft()
            if not entry.answer.done() and entry.seal_or_fail():
                batch.append(entry)
        return batch

    async def _unmet(self, batch: list[_Entry]) -> list[_Entry]:
        """The batch without what has to do with the spool.

        The spool answers what it repeats. What meets a spooled submission waits until that one is drained: it was
        first, and only the database knows whether the newcomer is a repeat of something older.
        """
        if self._spool.empty:
            return batch
        try:
            meeting = await self._spool.meeting([entry.submission for entry in batch])
        except SpoolError:
            return batch  # the database decides; what comes out of the spool later becomes a conflict at worst
        unmet = []
        for entry in batch:
            if entry.submission.id in meeting.repeats:
                self._give_up(entry)
            elif entry.submission.id in meeting.rivals:
                asyncio.get_running_loop().call_later(RIVAL_SECONDS, self._queue, entry)
            else:
                unmet.append(entry)
        return unmet

    def _give_up_all(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            self._give_up(entry)

    async def _write(self, batch: list[_Entry]) -> None:
        if not batch:
            return
        began = time.monotonic()
        try:
            outcomes = await self._repository.create_all_once([entry.submission for entry in batch])
        except Exception as error:  # noqa: BLE001 # whatever it is, it is told to those whom it concerns
            await self._write_again(batch, error, began)
        else:
            self._outage.over()
            self._on_batch(len(batch))
            for entry in batch:
                self._answer(entry, outcomes[entry.submission.id])

    def _answer(self, entry: _Entry, outcome: Outcome) -> None:
        if isinstance(outcome, Created):
            self._memory.remember(entry.submission, outcome.lead)
        entry.resolve(outcome)

    async def _write_again(self, batch: list[_Entry], error: Exception, began: float) -> None:
        permanent = classify(error) is Failure.PERMANENT and not isinstance(error, StorageUnavailableError)
        if permanent and len(batch) == 1:
            batch[0].fail(StorageFaultError(cause_of(error)) if is_driver_error(error) else error)
        elif permanent or is_busy(error) or isinstance(error, StorageUnavailableError):
            for entry in batch:
                if is_busy(error):
                    entry.failed_attempt(0.0, cause_of(error))
                self._begin(self._write_alone(entry))
        else:
            await self._wait_for_database(batch, error, began)

    async def _write_alone(self, entry: _Entry) -> None:
        """Write an entry with retries of its own until its time is over."""
        async with self._alone:
            if entry.answer.done():
                return
            retry_scope.set(RetryScope(entry.gives_up_at, lambda retry: entry.failed_attempt(retry.wait, retry.cause)))
            try:
                outcome = await self._repository.create(entry.submission)
                self._outage.over()
                self._on_batch(1)
                self._answer(entry, outcome)
            except StorageUnavailableError:
                self._give_up(entry)
            except Exception as error:  # noqa: BLE001 # told to the caller, by the chain
                entry.fail(error)

    async def _wait_for_database(self, batch: list[_Entry], error: Exception, began: float) -> None:
        cause = cause_of(error)
        self._outage.began(cause, since=began)
        wait = jittered_wait(max(entry.attempts for entry in batch), first=FIRST_WAIT, longest=LONGEST_WAIT)
        for entry in batch:
            entry.failed_attempt(wait, cause)
        self._waiting.extendleft(reversed(batch))
        self._arrived.set()
        await asyncio.sleep(wait)

    async def run_spooling(self) -> None:
        """Spool what can wait for the database no longer."""
        while True:
            await self._given_up.wait()
            self._given_up.clear()
            entries, self._to_spool = self._to_spool, []
            await self._put([entry for entry in entries if not entry.answer.done()], had_room=self._spool.usable)

    async def _put(self, entries: list[_Entry], *, had_room: bool) -> None:
        for entry in entries:
            if known := self._memory.answer(entry.submission):
                entry.resolve(known)
        if not self._outage.lasting:
            await self._leave_rivals_to_the_database(entries)
        entries = [entry for entry in entries if not entry.answer.done()]
        if not entries:
            return
        try:
            outcomes = await self._spool.put([entry.submission for entry in entries])
        except SpoolError as error:
            if error.full and had_room and len(entries) > 1:
                # The last room is for as many as fit.
                middle = len(entries) // 2
                await self._put(entries[:middle], had_room=True)
                await self._put(entries[middle:], had_room=True)
                return
            for entry in entries:
                entry.fail(StorageUnavailableError())
            return
        # The database has answered these meanwhile; left here, a refused one would come up again as a conflict. But one
        # that a repeat beside it is told of is acknowledged now.
        answered = {entry.submission.id for entry in entries if entry.answer.done()}
        told = [outcomes[entry.submission.id] for entry in entries if not entry.answer.done()]
        answered -= {outcome.id for outcome in told if isinstance(outcome, Waiting)}
        _resolve(entries, outcomes)
        for outcome in outcomes.values():
            if isinstance(outcome, Waiting):
                self._on_delayed()
        if answered:
            with contextlib.suppress(SpoolError):
                await self._spool.remove(list(answered))

    async def _leave_rivals_to_the_database(self, entries: Sequence[_Entry]) -> None:
        """Ask those that meet a spooled submission to come again: the spool would refuse a repeat of an older lead."""
        with contextlib.suppress(SpoolError):
            meeting = await self._spool.meeting([entry.submission for entry in entries])
            for entry in entries:
                if entry.submission.id in meeting.rivals and entry.submission.id not in meeting.repeats:
                    entry.fail(StorageUnavailableError())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _resolve(entries: Sequence[_Entry], outcomes: Mapping[UUID, Outcome]) -> None:
    for entry in entries:
        entry.resolve(outcomes[entry.submission.id])
