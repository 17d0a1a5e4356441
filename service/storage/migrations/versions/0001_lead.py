"""The lead, its histories, its conversations and its resubmissions, and the rights of the application's role."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATUSES = "'new', 'contacted', 'converted', 'not_interested'"
SEALED = " AND ".join(
    f"strpos({column}, '.gAAAAAAAAAAA') > 0" for column in ("phone", "nid", "address", "email", "notes")
)

APPLICATION_ROLE = "leadkeep_app"
GRANTS = {
    "lead": "SELECT, INSERT, UPDATE",
    "status_change": "SELECT, INSERT",
    "assignment_change": "SELECT, INSERT",
    "lead_conversation": "SELECT, INSERT",
    "resubmission": "SELECT, INSERT, UPDATE",
    "key_canary": "SELECT, INSERT",
    "alembic_version": "SELECT",
}


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "key_canary",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("normaliser", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_key_canary_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_canary")),
    )
    op.create_table(
        "lead",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("phone", sa.Text(), nullable=False),
        sa.Column("nid", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("interested_policy", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("preferred_contact_time", sa.Text(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.Column("conversation_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="new", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("assignee", sa.Text(), nullable=True),
        sa.Column("resubmissions", sa.Integer(), server_default="0", nullable=False),
        sa.Column("phone_index", sa.LargeBinary(), nullable=False),
        sa.Column("nid_index", sa.LargeBinary(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("content_digest", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(SEALED, name=op.f("ck_lead_sealed")),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_lead_status")),
        sa.CheckConstraint(
            "octet_length(phone_index) = 32 AND octet_length(nid_index) = 32", name=op.f("ck_lead_blind_indexes")
        ),
        sa.CheckConstraint("resubmissions >= 0", name=op.f("ck_lead_resubmissions")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_lead_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lead")),
        sa.UniqueConstraint("created_by", "request_id", name=op.f("uq_lead_created_by_request_id")),
        sa.UniqueConstraint("nid_index", name=op.f("uq_lead_nid_index")),
        sa.UniqueConstraint("phone_index", name=op.f("uq_lead_phone_index")),
    )
    op.create_index(
        op.f("ix_lead_assignee_created_at_id"),
        "lead",
        ["assignee", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("assignee IS NOT NULL"),
    )
    op.create_index(op.f("ix_lead_created_at_id"), "lead", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_lead_created_by_created_at_id"), "lead", ["created_by", "created_at", "id"], unique=False)
    op.create_index(
        op.f("ix_lead_interested_policy_created_at_id"), "lead", ["interested_policy", "created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_lead_status_created_at_id"), "lead", ["status", "created_at", "id"], unique=False)
    op.create_table(
        "assignment_change",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("lead_id", sa.Uuid(), nullable=False),
        sa.Column("from_assignee", sa.Text(), nullable=True),
        sa.Column("to_assignee", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["lead_id"], ["lead.id"], name=op.f("fk_assignment_change_lead_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment_change")),
        sa.UniqueConstraint("lead_id", "version", name=op.f("uq_assignment_change_lead_id_version")),
    )
    op.create_table(
        "lead_conversation",
        sa.Column("conversation_id", sa.Text(), nullable=False),
        sa.Column("lead_id", sa.Uuid(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["lead_id"], ["lead.id"], name=op.f("fk_lead_conversation_lead_id")),
        sa.PrimaryKeyConstraint("conversation_id", "lead_id", name=op.f("pk_lead_conversation")),
    )
    op.create_index(op.f("ix_lead_conversation_lead_id"), "lead_conversation", ["lead_id"], unique=False)
    op.create_table(
        "resubmission",
        sa.Column("lead_id", sa.Uuid(), nullable=False),
        sa.Column("slot", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("submission_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("phone", sa.Text(), nullable=False),
        sa.Column("nid", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("interested_policy", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("preferred_contact_time", sa.Text(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.Column("conversation_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("content_digest", sa.LargeBinary(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(SEALED, name=op.f("ck_resubmission_sealed")),
        sa.CheckConstraint("slot >= 0 AND slot < 20", name=op.f("ck_resubmission_slot")),
        sa.ForeignKeyConstraint(["lead_id"], ["lead.id"], name=op.f("fk_resubmission_lead_id")),
        sa.PrimaryKeyConstraint("lead_id", "slot", name=op.f("pk_resubmission")),
    )
    op.create_table(
        "status_change",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("lead_id", sa.Uuid(), nullable=False),
        sa.Column("from_status", sa.Text(), nullable=False),
        sa.Column("to_status", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            f"from_status IN ({STATUSES}) AND to_status IN ({STATUSES})",
            name=op.f("ck_status_change_status"),
        ),
        sa.CheckConstraint("from_status <> to_status", name=op.f("ck_status_change_changes")),
        sa.ForeignKeyConstraint(["lead_id"], ["lead.id"], name=op.f("fk_status_change_lead_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_status_change")),
        sa.UniqueConstraint("lead_id", "version", name=op.f("uq_status_change_lead_id_version")),
    )

    role_exists = op.get_bind().execute(
        sa.text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": APPLICATION_ROLE}
    )
    if not role_exists.scalar_one():
        op.execute(f"CREATE ROLE {APPLICATION_ROLE} NOLOGIN")
    op.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    op.execute(f"GRANT USAGE ON SCHEMA public TO {APPLICATION_ROLE}")
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {APPLICATION_ROLE}")
