"""The statements that find leads, by id, conversation or filter, and the leads in their rows.

Promise: by each filter alone, a page is read in the order of an index, and what comes behind it is not read. By two of
status, assignee, policy and source it is read along one of them, and the other one is compared in the index: no lead is
looked at that does not match. What finds few leads is found first and sorted then. What pages take: bench/lists.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from operator import eq, ge, lt
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import TooManyMatchesError
from service.lead import CUSTOMER_FIELDS, BlindIndexes, LeadOrder, LeadStatus, SealedLead, SealedSubmission
from service.storage import models
from service.storage.database.database import Statement

LEAD = models.lead
_ALIAS, _LINK = models.lead_alias, models.lead_conversation

COLUMNS = tuple(
    LEAD.c[name]
    for name in (
        *("id", "status", "created_at", "updated_at", "version", "assignee", "resubmissions", "created_by"),
        *CUSTOMER_FIELDS,
    )
)
"""What statements select of leads, in the order that `lead_of` reads."""

COLUMN_NAMES = ", ".join(column.name for column in COLUMNS)
"""The same, in SQL."""

OTHER_LEADS_SHOWN = 100
"""How many further leads of one conversation are named."""


def lead_of(values: Sequence[Any]) -> SealedLead:
    """The lead of a row that holds COLUMNS."""
    lead_id, status, created_at, updated_at, version, assignee, resubmissions, created_by, *stored = values
    return SealedLead(
        id=lead_id,
        status=LeadStatus(status),
        created_at=created_at,
        updated_at=updated_at,
        version=version,
        assignee=assignee,
        resubmissions=resubmissions,
        created_by=created_by,
        fields={name: value for name, value in zip(CUSTOMER_FIELDS, stored, strict=True) if value is not None},
    )


def lead_of_row(row: Any) -> SealedLead:
    """The lead of a row that holds at least COLUMNS, by name."""
    return lead_of([getattr(row, column.name) for column in COLUMNS])


def fields_of(row: Any) -> dict[str, str]:
    """The customer fields of a row of leads, resubmissions or conflicts, as they are stored."""
    return {name: value for name in CUSTOMER_FIELDS if (value := getattr(row, name)) is not None}


def columns_of(submission: SealedSubmission) -> dict[str, Any]:
    """The submission's columns, alike in the tables of leads, of resubmissions and of conflicts."""
    return {
        **dict.fromkeys(CUSTOMER_FIELDS),
        **submission.fields,
        "request_id": submission.request_id,
        "content_digest": submission.content_digest,
    }


def index_columns(indexes: BlindIndexes) -> dict[str, Any]:
    """The blind indexes as columns of the table of leads."""
    return {
        "phone_index": indexes.phone[0],
        "nid_index": indexes.nid[0],
        "phone_index_2": indexes.phone[1],
        "nid_index_2": indexes.nid[1],
        "index_epoch": indexes.epoch,
        "email_index": indexes.email,
    }


_WANTED = any_(bindparam("ids", type_=ARRAY(Uuid)))
_CREATOR = bindparam("created_by", type_=Text)

LEADS_OF_IDS = Statement(
    union_all(
        select(LEAD.c.id.label("wanted"), *COLUMNS).where(LEAD.c.id == _WANTED),
        select(_ALIAS.c.id, *COLUMNS).join(LEAD, LEAD.c.id == _ALIAS.c.lead_id).where(_ALIAS.c.id == _WANTED),
    )
)
"""Of many `ids`, the leads that have them, or that they lead to; first the id that was given."""


def linked_to(conversation: Any, indexes: Any) -> Any:
    """The condition of leads that a conversation is linked to, also where its id is in clear yet, unless it is None."""
    in_clear = and_(literal_column(models.IN_CLEAR), _LINK.c.conversation_id == conversation)
    return LEAD.c.id.in_(select(_LINK.c.lead_id).where(or_(_LINK.c.conversation_index == any_(indexes), in_clear)))


LEADS_OF_CONVERSATION = Statement(
    select(*COLUMNS)
    .where(linked_to(bindparam("conversation", type_=Text), bindparam("indexes", type_=ARRAY(Text))))
    .where(or_(_CREATOR.is_(None), LEAD.c.created_by == _CREATOR))
    .order_by(LEAD.c.created_at.desc(), LEAD.c.id.desc())
    .limit(literal_column(str(OTHER_LEADS_SHOWN + 1)))
)
"""The leads that a `conversation` with these `indexes` is linked to, newest first; `created_by` restricts them unless
it is NULL."""

