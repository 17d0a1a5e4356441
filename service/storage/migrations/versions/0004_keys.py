"""Keys that can be changed: a second pair of blind indexes, where a rotation stands, and what each replica has."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
CHANGING = "sealed, digest, normaliser, pair, next_digest, next_normaliser, clearing, epoch, accepts_from, retired_keys"
GRANTS = {"replica": "SELECT, INSERT, UPDATE, DELETE", "key_canary": f"UPDATE ({CHANGING})"}

WHOLE = (
    "num_nonnulls(phone_index, phone_index_2) > 0 AND num_nonnulls(nid_index, nid_index_2) > 0"
    " AND octet_length(phone_index) = 32 AND octet_length(nid_index) = 32"
    " AND octet_length(phone_index_2) = 32 AND octet_length(nid_index_2) = 32"
)

# Both take the lock ("LKKY") that a change of what is refused takes alone (storage/keys/canary.py): when the change is
# made, every transaction that looked before it has ended.
REFUSE_LEADS = """
CREATE FUNCTION refuse_old_leads() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    accepted bigint;
    refused text[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1280002905);
    SELECT accepts_from, retired_keys INTO accepted, refused FROM public.key_canary;
    IF NEW.index_epoch < accepted AND (
        TG_OP = 'INSERT'
        OR NEW.phone_index IS DISTINCT FROM OLD.phone_index OR NEW.phone_index_2 IS DISTINCT FROM OLD.phone_index_2
        OR NEW.nid_index IS DISTINCT FROM OLD.nid_index OR NEW.nid_index_2 IS DISTINCT FROM OLD.nid_index_2
    ) THEN
        RAISE EXCEPTION 'blind indexes of an old plan' USING ERRCODE = 'LK001';
    END IF;
    IF refused <> '{}' AND ARRAY[
        split_part(NEW.phone, '.', 1), split_part(NEW.nid, '.', 1), split_part(NEW.address, '.', 1),
        split_part(NEW.email, '.', 1), split_part(NEW.notes, '.', 1)] && refused THEN
        RAISE EXCEPTION 'sealed with a retired key' USING ERRCODE = 'LK002';
    END IF;
    RETURN NEW;
END $$
"""
REFUSE_TOKENS = """
CREATE FUNCTION refuse_retired_keys() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    refused text[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1280002905);
    SELECT retired_keys INTO refused FROM public.key_canary;
    IF refused <> '{}' AND ARRAY[
        split_part(NEW.phone, '.', 1), split_part(NEW.nid, '.', 1), split_part(NEW.address, '.', 1),
        split_part(NEW.email, '.', 1), split_part(NEW.notes, '.', 1)] && refused THEN
        RAISE EXCEPTION 'sealed with a retired key' USING ERRCODE = 'LK002';
    END IF;
    RETURN NEW;
END $$
"""
TOKENS = "phone, nid, address, email, notes"


def upgrade() -> None:
    """Add the columns, their indexes, the table and the triggers."""
    for field in ("phone", "nid"):
        op.alter_column("lead", f"{field}_index", nullable=True)
        op.add_column("lead", sa.Column(f"{field}_index_2", sa.LargeBinary(), nullable=True))
        op.drop_index(f"uq_lead_{field}_index", "lead")
        op.drop_index(f"ix_lead_{field}_shared", "lead")
        for index, pair in ((f"{field}_index", ""), (f"{field}_index_2", "_2")):
            kept = f"{index} IS NOT NULL AND"
            op.create_index(
                f"uq_lead_{field}_index{pair}",
                "lead",
                [index],
                unique=True,
                postgresql_where=sa.text(f"{kept} NOT {field}_shared"),
            )
            op.create_index(
                f"ix_lead_{field}_shared{pair}", "lead", [index], postgresql_where=sa.text(f"{kept} {field}_shared")
            )
    op.add_column("lead", sa.Column("index_epoch", sa.BigInteger(), server_default="0", nullable=False))
    op.drop_constraint(op.f("ck_lead_blind_indexes"), "lead")
    op.create_check_constraint(op.f("ck_lead_blind_indexes"), "lead", WHOLE)
    for column in (
        sa.Column("database", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("pair", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("next_digest", sa.LargeBinary(), nullable=True),
        sa.Column("next_normaliser", sa.Text(), nullable=True),
        sa.Column("clearing", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("accepts_from", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("retired_keys", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    ):
        op.add_column("key_canary", column)
    for name, condition in (
        ("pair", "pair IN (1, 2)"),
        ("next", "(next_digest IS NULL) = (next_normaliser IS NULL)"),
        ("epoch", "accepts_from <= epoch"),
    ):
        op.create_check_constraint(op.f(f"ck_key_canary_{name}"), "key_canary", condition)
    op.create_table(
        "replica",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("opens", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("seals", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("spool_keys", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('running', 'stopped')", name=op.f("ck_replica_state")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_replica")),
    )
    op.execute(REFUSE_LEADS)
    op.execute(REFUSE_TOKENS)
    op.execute(
        "CREATE TRIGGER lead_is_current BEFORE INSERT OR UPDATE OF phone_index, nid_index, phone_index_2, nid_index_2,"
        f" {TOKENS} ON lead FOR EACH ROW EXECUTE FUNCTION refuse_old_leads()"
    )
    for table in ("resubmission", "lead_conflict"):
        op.execute(
            f"CREATE TRIGGER {table}_is_current BEFORE INSERT OR UPDATE OF {TOKENS} ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION refuse_retired_keys()"
        )
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {APPLICATION_ROLE}")
