"""Erasures that a caller asks for, of the database and of what waits in this machine's spool, and those of old leads.

What waits of the person gets a tombstone. What waits of others who share only its phone or only its nid is stored
first, as the drain would have stored it, so that it is kept in the same way whether it was drained before or not.

Retention erases a lead only if it is too old, and has the status, at the moment at which it is erased. What was begun
and interrupted continues when the same is done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import LeadStatus, SealedSubmission
from service.storage import models
from service.storage.database.database import Database, Statement, page_of
from service.storage.leads.decision import Person
from service.storage.leads.erasing import (
    ALONE,
    KnownTombstone,
    Reseal,
    Tombstone,
    bury_alone,
    erase_alone,
    erase_within,
    lock_leads,
    lock_person,
    opened,
    person_of,
    write_alone,
)
from service.storage.leads.open_erasures import OpenErasure, OpenErasures
from service.storage.leads.submissions import store
from service.storage.spool.spool import Spooled

_STONE = models.tombstone

LISTED_AT_ONCE = 1000

ERASURES_OVERLAP = timedelta(minutes=1)
"""By which looks for erasures overlap: one is dated when its transaction begins."""

_KEPT = Statement("""
    SELECT id FROM lead_conflict
    WHERE erased_lead_id = coalesce((SELECT lead_id FROM tombstone WHERE id = :id), CAST(:id AS uuid))
        AND resolution IS NULL AND repeats IS NULL ORDER BY id
""")
_CONFLICTS = Statement("SELECT id FROM lead_conflict WHERE id = ANY(CAST(:ids AS uuid[]))")
# An id that leads to a lead has no tombstone.
_ERASED_ALONE = Statement("""
    SELECT id FROM tombstone WHERE id = ANY(CAST(:ids AS uuid[])) AND created_at IS NOT NULL
    UNION ALL SELECT id FROM lead_alias WHERE id = ANY(CAST(:ids AS uuid[]))
""")

# `created_at` adds no condition to `updated_at`, but the index of a status is ordered by it.
# A person who came back, or about whom a decision is pending, is not forgotten.
_DUE = """
    lead.status = :status AND lead.updated_at < :before AND lead.created_at < :before
    AND NOT EXISTS (SELECT FROM resubmission kept WHERE kept.lead_id = lead.id AND kept.submitted_at >= :before)
    AND NOT EXISTS (SELECT FROM lead_conflict c WHERE c.resolution IS NULL
        AND (c.phone_lead_id = lead.id OR c.nid_lead_id = lead.id OR c.request_lead_id = lead.id))
"""
_COUNT = text(f"SELECT count(*) FROM lead WHERE {_DUE}")  # noqa: S608 # our own text
_NEXT = text(f"""
    SELECT id, created_at FROM lead
    WHERE {_DUE} AND (created_at, id) > (CAST(:moment AS timestamptz), CAST(:id AS uuid))
    ORDER BY created_at, id LIMIT :limit
""")  # noqa: S608 # our own text
_STILL = text(f"SELECT id FROM lead WHERE id = ANY(CAST(:ids AS uuid[])) AND {_DUE} ORDER BY id")  # noqa: S608 # our own text


class PersonMovedError(Exception):
    """An id began to stand for another lead, or its lead was corrected, while the person's submissions were sought."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """The ids that are gone, and the conflicts of others who shared something with them."""

    gone: frozenset[UUID]
    kept: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """Leads of a status that were last changed before a moment."""

    status: LeadStatus
    before: datetime

    @property
    def parameters(self) -> dict[str, Any]:
        """For the statements."""
        return {"status": self.status.value, "before": self.before}


