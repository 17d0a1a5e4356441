"""Tombstones: what stays of erased leads, and how storing a lead minds them.

Promise: an id that has a tombstone never becomes a lead again, wherever a copy of it still lies, and neither does a
copy of the same request that was accepted before the erasure. See erasing.py for how they are put up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedSubmission
from service.storage import models
from service.storage.database import Database
from service.storage.erasing import request_digest

LISTED_AT_ONCE = 1000

_STONE = models.table(models.Tombstone)


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
    another spool is known. Writing that makes the commit, and so the answer, wait for the synchronous standby.
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
    return {each: row["created_at"] for each, row in erased.items()}


def _of_request(entry: SealedSubmission, stone: Row[Any] | None) -> Row[Any] | None:
    """The tombstone of an entry's request, unless the entry was accepted after the erasure: then it is a new one."""
    return stone if stone is not None and entry.accepted_at and entry.accepted_at <= stone.erased_at else None


def _tombstone(row: Row[Any]) -> Tombstone:
    return Tombstone(**row._mapping)  # noqa: SLF001 # public, named so that no column hides it
