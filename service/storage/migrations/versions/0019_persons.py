"""Resubmissions and conflicts are found by phone, nid and e-mail; what was one person's alone goes without the lead.

Those that are there get their blind indexes by `keys reseal`, while the service runs: only that has the keys.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

COLUMNS = ("phone_index", "nid_index", "email_index")
TOGETHER = (
    "CASE WHEN phone_index IS NULL THEN num_nonnulls(nid_index, email_index) = 0"
    " ELSE (nid_index IS NULL) = (nid IS NULL) AND (email_index IS NULL) = (email IS NULL) END"
)
# A resubmission that outlives its lead becomes a conflict with all columns that both have, whatever is added to them.
# With a submission goes the link by which its conversation leads to another person's lead.
ERASE = r"""
DO $$
DECLARE
    before text := pg_get_functiondef('public.erase_lead'::regproc);
    copied text := regexp_replace(before, 'INSERT INTO public\.lead_conflict .*?FROM public\.resubmission kept',
        'INSERT INTO public.lead_conflict SELECT conflict.*
        FROM public.resubmission kept, jsonb_populate_record(NULL::public.lead_conflict, to_jsonb(kept)
            || jsonb_build_object(''id'', kept.submission_id, ''created_by'', kept.actor,
                ''accepted_at'', kept.submitted_at, ''found_at'', now(),
                ''erased_lead_id'', buried_with)) AS conflict');
    after text := replace(copied, 'DELETE FROM public.lead_conversation link WHERE link.lead_id = target;',
        'WITH unlinked AS (
        DELETE FROM public.lead_conversation link WHERE link.lead_id = ANY (ARRAY(
            SELECT target
            UNION ALL SELECT kept.lead_id FROM public.resubmission kept
            WHERE kept.submission_id = ANY (own_submissions)
            UNION ALL SELECT a.lead_id FROM public.lead_alias a WHERE a.id = ANY (conflicts)))
          AND (link.lead_id = target OR link.submission_id = ANY (array_cat(conflicts, own_submissions)))
        RETURNING link.lead_id
    )
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin(''15 minutes'', l.created_at, TIMESTAMPTZ ''2000-01-01 00:00:00Z'')
    FROM unlinked JOIN public.lead l ON l.id = unlinked.lead_id;');
BEGIN
    ASSERT length(copied) < length(before) AND length(after) > length(copied);
    EXECUTE after;
END $$
"""


def upgrade() -> None:
    """Add the columns and their indexes, and change the function that erases."""
    for table in ("resubmission", "lead_conflict"):
        for name in COLUMNS:
            op.add_column(table, sa.Column(name, sa.Text(collation="C"), nullable=True))
            op.create_index(op.f(f"ix_{table}_{name}"), table, [name], postgresql_where=sa.text(f"{name} IS NOT NULL"))
        op.execute(f"CREATE INDEX ix_{table}_index_scheme ON {table} (left(phone_index, -44))")
        op.create_check_constraint(op.f(f"ck_{table}_blind_indexes"), table, TOGETHER)
    op.execute(ERASE)
