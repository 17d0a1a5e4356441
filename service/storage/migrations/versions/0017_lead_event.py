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
    placed_at timestamptz,
    CONSTRAINT pk_lead_event PRIMARY KEY (lead_id, version, id),
    CONSTRAINT ck_lead_event_status CHECK ((type = 3) =
        ((from_status IN {STATUSES} AND to_status IN {STATUSES} AND from_status <> to_status) IS TRUE))
)
"""

# So that a page of a history and of the looks at its lead needs no event before it. The first event needs no place.
PLACE = """
CREATE FUNCTION place_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT coalesce(e.placed_at, e.at) INTO NEW.placed_at FROM public.lead_event e
    WHERE e.lead_id = NEW.lead_id ORDER BY e.version DESC, e.id DESC LIMIT 1;
    IF NEW.placed_at <= NEW.at THEN
        NEW.placed_at := NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER lead_event_has_place BEFORE INSERT ON lead_event
    FOR EACH ROW WHEN (NEW.type <> 1) EXECUTE FUNCTION place_event();
"""


def upgrade() -> None:
    """Create it. From here on nothing is added to the histories, so that none of it is lost with them."""
    op.execute(TABLE)
    op.execute(PLACE)
    op.execute(f"GRANT SELECT, INSERT ON lead_event TO {APPLICATION_ROLE}")
    op.execute(f"REVOKE INSERT ON status_change, assignment_change FROM {APPLICATION_ROLE}")
