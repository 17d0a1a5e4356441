"""Look-up of what PostgreSQL holds about submissions: leads, conflicts, aliases and tombstones that match them.

The look-up locks what it finds FOR KEY SHARE. That keeps the row while we answer for it, and it writes to the log: the
commit of every answer that rests on an existing row therefore waits for the synchronous standby. A plain look-up would
not, and could confirm a row that a failover then loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedLead, SealedSubmission
from service.storage import models
from service.storage.database.database import Statement
from service.storage.database.failures import NotStoredError
from service.storage.leads.decision import DuplicateMatch, Earlier, Found, MatchedLead
from service.storage.leads.erasing import request_digest
from service.storage.leads.queries import lead_of_row

_STONE = models.tombstone

ATTEMPTS = 3
"""Transactions in which a lead that stood in the way may turn out to be erased before it was looked at, which frees the
way: that happens once at most in practice. The bound keeps a fault from turning into an endless loop."""

# Locked in the order of ids, so that two batches which match the same leads lock them in the same order.
_LOOK_UP = Statement("""
    SELECT *, now() AS looked_up_at FROM lead WHERE id IN (
        SELECT unnest(CAST(:id AS uuid[]))
        UNION
        SELECT l.id FROM lead l JOIN unnest(CAST(:created_by AS text[]), CAST(:request_id AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
        UNION
        SELECT l.id FROM lead l WHERE l.phone_index = ANY(CAST(:phones AS bytea[])) AND NOT l.phone_shared
        UNION
        SELECT l.id FROM lead l WHERE l.nid_index = ANY(CAST(:nids AS bytea[])) AND NOT l.nid_shared
        UNION
        SELECT l.id FROM lead l WHERE l.phone_index_2 = ANY(CAST(:phones AS bytea[])) AND NOT l.phone_shared
        UNION
        SELECT l.id FROM lead l WHERE l.nid_index_2 = ANY(CAST(:nids AS bytea[])) AND NOT l.nid_shared
    ) ORDER BY id FOR KEY SHARE
""")
_CONFLICTS = Statement("""
    SELECT * FROM lead_conflict WHERE id IN (
        SELECT unnest(CAST(:id AS uuid[]))
        UNION
        SELECT c.id FROM lead_conflict c JOIN unnest(CAST(:created_by AS text[]), CAST(:request_id AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
    ) ORDER BY accepted_at, id FOR KEY SHARE
""")
_ALIASES = Statement("""
    SELECT a.id, a.lead_id FROM lead_alias a JOIN lead l ON l.id = a.lead_id WHERE a.id = ANY(CAST(:id AS uuid[]))
    ORDER BY l.id FOR KEY SHARE OF l
""")
_PUT_UP = text("""
    INSERT INTO tombstone AS t (id, lead_id, created_at, erased_at, erased_by, reason, request_digest)
    VALUES (:id, :lead_id, :created_at, :erased_at, :erased_by, :reason, :request_digest)
    ON CONFLICT (id) DO UPDATE SET created_at = coalesce(t.created_at, excluded.created_at),
        request_digest = coalesce(t.request_digest, excluded.request_digest)
""")


async def look_up(
    connection: AsyncConnection,
    entries: Sequence[SealedSubmission],
    *,
    again: bool,
    perhaps_erased: Mapping[UUID, UUID],
) -> Matches:
    """What the database holds about submissions; `again`, after an insert of some of them did nothing.

    `perhaps_erased` names those whose person may have been erased after they were accepted, each with the erased lead.
    """
    keys: dict[str, list[Any]] = {
        name: [getattr(entry, name) for entry in entries] for name in ("id", "created_by", "request_id")
    }
    keys["phones"] = [index for entry in entries for index in entry.indexes.phones]
    keys["nids"] = [index for entry in entries for index in entry.indexes.nids]
    drained = any(entry.accepted_at for entry in entries)
    leads = await _LOOK_UP.rows(connection, keys)
    conflicts = await _CONFLICTS.rows(connection, keys)
    aliases = dict(await _ALIASES.rows(connection, keys)) if drained else {}
    # A new submission is erased only if an attempt to store it succeeded unnoticed. Most of those that were not
    # inserted are duplicates; it is asked when nothing else explains it.
    erased, perhaps = await _erased_among(connection, entries) if drained or again else ({}, {})
    return Matches(leads, conflicts, aliases, erased, {**perhaps_erased, **perhaps})


async def find_duplicates(
    connection: AsyncConnection, phones: Sequence[bytes], nids: Sequence[bytes], *, other_than: UUID
) -> DuplicateMatch | None:
    """The leads other than one that have one of these blind indexes of a phone or of a nid, locked."""
    keys: dict[str, list[Any]] = {"id": [], "created_by": [], "request_id": []}
    leads = await _LOOK_UP.rows(connection, keys | {"phones": list(phones), "nids": list(nids)})
    phone, nid = Matches([row for row in leads if row.id != other_than]).duplicated(phones, nids)
    return Found(phone=_matched(phone), nid=_matched(nid)).match


class Matches:
    """The rows that match a batch; those of leads are locked."""

    def __init__(
        self,
        leads: Sequence[Any],
        conflicts: Sequence[Any] = (),
        aliases: Mapping[UUID, UUID] = MappingProxyType({}),
        erased: Mapping[UUID, datetime] = MappingProxyType({}),
        perhaps_erased: Mapping[UUID, UUID] = MappingProxyType({}),
    ) -> None:
        self._now: datetime = leads[0].looked_up_at if leads else datetime.now(UTC)
        self._leads: dict[UUID, Earlier] = {}
        self._requests: dict[tuple[str, str | None], Earlier] = {}
        self._phones: dict[bytes | None, SealedLead] = {}
        self._nids: dict[bytes | None, SealedLead] = {}
        for row in leads:
            # `phone_shared` marks a lead that an operator allowed to reuse another lead's phone, `nid_shared` likewise.
            # A duplicate matches the original lead, never this one.
            phones = () if row.phone_shared else (row.phone_index, row.phone_index_2)
            nids = () if row.nid_shared else (row.nid_index, row.nid_index_2)
            self._note(lead_of_row(row), row.content_digest, row.request_id, phones, nids)
        self._conflicts = {row.id: row for row in conflicts}
        # In reverse: they come oldest first, and the oldest counts.
        self._conflicts_of: dict[tuple[str, str | None], Any] = {
            (row.created_by, row.request_id): row for row in reversed(conflicts) if row.request_id is not None
        }
        self._aliases, self._erased, self._perhaps_erased = aliases, erased, perhaps_erased

    def add(self, entry: SealedSubmission) -> None:
        """Let a submission that is about to be inserted count as the lead that it will be."""
        lead = entry.as_lead(entry.accepted_at or self._now)  # the insert will name the moment
        self._note(lead, entry.content_digest, entry.request_id, entry.indexes.phones, entry.indexes.nids)

    def _note(
        self,
        lead: SealedLead,
        digest: bytes,
        request_id: str | None,
        phones: Sequence[bytes | None],
        nids: Sequence[bytes | None],
    ) -> None:
        earlier = Earlier(id=lead.id, accepted_at=lead.created_at, content_digest=digest, lead=lead)
        self._leads[lead.id] = earlier
        if request_id is not None:
            self._requests[lead.created_by, request_id] = earlier
        self._phones |= dict.fromkeys(phones, lead)
        self._nids |= dict.fromkeys(nids, lead)

    def found(self, entry: SealedSubmission) -> Found:
        """What there is of one submission."""
        request = (entry.created_by, entry.request_id)
        phone, nid = self.duplicated(entry.indexes.phones, entry.indexes.nids)
        has_both = phone is not None and (phone is nid if entry.indexes.nids else "nid" not in phone.fields)
        is_own = phone is not None and has_both and phone.created_by == entry.created_by
        return Found(
            own=self._leads.get(entry.id) or _earlier_conflict(self._conflicts.get(entry.id)),
            request=self._requests.get(request),
            person=self._leads[phone.id] if phone is not None and is_own else None,
            now=self._now,
            conflict=_earlier_conflict(self._conflicts_of.get(request)),
            phone=_matched(phone),
            nid=_matched(nid),
            alias=self._aliases.get(entry.id),
            erased_created_at=self._erased.get(entry.id),
            perhaps_erased_with=self._perhaps_erased.get(entry.id),
        )

    def duplicated(self, phones: Sequence[bytes], nids: Sequence[bytes]) -> tuple[SealedLead | None, SealedLead | None]:
        """The lead with one of these blind indexes of a phone, and that with one of these of a nid."""
        phone = next((self._phones[index] for index in phones if index in self._phones), None)
        return phone, next((self._nids[index] for index in nids if index in self._nids), None)


def _matched(lead: SealedLead | None) -> MatchedLead | None:
    return None if lead is None else MatchedLead(lead.id, lead.created_by)


def _earlier_conflict(row: Any | None) -> Earlier | None:
    if row is None:
        return None
    return Earlier(
        id=row.id,
        accepted_at=row.accepted_at,
        content_digest=row.content_digest,
        decided=row.resolution is not None,
        repeats=row.repeats,
    )


async def _erased_among(
    connection: AsyncConnection, entries: Sequence[SealedSubmission]
) -> tuple[dict[UUID, datetime], dict[UUID, UUID]]:
    """Those of the submissions that were erased, by their own id or as a copy of a request, or may have been.

    A tombstone is dated by the database, a spooled submission by a replica whose clock may be wrong. So there are three
    answers: it was erased, it was not, or a person must decide. Returns the moment of acceptance of each that must not
    be stored any more, and the erased lead of each whose request was erased before or after its acceptance.

    Each that was erased has a tombstone of its own afterwards, which names its request too, so that a copy of the
    request in yet another spool is known. Writing that makes the commit, and so the answer, wait for the synchronous
    standby.
    """
    digests = {entry.id: digest for entry in entries if entry.accepted_at and (digest := request_digest(entry))}
    found = select(_STONE).where(
        _STONE.c.id.in_([entry.id for entry in entries]) | _STONE.c.request_digest.in_(list(digests.values()))
    )
    rows = (await connection.execute(found.order_by(_STONE.c.erased_at))).all()
    by_id = {row.id: row for row in rows}
    # The latest of one request. Most tombstones name none.
    by_request = {row.request_digest: row for row in rows if row.request_digest is not None}
    erased: dict[UUID, dict[str, Any]] = {}
    perhaps: dict[UUID, UUID] = {}
    for entry in entries:
        digest = digests.get(entry.id)
        stone = by_id.get(entry.id)
        of_request = by_request.get(digest) if digest else None
        if stone is None and of_request is not None:
            earliest, latest = entry.accepted_between or (None, None)
            # One that was accepted after the erasure of its request is a new request.
            if latest is not None and latest <= of_request.erased_at:
                stone = of_request
            elif earliest is None or earliest <= of_request.erased_at:
                perhaps[entry.id] = of_request.lead_id
        if stone is not None:
            erased[entry.id] = {
                **{name: getattr(stone, name) for name in ("lead_id", "erased_at", "erased_by", "reason")},
                "id": entry.id,
                "created_at": entry.accepted_at or stone.created_at or stone.erased_at,
                "request_digest": digest,
            }
    if erased:
        put_up = await connection.execute(_PUT_UP, [erased[each] for each in sorted(erased)])
        if put_up.rowcount != len(erased):
            raise NotStoredError
    return {each: row["created_at"] for each, row in erased.items()}, perhaps
