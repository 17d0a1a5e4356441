"""The stored shape: the tables of leads, from lead_models.py, and those of keys, replicas, spools, files and accesses.

Migrations create what is declared here, and a test holds both together.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.lead_models import (
    IN_CLEAR,
    INDEX_SCHEME,
    IS_CHANGED,
    LACKS_EMAIL_INDEX,
    NOW,
    TIME,
    TransactionId,
    lead,
    lead_alias,
    lead_conflict,
    lead_conversation,
    lead_event,
    metadata,
    reference_of,
    resubmission,
    tombstone,
)

__all__ = [
    "INDEX_SCHEME",
    "IN_CLEAR",
    "IS_CHANGED",
    "LACKS_EMAIL_INDEX",
    "TransactionId",
    "lead",
    "lead_alias",
    "lead_conflict",
    "lead_conversation",
    "lead_event",
    "metadata",
    "reference_of",
    "resubmission",
    "tombstone",
]

key_canary = Table(
    "key_canary",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("sealed", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("normaliser", Text, nullable=False),
    Column("created_at", TIME, server_default=NOW, nullable=False),
    # Distinguishes this database from every other one, whatever its keys are by now.
    Column("database", Uuid, server_default=text("gen_random_uuid()"), nullable=False),
    Column("pair", SmallInteger, server_default="1", nullable=False),
    Column("next_digest", LargeBinary),
    Column("next_normaliser", Text),
    # Whether the pair that is not in use still holds indexes of a key that was rotated out.
    Column("clearing", Boolean, server_default=text("false"), nullable=False),
    # Grows with each change of how blind indexes are written.
    Column("epoch", BigInteger, server_default="1", nullable=False),
    # Leads that follow an older plan are refused.
    Column("accepts_from", BigInteger, server_default="0", nullable=False),
    # Encryption keys with which nothing may be sealed any more.
    Column("retired_keys", ARRAY(Text), server_default=text("'{}'"), nullable=False),
    CheckConstraint("id = 1", name="single"),
    CheckConstraint("pair IN (1, 2)", name="pair"),
    CheckConstraint("(next_digest IS NULL) = (next_normaliser IS NULL)", name="next"),
    CheckConstraint("accepts_from <= epoch", name="epoch"),
)
"""Which keyring and which normaliser the stored leads belong to, and where a rotation stands: one row, once.

`digest` and `normaliser` are those of the blind indexes of the pair `pair`. While an index key is rotated,
`next_digest` and `next_normaliser` are those of the other pair.
"""

replica = Table(
    "replica",
    metadata,
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False),
    # The plan that it writes blind indexes by.
    Column("epoch", BigInteger, nullable=False),
    # The ids of the keys that it can open with, of every purpose, and the newest index rule that it knows.
    Column("opens", ARRAY(Text), nullable=False),
    # The ids of the keys that it seals with, one for each purpose.
    Column("seals", ARRAY(Text), nullable=False),
    # The ids of the keys without which something in its spool would not open.
    Column("spool_keys", ARRAY(Text), nullable=False),
    Column("started_at", TIME, server_default=NOW, nullable=False),
    Column("seen_at", TIME, server_default=NOW, nullable=False),
    CheckConstraint("state IN ('running', 'stopped')", name="state"),
)
"""The keys that each service had at its last heartbeat: see storage/keys/replicas.py."""

spool_search = Table(
    "spool_search",
    metadata,
    Column("id", Uuid, primary_key=True),
    # The replica that is asked.
    Column("replica", Text, nullable=False),
    Column("asked_at", TIME, server_default=text("clock_timestamp()"), nullable=False),
    # What is sought, as keyed digests: see storage/spool/search.py.
    Column("question", JSONB, nullable=False),
    # Sealed with a key of the spool, bound to `id`.
    Column("answer", Text),
    # Neither in the log nor in a backup: it lasts seconds.
    prefixes=["UNLOGGED"],
)
"""Questions to other replicas about what waits in their spools, with the answers. None is older than a minute."""

spool_erasure = Table(
    "spool_erasure",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # The replica that has yet to erase.
    Column("replica", Text, index=True, nullable=False),
    # The lead, or the submission alone. Its tombstone names who erased it, when and why.
    Column("erased_id", Uuid, index=True, nullable=False),
    Column("opened_at", TIME, server_default=NOW, nullable=False),
    # The phones and nids of the lead's person, as keyed digests: see storage/spool/search.py.
    Column("sought", JSONB, nullable=False),
)
"""What each replica has yet to erase from its spool, before it stores anything from there. Removed when it has."""

lead_touch = Table(
    "lead_touch",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # The quarter of an hour in which the leads were created: in any time zone it belongs to one day.
    Column("quarter", TIME, nullable=False),
)
"""Notes, made by triggers, that leads of a quarter of an hour changed since their day's file was rendered.

