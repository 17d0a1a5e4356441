"""How submissions become leads, or meet one, however many they are.

First an insert with ON CONFLICT DO NOTHING and no target, so that whichever unique index a rival holds, the insert
waits for that rival and then does nothing. It may commit by itself: most submissions need no more than that. For those
for which it did nothing, a READ COMMITTED transaction looks for their own ids, their request_ids, phones and nids. That
is a statement of its own because one statement cannot see a rival that committed while it waited. Submissions of one
batch meet each other in the same way.

The look-up locks what it finds FOR KEY SHARE. That keeps the row while we answer for it, and it writes to the log: the
commit of every answer that rests on an existing row therefore waits for the synchronous standby. A plain look-up would
not, and could confirm a row that a failover then loses.

A submission that was acknowledged before (it waited in the spool) is never refused: what it meets makes it an alias of
the lead that its own request became elsewhere, or a conflict for a person to decide. One that was erased meanwhile
stays erased; tombstones.py knows those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError
from service.lead import CUSTOMER_FIELDS, SealedLead, SealedSubmission
from service.storage import kept_resubmissions, models, tombstones
from service.storage.erasing import wait_for_erasures
from service.storage.outcomes import (
    Aliased,
    Created,
    Erased,
    InConflict,
    Met,
    MetLead,
    Outcome,
    RequestIdReused,
    Waiting,
)
from service.storage.submission_statements import ALIASES, CONFLICTS, INSERT, LOOK_UP, entries_json

INSERTS_TRIED = 3
"""A lead that stood in the way and was erased before we could look at it frees the way; this happens once at most in
practice, and the bound keeps a fault from turning into an endless loop."""


def columns_of(submission: SealedSubmission) -> dict[str, Any]:
    """The submission's columns, alike in the tables of leads, of resubmissions and of conflicts."""
    return {
        **dict.fromkeys(CUSTOMER_FIELDS),
        **submission.fields,
        "request_id": submission.request_id,
        "content_digest": submission.content_digest,
    }


async def insert_new(connection: AsyncConnection, submissions: Sequence[SealedSubmission]) -> dict[UUID, Outcome]:
    """Store in one statement the submissions that nothing stands in the way of; by id. The others need `store`."""
    # By phone, so that rival batches wait for each other in one direction; of two that meet the earlier one is first,
    # and what was refused already makes way.
    ordered = sorted(submissions, key=lambda entry: (entry.refused, entry.indexes.phones))
    created_at = dict(await INSERT.rows(connection, {"entries": entries_json(ordered)}))
    return {entry.id: Created(entry.as_lead(created_at[entry.id])) for entry in ordered if entry.id in created_at}


async def store(
    connection: AsyncConnection,
    submissions: Sequence[SealedSubmission],
    lead_of: Callable[[Any], SealedLead],
    *,
    insert_first: bool = True,
) -> dict[UUID, Outcome]:
    """Store each submission as a lead, or say what it meets and keep it there; by id, for every one of them.

    `insert_first` is False for those that `insert_new` has just left.
    """
    outcomes: dict[UUID, Outcome] = {}
    left = list(submissions)
    for attempt in range(INSERTS_TRIED):
        if insert_first or attempt > 0:
            outcomes |= await insert_new(connection, left)
            left = [entry for entry in left if entry.id not in outcomes]
        if left:
            found = await _find(connection, left, lead_of, again=attempt > 0)
            refused = []
            for entry in left:
                columns = columns_of(entry)
                if outcome := await _settle(connection, entry, columns, found):
                    outcomes[entry.id] = outcome
                if isinstance(outcome, Met):
                    refused.append((entry, columns, outcome))
            await kept_resubmissions.keep(connection, refused)
            left = [entry for entry in left if entry.id not in outcomes]
        if not left:
            return outcomes
    raise StorageUnavailableError


class _Found:
    """What stands in the way of a batch, by what may be met; all rows of leads are locked."""

    def __init__(
        self,
        leads: Sequence[Any],
        conflicts: Sequence[Any],
        aliases: frozenset[UUID],
        erased: Mapping[UUID, datetime],
        lead_of: Callable[[Any], SealedLead],
    ) -> None:
        self.leads = {row.id: row for row in leads}
        self.requests = {(row.created_by, row.request_id): row for row in leads if row.request_id is not None}
        # A lead that stands beside another one by decision is not met by what it shares: the other one is.
        self.phones = {i: r for r in leads if not r.phone_shared for i in (r.phone_index, r.phone_index_2) if i}
        self.nids = {i: r for r in leads if not r.nid_shared for i in (r.nid_index, r.nid_index_2) if i}
        self.conflicts = {row.id: row for row in conflicts}
        self.conflicts_of: dict[tuple[str, str], Any] = {}
        for row in conflicts:  # oldest first, and the oldest counts
            if row.request_id is not None:
                self.conflicts_of.setdefault((row.created_by, row.request_id), row)
        self.aliases = aliases
        self.erased = erased
        self.lead_of = lead_of

    def met(self, phones: Sequence[bytes], nids: Sequence[bytes]) -> Met | None:
        """Which leads have one of these indexes of a phone, and one of these of a nid."""
        phone = next((self.phones[index] for index in phones if index in self.phones), None)
        nid = next((self.nids[index] for index in nids if index in self.nids), None)
        if phone is None and nid is None:
            return None
        return Met(_met_lead(phone), _met_lead(nid))


