"""What the daily files need: which days were touched and what was rendered; and the record of unmasked reads."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
GRANTS = {
    "lead_touch": "SELECT, INSERT, DELETE",
    "daily_file": "SELECT, INSERT, UPDATE",
    "access_record": "SELECT, INSERT",
}
# An import keeps the histories' numbers, so it must be able to move the counters past them.
SEQUENCES = ("status_change_id_seq", "assignment_change_id_seq")

# Every time zone's offset is a multiple of 15 minutes, so that a quarter belongs to one day in each of them.
# One row a statement and quarter, never one that is shared: transactions that touch the same day must not meet.
NOTE_LEADS = """
CREATE FUNCTION note_touched_leads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin('15 minutes', created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM touched;
    RETURN NULL;
END $$
"""
NOTE_ALIASES = """
CREATE FUNCTION note_touched_aliases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin('15 minutes', lead.created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z')
    FROM touched JOIN public.lead ON lead.id = touched.lead_id;
    RETURN NULL;
END $$
"""
TRIGGERS = (
    ("lead", "INSERT", "NEW", "note_touched_leads"),
    ("lead", "UPDATE", "NEW", "note_touched_leads"),
    ("lead", "DELETE", "OLD", "note_touched_leads"),
    ("lead_alias", "INSERT", "NEW", "note_touched_aliases"),
)


def upgrade() -> None:
    """Add the tables and the triggers, and note every day that has leads already."""
    op.create_table(
        "lead_touch",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("quarter", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lead_touch")),
    )
    op.create_table(
        "daily_file",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("snapshot_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lead_count", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("day", "timezone", name=op.f("pk_daily_file")),
    )
    op.create_table(
        "access_record",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("lead_id", sa.Uuid(), nullable=True),
        sa.Column("fields", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_record")),
    )
    op.execute(NOTE_LEADS)
    op.execute(NOTE_ALIASES)
    for table, event, rows, function in TRIGGERS:
        op.execute(
            f"CREATE TRIGGER {table}_{event.lower()}_is_noted AFTER {event} ON {table} "
            f"REFERENCING {rows} TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        )
    op.execute(
        "INSERT INTO lead_touch (quarter) "
        "SELECT DISTINCT date_bin('15 minutes', created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM lead"
    )
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {APPLICATION_ROLE}")
    for sequence in SEQUENCES:
        op.execute(f"GRANT SELECT, UPDATE ON SEQUENCE {sequence} TO {APPLICATION_ROLE}")
