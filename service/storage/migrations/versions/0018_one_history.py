"""The histories of status and assignee are in `lead_event`; an erasure leaves one event there."""

from alembic import op

from service.storage.migrations.histories import move_histories

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

ERASE = """
DO $$
DECLARE
    before text := pg_get_functiondef('public.erase_lead'::regproc);
    after text := replace(replace(before,
        'DELETE FROM public.status_change s WHERE s.lead_id = target;',
        'DELETE FROM public.lead_event e WHERE e.lead_id = target;'),
        'DELETE FROM public.assignment_change s WHERE s.lead_id = target;',
        'INSERT INTO public.lead_event (type, lead_id, version, actor, reason, at)
    SELECT 7, l.id, l.version, actor, why, coalesce(died, now()) FROM public.lead l WHERE l.id = target;');
BEGIN
    ASSERT strpos(after, '_change') = 0 AND strpos(after, 'SELECT 7, l.id') > 0;
    EXECUTE after;
END $$
"""


def upgrade() -> None:
    """Move what `migrate` has not moved yet, remove the old tables; every daily file shows events now."""
    while move_histories(op.get_bind()):
        pass
    op.execute(ERASE)
    op.execute("DROP TABLE status_change, assignment_change")
    op.execute(
        "INSERT INTO lead_touch (quarter)"
        " SELECT DISTINCT date_bin('15 minutes', created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM lead"
    )
