"""The stored shape of leads and what belongs to them: tables, constraints and indexes. For the others see models.py.

Sensitive fields (phone, nid, address, email, notes) hold sealed tokens only; a CHECK refuses anything that does not
look like one. conversation_id may hold what was stored in clear before migration 0006a, until `keys reseal` seals it; a
trigger refuses anything new in clear. Unique indexes on the blind indexes decide duplicates. Migrations create what is
declared here, and a test holds both together. There are no mapped classes: the ORM's unit of work costs two to three
times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.types import UserDefinedType

from service.lead import SEALED_FORM, SENSITIVE_FIELDS, ConflictResolution, LeadEventType, LeadStatus

NOW = text("now()")
STATUSES = ", ".join(f"'{status.value}'" for status in LeadStatus)
RESOLUTIONS = ", ".join(f"'{resolution.value}'" for resolution in ConflictResolution)
IN_CLEAR = f"strpos(conversation_id, '{SEALED_FORM}') = 0"
"""The condition of rows whose conversation id is not sealed yet."""
IS_CHANGED = "CAST(updated_at <> created_at AS integer)"
"""1 for a lead that was changed since it was created, else 0. A number, because PostgreSQL would turn the negation of a
condition into another one, which no index has."""
LACKS_EMAIL_INDEX = "email IS NOT NULL AND email_index IS NULL"
"""The condition of leads that cannot be found by their e-mail yet."""

INDEX_SCHEME = "left(phone_index, -44)"
"""Of a resubmission or conflict, the name of the scheme by which its blind indexes were made: what precedes a digest in
base64. NULL: not made yet; empty: the phone does not open."""

BLIND_INDEXES_ARE_WHOLE = (
    "num_nonnulls(phone_index, phone_index_2) > 0 AND (num_nonnulls(nid_index, nid_index_2) > 0) = (nid IS NOT NULL)"
    " AND octet_length(phone_index) = 32 AND octet_length(nid_index) = 32"
    " AND octet_length(phone_index_2) = 32 AND octet_length(nid_index_2) = 32"
)
"""Whatever pair is in use, a lead can be found by its phone, and by its nid if it has one; an empty pair is NULL and
passes."""


INDEXES_ARE_TOGETHER = (
    "CASE WHEN phone_index IS NULL THEN num_nonnulls(nid_index, email_index) = 0"
    " ELSE (nid_index IS NULL) = (nid IS NULL) AND (email_index IS NULL) = (email IS NULL) END"
)
"""Of resubmissions and conflicts."""

TIME = DateTime(timezone=True)

metadata = MetaData(
    # Names for all constraints: errors are recognised by constraint name.
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def reference_of(column: str) -> str:
    """In SQL, the 5 bytes of an id that its reference spells: see service/validation/reference.py."""
    return f"substr(uuid_send({column}), 12)"


def _submission_columns() -> list[Column[Any] | CheckConstraint | Index]:
    """The columns of a submission, alike wherever one is stored, and the CHECK that its sensitive fields are sealed."""
    return [
        Column("name", Text, nullable=False),
        Column("phone", Text, nullable=False),
        Column("nid", Text),
        Column("address", Text),
        Column("interested_policy", Text),
        Column("email", Text),
        Column("preferred_contact_time", Text),
        Column("notes", Text),
        Column("conversation_id", Text),
        Column("source", Text),
        Column("request_id", Text),
        Column("content_digest", LargeBinary, nullable=False),
        CheckConstraint(
            " AND ".join(
                f"strpos({column}, '{SEALED_FORM}') > 0" for column in SENSITIVE_FIELDS if column != "conversation_id"
            ),
            name="sealed",
        ),
        # Empty once `keys reseal` has run: shows at once that nothing is left in clear.
        Index(None, "conversation_id", postgresql_where=text(IN_CLEAR)),
    ]


def _person_columns(table: str) -> list[Column[Any] | CheckConstraint | Index]:
    """The blind indexes by which a resubmission or conflict is found, not unique; see `BlindIndexes.texts`.

    All are made together, so that NULL in the first one shows that they are not made yet.
    """
    columns = [f"{name}_index" for name in ("phone", "nid", "email")]
    return [
        # In the order of bytes, which Python sorts by: schemes are distinguished by spans.
        *(Column(name, Text(collation="C")) for name in columns),
        *(Index(None, name, postgresql_where=text(f"{name} IS NOT NULL")) for name in columns),
        Index(f"ix_{table}_index_scheme", text(f"({INDEX_SCHEME})")),
        CheckConstraint(INDEXES_ARE_TOGETHER, name="blind_indexes"),
    ]


def _list_indexes() -> Iterator[Index]:
    """The indexes in whose order lists are read: of each time, and of each filter by each time.

    What stands behind a time is compared in the index, so that a lead is looked at only when it matches: two filters
    that never match together cost a walk along one of them, and no look at a lead. A new lead is only in the indexes by
    creation, and in that of all leads by change: until it is changed, it is in its place by change there too.

    Leads of one moment are few: those of a filter are sorted by id when they are read, and only the indexes of all
    leads hold the id, which would take 16 bytes of each.

    The index by creation includes what leads are counted by. They are no keys there: PostgreSQL would walk along all
    leads in place of the few that match. Not all filters are in one index: an entry has at most 2,704 bytes, and a
    value up to 800.
    """
    filters = ("status", "assignee", "interested_policy", "source")
    yield Index("ix_lead_created_at", "created_at", "id", "updated_at", postgresql_include=filters)
    yield Index("ix_lead_updated_at", "updated_at", "id", "created_at")
    came_back = text("resubmitted_at IS NOT NULL")
    times = ("resubmitted_at", "id", "created_at", "updated_at")
    yield Index("ix_lead_resubmitted_at", *times, *filters, postgresql_where=came_back)
    yield Index("ix_lead_created_by_resubmitted_at", "created_by", "resubmitted_at", "id", postgresql_where=came_back)
    behind = {"assignee": ("status", "interested_policy", "source"), "interested_policy": ("status", "source")}
    behind |= {"source": ("status",), "status": (), "created_by": ()}
    for name, others in behind.items():
        columns: tuple[Any, ...] = (name, text(IS_CHANGED), "created_at", *others)
        # A chatbot names no source, unless it is made to.
        only = text("source IS NOT NULL") if name == "source" else None
        yield Index(f"ix_lead_{name}_created_at", *columns, postgresql_where=only)
        changed = text(f"{IS_CHANGED} = 1")
        yield Index(f"ix_lead_{name}_updated_at", name, "updated_at", *others, postgresql_where=changed)


lead = Table(
    "lead",
    metadata,
    Column("id", Uuid, primary_key=True),
    *_submission_columns(),
    Column("status", Text, server_default=LeadStatus.NEW.value, nullable=False),
    Column("created_at", TIME, server_default=NOW, nullable=False),
    Column("updated_at", TIME, server_default=NOW, nullable=False),
    Column("version", BigInteger, server_default="1", nullable=False),
    Column("assignee", Text),
    Column("resubmissions", Integer, server_default="0", nullable=False),
    # When the last one that is kept was submitted; kept by the trigger that counts them.
    Column("resubmitted_at", TIME),
    Column("phone_index", LargeBinary),
    Column("nid_index", LargeBinary),
    Column("phone_index_2", LargeBinary),
    Column("nid_index_2", LargeBinary),
    # `<index key id>.<digest>`, not unique. NULL: no e-mail, or not indexed yet. Without a key id: it does not open.
    Column("email_index", Text),
    # Which plan the blind indexes follow; a trigger refuses one that is no longer accepted.
    Column("index_epoch", BigInteger, server_default="0", nullable=False),
    Column("phone_shared", Boolean, server_default=text("false"), nullable=False),
    Column("nid_shared", Boolean, server_default=text("false"), nullable=False),
    Column("created_by", Text, nullable=False),
    # An operator may allow a lead to reuse another lead's phone or nid, which makes it "shared". One of the two pairs
    # of blind indexes is empty but while an index key is rotated; what is NULL is in no index.
    *(
        Index(f"{prefix}_{suffix}", column, unique=unique, postgresql_where=text(f"{column} IS NOT NULL AND {only}"))
        for name in ("phone", "nid")
        for column, pair in ((f"{name}_index", ""), (f"{name}_index_2", "_2"))
        for prefix, suffix, unique, only in (
            ("uq_lead", f"{name}_index{pair}", True, f"NOT {name}_shared"),
            ("ix_lead", f"{name}_shared{pair}", False, f"{name}_shared"),
        )
    ),
    UniqueConstraint("created_by", "request_id"),
    Index(None, "email_index", postgresql_where=text("email_index IS NOT NULL")),
    # Empty once `keys reseal` has run: shows at once whether every e-mail can be found. Read in its order, so that no
    # plan that reads the table is cheaper, whatever the statistics are.
    Index("ix_lead_lacks_email_index", "email_index", postgresql_where=text(LACKS_EMAIL_INDEX)),
    Index("ix_lead_reference", text(reference_of("id"))),
    CheckConstraint("email IS NOT NULL OR email_index IS NULL", name="email_index"),
    CheckConstraint(f"status IN ({STATUSES})", name="status"),
    CheckConstraint("version >= 1", name="version"),
    CheckConstraint("resubmissions >= 0", name="resubmissions"),
    CheckConstraint(BLIND_INDEXES_ARE_WHOLE, name="blind_indexes"),
    *_list_indexes(),
)
"""One interested person a row."""

# By bytes, whatever the collation: the beginning of a text is a span of them.
Index("ix_lead_name_prefix", func.lower(lead.c.name).label("folded"), postgresql_ops={"folded": "text_pattern_ops"})


class TransactionId(UserDefinedType[str]):
    """PostgreSQL's xid8: the number of a transaction, which is never used again."""

    cache_ok = True

    def get_col_spec(self, **_options: Any) -> str:
        """The type's name."""
        return "xid8"


