"""Drain: moves spooled submissions to the database, oldest first, behind live traffic, exactly once.

A submission is removed from the spool only after the commit that has it. A crash in between changes nothing: the same
submission again is found by its id. What cannot be opened, or is refused by the database for its content, is set aside
in the spool and reported; the rest goes on. What was erased, here or by another replica, is dropped; an erasure that
this replica has yet to apply to its spool comes before everything that waits there.

While the database refuses made-up submissions too, nothing is wrong with those that wait: the drain stands still, and
goes on by itself when the database is mended. One that is refused alone, and not for its content, stays and is held.

A fault of ours sets nothing aside. A submission that fails by one stays where it is, is held together with what came
after it of the same person, and is tried again later. Two in a row are a fault of the drain, not of a submission: it
raises, and its supervisor starts it again later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

import structlog

from service.errors import StorageUnavailableError
from service.lead import SealedSubmission
from service.storage.database.failures import (
    FIRST_WAIT,
    LONGEST_WAIT,
    RetryScope,
    StorageFaultError,
    cause_of,
    is_busy,
    is_fault_of_ours,
    is_refused,
    is_transient,
    may_concern_content,
    retry_scope,
)
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.leads.decision import Aliased, Created, DuplicateMatch, Erased, InConflict, Outcome
from service.storage.leads.erasing import Reseal
from service.storage.leads.erasures import Erasures
from service.storage.leads.open_erasures import OpenErasuresError
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool
from service.supervisor import jittered_wait, longest_wait

BATCH = 250
"""Submissions a transaction. More gain nothing, and would delay live leads noticeably."""

SMALL_BATCH = 50
"""While live leads wait, and for the first attempt after an outage."""

LOOK_SECONDS = 0.25
"""How often an idle drain looks for work."""

ERASURES_EVERY_SECONDS = 5.0
"""How often erasures by other replicas are looked for."""

ERASURES_WAIT_SECONDS = 1.0
"""How long the drain waits for the database when it looks for erasures."""


FIRST_HOLD = 5.0
LONGEST_HOLD = 300.0
"""Seconds for which a submission is held that failed by a fault of ours: after the first failure, and at most."""

LONGEST_HOLD_REFUSED = 30.0
"""Seconds for which one is held at most that the database refuses: how soon it is drained once that is mended."""


@dataclass(slots=True)
class _Held:
    failures: int = 0
    until: float = 0.0
    refused: str | None = None
    """The SQLSTATE with which the database refused it; None: it failed by a fault of ours."""


class DrainRound(Enum):
    """How one round of the drain ended."""

    DRAINED = "drained"
    IDLE = "idle"
    UNREACHABLE = "unreachable"


class Drain:
    """Empties the spool. `busy` answers whether live leads wait; `on_drained` is called with each outcome's name."""

    def __init__(
        self,
        *,
        submissions: SubmissionStore,
        spool: Spool,
        outage: Outage,
        recent: RecentRequests,
        erasures: Erasures,
        apply_erasures: Callable[[], Awaitable[None]],
        reseal: Reseal,
        busy: Callable[[], bool] = lambda: False,
        on_drained: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._submissions = submissions
        self._spool = spool
        self._outage = outage
        self._recent = recent
        self._erasures = erasures
        self._apply_erasures = apply_erasures
        self._erased_until: datetime | None = None
        self._reseal = reseal
        self._busy = busy
        self._on_drained = on_drained
        self._clock = clock
        self._log = structlog.get_logger("leadkeep.drain")
        self._held: dict[UUID, _Held] = {}
        self._failed_last: UUID | None = None
        """The submission that failed by a fault of ours when none was drained since."""

    @property
    def refused(self) -> str | None:
        """The SQLSTATE with which the database refuses one that waits, and not for its content; None: none is."""
        causes = (held.refused for held in self._held.values() if held.refused)
        return next(causes, None) if self._spool.size.waiting else None

    async def run(self) -> None:
        """Drain whenever there is something to drain. What is not drained when this ends stays in the spool."""
        failures = 0
        fault: str | None = None
        while True:
            began = time.monotonic()
            try:
                step = await self.step()
                fault = None
            except SpoolError as error:
                if fault != str(error):
                    self._log.error("the spool cannot be read", what=str(error))
                fault = str(error)
                # Else nobody would notice that the database takes leads again.
                step = await self._look_for_end_of_outage()
            took = time.monotonic() - began
            failures = failures + 1 if step is DrainRound.UNREACHABLE else 0
            if step is DrainRound.DRAINED:
                # Live leads get at least as much of the database's time as the drain.
                await asyncio.sleep(took if self._busy() else 0)
            elif step is DrainRound.UNREACHABLE:
                await asyncio.sleep(jittered_wait(failures, first=FIRST_WAIT, longest=LONGEST_WAIT))
            else:
                await asyncio.sleep(LOOK_SECONDS)

    async def run_erasures(self) -> None:
        """Forget what was erased, also by other replicas, every few seconds: what this process remembers, and what was
        set aside in the spool."""
        while True:
            await asyncio.sleep(ERASURES_EVERY_SECONDS)
            retry_scope.set(RetryScope(time.monotonic() + ERASURES_WAIT_SECONDS, lambda _: None))
            with suppress(StorageUnavailableError, StorageFaultError, SpoolError):  # the next look makes up for it
                await self._forget_erased()

    async def _forget_erased(self) -> None:
        erased, self._erased_until = await self._erasures.erased_since(self._erased_until)
        self._recent.forget(erased)
        set_aside = await self._spool.ids_set_aside() if self._spool.size.damaged else []
        if set_aside and (erased := await self._erasures.erased_among(set_aside)):
            await self._spool.remove(erased)

    async def step(self) -> DrainRound:
        """Drain one batch. Raises SpoolError, and a fault of ours when it is the second in a row."""
        if self._spool.size.waiting == 0 and self._spool.fault is None:
            return await self._look_for_end_of_outage()
        small = self._busy() or self._outage.lasting
        now = self._clock()
        held = {lead_id for lead_id, each in self._held.items() if each.until > now}
        opened = await self._spool.oldest(SMALL_BATCH if small else BATCH, self._reseal, held)
        for each in opened.damaged:
            self._log.error("a spooled submission cannot be opened and was set aside", id=str(each))
            self._on_drained("set_aside")
        step = await self._store(opened.submissions) if opened.submissions else await self._look_for_end_of_outage()
        if opened.fault is not None and step is not DrainRound.UNREACHABLE:
            self._hold(*opened.fault)
        return step

    async def _attempt(self, submissions: list[SealedSubmission]) -> Exception | None:
        """Store submissions and take them out of the spool; the error if they were not stored. Raises SpoolError."""
        try:
            outcomes = await self._submissions.create_all_once(submissions)
            self._outage.over()
            await self._remove(submissions, outcomes)
        except SpoolError:
            raise
        except Exception as error:  # noqa: BLE001 # classified by the caller
            return error
        return None

    async def _store(self, submissions: list[SealedSubmission]) -> DrainRound:
        began = time.monotonic()
        error = await self._attempt(submissions)
        if error is None:
            return DrainRound.DRAINED
        if isinstance(error, OpenErasuresError):
            return await self._erase_first()
        if is_fault_of_ours(error):
            self._log.error("a batch failed by a fault of ours", error=type(error).__qualname__)
        if not await self._concerns_an_entry(error, since=began):
            return DrainRound.UNREACHABLE
        return await self._one_by_one(submissions)

    async def _one_by_one(self, submissions: list[SealedSubmission]) -> DrainRound:
        """After a batch that failed for one of its submissions: let every other one through, up to a fault of ours."""
        moved = False
        for submission in submissions:
            error = await self._attempt([submission])
            if error is None:
                moved = True
                continue
            if isinstance(error, OpenErasuresError):
                return await self._erase_first()
            if is_fault_of_ours(error):
                self._hold(submission.id, error)
                break  # what is behind it may be the same person's: the spool knows
            if not await self._concerns_an_entry(error):
                return DrainRound.UNREACHABLE
            if is_refused(error) and not may_concern_content(error):
                self._leave(submission.id, LONGEST_HOLD_REFUSED, refused=cause_of(error))
                self._log.error(
                    "a spooled submission is refused by the database and stays",
                    id=str(submission.id),
                    cause=cause_of(error),
                )
                return DrainRound.DRAINED  # what is behind it may be the same person's
            if is_refused(error):
                await self._spool.set_aside(submission.id, f"refused by the database ({cause_of(error)})")
                self._log.error("a spooled submission was set aside", id=str(submission.id), cause=cause_of(error))
                self._on_drained("set_aside")
        return DrainRound.DRAINED if moved else DrainRound.IDLE

    async def _erase_first(self) -> DrainRound:
        """Apply the erasures that other replicas have asked for; nothing is stored before."""
        try:
            await self._apply_erasures()
        except StorageUnavailableError:
            return DrainRound.UNREACHABLE
        return DrainRound.IDLE

    async def _concerns_an_entry(self, error: Exception, *, since: float | None = None) -> bool:
        """Whether an error has to do with one of the submissions; else the outage is noted.

        `since`: when the attempt began.
        """
        if is_refused(error):
            found = await self._submissions.trial()
            if found is None:
                self._outage.over()
                return True
            self._outage.began(cause_of(found), since=since, refused=is_refused(found))
            return False
        if is_transient(error) and not is_busy(error):
            self._outage.began(cause_of(error), since=since)
            return False
        return True

    def _hold(self, lead_id: UUID, error: Exception) -> None:
        """Leave a submission where it is for a while. Raises the error when another one failed just before it."""
        self._leave(lead_id, LONGEST_HOLD, refused=None)
        self._log.error(
            "a spooled submission fails by a fault of ours and stays", id=str(lead_id), error=type(error).__qualname__
        )
        before, self._failed_last = self._failed_last, lead_id
        if before not in (None, lead_id):
            self._failed_last = None
            raise error

    def _leave(self, lead_id: UUID, longest: float, *, refused: str | None) -> None:
        held = self._held.setdefault(lead_id, _Held())
        held.until = self._clock() + longest_wait(held.failures, first=FIRST_HOLD, longest=longest)
        held.failures, held.refused = held.failures + 1, refused

    async def _remove(self, submissions: list[SealedSubmission], outcomes: dict[UUID, Outcome]) -> None:
        for submission in submissions:
            outcome = outcomes[submission.id]
            if isinstance(outcome, Created):
                self._recent.remember(submission, outcome.lead)
            elif isinstance(outcome, Erased):
                # Before it leaves the spool: nobody else knows what else is this person's.
                await self._erasures.erase_rest_of_person(submission)
            self._on_drained(_NAMES[type(outcome)])
            self._held.pop(submission.id, None)
        await self._spool.remove(list(outcomes))
        self._failed_last = None

    async def _look_for_end_of_outage(self) -> DrainRound:
        if not self._outage.lasting:
            return DrainRound.IDLE
        # Rolled back, so it proves everything but that commits end; what was left behind is looked for there, too.
        if await self._submissions.trial() is not None:
            return DrainRound.UNREACHABLE
        self._outage.over()
        return DrainRound.IDLE


_NAMES: dict[type, str] = {
    Created: "saved",
    Aliased: "alias",
    InConflict: "conflict",
    DuplicateMatch: "resubmission",
    Erased: "erased",
}
"""What became of a drained submission, as it is counted."""
