"""The statements that find, lock and correct leads, and the leads in their rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import LeadNotFoundError, StorageUnavailableError
from service.lead import CUSTOMER_FIELDS, LeadStatus, SealedLead
from service.storage import models
from service.storage.database import Database, Statement
from service.storage.failures import violated_constraint
from service.storage.requests import LeadFilter

T = TypeVar("T")

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

OTHER_LEADS_SHOWN = 100
"""How many further leads of one conversation are named."""

BLIND_INDEXES = ("uq_lead_phone_index", "uq_lead_nid_index", "uq_lead_phone_index_2", "uq_lead_nid_index_2")
"""The unique indexes that decide duplicates."""

ATTEMPTS = 3
"""Transactions in which a lead that stood in the way may turn out to be erased before it was looked at, which frees the
way: that happens once at most in practice. The bound keeps a fault from turning into an endless loop."""


class BlindIndexTakenError(Exception):
    """A lead with the phone or the nid was stored in the meantime."""


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


_WANTED = any_(bindparam("ids", type_=ARRAY(Uuid)))
_CREATOR = bindparam("created_by", type_=Text)

LEADS_OF_IDS = Statement(
    union_all(
        select(LEAD.c.id.label("wanted"), *COLUMNS).where(LEAD.c.id == _WANTED),
        select(_ALIAS.c.id, *COLUMNS).join(LEAD, LEAD.c.id == _ALIAS.c.lead_id).where(_ALIAS.c.id == _WANTED),
    )
)
"""Of many `ids`, the leads that have them, or that they lead to; first the id that was given."""

LEADS_OF_CONVERSATION = Statement(
    select(*COLUMNS)
    .join(_LINK, _LINK.c.lead_id == LEAD.c.id)
    .where(_LINK.c.conversation_id == bindparam("conversation", type_=Text))
    .where(or_(_CREATOR.is_(None), LEAD.c.created_by == _CREATOR))
    .order_by(LEAD.c.created_at.desc(), LEAD.c.id.desc())
    .limit(literal_column(str(OTHER_LEADS_SHOWN + 1)))
)
"""The leads that are linked to a `conversation`, newest first; `created_by` restricts them unless it is NULL."""


async def lock_lead(connection: AsyncConnection, lead_id: UUID, *, key_share: bool = False) -> SealedLead:
    """The lead that an id leads to, locked. With `key_share` others may still refer to it. Raises LeadNotFoundError."""
    leads_to = select(_ALIAS.c.lead_id).where(_ALIAS.c.id == lead_id).scalar_subquery()
    locked = select(LEAD).where(LEAD.c.id == func.coalesce(leads_to, lead_id)).with_for_update(key_share=key_share)
    row = (await connection.execute(locked)).one_or_none()
    if row is None:
        raise LeadNotFoundError
    return lead_of_row(row)


async def update_lead(connection: AsyncConnection, current: SealedLead, columns: Mapping[str, Any]) -> SealedLead:
    """Give a locked lead new values. Raises BlindIndexTakenError."""
    values = {**columns, "version": current.version + 1, "updated_at": func.clock_timestamp()}
    return await returned_lead(connection, update(LEAD).where(LEAD.c.id == current.id).values(values).returning(LEAD))


async def returned_lead(connection: AsyncConnection, statement: Any) -> SealedLead:
    """The lead that an INSERT or UPDATE returns. Raises BlindIndexTakenError."""
    try:
        return lead_of_row((await connection.execute(statement)).one())
    except IntegrityError as error:
        if violated_constraint(error) in BLIND_INDEXES:
            raise BlindIndexTakenError from None
        raise


async def write_anew_if_taken(database: Database, work: Callable[[AsyncConnection, bool], Awaitable[T]]) -> T:
    """The result of a transaction, begun anew, and told so, when a lead has the new phone or nid.

    Raises StorageUnavailableError when no duplicate is found and the phone or nid is taken all the same.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await database.write(lambda connection, again=attempt > 0: work(connection, again))  # type: ignore[misc]
        except BlindIndexTakenError:
            continue
    raise StorageUnavailableError


def filtered(wanted: LeadFilter) -> Select[Any]:
    """The leads that pass a filter, in no order."""
    query = select(*COLUMNS)
    equals = {
        LEAD.c.assignee: wanted.assignee,
        LEAD.c.interested_policy: wanted.interested_policy,
        LEAD.c.created_by: wanted.created_by,
    }
    for column, value in equals.items():
        if value is not None:
            query = query.where(column == value)
    for columns, shared, indexes in (
        ((LEAD.c.phone_index, LEAD.c.phone_index_2), LEAD.c.phone_shared, wanted.phone_indexes),
        ((LEAD.c.nid_index, LEAD.c.nid_index_2), LEAD.c.nid_shared, wanted.nid_indexes),
    ):
        if indexes is not None:
            # Each part has its partial index; without them this would read every lead.
            parts = (and_(column.in_(indexes), way) for column in columns for way in (~shared, shared))
            query = query.where(or_(*parts))
    if wanted.statuses:
        query = query.where(LEAD.c.status.in_([status.value for status in wanted.statuses]))
    if wanted.created_after is not None:
        query = query.where(LEAD.c.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(LEAD.c.created_at < wanted.created_before)
    if wanted.conversation_id is not None:
        links = models.lead_conversation.c
        linked = select(links.lead_id).where(links.conversation_id == wanted.conversation_id)
        query = query.where(LEAD.c.id.in_(linked))
    return query
