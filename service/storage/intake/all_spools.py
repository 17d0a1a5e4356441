"""Search of what waits in the spools of all replicas, and its erasure there.

The own spool is searched directly, the others through the database: see spool_answers.py. The wait is bounded. Whatever
replica has not answered by then is named, and so is at once what does not run, or has sent no heartbeat for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import text

from service.errors import FieldUnreadableError, StorageUnavailableError
from service.keys.encryption import EncryptionService
from service.lead import SealedSubmission
from service.storage.database.database import Database, Statement
from service.storage.database.failures import StorageFaultError
from service.storage.database.retry import retry_scope
from service.storage.intake.spool_answers import SpoolAnswers
from service.storage.leads.open_erasures import MAY_HOLD, RUNS, replicas_left
from service.storage.leads.parameters import Wanted
from service.storage.leads.persons import Match, MatchKind
from service.storage.spool.file import SpoolError
from service.storage.spool.search import Sought, WaitingMatch, matches_of

LONGEST_WAIT = 5.0
"""Seconds in which the replicas must have answered: ten looks, or a spool of some ten thousand. Half of the caller's
time at most."""

LOOK_SECONDS = 0.1
"""How often answers are looked for."""

_ASK = Statement(
    text(f"""
    WITH asked AS (
        SELECT gen_random_uuid() AS id, r.name, {RUNS} AS runs FROM replica r
        WHERE r.name <> :replica AND {MAY_HOLD}
    ), put AS (
        INSERT INTO spool_search (id, replica, question) SELECT id, name, CAST(:question AS jsonb) FROM asked WHERE runs
    )
    SELECT id, name, runs FROM asked
""")  # noqa: S608 # our own text
)
"""The replicas in whose spools something may wait; those that run get the question."""

_ANSWERS = text("SELECT id, answer FROM spool_search WHERE id = ANY(CAST(:ids AS uuid[])) AND answer IS NOT NULL")
_REMOVE = Statement(text("DELETE FROM spool_search WHERE id = ANY(CAST(:ids AS uuid[]))"))


class AllSpools:
    """The spools of all replicas of one database, asked from one of them.

    Each method also returns the names of the replicas that did not answer within seconds, this one among them if its
    own spool fails.
    """

    def __init__(self, database: Database, encryption: EncryptionService, own: SpoolAnswers) -> None:
        self._database = database
        self._encryption = encryption
        self._own = own

    async def find(self, wanted: Wanted) -> tuple[list[Match], tuple[str, ...]]:
        """Every submission that waits and carries one of the identifiers.

        Ask before the database is read: what is drained in between is then found twice, and never missed.
        """
        digests = wanted.of_leads
        plan = self._encryption.plan
        sought = Sought(
            schemes=plan.schemes if plan else (),
            phones=frozenset(digests.get("phone", ())),
            nids=frozenset(digests.get("nid", ())),
            emails=frozenset(digests.get("email", ())),
        )
        found, unanswered = await self._search(sought)
        return [_match(each.submission, each.matched_fields) for each in found], unanswered

    async def export(self, ids: Collection[UUID]) -> tuple[list[SealedSubmission], tuple[str, ...]]:
        """Those of the submissions that wait, with `accepted_at`; their tokens are bound to their ids."""
        found, unanswered = await self._search(Sought(ids=frozenset(ids)))
        return [match.submission for match in found], unanswered

    async def erase(self, alone: Collection[UUID], *, leads: Collection[UUID]) -> tuple[str, ...]:
        """Remove submissions that have a tombstone from every spool, alone, and what is the person's of erased leads.

        What a replica that is named has not removed it removes before it drains.
        """
        until, ids = _time_to_wait(), [*alone, *leads]
        if alone:
            note = self._own.open_erasures.note_alone
            await self._database.write(lambda connection: note(connection, alone))
        with suppress(SpoolError):
            await self._own.apply_erasures()
        while True:
            left = await replicas_left(self._database, ids)
            if not any(left.values()) or time.monotonic() > until:
                return tuple(left)
            await asyncio.sleep(LOOK_SECONDS)

    async def _search(self, sought: Sought) -> tuple[list[WaitingMatch], tuple[str, ...]]:
        asked = await self._ask(sought)
        ids = [each.id for each in asked if each.runs]
        try:
            own = await self._find_here(sought)
            answers = await self._collect(ids)
        finally:
            await self._remove(ids)
        unanswered = [each.name for each in asked if each.id not in answers]
        if own is None:
            unanswered.append(self._own.open_erasures.replica)
        found = [*(own or []), *(match for each in answers.values() for match in each)]
        return found, tuple(sorted(unanswered))

    async def _find_here(self, sought: Sought) -> list[WaitingMatch] | None:
        with suppress(SpoolError):
            await self._own.apply_erasures()
            return await self._own.find(sought)
        return None

    async def _ask(self, sought: Sought) -> list[Any]:
        given = {"replica": self._own.open_erasures.replica, "question": sought.to_json()}
        return await self._database.write(lambda connection: _ASK.rows(connection, given), alone=True)

    async def _collect(self, ids: Sequence[UUID]) -> Mapping[UUID, list[WaitingMatch]]:
        until, answers = _time_to_wait(), dict[UUID, list[WaitingMatch]]()
        while ids:
            for row in await self._database.rows(_ANSWERS, {"ids": [each for each in ids if each not in answers]}):
                # One that is sealed with a key which is not here is none.
                with suppress(FieldUnreadableError):
                    answers[row.id] = matches_of(self._encryption.open_spooled(row.id, row.answer))
            if len(answers) == len(ids) or time.monotonic() > until:
                break
            await asyncio.sleep(LOOK_SECONDS)
        return answers

    async def _remove(self, ids: Sequence[UUID]) -> None:
        if ids:
            # Else a replica removes them within a minute.
            with suppress(StorageUnavailableError, StorageFaultError):
                await self._database.write(lambda connection: _REMOVE.rows(connection, {"ids": list(ids)}), alone=True)


def _match(submission: SealedSubmission, fields: tuple[str, ...]) -> Match:
    assert submission.accepted_at is not None  # noqa: S101 # of what waits it is known
    return Match(kind=MatchKind.WAITING, id=submission.id, at=submission.accepted_at, lead_id=None, fields=fields)


def _time_to_wait() -> float:
    """Until when answers are waited for, on the monotonic clock."""
    now, scope = time.monotonic(), retry_scope.get()
    return now + (LONGEST_WAIT if scope is None else min(LONGEST_WAIT, (scope.deadline - now) / 2))
