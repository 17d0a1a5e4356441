"""What is kept of a person in the database: the matches of an identifier, and what is exported of a chosen match.

Promise: a match carries the identifier itself, by the blind index of its canonical form. What is kept beside it is not
a match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
    Executable,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    func,
    literal,
    literal_column,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import IndexIncompleteError
from service.lead import SealedConflict, SealedLead, SealedResubmission, SealedSubmission
from service.storage import models
from service.storage.database.database import Database, page_of
from service.storage.leads.conflicts import conflict_of
from service.storage.leads.erasing import Reseal, other_submissions
from service.storage.leads.queries import COLUMNS, CONDITIONS, LEAD, LIST_SECONDS, NOT_FOUND_BY_EMAIL, lead_of
from service.storage.leads.resubmissions import resubmission_of

_KEPT, _CONFLICT = models.resubmission, models.lead_conflict


class MatchKind(IntEnum):
    """Where a match is kept; the numbers of the contract."""

    LEAD = 1
    RESUBMISSION = 2
    CONFLICT = 3
    WAITING = 4


class Ref(NamedTuple):
    """What names a match."""

    kind: MatchKind
    id: UUID


class Place(NamedTuple):
    """The place of a match in the list of all."""

    rank: int
    """What waits comes first: it may be drained before the next page is read, and then it is found behind."""
    at: datetime
    id: UUID
    lead_id: UUID
    """Its own id, where there is none."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person is looked for by: the blind indexes of each identifier (phone, nid, email), by field."""

    of_leads: Mapping[str, tuple[Any, ...]] = field(repr=False)
    """As leads have them, and submissions that wait: those of phone and nid are bytes."""
    of_submissions: Mapping[str, tuple[str, ...]] = field(repr=False)
    """As resubmissions and conflicts have them: text."""
    schemes: tuple[str, ...]
    """How those were made. What was indexed by another scheme cannot be found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A lead or a submission that carries an identifier."""

    kind: MatchKind
    id: UUID
    at: datetime
    """When it was accepted."""
    lead_id: UUID | None
    """The lead that it is, is kept with, or leads to."""
    fields: tuple[str, ...]
    """Which of the identifiers it carries: phone, nid, email."""
    lead: SealedLead | None = None
    """Of a lead: the lead."""

    @property
    def place(self) -> Place:
        """Its place in the list of all."""
        return Place(self.kind % MatchKind.WAITING, self.at, self.id, self.lead_id or self.id)


@dataclass(frozen=True, slots=True)
class Item:
    """A lead or a submission, as a chosen match is exported."""

    id: UUID
    sealed: SealedLead | SealedResubmission | SealedConflict | SealedSubmission
    is_chosen: bool = True
    """Not so: it is another submission of the person of the chosen lead."""
    lead_id: UUID | None = None
    """Of a resubmission: the lead with which it is kept."""

    @property
    def place(self) -> tuple[bool, UUID, UUID]:
        """Its place among the items of a match."""
        return not self.is_chosen, self.id, self.lead_id or self.id


@dataclass(frozen=True, slots=True)
class Persons:
    """What one database keeps of persons."""

    database: Database
    reseal: Reseal

    async def find(self, wanted: Wanted, *, after: Place | None, limit: int) -> list[Match]:
        """At most `limit` matches behind a place, in their order. Raises IndexIncompleteError, QueryTimeoutError."""

        async def work(connection: AsyncConnection) -> list[Match]:
            incomplete: list[Executable] = [indexed_otherwise(table, wanted.schemes) for table in (_KEPT, _CONFLICT)]
            incomplete += [NOT_FOUND_BY_EMAIL] if "email" in wanted.of_leads else []
            for query in incomplete:
                if (await connection.execute(query)).first() is not None:
                    raise IndexIncompleteError
            rows = (await connection.execute(_matches(wanted, after, limit))).all()
            ids = [row.id for row in rows if row.kind == MatchKind.LEAD]
            leads = {lead.id: lead for lead in await _leads(connection, ids)}
            return [
                Match(
                    kind=MatchKind(row.kind),
                    id=row.id,
                    at=row.at,
                    lead_id=row.lead_id,
                    fields=tuple(name for name in wanted.of_leads if name in row.fields),
                    lead=leads.get(row.id) if row.kind == MatchKind.LEAD else None,
                )
                for row in rows
            ]

        return await self.database.read_within(LIST_SECONDS, work)

    async def items(self, ref: Ref) -> list[Item]:
        """What there is of a chosen match, in order: it, wherever it is kept by now, and of a lead also the other
        submissions of its person."""

        async def work(connection: AsyncConnection) -> list[Item]:
            conflicts, kept = [ref.id], [ref.id]
            found = []
            if ref.kind in (MatchKind.LEAD, MatchKind.WAITING):
                found += [Item(lead.id, lead) for lead in await _leads(connection, [ref.id])]
            if found:
                conflicts, kept = await other_submissions(connection, ref.id, self.reseal)
            chosen = not found
            rows = await connection.execute(select(_CONFLICT).where(_CONFLICT.c.id.in_(conflicts)))
            found += [Item(row.id, conflict_of(row), chosen) for row in rows]
            rows = await connection.execute(select(_KEPT).where(_KEPT.c.submission_id.in_(kept)))
            found += [Item(row.submission_id, resubmission_of(row), chosen, row.lead_id) for row in rows]
            return sorted(found, key=lambda item: item.place)

        return await self.database.read(work)


