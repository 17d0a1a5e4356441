"""The stored shape: tables, constraints and indexes.

Sensitive fields (phone, nid, address, email, notes) hold sealed tokens only; a CHECK refuses anything that does not
look like one. Unique indexes on the blind indexes decide duplicates. Migrations create what is declared here, and a
test holds both together.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.lead import SENSITIVE_FIELDS, ConflictResolution, LeadStatus

RESUBMISSIONS_KEPT = 20
"""How many resubmissions of a lead are kept; the count on the lead goes on."""

NOW = text("now()")
STATUSES = ", ".join(f"'{status.value}'" for status in LeadStatus)
RESOLUTIONS = ", ".join(f"'{resolution.value}'" for resolution in ConflictResolution)
SEALED_FORM = ".gAAAAAAAAAAA"
"""What every sealed token contains: the dot behind the key id, then Fernet's version byte 0x80 and time 0 in base64."""


BLIND_INDEXES_ARE_WHOLE = (
    "num_nonnulls(phone_index, phone_index_2) > 0 AND num_nonnulls(nid_index, nid_index_2) > 0"
    " AND octet_length(phone_index) = 32 AND octet_length(nid_index) = 32"
    " AND octet_length(phone_index_2) = 32 AND octet_length(nid_index_2) = 32"
)
"""Whatever pair is in use, a lead can be found by its phone and its nid; an empty pair is NULL and passes."""


class Base(DeclarativeBase):
    """The metadata of every table, with names for all constraints: errors are told apart by constraint name."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 # SQLAlchemy reads this attribute as it is
        str: Text(),
        bytes: LargeBinary(),
        datetime: DateTime(timezone=True),
    }


def _sealed() -> CheckConstraint:
    return CheckConstraint(
        " AND ".join(f"strpos({column}, '{SEALED_FORM}') > 0" for column in SENSITIVE_FIELDS), name="sealed"
    )


class CustomerColumns:
    """The customer fields, alike wherever a submission is stored."""

    name: Mapped[str]
    phone: Mapped[str]
    nid: Mapped[str]
    address: Mapped[str]
    interested_policy: Mapped[str]
    email: Mapped[str | None]
    preferred_contact_time: Mapped[str | None]
    notes: Mapped[str | None]
    conversation_id: Mapped[str | None]
    request_id: Mapped[str | None]
    content_digest: Mapped[bytes]


class Lead(CustomerColumns, Base):
    """One interested person."""

    __tablename__ = "lead"
    __table_args__ = (
        # A person may decide that a lead stands beside another one with the same phone or nid; that one is "shared".
        # One of the two pairs of blind indexes is empty but while an index key is rotated; what is NULL is in no index.
        *(
            Index(
                f"{prefix}_{suffix}", column, unique=unique, postgresql_where=text(f"{column} IS NOT NULL AND {only}")
            )
            for name in ("phone", "nid")
            for column, pair in ((f"{name}_index", ""), (f"{name}_index_2", "_2"))
            for prefix, suffix, unique, only in (
                ("uq_lead", f"{name}_index{pair}", True, f"NOT {name}_shared"),
                ("ix_lead", f"{name}_shared{pair}", False, f"{name}_shared"),
            )
        ),
        UniqueConstraint("created_by", "request_id"),
        CheckConstraint(f"status IN ({STATUSES})", name="status"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("resubmissions >= 0", name="resubmissions"),
        CheckConstraint(BLIND_INDEXES_ARE_WHOLE, name="blind_indexes"),
        _sealed(),
        # Lists are read newest first by (created_at, id); each filter has an index in that order.
        Index(None, "created_at", "id"),
        Index(None, "status", "created_at", "id"),
        Index(None, "interested_policy", "created_at", "id"),
        Index(None, "created_by", "created_at", "id"),
        Index(None, "assignee", "created_at", "id", postgresql_where=text("assignee IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(server_default=LeadStatus.NEW.value)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    assignee: Mapped[str | None]
    resubmissions: Mapped[int] = mapped_column(Integer, server_default="0")
    phone_index: Mapped[bytes | None]
    nid_index: Mapped[bytes | None]
    phone_index_2: Mapped[bytes | None]
    nid_index_2: Mapped[bytes | None]
    index_epoch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Which plan the blind indexes follow; a trigger refuses one that is no longer accepted."""
    phone_shared: Mapped[bool] = mapped_column(server_default=text("false"))
    nid_shared: Mapped[bool] = mapped_column(server_default=text("false"))
    created_by: Mapped[str]


