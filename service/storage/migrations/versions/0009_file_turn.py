"""The turn of the replica that renders the daily files: a lease, where the lock of a session was."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"


def upgrade() -> None:
    """Add the lease, which nobody holds."""
    op.create_table(
        "file_turn",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_file_turn_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_turn")),
    )
    op.execute("INSERT INTO file_turn VALUES (1, '00000000-0000-0000-0000-000000000000', '-infinity')")
    op.execute(f"GRANT SELECT, UPDATE ON file_turn TO {APPLICATION_ROLE}")
