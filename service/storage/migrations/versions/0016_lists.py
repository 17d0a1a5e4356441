"""Lists in every order: when a lead came back last, and the indexes of the filters in each order."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# As in 0011, with the time of the last one. An erased resubmission takes its time back.
COUNT = """
CREATE OR REPLACE FUNCTION count_resubmissions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.lead l SET resubmissions = greatest(0, l.resubmissions + by_lead.difference),
        resubmitted_at = (SELECT max(kept.submitted_at) FROM public.resubmission kept WHERE kept.lead_id = l.id)
    FROM (
        SELECT changed.lead_id, CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END AS difference
        FROM changed GROUP BY changed.lead_id
    ) by_lead
    WHERE l.id = by_lead.lead_id;
    RETURN NULL;
END $$
"""

# Leads of one moment are few: only the index of all leads holds the id, by which those are sorted.
OLD_INDEXES = (
    "ix_lead_created_at_id",
    *(
        f"ix_lead_{column}_created_at_id"
        for column in ("status", "interested_policy", "created_by", "assignee", "source")
    ),
)
INDEXES = (
    "".join(
        f"""
CREATE INDEX ix_lead_{time}_id ON lead ({time}, id) INCLUDE ({other});
CREATE INDEX ix_lead_status_{time} ON lead (status, {time});
CREATE INDEX ix_lead_interested_policy_{time} ON lead (interested_policy, {time});
CREATE INDEX ix_lead_created_by_{time} ON lead (created_by, {time});
CREATE INDEX ix_lead_assignee_{time} ON lead (assignee, {time}) WHERE assignee IS NOT NULL;
CREATE INDEX ix_lead_source_{time} ON lead (source, {time}) WHERE source IS NOT NULL;
CREATE INDEX ix_lead_unassigned_{time} ON lead ({time}) WHERE assignee IS NULL;
"""
        for time, other in (("created_at", "updated_at"), ("updated_at", "created_at"))
    )
    + """
CREATE INDEX ix_lead_resubmitted_at_id ON lead (resubmitted_at, id) WHERE resubmitted_at IS NOT NULL;
CREATE INDEX ix_lead_name_prefix ON lead (lower(name) text_pattern_ops);
"""
)


def upgrade() -> None:
    """Add the column and fill it, and the indexes."""
    op.add_column("lead", sa.Column("resubmitted_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(COUNT)
    op.execute(
        "UPDATE lead SET resubmitted_at = last.at"
        " FROM (SELECT lead_id, max(submitted_at) AS at FROM resubmission GROUP BY lead_id) last"
        " WHERE lead.id = last.lead_id"
    )
    for name in OLD_INDEXES:
        op.drop_index(name, "lead")
    op.execute(INDEXES)
