"""The writer of new leads in a process: group commit, with the spool for what cannot be committed in time.

Promises: an answer reports what is durable, in the database or in the spool. A batch that fails because of one of its
leads, or because of a concurrent transaction, is split and costs only that lead. A lead whose caller's time is over
goes to the spool alone and the others go on. While the database is away for longer than a blip, or refuses whatever is
submitted, or lets it wait for a lock on a table, everything goes to the spool at once. Only what it refuses for its
content is answered with an error, after made-up submissions have passed the same statements. No caller cancels a write.
A submission is sealed when it is taken for a batch: sealing one after the other costs less than sealing each between
other work (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import structlog

from service.errors import StorageUnavailableError
from service.lead import SealedSubmission
from service.storage.database.batcher import Batcher, Entry, OnDemandBatcher
from service.storage.database.failures import (
    FIRST_WAIT,
    LONGEST_RETRY,
    LONGEST_WAIT,
    Retry,
    RetryScope,
    StorageFaultError,
    cause_of,
    is_busy,
    is_driver_error,
    is_refused,
    is_transient,
    may_concern_content,
    retry_scope,
)
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.leads.decision import Created, Delayed, Outcome
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool, SpoolOverlap
from service.supervisor import jittered_wait

LARGEST_BATCH = 256
"""A transaction of this size takes about 40 ms, which those behind it wait for; more would share the commit's fsync
no better."""

ALONE_AT_ONCE = 8
"""Leads of split batches that are written beside the batches; half of the connections stay for reads."""

RIVAL_SECONDS = 0.05
"""After which a lead that matches a spooled one is checked again: that one may be drained."""

LOCKED_SECONDS = 1.0
"""After which a lead that waits for a lock may wait for one that no lead gets: somebody holds a table."""

ANSWER_SECONDS = 0.5
"""Kept free at the end of a caller's time, a quarter of it at most: enough to spool even when the disk is busy."""


@dataclass(slots=True, eq=False)
class _Lead:
    seal: Callable[[], SealedSubmission]
    on_retry: Callable[[Retry], None]
    arrived_at: float
    gives_up_at: float
    """When its caller's time to wait for the database is over, on the monotonic clock."""
    sealed: SealedSubmission | None = None
    attempts: int = 0

    @property
    def submission(self) -> SealedSubmission:
        if self.sealed is None:
            self.sealed = self.seal()
        return self.sealed

    def note_retry(self, wait: float, cause: str) -> None:
        self.attempts += 1
        self.on_retry(Retry(self.attempts, wait, cause))


_Entry = Entry[_Lead, Outcome]