async def _leads(connection: AsyncConnection, ids: Sequence[UUID]) -> list[SealedLead]:
    given = bindparam("ids", list(ids), type_=ARRAY(Uuid))
    return [lead_of(row) for row in await connection.execute(select(*COLUMNS).where(LEAD.c.id == any_(given)))]


def _matches(wanted: Wanted, after: Place | None, limit: int) -> Select[Any]:
    """The statement of a page. A match by several fields is one."""
    hits = union_all(*_hits(wanted)).subquery()
    keys = (hits.c.kind, hits.c.at, hits.c.id)
    place = (*keys, func.coalesce(hits.c.lead_id, hits.c.id))
    query = select(*keys, hits.c.lead_id, func.array_agg(hits.c.field).label("fields"))
    return page_of(query.group_by(*keys, hits.c.lead_id), place, after, limit=limit)


def _hit(kind: MatchKind, name: str, at: Any, match_id: Any, lead_id: Any) -> Select[Any]:
    return select(
        literal_column(str(kind.value)).label("kind"),
        at.label("at"),
        match_id.label("id"),
        lead_id.label("lead_id"),
        literal(name, Text).label("field"),
    )


def _hits(wanted: Wanted) -> Iterator[Select[Any]]:
    """What carries each identifier."""
    for name, digests in wanted.of_leads.items():
        yield _hit(MatchKind.LEAD, name, LEAD.c.created_at, LEAD.c.id, LEAD.c.id).where(CONDITIONS[name](digests))
    kept, conflict, alias = _KEPT.c, _CONFLICT.c, models.lead_alias.c
    leads_to = select(alias.lead_id).where(alias.id == conflict.id).scalar_subquery()
    own = select(LEAD.c.id).where(LEAD.c.id == conflict.id).scalar_subquery()
    for name, texts in wanted.of_submissions.items():
        given = any_(bindparam(None, list(texts), type_=ARRAY(Text)))
        refused = _hit(MatchKind.RESUBMISSION, name, kept.submitted_at, kept.submission_id, kept.lead_id)
        yield refused.where(kept[f"{name}_index"] == given)
        late = _hit(MatchKind.CONFLICT, name, conflict.accepted_at, conflict.id, func.coalesce(leads_to, own))
        yield late.where(conflict[f"{name}_index"] == given)


def indexed_otherwise(table: Table, schemes: Sequence[str]) -> CompoundSelect[Any]:
    """A row that cannot be found by these schemes, if there is one: in spans of an index, which are empty.

    The order makes the index the cheapest way, whatever the statistics are.
    """
    scheme: ColumnElement[str] = literal_column(models.INDEX_SCHEME, Text)
    known = sorted({"", *schemes})
    spans = (
        *(and_(scheme > low, scheme < high) for low, high in pairwise(known)),
        scheme > known[-1],
        scheme.is_(None),
    )
    rows = (select(literal(1)).select_from(table).where(span).order_by(scheme).limit(1) for span in spans)
    return union_all(*(select(row.subquery()) for row in rows))
