"""Questions to other replicas about what waits in their spools, and what those have yet to erase there."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
# Neither in the log nor in a backup: a question lasts seconds.
SEARCH = """
CREATE UNLOGGED TABLE spool_search (
    id uuid NOT NULL CONSTRAINT pk_spool_search PRIMARY KEY,
    replica text NOT NULL,
    asked_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    question jsonb NOT NULL,
    answer text
)
"""
ERASURE = """
CREATE TABLE spool_erasure (
    id bigint GENERATED ALWAYS AS IDENTITY NOT NULL CONSTRAINT pk_spool_erasure PRIMARY KEY,
    replica text NOT NULL,
    erased_id uuid NOT NULL,
    opened_at timestamptz DEFAULT now() NOT NULL,
    sought jsonb NOT NULL
)
"""


def upgrade() -> None:
    """Create both."""
    op.execute(SEARCH)
    op.execute(ERASURE)
    op.execute("CREATE INDEX ix_spool_erasure_replica ON spool_erasure (replica)")
    op.execute("CREATE INDEX ix_spool_erasure_erased_id ON spool_erasure (erased_id)")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON spool_search TO {APPLICATION_ROLE}")
    op.execute(f"GRANT SELECT, INSERT, DELETE ON spool_erasure TO {APPLICATION_ROLE}")
