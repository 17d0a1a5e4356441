"""Pages of leads: the filters of a list, its order, and the statement of a page.

Promise: by each filter alone, a page is read in the order of an index, and what comes behind it is not read. What finds
few leads is found first and sorted then. What pages take: bench/lists.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from operator import eq, ge, lt
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    func,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import TooManyMatchesError
from service.lead import LeadOrder, SealedLead
from service.storage import models
from service.storage.leads.queries import COLUMNS, LEAD, lead_of, linked_to, refers_to

Filters = Mapping[str, Any]
"""The values of filters that are set, by their names in CONDITIONS."""

MOST_MATCHES = 1000
"""Leads that a filter like a phone or an e-mail may match, so that they are sorted within milliseconds."""

LIST_SECONDS = 2.0
"""How long the server works on a page. What takes longer finds little in much: see bench/lists.md."""

FOUND_FIRST = frozenset({"reference", "email", "phone", "nid", "conversation_id", "name_prefix"})
"""Filters whose index knows no order in time."""

_LAST_CHARACTER = func.chr(0x10FFFF)
"""Sorts behind whatever a text goes on with."""


def _has_index(field: str, indexes: tuple[bytes, ...]) -> ColumnElement[bool]:
    """The condition of leads with one of the blind indexes of a phone or nid: a part for each partial index."""
    shared = LEAD.c[f"{field}_shared"]
    columns = (LEAD.c[f"{field}_index"], LEAD.c[f"{field}_index_2"])
    return or_(*(and_(column.in_(indexes), way) for column in columns for way in (~shared, shared)))


def _begins_with(prefix: str) -> ColumnElement[bool]:
    """The condition of leads whose name begins so. PostgreSQL folds both: Python folds some letters otherwise."""
    folded, name = func.lower(bindparam("prefix", prefix, type_=Text)), func.lower(LEAD.c.name)
    return and_(name.bool_op("~>=~")(folded), name.bool_op("~<~")(func.concat(folded, _LAST_CHARACTER)))


def _of_conversation(given: tuple[str, tuple[str, ...]]) -> ColumnElement[bool]:
    conversation_id, indexes = given
    condition: ColumnElement[bool] = linked_to(conversation_id, bindparam("indexes", list(indexes), type_=ARRAY(Text)))
    return condition


def _has_email(indexes: tuple[str, ...]) -> ColumnElement[bool]:
    return LEAD.c.email_index == any_(bindparam("email_indexes", list(indexes), type_=ARRAY(Text)))


def _referred_to(reference: bytes) -> ColumnElement[bool]:
    """The condition of leads whose own id has a reference, or another id that leads to them."""
    alias = models.lead_alias
    own = select(LEAD.c.id).where(refers_to(LEAD, reference)).correlate(None)
    return LEAD.c.id.in_(own.union_all(select(alias.c.lead_id).where(refers_to(alias, reference))))


CONDITIONS: Mapping[str, Callable[[Any], ColumnElement[bool]]] = {
    "statuses": lambda statuses: LEAD.c.status.in_([status.value for status in statuses]),
    **{name: partial(eq, LEAD.c[name]) for name in ("assignee", "interested_policy", "source", "created_by")},
    "reader": partial(eq, LEAD.c.created_by),
    "unassigned": lambda _: LEAD.c.assignee.is_(None),
    **{
        f"{change}_{side}": partial(compare, LEAD.c[f"{change}_at"])
        for change in ("created", "updated")
        for side, compare in (("after", ge), ("before", lt))
    },
    "name_prefix": _begins_with,
    "reference": _referred_to,
    "email": _has_email,
    "phone": partial(_has_index, "phone"),
    "nid": partial(_has_index, "nid"),
    "conversation_id": _of_conversation,
}
"""What each filter makes of its value. `reader` restricts a list to what one subject created."""

_ACROSS = {
    "created_at": frozenset({"updated_after", "updated_before"}),
    "updated_at": frozenset({"created_after", "created_before"}),
    "resubmitted_at": frozenset[str](),
}
"""The filters that the index of an order includes without being sorted by them."""


async def find_page(
    connection: AsyncConnection, wanted: Filters, order: LeadOrder, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[tuple[datetime, SealedLead]]:
    """At most `limit` leads behind the place `after`, each with the time that the order runs by.

    Raises TooManyMatchesError.
    """
    page = partial(_page, order=order, after=after, limit=limit, across=not _ACROSS[order.column].isdisjoint(wanted))
    statuses = wanted.get("statuses", ())
    if finding := sorted(FOUND_FIRST & wanted.keys()):
        query = page([await _found_first(connection, wanted, finding)])
    elif len(statuses) > 1:
        # An index holds the leads of one status in order: those of several are merged.
        parts = [page(_conditions({**wanted, "statuses": [status]})) for status in statuses]
        merged = union_all(*parts).subquery()
        query = select(merged).order_by(*_direction(order, merged.c.place, merged.c.id)).limit(limit)
    else:
        query = page(_conditions(wanted))
    return [(row[0], lead_of(row[1:])) for row in await connection.execute(query)]


async def _found_first(connection: AsyncConnection, wanted: Filters, finding: list[str]) -> ColumnElement[bool]:
    query = select(LEAD.c.id).where(*_conditions(wanted)).limit(MOST_MATCHES + 1)
    found = list((await connection.execute(query)).scalars())
    if len(found) > MOST_MATCHES:
        raise TooManyMatchesError(finding, MOST_MATCHES)
    return LEAD.c.id == any_(bindparam("found", found, type_=ARRAY(Uuid)))


def _conditions(wanted: Filters) -> list[ColumnElement[bool]]:
    return [CONDITIONS[name](value) for name, value in wanted.items()]


def _page(
    conditions: list[ColumnElement[bool]],
    *,
    order: LeadOrder,
    after: tuple[datetime, UUID] | None,
    limit: int,
    across: bool,
) -> Select[Any]:
    place, lead_id = LEAD.c[order.column], LEAD.c.id
    query = select(place.label("place"), *((lead_id,) if across else COLUMNS)).where(place.is_not(None), *conditions)
    if after is not None:
        compare = tuple_(place, lead_id).__lt__ if order.is_descending else tuple_(place, lead_id).__gt__
        query = query.where(compare(tuple_(*after)))
    query = query.order_by(*_direction(order, place, lead_id)).limit(limit)
    if across:
        # What the index includes is compared without a look at the leads.
        places = query.subquery()
        query = select(places.c.place, *COLUMNS).join(places, places.c.id == lead_id)
        query = query.order_by(*_direction(order, places.c.place, lead_id))
    return query


def _direction(order: LeadOrder, *columns: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    return [column.desc() if order.is_descending else column.asc() for column in columns]