Rows are only ever added and removed, never shared, so that transactions do not wait for each other. A render removes
the rows that its snapshot sees: the changes that they note are in that snapshot, and what is not stays noted.
"""

daily_file = Table(
    "daily_file",
    metadata,
    Column("day", Date, primary_key=True),
    Column("timezone", Text, primary_key=True),
    Column("snapshot_at", TIME, nullable=False),
    Column("lead_count", BigInteger, nullable=False),
    # SHA-256 of the file's leads, line by line, as the server wrote them.
    Column("digest", LargeBinary, nullable=False),
)
"""The newest daily file that any replica rendered for a day, so that another one knows whether its own is old."""

file_turn = Table(
    "file_turn",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    # A number that each renderer makes up when it starts.
    Column("holder", Uuid, nullable=False),
    Column("expires_at", TIME, nullable=False),
    CheckConstraint("id = 1", name="single"),
)
"""The lease of the one replica that renders daily files. A render holds the row locked to its end."""

access_record = Table(
    "access_record",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("recorded_at", TIME, server_default=NOW, nullable=False),
    Column("subject", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("lead_id", Uuid),
    Column("fields", ARRAY(Text), nullable=False),
    Column("reason", Text),
    Column("request_id", Text),
    # NULL for what was recorded before there were chains: the first registration covers those rows.
    Column("chain_id", Uuid),
    Column("number", BigInteger),
    Column("key_id", Text),
    # Keyed, over this entry and the digest of the one before it; see access/record.py.
    Column("digest", LargeBinary),
    UniqueConstraint("chain_id", "number"),
    CheckConstraint("num_nulls(chain_id, number, key_id, digest) IN (0, 4)", name="chained"),
    # Read newest first, of all, of a lead or of a subject; the last one also counts a subject's hour.
    Index(None, "recorded_at", "id"),
    Index(None, "lead_id", "recorded_at", "id"),
    Index(None, "subject", "recorded_at", "id"),
)
"""Looks at values in clear, each recorded before the values were shown. Rows are only ever added."""

access_chain = Table(
    "access_chain",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Uuid, nullable=False),
    # What wrote it and where: `serve@host`, or a command.
    Column("writer", Text, nullable=False),
    Column("began_at", TIME, nullable=False),
    # How many entries there were before the first chain; with the first registration only.
    Column("earlier_entries", BigInteger),
    Column("earlier_digest", LargeBinary),
    Column("key_id", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    UniqueConstraint("id"),
    CheckConstraint("(number = 1) = (earlier_entries IS NOT NULL)", name="earlier"),
    CheckConstraint("(earlier_entries IS NULL) = (earlier_digest IS NULL)", name="earlier_digest"),
)
"""Registrations of chains of access records. Registrations are a chain of their own. Only ever added."""

access_head = Table(
    "access_head",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("chain_id", Uuid, nullable=False),
    Column("number", BigInteger, nullable=False),
    # The digest of the chain's last entry.
    Column("digest", LargeBinary, nullable=False),
    # Whether its writer stopped and nothing comes after.
    Column("ended", Boolean, nullable=False),
    Column("key_id", Text, nullable=False),
    # Keyed, over all of this.
    Column("seal", LargeBinary, nullable=False),
    Index(None, "chain_id", "number"),
)
"""How far a chain reached with a transaction, so that a tail that is missing is missed. Only ever added."""
