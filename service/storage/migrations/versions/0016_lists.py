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

OLD_INDEXES = (
    "ix_lead_created_at_id",
    *(
        f"ix_lead_{column}_created_at_id"
        for column in ("status", "interested_policy", "created_by", "assignee", "source")
    ),
)
FILTERS = "status, assignee, interested_policy, source"
IS_CHANGED = "CAST(updated_at <> created_at AS integer)"
INDEXES = f"""
CREATE INDEX ix_lead_created_at ON lead (created_at, id, updated_at) INCLUDE ({FILTERS});
CREATE INDEX ix_lead_updated_at ON lead (updated_at, id, created_at);
CREATE INDEX ix_lead_resubmitted_at ON lead (resubmitted_at, id, created_at, updated_at, {FILTERS})
    WHERE resubmitted_at IS NOT NULL;
CREATE INDEX ix_lead_created_by_resubmitted_at ON lead (created_by, resubmitted_at, id)
    WHERE resubmitted_at IS NOT NULL;
CREATE INDEX ix_lead_name_prefix ON lead (lower(name) text_pattern_ops);
""" + "".join(
    f"""
CREATE INDEX ix_lead_{name}_created_at ON lead ({name}, ({IS_CHANGED}), created_at{behind}){where};
CREATE INDEX ix_lead_{name}_updated_at ON lead ({name}, updated_at{behind}) WHERE {IS_CHANGED} = 1;
"""
    for name, behind, where in (
        ("assignee", ", status, interested_policy, source", ""),
        ("interested_policy", ", status, source", ""),
        ("source", ", status", " WHERE source IS NOT NULL"),
        ("status", "", ""),
        ("created_by", "", ""),
    )
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
