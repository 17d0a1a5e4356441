"""The spools of all replicas of one database: what waits there is found, and what was erased leaves them.

The own spool is searched directly, the others through the database. A question is a row for each replica, which looks
for it twice a second: a notification would need a session of its own, which a pooler does not give. An answer is sealed
and bound to its question. What was asked long ago is removed, by whichever replica sees it first, so that neither
question nor answer outlives a caller that died.

The wait is bounded. Whatever replica has not answered by then is named, and so is at once what does not run, or has
sent no heartbeat for a while. A spool that is too large to be searched in that time counts as one that did not answer,
until it has drained.

An erasure is applied in this order: tombstones in the database, then the spool, then its row is removed. A process that
is killed in between does it again when it starts, before it stores anything from its spool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

import structlog

from service.errors import FieldUnreadableError, StorageUnavailableError
from service.keys.encryption import EncryptionService
from service.keys.keyring import Purpose
from service.lead import SealedSubmission
from service.storage.database.database import Database, Statement
from service.storage.database.failures import RetryScope, StorageFaultError, retry_scope
from service.storage.intake.outage import RecentRequests
from service.storage.leads.erasing import ALONE, KnownTombstone, request_digest
from service.storage.leads.erasures import Erasures
from service.storage.leads.open_erasures import (
    IS_OPEN,
    MAY_HOLD,
    RUNS,
    WAITING,
    OpenErasure,
    OpenErasures,
    WaitingErasures,
    close,
    replicas_left,
)
from service.storage.leads.persons import Match, MatchKind, Place, Wanted
from service.storage.spool.file import SpoolError
from service.storage.spool.rows import SpoolRow, closed
from service.storage.spool.search import MakeKeys, SearchKeys, Sought, WaitingMatch, answer_of, matches_of
from service.storage.spool.spool import Spool

LOOK_SECONDS = 0.5
"""How often a replica looks for what others ask: a caller waits for the answer."""

DATABASE_SECONDS = 1.0
"""How long one look waits for the database."""

ANSWER_SECONDS = 5.0
"""For so long at most a spool is searched, and a caller waits for all of them, half of its own time at most."""

ANSWER_LOOK_SECONDS = 0.1
"""How often a caller looks for answers."""

QUESTION_SECONDS = 30
"""Seconds after which a question is removed: no caller waits for so long."""

_ASK = Statement(f"""
    WITH asked AS (
        SELECT gen_random_uuid() AS id, r.name, {RUNS} AS runs FROM replica r
        WHERE r.name <> :replica AND {MAY_HOLD}
    ), put AS (
        INSERT INTO spool_search (id, replica, question) SELECT id, name, CAST(:question AS jsonb) FROM asked WHERE runs
    )
    SELECT id, name, runs FROM asked
""")  # noqa: S608 # our own text
"""The replicas in whose spools something may wait; those that run get the question."""

_ANSWERS = Statement("SELECT id, answer FROM spool_search WHERE id = ANY(CAST(:ids AS uuid[])) AND answer IS NOT NULL")
_REMOVE = Statement("DELETE FROM spool_search WHERE id = ANY(CAST(:ids AS uuid[]))")
_IS_OLD = f"asked_at < clock_timestamp() - interval '{QUESTION_SECONDS} s'"
# Whoever asked earlier does not wait any more.
_QUESTIONS = f"""
    SELECT id, question FROM spool_search WHERE replica = :replica AND answer IS NULL
        AND asked_at > clock_timestamp() - interval '{ANSWER_SECONDS} s' ORDER BY asked_at, id
"""  # noqa: S608 # our own text
_LOOK = Statement(f"""
    SELECT EXISTS({IS_OPEN}) AS must_erase,
        EXISTS(SELECT FROM spool_search WHERE {_IS_OLD}) AS has_old,
        ARRAY(SELECT to_json(asked) FROM ({_QUESTIONS}) asked) AS questions,
        ARRAY(SELECT to_json(waiting) FROM ({WAITING}) waiting) AS waiting
