"""Tombstones: what stays of erased leads, and how storing a lead minds them.

Promise: an id that has a tombstone never becomes a lead again, wherever a copy of it still lies, and neither does a
copy of the same request that was accepted before the erasure. The function `erase_lead` of the database puts them up;
see its migration for how it and the storing of leads exclude each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, text, tuple_, union_all
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedSubmission
from service.storage import models
from service.storage.database import Database

LISTED_AT_ONCE = 1000

_STONE = models.table(models.Tombstone)
_LEAD = models.table(models.Lead)
_ALIAS = models.table(models.LeadAlias)

_ERASE = text("SELECT erase_lead(:id, :actor, :reason, :created_at, :erased_at, :erased_with, :request_digest)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """One erased id; see models.py."""

    id: UUID
    lead_id: UUID
    created_at: datetime | None
    erased_at: datetime
    erased_by: str
    reason: str | None
    request_digest: bytes | None


class Tombstones:
    """The tombstones of one database, and the way to put them up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sought(self, lead_id: UUID) -> list[tuple[bytes, bytes]]:
        """The blind indexes of phone and nid by which an id's lead is found elsewhere, one pair for each index key."""
        leads_to = select(_ALIAS.c.lead_id).where(_ALIAS.c.id == lead_id).scalar_subquery()
        pairs = ((_LEAD.c.phone_index, _LEAD.c.nid_index), (_LEAD.c.phone_index_2, _LEAD.c.nid_index_2))
        query = union_all(
            *(
                select(phone, nid).where(_LEAD.c.id == func.coalesce(leads_to, lead_id), phone.is_not(None))
                for phone, nid in pairs
            )
        )

        async def work(connection: AsyncConnection) -> list[tuple[bytes, bytes]]:
            return [(phone, nid) for phone, nid in await connection.execute(query)]

        return await self._database.read(work)

    async def erase(
        self, lead_id: UUID, *, actor: str, reason: str | None, spooled: Mapping[UUID, datetime]
    ) -> frozenset[UUID] | None:
        """Erase what an id stands for, and submissions that wait in a spool, by the moment of their acceptance.

        The ids that are gone, those of an earlier erasure too; None when there never was such a lead here. Even then a
        tombstone stays: the lead may lie in the spool of another replica.
        """

        async def work(connection: AsyncConnection) -> frozenset[UUID] | None:
            found: set[UUID] = set()
            # What waits in the spool first: putting up a tombstone of an id without a row waits for every writer, which
            # must not wait for the lead's row, locked by us.
            for each in (*sorted(spooled.keys() - {lead_id}), lead_id):
                kept = (spooled.get(each), None, None, None)
                found |= await erase_within(connection, each, actor=actor, reason=reason, kept=kept)
            return frozenset(found) or None

        return await self._database.write(work)

    async def erase_again(self, tombstones: Sequence[Tombstone]) -> None:
        """Put up tombstones that were kept elsewhere, and erase what has come back, in one transaction."""

        async def work(connection: AsyncConnection) -> None:
            for each in tombstones:
                kept = (each.created_at, each.erased_at, each.lead_id, each.request_digest)
                await erase_within(connection, each.id, actor=each.erased_by, reason=each.reason, kept=kept)

        await self._database.write(work)

    async def since(self, moment: datetime) -> list[UUID]:
        """The ids that were erased at or after a moment."""

        async def work(connection: AsyncConnection) -> list[UUID]:
            return list((await connection.execute(select(_STONE.c.id).where(_STONE.c.erased_at >= moment))).scalars())

        return await self._database.read(work)

    async def among(self, ids: Sequence[UUID]) -> list[UUID]:
        """Those of the ids that were erased."""

        async def work(connection: AsyncConnection) -> list[UUID]:
            return list((await connection.execute(select(_STONE.c.id).where(_STONE.c.id.in_(ids)))).scalars())

        return await self._database.read(work)

    async def page(self, after: Tombstone | None) -> list[Tombstone]:
        """Some tombstones behind one, oldest first."""
        query = select(_STONE).order_by(_STONE.c.erased_at, _STONE.c.id).limit(LISTED_AT_ONCE)
        if after is not None:
            query = query.where(tuple_(_STONE.c.erased_at, _STONE.c.id) > tuple_(after.erased_at, after.id))

        async def work(connection: AsyncConnection) -> list[Tombstone]:
            return [_tombstone(row) for row in await connection.execute(query)]

        return await self._database.read(work)


async def erase_within(
    connection: AsyncConnection,
    lead_id: UUID,
    *,
    actor: str,
    reason: str | None,
    kept: tuple[datetime | None, datetime | None, UUID | None, bytes | None] = (None, None, None, None),
) -> frozenset[UUID]:
    """Erase what an id stands for in a transaction of the caller's; the ids that are gone, none for an unknown one.

    `kept`: created_at, erased_at, lead_id and request_digest of its tombstone, as far as they are known.
    """
    names = ("created_at", "erased_at", "erased_with", "request_digest")
    given = {"id": lead_id, "actor": actor, "reason": reason, **dict(zip(names, kept, strict=True))}
    return frozenset((await connection.execute(_ERASE, given)).scalar_one() or ())


async def erased_among(connection: AsyncConnection, entries: Sequence[SealedSubmission]) -> dict[UUID, datetime]:
    """Those of the submissions that must not be stored any more, with the moment of their acceptance.

    Each has a tombstone of its own afterwards.
    Writing that makes the commit, and so the answer, wait for the synchronous standby.
    """
    digests = {entry.id: _request_digest(entry) for entry in entries if entry.accepted_at and entry.request_id}
    found = select(_STONE).where(
        _STONE.c.id.in_([entry.id for entry in entries]) | _STONE.c.request_digest.in_(list(digests.values()))
    )
    rows = (await connection.execute(found.order_by(_STONE.c.erased_at))).all()
    by_id = {row.id: row for row in rows}
    by_request = {row.request_digest: row for row in rows}  # the latest of one request
    erased: dict[UUID, dict[str, Any]] = {}
    for entry in entries:
        stone = by_id.get(entry.id) or _of_request(entry, by_request.get(digests.get(entry.id)))
        if stone is not None:
            erased[entry.id] = {
                **{name: getattr(stone, name) for name in ("lead_id", "erased_at", "erased_by", "reason")},
                "id": entry.id,
                "created_at": entry.accepted_at or stone.created_at or stone.erased_at,
            }
    if erased:
        put = insert(_STONE)
        dated = {"created_at": func.coalesce(_STONE.c.created_at, put.excluded.created_at)}
        rows_in_order = [erased[each] for each in sorted(erased)]
        await connection.execute(put.on_conflict_do_update(index_elements=[_STONE.c.id], set_=dated), rows_in_order)
    return {each: row["created_at"] for each, row in erased.items()}


def _of_request(entry: SealedSubmission, stone: Row[Any] | None) -> Row[Any] | None:
    """The tombstone of an entry's request, unless the entry was accepted after the erasure: then it is a new one."""
    return stone if stone is not None and entry.accepted_at and entry.accepted_at <= stone.erased_at else None


def _request_digest(entry: SealedSubmission) -> bytes:
    return hashlib.sha256(f"{entry.created_by}\n{entry.request_id}".encode()).digest()


def _tombstone(row: Row[Any]) -> Tombstone:
    return Tombstone(**row._mapping)  # noqa: SLF001 # public, named so that no column hides it