NOT_FOUND_BY_EMAIL = text(
    f"SELECT id FROM lead WHERE {models.LACKS_EMAIL_INDEX} ORDER BY email_index LIMIT 1"  # noqa: S608 # our own text
)
"""A lead that cannot be found by its e-mail yet, if there is one. The order makes its small index the cheapest way."""


SOME_IN_CLEAR = text(
    f"SELECT id FROM lead_conversation WHERE {models.IN_CLEAR} ORDER BY conversation_id LIMIT 1"  # noqa: S608
)
"""A link whose conversation id is in clear yet, likewise."""


def refers_to(table: Table, reference: bytes) -> Any:
    """The condition of rows whose id has a reference."""
    return literal_column(models.reference_of(f"{table.name}.id")) == reference


Filters = Mapping[str, Any]
"""The values of filters that are set, by their names in CONDITIONS."""

MOST_MATCHES = 1000
"""Leads that a filter like a phone or an e-mail may match, so that they are sorted within milliseconds."""

LIST_SECONDS = 2.0
"""How long the server works on a page. What takes longer finds little in much: see bench/lists.md."""

FOUND_FIRST = frozenset({"reference", "email", "phone", "nid", "conversation_id", "name_prefix"})
"""Filters whose index knows no order in time."""

_LAST_CHARACTER = func.chr(0x10FFFF)
"""Sorts after any other character."""


def _has_index(field: str, indexes: tuple[bytes, ...]) -> ColumnElement[bool]:
    """The condition of leads with one of the blind indexes of a phone or nid: a part for each partial index."""
    shared = LEAD.c[f"{field}_shared"]
    columns = (LEAD.c[f"{field}_index"], LEAD.c[f"{field}_index_2"])
    return or_(*(and_(column.in_(indexes), way) for column in columns for way in (~shared, shared)))


def _begins_with(prefix: str) -> ColumnElement[bool]:
    """The condition of leads whose name begins so. PostgreSQL lower-cases both: Python differs for some letters."""
    name = func.lower(LEAD.c.name)
    spellings = [func.lower(bindparam(None, each, type_=Text)) for each in _in_greek_too(prefix)]
    ways = [
        and_(name.bool_op("~>=~")(each), name.bool_op("~<~")(func.concat(each, _LAST_CHARACTER))) for each in spellings
    ]
    return or_(*ways)


def _in_greek_too(prefix: str) -> list[str]:
    """A prefix as it may stand in a name in lower case, where a sigma has another form at the end of a word.

    Of a name that was written in capitals the form in the middle is kept. libc's C lower-cases no sigma, and there only
    the prefix itself is found.
    """
    middle = prefix.translate(_MIDDLE_SIGMA)
    ends = _END_OF_WORD.sub(_FINAL_SIGMA, middle)
    # The prefix may be the beginning of a longer word.
    return list(dict.fromkeys((prefix, middle, ends, ends[:-1] + middle[-1:])))


_FINAL_SIGMA, _SIGMA = "\N{GREEK SMALL LETTER FINAL SIGMA}", "\N{GREEK SMALL LETTER SIGMA}"
_MIDDLE_SIGMA = str.maketrans(dict.fromkeys((_FINAL_SIGMA, _SIGMA.upper()), _SIGMA))
_END_OF_WORD = re.compile(rf"(?<=\w){_SIGMA}(?!\w)")


def _of_conversation(given: tuple[str | None, tuple[str, ...]]) -> ColumnElement[bool]:
    conversation_id, indexes = given
    condition: ColumnElement[bool] = linked_to(conversation_id, bindparam("indexes", list(indexes), type_=ARRAY(Text)))
    return condition


def _referred_to(reference: bytes) -> ColumnElement[bool]:
    """The condition of leads whose id has this reference, or another id that leads to them."""
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
    "email": lambda indexes: LEAD.c.email_index == any_(bindparam("email_indexes", list(indexes), type_=ARRAY(Text))),
    "phone": partial(_has_index, "phone"),
    "nid": partial(_has_index, "nid"),
    "conversation_id": _of_conversation,
}
"""What each filter makes of its value. `reader` restricts a list to what one subject created."""

_BY_FILTER = frozenset({"statuses", "assignee", "unassigned", "interested_policy", "source", "created_by", "reader"})
"""Filters that have indexes of their own."""