@dataclass(frozen=True, slots=True)
class Erasures:
    """The erasures of one database, and the tombstones that they left."""

    database: Database
    reseal: Reseal
    open_erasures: OpenErasures | None = None
    """None: nobody else is asked to erase, for what replicas do not know either."""

    async def person(self, lead_id: UUID) -> Person:
        """What the database knows of the person that an id stands for."""
        return await self.database.read(lambda connection: person_of(connection, lead_id, self.reseal))

    async def erase(self, lead_id: UUID, *, actor: str, reason: str | None, spooled: Spooled) -> Erasure | None:
        """Erase the person of an id, here and in this replica's spool; None: the id is unknown here.

        Safe to repeat. An unknown id gets a tombstone too: its lead may be in another replica's spool.
        Raises PersonMovedError when the spool was searched for what the id no longer stands for.
        """

        async def work(connection: AsyncConnection) -> Erasure | None:
            person = await lock_person(connection, lead_id, spooled.own, self.reseal)
            # What another erasure was faster to take is sought no more; what was found of it here goes all the same.
            if spooled.sought is not None and not person.within(spooled.sought):
                raise PersonMovedError
            gone: set[UUID] = set()
            # What waits in the spool first: putting up a tombstone of an id without a row waits for every writer, which
            # must not wait for the lead's row, locked by us.
            own = {each: replace(known, erased_by=actor, reason=reason) for each, known in spooled.own.items()}
            for each in sorted(own.keys() - {lead_id}):
                known = replace(own[each], lead_id=lead_id)
                gone |= await erase_within(connection, each, known, reseal=self.reseal)
            if spooled.others:
                waiting = [spooled.itself] if spooled.itself else []
                await store([*waiting, *spooled.others], connection)
            known = own.get(lead_id, KnownTombstone(erased_by=actor, reason=reason))
            gone |= await erase_within(connection, lead_id, known, reseal=self.reseal, itself=spooled.itself)
            if spooled.itself is not None:
                person = person.extended_by(spooled.itself)
            await self._ask_others(connection, lead_id, person)
            kept = await _KEPT.rows(connection, {"id": lead_id})
            return Erasure(frozenset(gone), tuple(row.id for row in kept)) if gone else None

        return await write_alone(self.database, work)

    async def bury_alone(self, ids: Iterable[UUID], *, actor: str, reason: str | None) -> list[UUID]:
        """Add a tombstone for each of these submissions only, which may still be spooled; those that are leads by now.

        A transaction each: one that has no row yet is waited for by all who write leads.
        """

        bury = partial(bury_alone, known=KnownTombstone(erased_by=actor, reason=reason))
        return [each for each in ids if not await write_alone(self.database, partial(bury, wanted=each))]

    async def erase_alone(self, ids: Sequence[UUID], *, actor: str, reason: str | None) -> frozenset[UUID]:
        """Erase resubmissions and conflicts alone, in one transaction; those of the ids that are known to be erased.

        The leads beside which they are kept stay.
        """

        async def work(connection: AsyncConnection) -> frozenset[UUID]:
            given = {"ids": list(ids)}
            # A conflict that became a lead leaves no tombstone.
            conflicts = await _CONFLICTS.rows(connection, given)
            await erase_alone(connection, ids, KnownTombstone(erased_by=actor, reason=reason))
            return frozenset(row.id for row in (*conflicts, *await _ERASED_ALONE.rows(connection, given)))

        return await write_alone(self.database, work)

    async def erase_rest_of_person(self, drained: SealedSubmission) -> None:
        """Erase the person's other submissions, after the drain found that one was erased by its id.

        Whoever erased its id knew nothing else of it. What was accepted after that erasure stays. Safe to repeat.
        """

        async def work(connection: AsyncConnection) -> None:
            stone = (await connection.execute(select(_STONE).where(_STONE.c.id == drained.id))).one()
            if stone.lead_id != drained.id:
                return  # whoever erased it knew its person, or only dropped this one submission
            known = replace(Tombstone(**stone._asdict()), created_at=None, request_digest=None)
            await erase_within(connection, drained.id, known, reseal=self.reseal, itself=drained)

        await write_alone(self.database, work)

    async def _ask_others(self, connection: AsyncConnection, lead_id: UUID, person: Person) -> None:
        """Note that other replicas have to erase a person from their spools."""
        if self.open_erasures is not None:
            await self.open_erasures.note_lead(connection, lead_id, phones=person.phones, nids=person.nids)

    async def erase_spooled(
        self,
        erasure: OpenErasure,
        submission_id: UUID,
        known: KnownTombstone,
        submission: SealedSubmission | None,
        *,
        forwards: bool,
    ) -> frozenset[UUID]:
        """Erase a submission of this replica's spool, and what the database has of its person, as others ask for it.

        `submission` is None when it cannot be opened. With `forwards` the other replicas are asked for its person too,
        which they did not know. Returns the ids that are gone. Safe to repeat.
        """
        itself = opened(submission, self.reseal) if submission else None
        stone = replace(known, erased_by=erasure.erased_by, reason=erasure.reason)

        async def work(connection: AsyncConnection) -> frozenset[UUID]:
            gone = await self._erase_or_bury(connection, submission_id, stone, itself)
            if forwards and itself is not None:
                await self._ask_others(connection, erasure.erased_id, Person(frozenset()).extended_by(itself))
            return gone

        return await write_alone(self.database, work)

    async def _erase_or_bury(
        self, connection: AsyncConnection, wanted: UUID, known: KnownTombstone, itself: SealedSubmission | None = None
    ) -> frozenset[UUID]:
        """Erase an id again, with its person or alone, as its tombstone says."""
        if known.lead_id != ALONE:
            return await erase_within(connection, wanted, known, reseal=self.reseal, itself=itself)
        # In this order: what was erased has its tombstone then, and only an id without a row waits for every writer,
        # with no lead locked.
        gone = await erase_alone(connection, [wanted], known)
        await bury_alone(connection, wanted, known)
        return gone

    async def keep_undecided(self, submission: SealedSubmission, erased_lead_id: UUID) -> None:
        """Store a submission of this replica's spool as a conflict: it may have been accepted before its person was
        erased, or after. Safe to repeat."""
        resealed = self.reseal(submission)
        await self.database.write(partial(store, [resealed], perhaps_erased={submission.id: erased_lead_id}))

    async def erase_again(self, tombstones: Sequence[Tombstone]) -> None:
        """Add tombstones that were kept elsewhere, and erase what has come back, in one transaction."""

        async def work(connection: AsyncConnection) -> None:
            await lock_leads(connection, [each.id for each in tombstones])
            for each in tombstones:
                await self._erase_or_bury(connection, each.id, each)

        await write_alone(self.database, work)

    async def erased_since(self, moment: datetime | None) -> tuple[list[UUID], datetime]:
        """The ids that were erased at or after a moment (None: now), and the present moment by the database's clock."""

        async def work(connection: AsyncConnection) -> tuple[list[UUID], datetime]:
            now = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
            since = (moment or now) - ERASURES_OVERLAP
            found = await connection.execute(select(_STONE.c.id).where(_STONE.c.erased_at >= since))
            return list(found.scalars()), now

        return await self.database.read(work)

    async def erased_among(self, ids: Sequence[UUID]) -> list[UUID]:
        """Those of the ids that were erased."""
        return [row.id for row in await self.database.rows(select(_STONE.c.id).where(_STONE.c.id.in_(ids)))]

    async def page(self, after: Tombstone | None) -> list[Tombstone]:
        """Some tombstones behind one, oldest first."""
        place = (after.erased_at, after.id) if after is not None else None
        query = page_of(select(_STONE), (_STONE.c.erased_at, _STONE.c.id), place, limit=LISTED_AT_ONCE)
        return [Tombstone(**row._asdict()) for row in await self.database.rows(query)]


