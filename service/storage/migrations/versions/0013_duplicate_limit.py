"""An index by which the duplicates are counted that a subject found lately."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it."""
    op.create_index(
        op.f("ix_resubmission_actor_submitted_at"),
        "resubmission",
        ["actor", "submitted_at"],
        postgresql_where=sa.text("NOT verified"),
    )