class HistoryColumns:
    """The columns of a step in a lead's history."""

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    lead_id: Mapped[UUID] = mapped_column(ForeignKey("lead.id"))
    actor: Mapped[str]
    reason: Mapped[str | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=NOW)
    version: Mapped[int] = mapped_column(BigInteger)


class StatusChange(HistoryColumns, Base):
    """One step of a lead's status history. Rows are only ever added."""

    __tablename__ = "status_change"
    __table_args__ = (
        CheckConstraint(f"from_status IN ({STATUSES}) AND to_status IN ({STATUSES})", name="status"),
        CheckConstraint("from_status <> to_status", name="changes"),
        UniqueConstraint("lead_id", "version"),
    )

    from_status: Mapped[str]
    to_status: Mapped[str]


class AssignmentChange(HistoryColumns, Base):
    """One step of a lead's assignment history. Rows are only ever added."""

    __tablename__ = "assignment_change"
    __table_args__ = (UniqueConstraint("lead_id", "version"),)

    from_assignee: Mapped[str | None]
    to_assignee: Mapped[str | None]


class LeadConversation(Base):
    """Which conversation is linked to which lead."""

    __tablename__ = "lead_conversation"
    __table_args__ = (Index(None, "lead_id"),)

    conversation_id: Mapped[str] = mapped_column(primary_key=True)
    lead_id: Mapped[UUID] = mapped_column(ForeignKey("lead.id"), primary_key=True)
    linked_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Resubmission(CustomerColumns, Base):
    """A refused duplicate, kept with the lead that it met.

    The newest few are kept in a ring of slots, which a role without the right to DELETE can maintain.
    """

    __tablename__ = "resubmission"
    __table_args__ = (
        CheckConstraint(f"slot >= 0 AND slot < {RESUBMISSIONS_KEPT}", name="slot"),
        _sealed(),
        Index(None, "submission_id"),
    )

    lead_id: Mapped[UUID] = mapped_column(ForeignKey("lead.id"), primary_key=True)
    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    submission_id: Mapped[UUID]
    actor: Mapped[str]
    verified: Mapped[bool]
    submitted_at: Mapped[datetime] = mapped_column(server_default=NOW)