async def count_due(database: Database, rule: RetentionRule) -> int:
    """How many leads a rule would erase now."""
    ((due,),) = await database.rows(_COUNT, rule.parameters)
    return int(due)


async def next_due(
    database: Database, rule: RetentionRule, after: tuple[datetime, UUID] | None, limit: int
) -> list[tuple[datetime, UUID]]:
    """The first leads behind a place that a rule would erase."""
    moment, lead_id = after or ("-infinity", UUID(int=0))
    found = await database.rows(_NEXT, {**rule.parameters, "moment": str(moment), "id": lead_id, "limit": limit})
    return [(row.created_at, row.id) for row in found]


async def erase_due(
    database: Database, rule: RetentionRule, ids: Sequence[UUID], *, actor: str, reason: str | None
) -> int:
    """Erase those of the leads that the rule still selects, in one transaction; how many those were."""

    async def work(connection: AsyncConnection) -> int:
        # Locked first, looked at afterwards: whoever held one has committed what counts for the rule.
        await lock_leads(connection, ids)
        due = (await connection.execute(_STILL, {**rule.parameters, "ids": list(ids)})).scalars().all()
        known = KnownTombstone(erased_by=actor, reason=reason)
        for lead_id in due:
            # What came back to a lead that is due is as old as the lead, whoever sent it.
            await erase_within(connection, lead_id, known, keeps_others=False)
        return len(due)

    return await write_alone(database, work)
