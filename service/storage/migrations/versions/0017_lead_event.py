"""One table for everything that happens to a lead. `migrate` fills it before 0018 removes the histories of before."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
STATUSES = "('new', 'contacted', 'converted', 'not_interested')"
TABLE = f"""
CREATE TABLE lead_event (
    at timestamptz DEFAULT now() NOT NULL,
    transaction_id xid8 DEFAULT pg_current_xact_id() NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    version bigint NOT NULL,
    lead_id uuid NOT NULL,
    type smallint NOT NULL CONSTRAINT ck_lead_event_type CHECK (type BETWEEN 1 AND 7),
    actor text NOT NULL,
    reason text,
    fields text[],
    from_status text,
    to_status text,
    from_assignee text,
    to_assignee text,
    CONSTRAINT pk_lead_event PRIMARY KEY (lead_id, version, id),
    CONSTRAINT ck_lead_event_status CHECK ((type = 3) =
        ((from_status IN {STATUSES} AND to_status IN {STATUSES} AND from_status <> to_status) IS TRUE))
)
"""


def upgrade() -> None:
    """Create it. From here on nothing is added to the histories, so that none of it is lost with them."""
    op.execute(TABLE)
    op.execute(f"GRANT SELECT, INSERT ON lead_event TO {APPLICATION_ROLE}")
    op.execute(f"REVOKE INSERT ON status_change, assignment_change FROM {APPLICATION_ROLE}")