lead_event = Table(
    "lead_event",
    metadata,
    # Numbers first: padding would cost each row 8 bytes.
    Column("at", TIME, server_default=NOW, nullable=False),
    # A reader that follows the table reads below pg_snapshot_xmin, so that it skips no transaction that is still open.
    Column("transaction_id", TransactionId, server_default=text("pg_current_xact_id()"), nullable=False),
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("version", BigInteger, nullable=False),
    # No foreign key: the last event outlives its lead.
    Column("lead_id", Uuid, nullable=False),
    Column("type", SmallInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text),
    Column("fields", ARRAY(Text)),
    Column("from_status", Text),
    Column("to_status", Text),
    Column("from_assignee", Text),
    Column("to_assignee", Text),
    # The latest moment of the events before it, if that is later than its own; by a trigger.
    Column("placed_at", TIME),
    # The only index, in the order in which a history is read. A version may have several events.
    PrimaryKeyConstraint("lead_id", "version", "id"),
    CheckConstraint(f"type BETWEEN {LeadEventType.CREATED:d} AND {LeadEventType.ERASED:d}", name="type"),
    CheckConstraint(
        f"(type = {LeadEventType.STATUS_CHANGED:d}) = ((from_status IN ({STATUSES}) AND to_status IN ({STATUSES})"
        " AND from_status <> to_status) IS TRUE)",
        name="status",
    ),
)
"""What happened to each lead, in the statement or transaction in which it happened: no customer's value. Only added.

An erasure deletes the events of its lead and adds the one that stays.
"""