def _met_lead(row: Any | None) -> MetLead | None:
    return None if row is None else MetLead(row.id, row.created_by)


async def _find(
    connection: AsyncConnection,
    entries: Sequence[SealedSubmission],
    lead_of: Callable[[Any], SealedLead],
    *,
    again: bool,
) -> _Found:
    keys: dict[str, list[Any]] = {
        name: [getattr(entry, name) for entry in entries] for name in ("id", "created_by", "request_id")
    }
    keys["phones"] = [index for entry in entries for index in entry.indexes.phones]
    keys["nids"] = [index for entry in entries for index in entry.indexes.nids]
    late = any(entry.accepted_at for entry in entries)
    if late:
        await wait_for_erasures(connection)
    leads = await LOOK_UP.rows(connection, keys)
    conflicts = await CONFLICTS.rows(connection, keys)
    aliases: frozenset[UUID] = frozenset()
    erased: Mapping[UUID, datetime] = {}
    if late:
        aliases = frozenset(row[0] for row in await ALIASES.rows(connection, keys))
    if late or again:
        # A new submission is erased only if an attempt to store it succeeded unnoticed. Most of those that were not
        # inserted are duplicates; it is asked when nothing else explains it.
        erased = await tombstones.erased_among(connection, entries)
    return _Found(leads, conflicts, aliases, erased, lead_of)


async def _settle(
    connection: AsyncConnection, entry: SealedSubmission, columns: dict[str, Any], found: _Found
) -> Outcome | None:
    """What became of a submission that was not inserted; None when nothing stands in its way any more."""
    if (own := found.leads.get(entry.id)) is not None:
        return Created(found.lead_of(own))
    if entry.id in found.erased:
        return Erased(found.erased[entry.id])
    if entry.id in found.aliases:
        return Aliased()
    if (own_conflict := found.conflicts.get(entry.id)) is not None:
        # A new submission's first attempt was refused by a lead, without an answer, and that lead was erased since.
        return InConflict() if entry.accepted_at else _waiting(own_conflict)
    by_request = None if entry.request_id is None else (entry.created_by, entry.request_id)
    request = None if by_request is None else found.requests.get(by_request)
    same = request is not None and entry.has_content(request.content_digest)
    met = found.met(entry.indexes.phones, entry.indexes.nids)
    conflict = None if by_request is None else found.conflicts_of.get(by_request)
    if entry.accepted_at is not None:
        return await _settle_late(connection, entry, columns, request, conflict, same=same, met=met)
    if request is not None:
        return Created(found.lead_of(request)) if same else RequestIdReused()
    if conflict is not None:
        return _waiting(conflict) if entry.has_content(conflict.content_digest) else RequestIdReused()
    return met


def _waiting(conflict: Any) -> Waiting:
    return Waiting(conflict.id, conflict.accepted_at, decided=conflict.resolution is not None)


async def _settle_late(
    connection: AsyncConnection,
    entry: SealedSubmission,
    columns: dict[str, Any],
    request: Any | None,
    earlier: Any | None,
    *,
    same: bool,
    met: Met | None,
) -> Outcome | None:
    if request is not None and same:
        await _alias(connection, entry, request.id)
        return Aliased()
    if entry.refused and met is not None:
        return met
    if request is None and met is None:
        return None
    if earlier is not None and not entry.has_content(earlier.content_digest):
        earlier = None
    if earlier is not None and earlier.resolution is not None:
        # Decided meanwhile: this id leads where that one leads.
        decided = func.coalesce(_alias_of(earlier.id), earlier.id)
        await _alias(connection, entry, decided)
        return Aliased()
    conflict = columns | {
        "id": entry.id,
        "created_by": entry.created_by,
        "accepted_at": entry.accepted_at,
        "phone_lead_id": met.phone.id if met and met.phone else None,
        "nid_lead_id": met.nid.id if met and met.nid else None,
        "request_lead_id": request.id if request is not None else None,
        "repeats": earlier.repeats or earlier.id if earlier is not None else None,
    }
    await connection.execute(insert(models.LeadConflict).values(conflict).on_conflict_do_nothing())
    return InConflict()


async def _alias(connection: AsyncConnection, entry: SealedSubmission, lead_id: Any) -> None:
    alias = {"id": entry.id, "lead_id": lead_id, "created_by": entry.created_by}
    await connection.execute(insert(models.LeadAlias).values(alias).on_conflict_do_nothing())


def _alias_of(conflict_id: UUID) -> Any:
    table = models.LeadAlias
    return select(table.lead_id).where(table.id == conflict_id).scalar_subquery()


async def look_up(
    connection: AsyncConnection, phones: Sequence[bytes], nids: Sequence[bytes], *, other_than: UUID
) -> Met | None:
    """Which leads other than one have one of these indexes of a phone or of a nid; locks them."""
    keys: dict[str, list[Any]] = {
        "id": [],
        "created_by": [],
        "request_id": [],
        "phones": list(phones),
        "nids": list(nids),
    }
    rows = await LOOK_UP.rows(connection, keys)
    others = _Found([row for row in rows if row.id != other_than], [], frozenset(), {}, lead_of=_not_asked)
    return others.met(phones, nids)


def _not_asked(_row: Any) -> SealedLead:
    raise AssertionError("a look-up answers ids only")
