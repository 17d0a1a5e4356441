"""The access record in chains: who changes, cuts or removes a part of it is found out."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
GRANTS = {"access_chain": "SELECT, INSERT", "access_head": "SELECT, INSERT"}


def upgrade() -> None:
    """Add the chains' columns and tables. Rows that are there stay as they are, outside of any chain."""
    op.add_column("access_record", sa.Column("request_id", sa.Text(), nullable=True))
    op.add_column("access_record", sa.Column("chain_id", sa.Uuid(), nullable=True))
    op.add_column("access_record", sa.Column("number", sa.BigInteger(), nullable=True))
    op.add_column("access_record", sa.Column("key_id", sa.Text(), nullable=True))
    op.add_column("access_record", sa.Column("digest", sa.LargeBinary(), nullable=True))
    op.create_check_constraint(
        op.f("ck_access_record_chained"),
        "access_record",
        "num_nulls(chain_id, number, key_id, digest) IN (0, 4)",
    )
    op.create_unique_constraint(op.f("uq_access_record_chain_id_number"), "access_record", ["chain_id", "number"])
    op.create_index(op.f("ix_access_record_recorded_at_id"), "access_record", ["recorded_at", "id"])
    op.create_index(op.f("ix_access_record_lead_id_recorded_at_id"), "access_record", ["lead_id", "recorded_at", "id"])
    op.create_index(op.f("ix_access_record_subject_recorded_at_id"), "access_record", ["subject", "recorded_at", "id"])
    op.create_table(
        "access_chain",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("writer", sa.Text(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("earlier_entries", sa.BigInteger(), nullable=True),
        sa.Column("earlier_digest", sa.LargeBinary(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("(number = 1) = (earlier_entries IS NOT NULL)", name=op.f("ck_access_chain_earlier")),
        sa.CheckConstraint(
            "(earlier_entries IS NULL) = (earlier_digest IS NULL)", name=op.f("ck_access_chain_earlier_digest")
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_access_chain")),
        sa.UniqueConstraint("id", name=op.f("uq_access_chain_id")),
    )
    op.create_table(
        "access_head",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("chain_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("seal", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_head")),
    )
    op.create_index(op.f("ix_access_head_chain_id_number"), "access_head", ["chain_id", "number"])
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {APPLICATION_ROLE}")
