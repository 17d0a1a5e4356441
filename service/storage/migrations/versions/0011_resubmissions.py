"""Every resubmission is kept: no ring of slots any more, and the database counts them on their lead."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# A lead may count more than are kept: of those from before this revision only the newest 20 were.
COUNT = """
CREATE FUNCTION count_resubmissions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.lead l SET resubmissions = greatest(0, l.resubmissions + by_lead.difference)
    FROM (
        SELECT changed.lead_id, CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END AS difference
        FROM changed GROUP BY changed.lead_id
    ) by_lead
    WHERE l.id = by_lead.lead_id;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Replace the slots by the ids of the submissions, add the indexes and the triggers."""
    op.drop_constraint(op.f("pk_resubmission"), "resubmission")
    op.drop_index(op.f("ix_resubmission_submission_id"), "resubmission")
    op.drop_column("resubmission", "slot")
    op.create_primary_key(op.f("pk_resubmission"), "resubmission", ["submission_id", "lead_id"])
    op.create_index(
        op.f("ix_resubmission_lead_id_submitted_at_submission_id"),
        "resubmission",
        ["lead_id", "submitted_at", "submission_id"],
    )
    op.create_index(
        op.f("ix_resubmission_lead_id_actor_request_id"),
        "resubmission",
        ["lead_id", "actor", "request_id"],
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.execute(COUNT)
    for event, rows in (("INSERT", "NEW"), ("DELETE", "OLD")):
        op.execute(
            f"CREATE TRIGGER resubmission_{event.lower()}_counts AFTER {event} ON resubmission"
            f" REFERENCING {rows} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_resubmissions()"
        )
    # The daily files show the slots.
    op.execute(
        "INSERT INTO lead_touch (quarter) SELECT DISTINCT date_bin('15 minutes', created_at,"
        " TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM lead WHERE resubmissions > 0"
    )
