"""Conflicts and aliases of leads that came out of the spool, and leads that stand beside another one by decision."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SEALED = " AND ".join(
    f"strpos({column}, '.gAAAAAAAAAAA') > 0" for column in ("phone", "nid", "address", "email", "notes")
)
APPLICATION_ROLE = "leadkeep_app"
GRANTS = {"lead_alias": "SELECT, INSERT", "lead_conflict": "SELECT, INSERT, UPDATE"}


def upgrade() -> None:
    """Let a person's decision share a phone or nid; add the two tables."""
    for field in ("phone", "nid"):
        op.add_column("lead", sa.Column(f"{field}_shared", sa.Boolean(), server_default=sa.false(), nullable=False))
        op.drop_constraint(f"uq_lead_{field}_index", "lead")
        op.create_index(
            f"uq_lead_{field}_index",
            "lead",
            [f"{field}_index"],
            unique=True,
            postgresql_where=sa.text(f"NOT {field}_shared"),
        )
        op.create_index(
            f"ix_lead_{field}_shared", "lead", [f"{field}_index"], postgresql_where=sa.text(f"{field}_shared")
        )
    op.create_table(
        "lead_alias",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lead_id", sa.Uuid(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["lead_id"], ["lead.id"], name=op.f("fk_lead_alias_lead_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lead_alias")),
    )
    op.create_index(op.f("ix_lead_alias_lead_id"), "lead_alias", ["lead_id"])
    op.create_table(
        "lead_conflict",
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
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("content_digest", sa.LargeBinary(), nullable=False),
        sa.Column("phone_lead_id", sa.Uuid(), nullable=True),
        sa.Column("nid_lead_id", sa.Uuid(), nullable=True),
        sa.Column("request_lead_id", sa.Uuid(), nullable=True),
        sa.Column("repeats", sa.Uuid(), nullable=True),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.Column("resolved_by", sa.Text(), nullable=True),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(SEALED, name=op.f("ck_lead_conflict_sealed")),
        sa.CheckConstraint(
            "phone_lead_id IS NOT NULL OR nid_lead_id IS NOT NULL OR request_lead_id IS NOT NULL",
            name=op.f("ck_lead_conflict_meets"),
        ),
        sa.CheckConstraint(
            "resolution IN ('keep_first', 'take_new', 'own_lead')", name=op.f("ck_lead_conflict_resolution")
        ),
        sa.CheckConstraint("(resolution IS NULL) = (resolved_at IS NULL)", name=op.f("ck_lead_conflict_resolved")),
        sa.ForeignKeyConstraint(["phone_lead_id"], ["lead.id"], name=op.f("fk_lead_conflict_phone_lead_id")),
        sa.ForeignKeyConstraint(["nid_lead_id"], ["lead.id"], name=op.f("fk_lead_conflict_nid_lead_id")),
        sa.ForeignKeyConstraint(["request_lead_id"], ["lead.id"], name=op.f("fk_lead_conflict_request_lead_id")),
        sa.ForeignKeyConstraint(["repeats"], ["lead_conflict.id"], name=op.f("fk_lead_conflict_repeats")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lead_conflict")),
    )
    op.create_index(
        op.f("ix_lead_conflict_accepted_at_id"),
        "lead_conflict",
        ["accepted_at", "id"],
        postgresql_where=sa.text("resolution IS NULL"),
    )
    op.create_index(op.f("ix_lead_conflict_created_by_request_id"), "lead_conflict", ["created_by", "request_id"])
    for column in ("phone_lead_id", "nid_lead_id", "request_lead_id", "repeats"):
        op.create_index(op.f(f"ix_lead_conflict_{column}"), "lead_conflict", [column])
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {APPLICATION_ROLE}")
