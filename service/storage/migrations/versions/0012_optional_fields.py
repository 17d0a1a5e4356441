"""Leads without a national ID, an address or a policy: an operator may do without them."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

WHOLE = (
    "num_nonnulls(phone_index, phone_index_2) > 0 AND (num_nonnulls(nid_index, nid_index_2) > 0) = (nid IS NOT NULL)"
    " AND octet_length(phone_index) = 32 AND octet_length(nid_index) = 32"
    " AND octet_length(phone_index_2) = 32 AND octet_length(nid_index_2) = 32"
)


def upgrade() -> None:
    """Let the columns be NULL wherever a submission is stored; a lead without a nid has no blind index of one."""
    for table in ("lead", "resubmission", "lead_conflict"):
        for column in ("nid", "address", "interested_policy"):
            op.alter_column(table, column, nullable=True)
    op.drop_constraint(op.f("ck_lead_blind_indexes"), "lead")
    op.create_check_constraint(op.f("ck_lead_blind_indexes"), "lead", WHOLE)