class LeadAlias(Base):
    """An id that was acknowledged and stands for another lead: reads of it lead there."""

    __tablename__ = "lead_alias"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    lead_id: Mapped[UUID] = mapped_column(ForeignKey("lead.id"), index=True)
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class LeadConflict(CustomerColumns, Base):
    """A submission that shares a phone, a nid or a request_id with a lead: a person decides what becomes of it.

    It was acknowledged before the database had it, or refused by a lead that was erased since. Its own side is sealed
    here, bound to `id`; the other side are the leads that it matches. A row is removed only under a tombstone, so that
    a submission which is drained twice is decided once.
    """

    __tablename__ = "lead_conflict"
    __table_args__ = (
        Index(None, "created_by", "request_id"),
        CheckConstraint(f"resolution IN ({RESOLUTIONS})", name="resolution"),
        CheckConstraint("(resolution IS NULL) = (resolved_at IS NULL)", name="resolved"),
        CheckConstraint("num_nonnulls(phone_lead_id, nid_lead_id, request_lead_id, erased_lead_id) > 0", name="meets"),
        _sealed(),
        Index(None, "accepted_at", "id", postgresql_where=text("resolution IS NULL")),
        Index(None, "erased_lead_id", postgresql_where=text("erased_lead_id IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    created_by: Mapped[str]
    phone_lead_id: Mapped[UUID | None] = mapped_column(ForeignKey("lead.id"), index=True)
    nid_lead_id: Mapped[UUID | None] = mapped_column(ForeignKey("lead.id"), index=True)
    request_lead_id: Mapped[UUID | None] = mapped_column(ForeignKey("lead.id"), index=True)
    """The lead that has this submission's request_id with other content."""
    repeats: Mapped[UUID | None] = mapped_column(ForeignKey("lead_conflict.id"), index=True)
    """The conflict of the same request, which this one shares the fate of."""
    erased_lead_id: Mapped[UUID | None]
    """The lead that shared a phone or a nid with this submission and was erased since; it has a tombstone, no row."""
    accepted_at: Mapped[datetime]
    found_at: Mapped[datetime] = mapped_column(server_default=NOW)
    resolution: Mapped[str | None]
    resolved_by: Mapped[str | None]
    resolved_at: Mapped[datetime | None]
    reason: Mapped[str | None]


class Tombstone(Base):
    """What stays of an erased lead, and of each id that led to it or was kept with it. No customer's value.

    Whoever stores a lead looks here, so that an erased one comes back neither from a spool nor from a file.
    """

    __tablename__ = "tombstone"
    __table_args__ = (Index(None, "request_digest", postgresql_where=text("request_digest IS NOT NULL")),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    lead_id: Mapped[UUID] = mapped_column(index=True)
    """The lead with which it was erased; its own id when it is that lead, or lay in a spool."""
    created_at: Mapped[datetime | None]
    """When it was accepted; None: no lead of this id was seen yet, one may lie in another replica's spool."""
    erased_at: Mapped[datetime] = mapped_column(server_default=NOW, index=True)
    erased_by: Mapped[str]
    reason: Mapped[str | None]
    request_digest: Mapped[bytes | None]
    """SHA-256 of subject and request_id, by which a copy of the request is known that waits in a spool."""


class KeyCanary(Base):
    """Which keyring and which normaliser the stored leads belong to, and where a rotation stands: one row, once.

    `digest` and `normaliser` tell how the blind indexes of the pair `pair` are made. While an index key is rotated,
    `next_digest` and `next_normaliser` tell the same of the other pair.
    """

    __tablename__ = "key_canary"
    __table_args__ = (
        CheckConstraint("id = 1", name="single"),
        CheckConstraint("pair IN (1, 2)", name="pair"),
        CheckConstraint("(next_digest IS NULL) = (next_normaliser IS NULL)", name="next"),
        CheckConstraint("accepts_from <= epoch", name="epoch"),
    )

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    sealed: Mapped[str]
    digest: Mapped[bytes]
    normaliser: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    database: Mapped[UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    """Tells this database from every other one, whatever its keys are by now."""
    pair: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    next_digest: Mapped[bytes | None]
    next_normaliser: Mapped[str | None]
    clearing: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether the pair that is not in use still holds indexes of a key that was rotated out."""
    epoch: Mapped[int] = mapped_column(BigInteger, server_default="1")
    """Grows with each change of how blind indexes are written."""
    accepts_from: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Leads that follow an older plan are refused."""
    retired_keys: Mapped[list[str]] = mapped_column(ARRAY(Text()), server_default=text("'{}'"))
    """Encryption keys with which nothing may be sealed any more."""


class Replica(Base):
    """What a service said last of the keys that it has: see storage/replicas.py."""

    __tablename__ = "replica"
    __table_args__ = (CheckConstraint("state IN ('running', 'stopped')", name="state"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    """The plan that it writes blind indexes by."""
    opens: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    """The ids of the keys that it can open with, of every purpose."""
    seals: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    """The ids of the keys that it seals with, one for each purpose."""
    spool_keys: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    """The ids of the keys without which something in its spool would not open."""
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    seen_at: Mapped[datetime] = mapped_column(server_default=NOW)


class LeadTouch(Base):
    """A note, made by triggers, that leads of this quarter of an hour changed since their day's file was rendered.

    Rows are only ever added and removed, never shared, so that transactions do not wait for each other. A render
    removes the rows that its snapshot sees: what they tell of is in that snapshot, and what is not stays noted.
    """

    __tablename__ = "lead_touch"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    quarter: Mapped[datetime]
    """The quarter of an hour in which the leads were created: in any time zone it belongs to one day."""


class DailyFile(Base):
    """The newest daily file that any replica rendered for a day, so that another one knows whether its own is old."""

    __tablename__ = "daily_file"

    day: Mapped[date] = mapped_column(Date(), primary_key=True)
    timezone: Mapped[str] = mapped_column(primary_key=True)
    snapshot_at: Mapped[datetime]
    lead_count: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes]
    """SHA-256 of the file's leads, line by line, as the server wrote them."""


class AccessRecord(Base):
    """One look at values in clear, recorded before they were shown. Rows are only ever added."""

    __tablename__ = "access_record"
    __table_args__ = (
        UniqueConstraint("chain_id", "number"),
        CheckConstraint("num_nulls(chain_id, number, key_id, digest) IN (0, 4)", name="chained"),
        # Read newest first, of all, of a lead or of a subject; the last one also counts a subject's hour.
        Index(None, "recorded_at", "id"),
        Index(None, "lead_id", "recorded_at", "id"),
        Index(None, "subject", "recorded_at", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    recorded_at: Mapped[datetime] = mapped_column(server_default=NOW)
    subject: Mapped[str]
    operation: Mapped[str]
    lead_id: Mapped[UUID | None]
    fields: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    reason: Mapped[str | None]
    request_id: Mapped[str | None]
    chain_id: Mapped[UUID | None]
    """NULL for what was recorded before there were chains: the first registration covers those rows."""
    number: Mapped[int | None] = mapped_column(BigInteger)
    key_id: Mapped[str | None]
    digest: Mapped[bytes | None]
    """Keyed, over this entry and the digest of the one before it; see access_chain.py."""


class AccessChain(Base):
    """The registration of a chain of access records. Registrations are a chain of their own. Only ever added."""

    __tablename__ = "access_chain"
    __table_args__ = (
        UniqueConstraint("id"),
        CheckConstraint("(number = 1) = (earlier_entries IS NOT NULL)", name="earlier"),
        CheckConstraint("(earlier_entries IS NULL) = (earlier_digest IS NULL)", name="earlier_digest"),
    )

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[UUID]
    writer: Mapped[str]
    """What wrote it and where: `serve@host`, or a command."""
    began_at: Mapped[datetime]
    earlier_entries: Mapped[int | None] = mapped_column(BigInteger)
    """How many entries there were before the first chain; with the first registration only."""
    earlier_digest: Mapped[bytes | None]
    key_id: Mapped[str]
    digest: Mapped[bytes]


class AccessHead(Base):
    """How far a chain reached with a transaction, so that a tail that is missing is missed. Only ever added."""

    __tablename__ = "access_head"
    __table_args__ = (Index(None, "chain_id", "number"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    chain_id: Mapped[UUID]
    number: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes]
    """The digest of the chain's last entry."""
    ended: Mapped[bool]
    """Whether its writer stopped and nothing comes after."""
    key_id: Mapped[str]
    seal: Mapped[bytes]
    """Keyed, over all of this."""


def table(model: type[Base]) -> Table:
    """A model's table, for statements that are written without the ORM: its unit of work costs two to three times."""
    return cast("Table", model.__table__)
