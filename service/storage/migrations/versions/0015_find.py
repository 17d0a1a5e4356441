"""Leads are found by their e-mail and by the reference of their confirmation.

The leads that are there get their blind index of the e-mail by `keys reseal`, while the service runs: only that has the
keys.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# The last 5 bytes of the id: service/validation/reference.py spells them.
REFERENCE = sa.text("substr(uuid_send(id), 12)")


def upgrade() -> None:
    """Add the column and the indexes."""
    op.add_column("lead", sa.Column("email_index", sa.Text(), nullable=True))
    op.create_check_constraint(op.f("ck_lead_email_index"), "lead", "email IS NOT NULL OR email_index IS NULL")
    for name, condition in (
        ("ix_lead_email_index", "email_index IS NOT NULL"),
        ("ix_lead_lacks_email_index", "email IS NOT NULL AND email_index IS NULL"),
    ):
        op.create_index(op.f(name), "lead", ["email_index"], postgresql_where=sa.text(condition))
    for table, waits in (("lead", None), ("lead_alias", None), ("lead_conflict", sa.text("resolution IS NULL"))):
        op.create_index(op.f(f"ix_{table}_reference"), table, [REFERENCE], postgresql_where=waits)
