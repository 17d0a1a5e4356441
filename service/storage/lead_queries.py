"""The statements that look for leads, and their rows as leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
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
)

from service.lead import CUSTOMER_FIELDS, LeadStatus, SealedLead
from service.storage import models
from service.storage.requests import LeadFilter

LEAD = models.table(models.Lead)
_ALIAS = models.LeadAlias

COLUMNS = tuple(
    LEAD.c[name]
    for name in (
        *("id", "status", "created_at", "updated_at", "version", "assignee", "resubmissions", "created_by"),
        *CUSTOMER_FIELDS,
    )
)
"""What statements select of leads, in the order that `lead_of` reads."""

_WANTED = any_(bindparam("ids", type_=ARRAY(Uuid)))
_LINK = models.LeadConversation

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


def leads_of_ids() -> CompoundSelect[Any]:
    """Of many `ids`, the leads that have them, or that they lead to; first the id that was given."""
    return union_all(
        select(LEAD.c.id.label("wanted"), *COLUMNS).where(LEAD.c.id == _WANTED),
        select(_ALIAS.id, *COLUMNS).join(LEAD, LEAD.c.id == _ALIAS.lead_id).where(_ALIAS.id == _WANTED),
    )


def leads_of_conversation() -> Select[Any]:
    """The leads that are linked to a `conversation`, newest first; `created_by` restricts them unless it is NULL."""
    creator = bindparam("created_by", type_=Text)
    return (
        select(*COLUMNS)
        .join(_LINK, _LINK.lead_id == LEAD.c.id)
        .where(_LINK.conversation_id == bindparam("conversation", type_=Text))
        .where(or_(creator.is_(None), LEAD.c.created_by == creator))
        .order_by(LEAD.c.created_at.desc(), LEAD.c.id.desc())
        .limit(literal_column(str(OTHER_LEADS_SHOWN + 1)))
    )


def is_or_leads_to(lead_id: UUID) -> ColumnElement[bool]:
    """Whether a lead has this id, or the id leads to it."""
    return LEAD.c.id == func.coalesce(select(_ALIAS.lead_id).where(_ALIAS.id == lead_id).scalar_subquery(), lead_id)


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
        links = models.LeadConversation
        linked = select(links.lead_id).where(links.conversation_id == wanted.conversation_id)
        query = query.where(LEAD.c.id.in_(linked))
    return query
