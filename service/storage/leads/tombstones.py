"""Which of the submissions that come out of a spool were erased meanwhile, by their own id or as a copy of a request.

A tombstone is dated by the database, a spooled submission by a replica whose clock may be wrong. So there are three
answers: it was erased, it was not, or a person must decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedSubmission
from service.storage import models

_STONE = models.tombstone


@dataclass(frozen=True, slots=True)
class ErasedAmong:
    """Those of some submissions that were erased."""

    accepted_at: Mapping[UUID, datetime] = field(default_factory=dict)
    """Of each that must not be stored any more, the moment of its acceptance."""
    perhaps_with: Mapping[UUID, UUID] = field(default_factory=dict)
    """Of each that the clocks leave open, whether it was accepted before its request was erased: the erased lead."""


async def erased_among(connection: AsyncConnection, entries: Sequence[SealedSubmission]) -> ErasedAmong:
    """Those of the submissions that were erased, or may have been.

    Each that was has a tombstone of its own afterwards, which names its request too, so that a copy of the request in
    yet another spool is known. Writing that makes the commit, and so the answer, wait for the synchronous standby.
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
        put = insert(_STONE)
        filled = {name: func.coalesce(_STONE.c[name], put.excluded[name]) for name in ("created_at", "request_digest")}
        rows_in_order = [erased[each] for each in sorted(erased)]
        await connection.execute(put.on_conflict_do_update(index_elements=[_STONE.c.id], set_=filled), rows_in_order)
    return ErasedAmong({each: row["created_at"] for each, row in erased.items()}, perhaps)


def request_digest(submission: SealedSubmission) -> bytes | None:
    """By what a tombstone knows a copy of the request; None for a submission without request_id."""
    if submission.request_id is None:
        return None
    return hashlib.sha256(f"{submission.created_by}\n{submission.request_id}".encode()).digest()
