"""The statements that find, link and export leads, and the leads in their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import namedtuple_row
from sqlalchemy import (
    ARRAY,
    Table,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    literal_column,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import CUSTOMER_FIELDS, BlindIndexes, LeadStatus, SealedLead, SealedSubmission
from service.storage import models
from service.storage.database.database import Statement, snapshot

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

ROWS_AHEAD = 500
"""Rows of an export that are fetched, and held in memory, at once."""

_SPAN = "FROM lead WHERE created_at >= %(start)s AND created_at < %(end)s"


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
    """The condition of leads that a conversation is linked to, also where its id is in clear yet."""
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

_LINK_CONVERSATION = text("""
    INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)
    SELECT :lead_id, :submission_id, :conversation_id, :conversation_index
    WHERE NOT EXISTS (SELECT FROM lead_conversation WHERE lead_id = :lead_id AND conversation_index = ANY(:indexes))
""")


async def link_conversation(connection: AsyncConnection, submission: SealedSubmission, lead_id: UUID) -> None:
    """Link a submission's conversation, if it has one, to a lead, which is locked."""
    if indexes := submission.indexes.conversation:
        link = {
            "lead_id": lead_id,
            "submission_id": submission.id,
            "conversation_id": submission.fields["conversation_id"],
            "conversation_index": indexes[0],
            "indexes": list(indexes),
        }
        await connection.execute(_LINK_CONVERSATION, link)


NOT_FOUND_BY_EMAIL = text(
    f"SELECT id FROM lead WHERE {models.LACKS_EMAIL_INDEX} ORDER BY email_index LIMIT 1"  # noqa: S608 # our own text
)
"""A lead that cannot be found by its e-mail yet, if there is one. The order makes its small index the cheapest way."""


def refers_to(table: Table, reference: bytes) -> Any:
    """The condition of rows whose id has a reference."""
    return literal_column(models.reference_of(f"{table.name}.id")) == reference


def exported_leads(url: str, start: datetime, end: datetime) -> Iterator[SealedLead]:
    """The leads that were created from `start` on and before `end`, oldest first.

    One snapshot of the database; memory does not grow with the number of leads. Raises StorageFaultError.
    """
    query = f"SELECT {COLUMN_NAMES} {_SPAN} ORDER BY created_at, id"  # our own names
    with (
        snapshot(url, "leadkeep-export") as connection,
        connection.cursor("exported", row_factory=namedtuple_row) as cursor,
    ):
        cursor.itersize = ROWS_AHEAD
        for row in cursor.execute(query.encode(), {"start": start, "end": end}):
            yield lead_of_row(row)


def count_leads(url: str, start: datetime, end: datetime) -> int:
    """How many leads were created from `start` on and before `end`. Raises StorageFaultError."""
    with snapshot(url, "leadkeep-export") as connection:
        row = connection.execute(f"SELECT count(*) {_SPAN}".encode(), {"start": start, "end": end}).fetchone()
        return int(row[0]) if row else 0