lead_conversation = Table(
    "lead_conversation",
    metadata,
    Column("lead_id", Uuid, ForeignKey("lead.id"), primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # The submission that it came with, to which its token is bound.
    Column("submission_id", Uuid, nullable=False),
    Column("conversation_id", Text, nullable=False),
    # `<index key id>.<digest>`; NULL: the conversation id is in clear yet.
    Column("conversation_index", Text),
    Column("linked_at", TIME, server_default=NOW, nullable=False),
    Index(None, "conversation_index"),
    Index(None, "conversation_id", postgresql_where=text(IN_CLEAR)),
    CheckConstraint(f"(conversation_index IS NULL) = ({IN_CLEAR})", name="sealed"),
)
"""Which conversation is linked to which lead. A blind index, not unique, finds it: a look-up tries every index key."""

resubmission = Table(
    "resubmission",
    metadata,
    Column("submission_id", Uuid, primary_key=True),
    Column("lead_id", Uuid, ForeignKey("lead.id"), primary_key=True),
    *_submission_columns(),
    Column("actor", Text, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("submitted_at", TIME, server_default=NOW, nullable=False),
    *_person_columns("resubmission"),
    # In the order in which they are listed.
    Index(None, "lead_id", "submitted_at", "submission_id"),
    # By which a repeat of a request is recognised.
    Index(None, "lead_id", "actor", "request_id", postgresql_where=text("request_id IS NOT NULL")),
    # By which a subject's duplicates are counted.
    Index(None, "actor", "submitted_at", postgresql_where=text("NOT verified")),
)
"""Refused duplicates, kept with the leads that they match. A trigger counts them on the lead."""

lead_alias = Table(
    "lead_alias",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("lead_id", Uuid, ForeignKey("lead.id"), index=True, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", TIME, server_default=NOW, nullable=False),
    Index("ix_lead_alias_reference", text(reference_of("id"))),
)
"""Ids that were acknowledged and stand for another lead: reads of one lead there."""

lead_conflict = Table(
    "lead_conflict",
    metadata,
    Column("id", Uuid, primary_key=True),
    *_submission_columns(),
    Column("created_by", Text, nullable=False),
    Column("phone_lead_id", Uuid, ForeignKey("lead.id"), index=True),
    Column("nid_lead_id", Uuid, ForeignKey("lead.id"), index=True),
    # The lead that has this submission's request_id with other content.
    Column("request_lead_id", Uuid, ForeignKey("lead.id"), index=True),
    # The conflict of the same request, whose resolution is this one's too.
    Column("repeats", Uuid, ForeignKey("lead_conflict.id"), index=True),
    # The lead that shared a phone or a nid with this submission and was erased since; it has a tombstone, no row.
    Column("erased_lead_id", Uuid),
    Column("accepted_at", TIME, nullable=False),
    Column("found_at", TIME, server_default=NOW, nullable=False),
    Column("resolution", Text),
    Column("resolved_by", Text),
    Column("resolved_at", TIME),
    Column("reason", Text),
    *_person_columns("lead_conflict"),
    Index(None, "created_by", "request_id"),
    CheckConstraint(f"resolution IN ({RESOLUTIONS})", name="resolution"),
    CheckConstraint("(resolution IS NULL) = (resolved_at IS NULL)", name="resolved"),
    CheckConstraint("num_nonnulls(phone_lead_id, nid_lead_id, request_lead_id, erased_lead_id) > 0", name="meets"),
    Index(None, "accepted_at", "id", postgresql_where=text("resolution IS NULL")),
    Index("ix_lead_conflict_reference", text(reference_of("id")), postgresql_where=text("resolution IS NULL")),
    Index(None, "erased_lead_id", postgresql_where=text("erased_lead_id IS NOT NULL")),
)
"""Submissions that share a phone, a nid or a request_id with a lead: an operator decides what becomes of each.

One was acknowledged before the database had it, or refused by a lead that was erased since. Its own side is sealed
here, bound to `id`; the other side are the leads that it matches. A row is removed only under a tombstone, so that a
submission which is drained twice is decided once.
"""

tombstone = Table(
    "tombstone",
    metadata,
    Column("id", Uuid, primary_key=True),
    # The lead with which it was erased; its own id when it is that lead, or lay in a spool.
    Column("lead_id", Uuid, index=True, nullable=False),
    # When it was accepted; NULL: no lead of this id was seen yet, one may lie in another replica's spool.
    Column("created_at", TIME),
    Column("erased_at", TIME, server_default=NOW, index=True, nullable=False),
    Column("erased_by", Text, nullable=False),
    Column("reason", Text),
    # SHA-256 of subject and request_id, by which a copy of the request is recognised that waits in a spool.
    Column("request_digest", LargeBinary),
    Index(None, "request_digest", postgresql_where=text("request_digest IS NOT NULL")),
)
"""What stays of an erased lead, and of each id that led to it or was kept with it. No customer's value.

Every statement that stores a lead looks here, so that an erased one comes back neither from a spool nor from a file.
"""