async def find_page(
    connection: AsyncConnection, wanted: Filters, order: LeadOrder, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[tuple[datetime, SealedLead]]:
    """At most `limit` leads behind the place `after`, each with the time that the order runs by.

    Raises TooManyMatchesError.
    """
    # All leads of nobody have the same assignee, but PostgreSQL sees that only of a value: it is asked for the whole
    # order of the index.
    first = ["assignee"] if "unassigned" in wanted and order.column != "resubmitted_at" else []

    def in_order(columns: Any, place: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        ordered = [*(columns[name] for name in first), place, columns.id]
        return [column.desc() if order.is_descending else column.asc() for column in ordered]

    def page(conditions: Sequence[ColumnElement[bool]], place: ColumnElement[Any], goes_on: bool) -> Select[Any]:
        query = select(place.label("place"), *COLUMNS).where(place.is_not(None), *conditions)
        if after is not None and goes_on:
            compare = tuple_(place, LEAD.c.id).__lt__ if order.is_descending else tuple_(place, LEAD.c.id).__gt__
            query = query.where(compare(tuple_(*after)))
        return query.order_by(*in_order(LEAD.c, place)).limit(limit)

    if finding := sorted(FOUND_FIRST & wanted.keys()):
        query = page([await _found_first(connection, wanted, finding)], LEAD.c[order.column], goes_on=True)
    else:
        parts = _parts(wanted, order, after[0] if after is not None else None)
        merged = union_all(*(page(*part) for part in parts)).subquery()
        query = select(merged).order_by(*in_order(merged.c, merged.c.place)).limit(limit)
    return [(row[0], lead_of(row[1:])) for row in await connection.execute(query)]


async def _found_first(connection: AsyncConnection, wanted: Filters, finding: list[str]) -> ColumnElement[bool]:
    query = select(LEAD.c.id).where(*_conditions(wanted)).limit(MOST_MATCHES + 1)
    found = list((await connection.execute(query)).scalars())
    if len(found) > MOST_MATCHES:
        raise TooManyMatchesError(finding, MOST_MATCHES)
    return LEAD.c.id == any_(bindparam("found", found, type_=ARRAY(Uuid)))


def _conditions(wanted: Filters) -> list[ColumnElement[bool]]:
    return [CONDITIONS[name](value) for name, value in wanted.items()]


Part = tuple[list[ColumnElement[bool]], ColumnElement[Any], bool]
"""The conditions of leads that an index has in order, the time by which it has them, and whether the page begins at the
place behind which the list continues, not at a bound ahead of it."""


def _parts(wanted: Filters, order: LeadOrder, after: datetime | None) -> Iterator[Part]:
    """The parts of an index that make up a list; `after`: the time of the place behind which it continues.

    The index of a filter has the leads of each status apart, and those that were changed since they were created.
    """
    given: dict[str, Any] = {**wanted, **_narrowed(wanted)}
    # Of those that were not changed both times are one.
    unchanged = {name: value for name, value in given.items() if name not in ("created_after", "updated_before")}
    if "updated_after" in unchanged:
        unchanged["created_after"] = unchanged.pop("updated_after")
    goes_on = unchanged_go_on = True
    if after is not None:
        goes_on = _leave_out_passed(given, order.column.removesuffix("_at"), order, after)
        unchanged_go_on = _leave_out_passed(unchanged, "created", order, after)
    if order.column == "resubmitted_at" or _BY_FILTER.isdisjoint(wanted):
        yield _conditions(given), LEAD.c[order.column], goes_on
        return
    for status in [{"statuses": [each]} for each in wanted.get("statuses", ())] or [{}]:
        as_created = [*_conditions(unchanged | status), literal_column(f"{models.IS_CHANGED} = 0")]
        changed = [*_conditions(given | status), literal_column(f"{models.IS_CHANGED} = 1")]
        yield as_created, LEAD.c.created_at, unchanged_go_on
        yield changed, LEAD.c[order.column], goes_on


def _leave_out_passed(filters: dict[str, Any], change: str, order: LeadOrder, after: datetime) -> bool:
    """Remove the bound at which a list of this order begins if its place is beyond it; whether it is.

    PostgreSQL would walk from the one that is behind to the other. A place may be that of a lead before the bound,
    where the bound is one of the other time.
    """
    name = f"{change}_before" if order.is_descending else f"{change}_after"
    if name in filters and (after >= filters[name] if order.is_descending else after < filters[name]):
        return False
    filters.pop(name, None)
    return True


def _narrowed(wanted: Filters) -> dict[str, datetime]:
    """The spans in which the leads of both given spans are: none was changed before it was created.

    Statements that store or change leads see to that: a lead that waited in a spool keeps the moment of a machine whose
    clock may be ahead of the database's.
    """
    after = [wanted[name] for name in ("created_after", "updated_after") if name in wanted]
    before = [wanted[name] for name in ("created_before", "updated_before") if name in wanted]
    return ({"updated_after": max(after)} if after else {}) | ({"created_before": min(before)} if before else {})
