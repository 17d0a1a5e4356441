"""Where a lead came from: a column wherever a submission is stored, and an index to filter by it."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# A resubmission that outlives its lead becomes a conflict with all its fields.
ERASE = """
DO $$
DECLARE
    before text := pg_get_functiondef('public.erase_lead'::regproc);
    after text := replace(replace(before, 'conversation_id, created_by,', 'conversation_id, source, created_by,'),
        'kept.conversation_id, kept.actor,', 'kept.conversation_id, kept.source, kept.actor,');
BEGIN
    ASSERT length(after) = length(before) + length('source, ') + length('kept.source, ');
    EXECUTE after;
END $$
"""


def upgrade() -> None:
    """Add the columns and the index; have every daily file rendered anew, because its leads have one more member."""
    for table in ("lead", "resubmission", "lead_conflict"):
        op.add_column(table, sa.Column("source", sa.Text(), nullable=True))
    op.create_index(
        op.f("ix_lead_source_created_at_id"),
        "lead",
        ["source", "created_at", "id"],
        postgresql_where=sa.text("source IS NOT NULL"),
    )
    op.execute(ERASE)
    op.execute(
        "INSERT INTO lead_touch (quarter)"
        " SELECT DISTINCT date_bin('15 minutes', created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM lead"
    )