class LeadWriter:
    """Writes the leads of one process.

    `on_batch` gets the number of leads of each transaction, `on_delayed` is called for each lead that was spooled.
    """

    def __init__(
        self,
        submissions: SubmissionStore,
        spool: Spool,
        outage: Outage,
        recent: RecentRequests,
        *,
        on_batch: Callable[[int], None] = lambda _: None,
        on_delayed: Callable[[], None] = lambda: None,
    ) -> None:
        self._submissions = submissions
        self._spool = spool
        self._outage = outage
        self._recent = recent
        self._on_batch = on_batch
        self._on_delayed = on_delayed
        self._batches = Batcher[_Lead, Outcome](self._write, largest=LARGEST_BATCH)
        self._to_spool = Batcher[_Lead, Outcome](self._put, largest=LARGEST_BATCH)
        self._alone = cycle([OnDemandBatcher[_Lead, Outcome](self._write, largest=1) for _ in range(ALONE_AT_ONCE)])
        self._unanswered: set[_Entry] = set()
        self._stopped = False
        self._log = structlog.get_logger("leadkeep.storage")

    @property
    def busy(self) -> bool:
        """Whether leads wait for the database now."""
        return bool(self._unanswered) and not self._outage.lasting

    async def create(self, seal: Callable[[], SealedSubmission]) -> Outcome:
        """Make a submission durable, or find out which lead it duplicates. Safe to repeat.

        `seal` makes the submission, and is called once. Raises what `seal` raises, StorageUnavailableError when the
        submission cannot be made durable anywhere, StorageFaultError when the database refuses its content.
        """
        if self._stopped:
            raise StorageUnavailableError
        loop, now = asyncio.get_running_loop(), time.monotonic()
        scope = retry_scope.get() or RetryScope(now + LONGEST_RETRY, lambda _: None)
        time_left = scope.deadline - now
        gives_up_in = time_left - min(ANSWER_SECONDS, time_left / 4)
        entry = _Entry(_Lead(seal, scope.on_retry, now, now + gives_up_in), loop.create_future())
        timer = loop.call_later(gives_up_in, self._to_spool.add, [entry])
        self._unanswered.add(entry)
        self._batches.add([entry])
        try:
            return await entry.answer
        finally:
            timer.cancel()
            self._unanswered.discard(entry)

    async def run(self) -> None:
        """Write what arrives."""
        await self._batches.run()

    async def run_spooling(self) -> None:
        """Spool what can wait for the database no longer."""
        await self._to_spool.run()

    async def stop(self) -> None:
        """Refuse new submissions and spool those that wait. To be called when both tasks have ended."""
        self._stopped = True
        # Also those of a transaction whose end is not known: the drain finds out by their ids.
        await self._put(list(self._unanswered))

    async def _write(self, batch: list[_Entry]) -> None:
        if self._outage.lasting:
            self._to_spool.add(batch)
            return
        batch = _sealed(batch)
        began = time.monotonic()
        try:
            batch = await self._without_rivals(batch)
            began = time.monotonic()  # an outage is counted from the attempt to reach the database
            await self._store(batch)
        except Exception as error:  # noqa: BLE001 # whatever it is, it is reported to the callers whom it concerns
            await self._write_again(batch, error, began)

    async def _without_rivals(self, batch: list[_Entry]) -> list[_Entry]:
        """The batch without the leads that concern a spooled one.

        The spool answers those that repeat a spooled lead. One that matches a spooled lead waits until that is drained:
        it was first, and only the database knows whether the newcomer repeats something older.
        """
        if self._spool.empty:
            return batch
        overlap = await self._overlap(batch)
        for entry in batch:
            if entry.item.submission.id in overlap.repeats:
                self._to_spool.add([entry])
            elif entry.item.submission.id in overlap.rivals:
                asyncio.get_running_loop().call_later(RIVAL_SECONDS, self._batches.add, [entry])
        return [entry for entry in batch if entry.item.submission.id not in overlap.repeats | overlap.rivals]

    async def _overlap(self, batch: Sequence[_Entry]) -> SpoolOverlap:
        try:
            return await self._spool.overlap([entry.item.submission for entry in batch])
        except SpoolError:
            # The database decides; what comes out of the spool later becomes a conflict at worst.
            return SpoolOverlap()

    async def _store(self, batch: list[_Entry]) -> None:
        if not batch:
            return
        outcomes = await self._submissions.create_all_once([entry.item.submission for entry in batch])
        self._outage.over()
        self._on_batch(len(batch))
        for entry in batch:
            submission = entry.item.submission
            outcome = outcomes[submission.id]
            if isinstance(outcome, Created):
                self._recent.remember(submission, outcome.lead)
            entry.resolve(outcome)

    async def _write_again(self, batch: list[_Entry], error: Exception, began: float) -> None:
        if is_refused(error) and (found := await self._submissions.trial()) is not None:
            # The environment's fault, or it could not be found out whose.
            error = found
            if is_refused(found):
                self._outage.began(cause_of(found), refused=True)
                self._to_spool.add(batch)
                return
        cause = cause_of(error)
        if is_transient(error):
            wait = jittered_wait(max(entry.item.attempts for entry in batch), first=FIRST_WAIT, longest=LONGEST_WAIT)
            for entry in batch:
                entry.item.note_retry(wait, cause)
            if is_busy(error):
                await self._note_locked_table(min(entry.item.arrived_at for entry in batch))
                asyncio.get_running_loop().call_later(wait, self._split, batch)
            else:
                self._outage.began(cause, since=began)
                self._batches.put_back(batch)
                await asyncio.sleep(wait)
        elif len(batch) > 1:
            self._split(batch)
        elif isinstance(error, StorageUnavailableError) or (is_refused(error) and not may_concern_content(error)):
            self._to_spool.add(batch)
        else:
            batch[0].fail(StorageFaultError(cause_of(error)) if is_driver_error(error) else error)

    async def _note_locked_table(self, since: float) -> None:
        """Note an outage if a made-up submission waits for a lock too, as a lead has done since then."""
        if time.monotonic() - since < LOCKED_SECONDS:
            return
        found = await self._submissions.trial()
        if found is not None and is_busy(found):
            self._outage.began(cause_of(found), since=since)

    def _split(self, batch: list[_Entry]) -> None:
        """Write each lead of a batch alone, beside the batches: one that waits for a lock must not hold those up."""
        for entry in batch:
            next(self._alone).add([entry])

    async def _put(self, batch: list[_Entry]) -> None:
        """Spool a batch. A fault of ours costs only the entry concerned."""
        try:
            await self._put_together(batch)
        except Exception as error:  # noqa: BLE001 # nothing else ends the spool writer
            for entry in batch if len(batch) > 1 else []:
                await self._put([entry])
            if len(batch) == 1:
                self._log.error("a submission was not spooled by a fault of ours", error=type(error).__qualname__)
                batch[0].fail(StorageUnavailableError())

    async def _put_together(self, batch: list[_Entry]) -> None:
        had_room = self._stopped or self._spool.usable
        batch = _sealed(batch)
        self._answer_known(batch)
        back: set[_Entry] = set()
        if not self._outage.lasting:
            overlap = await self._overlap(batch)
            for entry in batch:
                if entry.item.submission.id not in overlap.rivals - overlap.repeats:
                    continue
                # The spool would refuse a repeat of an older lead; the database is there to decide.
                if time.monotonic() < entry.item.gives_up_at:
                    back.add(entry)  # it was to be spooled because of an outage that is over by now
                else:
                    entry.fail(StorageUnavailableError())
        self._batches.add(back)
        await self._keep([each for each in batch if each not in back and not each.answer.done()], had_room=had_room)

    def _answer_known(self, batch: list[_Entry]) -> None:
        for entry in batch:
            if known := self._recent.answer(entry.item.submission):
                entry.resolve(known)

    async def _keep(self, batch: list[_Entry], *, had_room: bool) -> None:
        if not batch:
            return
        try:
            outcomes = await self._spool.put([entry.item.submission for entry in batch])
        except SpoolError as error:
            if error.full and had_room and len(batch) > 1:
                # The last room is for as many as fit.
                middle = len(batch) // 2
                await self._keep(batch[:middle], had_room=True)
                await self._keep(batch[middle:], had_room=True)
                return
            for entry in batch:
                entry.fail(StorageUnavailableError())
            return
        # While we wrote to the spool, what some of these repeat may have been drained out of it.
        self._answer_known(batch)
        # And the database answered some of these. Remove those, or the drain would turn a refused duplicate into a
        # conflict; except one that is the answer to a repeat beside it.
        answered = {entry.item.submission.id for entry in batch if entry.answer.done()}
        for entry in batch:
            outcome = outcomes[entry.item.submission.id]
            if isinstance(outcome, Delayed):
                self._on_delayed()
                if not entry.answer.done():
                    answered.discard(outcome.id)
            entry.resolve(outcome)
        if answered:
            with contextlib.suppress(SpoolError):
                await self._spool.remove(list(answered))


def _sealed(batch: list[_Entry]) -> list[_Entry]:
    """The unanswered entries of a batch, sealed now; what cannot be sealed is reported to its caller."""
    for entry in batch:
        if not entry.answer.done():
            try:
                _ = entry.item.submission
            except Exception as error:  # noqa: BLE001 # reported by the chain
                entry.fail(error)
    return [entry for entry in batch if not entry.answer.done()]