""")  # noqa: S608 # our own text
"""All that a replica looks for, in one statement: it runs twice a second."""
_ANSWER = Statement("UPDATE spool_search SET answer = :answer WHERE id = :id")
_REMOVE_OLD = Statement(f"DELETE FROM spool_search WHERE {_IS_OLD}")  # noqa: S608 # our own text


@dataclass(frozen=True, slots=True)
class _Erasable:
    """A spooled submission that an erasure concerns."""

    id: UUID
    entry: SealedSubmission | None
    """None: it cannot be opened."""
    known: KnownTombstone
    is_certain: bool
    """False: the clocks do not show whether it was accepted before the erasure."""
    shares_both: bool
    """Whether the erasure named both its phone and its nid."""
    set_aside: bool


class AllSpools:
    """The spools of all replicas, as one of them asks the others, and does for them what they ask.

    `find`, `export` and `erase` also return the names of the replicas that did not answer in time, this one among them
    if its own spool fails.
    """

    def __init__(
        self,
        *,
        database: Database,
        spool: Spool,
        encryption: EncryptionService,
        open_erasures: OpenErasures,
        erasures: Erasures,
        recent: RecentRequests,
        make_keys: MakeKeys,
    ) -> None:
        self.waiting: tuple[WaitingErasures, ...] = ()
        """The erasures that waited for any replica at the last look."""
        self._database = database
        self._spool = spool
        self._encryption = encryption
        self._open_erasures = open_erasures
        self._erasures = erasures
        self._recent = recent
        self._make_keys = make_keys
        self._applying = asyncio.Lock()
        self._lacks_key = False
        self._log = structlog.get_logger("leadkeep.erasure")

    async def find(
        self, wanted: Wanted, *, after: Place | None = None, limit: int
    ) -> tuple[list[Match], tuple[str, ...]]:
        """Submissions that wait and carry one of the identifiers: at most `limit` of each spool, the first behind a
        place.

        Ask before the database is read: what is drained in between is then found twice, and never missed.
        """
        digests = wanted.of_leads
        plan = self._encryption.plan
        sought = Sought(
            schemes=plan.schemes if plan else (),
            phones=frozenset(digests.get("phone", ())),
            nids=frozenset(digests.get("nid", ())),
            emails=frozenset(digests.get("email", ())),
            limit=limit,
            after=after and (after.at, after.id),
        )
        found, unanswered = await self._search(sought)
        return [
            Match(
                kind=MatchKind.WAITING,
                id=each.submission.id,
                at=each.accepted_at,
                lead_id=None,
                fields=each.matched_fields,
            )
            for each in found
        ], unanswered

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
            note = self._open_erasures.note_alone
            await self._database.write(lambda connection: note(connection, alone))
        with suppress(SpoolError, TimeoutError):  # what is left open is done by `run`
            async with asyncio.timeout(until - time.monotonic()):
                await self.apply_erasures()
        while True:
            left = await replicas_left(self._database, ids)
            if not any(left.values()) or time.monotonic() > until:
                return tuple(left)
            await asyncio.sleep(ANSWER_LOOK_SECONDS)

    async def _search(self, sought: Sought) -> tuple[list[WaitingMatch], tuple[str, ...]]:
        until, own = _time_to_wait(), self._open_erasures.replica
        given = {"replica": own, "question": sought.to_json()}
        asked = await self._database.write(partial(_ASK.rows, parameters=given), alone=True)
        ids = {each.id: each.name for each in asked if each.runs}
        unanswered = {own, *(each.name for each in asked)}
        found: list[WaitingMatch] = []
        try:
            with suppress(SpoolError, TimeoutError):
                async with asyncio.timeout(until - time.monotonic()):
                    await self.apply_erasures()
                    here = await self._search_here(sought)
                if here is not None:
                    found += here
                    unanswered.discard(own)
            for question, answer in (await self._answers(list(ids), until)).items():
                found += answer
                unanswered.discard(ids[question])
        finally:
            await self._remove(list(ids))
        return found, tuple(sorted(unanswered))

    async def _answers(self, ids: Sequence[UUID], until: float) -> dict[UUID, list[WaitingMatch]]:
        answers = dict[UUID, list[WaitingMatch]]()
        while ids:
            wanted = {"ids": [each for each in ids if each not in answers]}
            for row in await self._database.read(partial(_ANSWERS.rows, parameters=wanted)):
                # One that is sealed with a key which is not here is none.
                with suppress(FieldUnreadableError):
                    answers[row.id] = matches_of(self._encryption.open_spooled(row.id, row.answer))
            if len(answers) == len(ids) or time.monotonic() > until:
                break
            await asyncio.sleep(ANSWER_LOOK_SECONDS)
        return answers

    async def _remove(self, ids: Sequence[UUID]) -> None:
        if ids:
            # Else a replica removes them within a minute.
            with suppress(StorageUnavailableError, StorageFaultError):
                await self._database.write(partial(_REMOVE.rows, parameters={"ids": ids}), alone=True)

    async def run(self) -> None:
        """Look twice a second for what others ask."""
        while True:
            if self._database.admitted:
                retry_scope.set(RetryScope(time.monotonic() + DATABASE_SECONDS, lambda _: None))
                # The next look makes up for it. What is not answered, its caller names.
                with suppress(StorageUnavailableError, StorageFaultError, SpoolError, TimeoutError):
                    await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        given = {"replica": self._open_erasures.replica}
        [seen] = await self._database.read(partial(_LOOK.rows, parameters=given))
        self.waiting = tuple(WaitingErasures(**each) for each in seen.waiting)
        if seen.has_old:
            await self._database.write(partial(_REMOVE_OLD.rows, parameters={}), alone=True)
        if seen.must_erase:
            await self.apply_erasures()
        for each in seen.questions:
            await self._answer(UUID(each["id"]), Sought.of(each["question"]))

    async def _answer(self, question: UUID, sought: Sought) -> None:
        async with asyncio.timeout(ANSWER_SECONDS):
            found = await self._search_here(sought)
        if found is not None:
            answer = {"id": question, "answer": self._encryption.seal_spooled(question, answer_of(found))}
            await self._database.write(partial(_ANSWER.rows, parameters=answer), alone=True)

    async def _search_here(self, sought: Sought) -> list[WaitingMatch] | None:
        """What waits here and is sought; None: that cannot be answered. Raises SpoolError."""
        if self._lacks_keys(sought):
            return None

        def look(row: SpoolRow, entry: SealedSubmission | None) -> WaitingMatch | None:
            if sought.after is not None and (row.accepted_at, row.id) <= sought.after:
                return None
            is_named = row.id in sought.ids
            fields = sought.fields_of(self._keys_of(row, entry, sought))
            if not (fields or is_named):
                return None
            submission = entry or closed(row)
            if not is_named:
                submission = replace(submission, fields={})
            return WaitingMatch(submission=submission, accepted_at=row.accepted_at, matched_fields=fields)

        def first(found: list[WaitingMatch]) -> list[WaitingMatch]:
            return sorted(found, key=lambda match: match.place)[: sought.limit]

        return await self._spool.look_through(look, keep=first, ids=None if sought.fields else sought.ids)

    async def apply_erasures(self) -> None:
        """Erase from this spool what others have erased. Raises SpoolError, StorageUnavailableError and others.

        Returns with erasures left open when this keyring lacks a key to find what is to be erased.
        """
        async with self._applying:
            for erasure in await self._database.read(self._open_erasures.all):
                if not self._lacks_keys(erasure.sought):
                    await self._apply(erasure)

    async def _apply(self, erasure: OpenErasure) -> None:
        ids = None if erasure.sought.fields or erasure.requests else erasure.ids
        found = await self._spool.look_through(partial(self._erasable, erasure), ids=ids)
        gone, settled = set(erasure.ids), list[UUID]()
        for each in found:
            if each.is_certain:
                forwards = not (erasure.alone or each.shares_both)
                gone |= await self._erasures.erase_spooled(erasure, each.id, each.known, each.entry, forwards=forwards)
                settled.append(each.id)
            elif each.entry is not None and not each.set_aside:
                await self._erasures.keep_undecided(each.entry, erasure.erased_id)
                settled.append(each.id)
            else:
                self._log.error("a submission that was set aside may be of an erased person", id=str(each.id))
        if settled:
            await self._spool.remove(settled)
        self._recent.forget(gone)
        await self._database.write(lambda connection: close(connection, erasure), alone=True)
        self._log.info("an erasure was applied to the spool", id=str(erasure.erased_id), submissions=len(settled))

    def _erasable(self, erasure: OpenErasure, row: SpoolRow, entry: SealedSubmission | None) -> _Erasable | None:
        shares_both = erasure.is_same_person(self._keys_of(row, entry, erasure.sought))
        digest = request_digest(entry) if entry else None
        if row.id in erasure.ids:
            is_certain = True
        elif shares_both or digest in erasure.requests:
            earliest, latest = row.clock.bounds(row.accepted_at) if row.clock else (None, None)
            # What was accepted after the erasure is new: the person came back.
            if earliest is not None and earliest > erasure.erased_at:
                return None
            is_certain = latest is not None and latest <= erasure.erased_at
        else:
            return None
        known = KnownTombstone(
            created_at=row.accepted_at,
            erased_at=erasure.erased_at,
            lead_id=ALONE if erasure.alone else erasure.erased_id,
            request_digest=digest,
        )
        return _Erasable(row.id, entry, known, is_certain, shares_both, row.damage is not None)

    def _keys_of(self, row: SpoolRow, entry: SealedSubmission | None, sought: Sought) -> SearchKeys:
        """The digests of a submission that may be sought, with those that were noted when it was put: it may not open.

        Nothing else of it is opened: that takes most of a search's time.
        """
        keys = SearchKeys()
        if entry is not None and sought.fields:
            needed = {name: token for name, token in entry.fields.items() if name in sought.fields}
            keys = self._make_keys(replace(entry, fields=needed), sought.schemes)
        nids = keys.nids | ({row.nid} if row.nid is not None else set())
        return replace(keys, phones=keys.phones | {row.phone}, nids=nids)

    def _lacks_keys(self, sought: Sought) -> bool:
        """Whether the keyring lacks an index key without which what is sought is not found."""
        usable = {key.id for key in self._encryption.keyring.usable(Purpose.INDEX)}
        lacks = {scheme.key_id for scheme in sought.schemes} - usable
        if bool(lacks) != self._lacks_key:
            self._lacks_key = bool(lacks)
            if lacks:
                self._log.error("the spool cannot be searched: index keys are missing", keys=sorted(lacks))
        return bool(lacks)


def _time_to_wait() -> float:
    """Until when answers are waited for, on the monotonic clock."""
    now, scope = time.monotonic(), retry_scope.get()
    return now + (ANSWER_SECONDS if scope is None else min(ANSWER_SECONDS, (scope.deadline - now) / 2))
