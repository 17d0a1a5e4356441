"""Tombstones: what stays of erased leads, and how storing a lead minds them.

Promise: an id that has a tombstone never becomes a lead again, wherever a copy of it still lies, and neither does a
copy of the same request that was accepted before the erasure. See erasing.py for how they are put up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, tuple_, union_all
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedSubmission
from service.storage import models
from service.storage.database import Database
from service.storage.erasing import Known, erase_within

LISTED_AT_ONCE = 1000

_STONE = models.table(models.Tombstone)
_LEAD = models.table(models.Lead)
_CONFLICT = models.table(models.LeadConflict)


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
    """The tombstones of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

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


async def erased_among(connection: AsyncConnection, entries: Sequence[SealedSubmission]) -> dict[UUID, datetime]:
    """Those of the submissions that must not be stored any more, with the moment of their acceptance.

    Each has a tombstone of its own afterwards, which names its request too, so that a copy of the request in yet
    another spool is known; a copy that was stored before this one came is erased.
    Writing that makes the commit, and so the answer, wait for the synchronous standby.
    """
    digests = {entry.id: _request_digest(entry) for entry in entries if entry.accepted_at and entry.request_id}
    found = select(_STONE).where(
        _STONE.c.id.in_([entry.id for entry in entries]) | _STONE.c.request_digest.in_(list(digests.values()))
    )
    rows = (await connection.execute(found.order_by(_STONE.c.erased_at))).all()
    by_id = {row.id: row for row in rows}
    # The latest of one request. Most tombstones name none.
    by_request = {row.request_digest: row for row in rows if row.request_digest is not None}
    erased: dict[UUID, dict[str, Any]] = {}
    for entry in entries:
        digest = digests.get(entry.id)
        stone = by_id.get(entry.id)
        if stone is None and digest is not None:
            stone = _of_request(entry, by_request.get(digest))
        if stone is not None:
            erased[entry.id] = {
                **{name: getattr(stone, name) for name in ("lead_id", "erased_at", "erased_by", "reason")},
                "id": entry.id,
                "created_at": entry.accepted_at or stone.created_at or stone.erased_at,
                "request_digest": digest,
            }
    if erased:
        put = insert(_STONE)
        filled = {name: func.coalesce(_STONE.c[name], put.excluded[name]) for name in ("created_at", "request_digest")}
        rows_in_order = [erased[each] for each in sorted(erased)]
        await connection.execute(put.on_conflict_do_update(index_elements=[_STONE.c.id], set_=filled), rows_in_order)
        await _erase_copies(connection, [entry for entry in entries if entry.id in erased], erased)
    return {each: row["created_at"] for each, row in erased.items()}


async def _erase_copies(
    connection: AsyncConnection, entries: Sequence[SealedSubmission], stones: Mapping[UUID, dict[str, Any]]
) -> None:
    """Erase what the requests of erased submissions became through another replica, before anybody could know."""
    for entry in entries:
        if not entry.accepted_at or not entry.request_id:
            continue
        stone = stones[entry.id]
        copies = union_all(
            *(
                select(table.c.id).where(
                    table.c.created_by == entry.created_by,
                    table.c.request_id == entry.request_id,
                    accepted_at <= stone["erased_at"],
                )
                for table, accepted_at in ((_LEAD, _LEAD.c.created_at), (_CONFLICT, _CONFLICT.c.accepted_at))
            )
        )
        for copy in list((await connection.execute(copies)).scalars()):
            known = Known(erased_at=stone["erased_at"], lead_id=stone["lead_id"])
            await erase_within(connection, copy, actor=stone["erased_by"], reason=stone["reason"], known=known)


def _of_request(entry: SealedSubmission, stone: Row[Any] | None) -> Row[Any] | None:
    """The tombstone of an entry's request, unless the entry was accepted after the erasure: then it is a new one."""
    return stone if stone is not None and entry.accepted_at and entry.accepted_at <= stone.erased_at else None


def _request_digest(entry: SealedSubmission) -> bytes:
    return hashlib.sha256(f"{entry.created_by}\n{entry.request_id}".encode()).digest()


def _tombstone(row: Row[Any]) -> Tombstone:
    return Tombstone(**row._mapping)  # noqa: SLF001 # public, named so that no column hides it
