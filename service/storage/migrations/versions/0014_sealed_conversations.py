"""Conversation ids are sealed: room for tokens and blind indexes, and triggers that refuse new ones in clear.

What is stored stays in clear until `keys reseal` has sealed it while the service runs: only that has the keys.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
IN_CLEAR = "strpos(conversation_id, '.gAAAAAAAAAAA') = 0"
TOKENS = "phone, nid, address, email, notes, conversation_id"
# As in 0004, and for conversation_id. A row that is in clear yet can be changed otherwise, a lead's status for one.
REFUSE = """
    IF (TG_OP = 'INSERT' OR NEW.conversation_id IS DISTINCT FROM OLD.conversation_id)
        AND strpos(NEW.conversation_id, '.gAAAAAAAAAAA') = 0 THEN
        RAISE EXCEPTION 'a conversation id in clear' USING ERRCODE = 'check_violation';
    END IF;
    IF refused <> '{}' AND ARRAY[
        split_part(NEW.phone, '.', 1), split_part(NEW.nid, '.', 1), split_part(NEW.address, '.', 1),
        split_part(NEW.email, '.', 1), split_part(NEW.notes, '.', 1), split_part(NEW.conversation_id, '.', 1)
    ] && refused THEN
        RAISE EXCEPTION 'sealed with a retired key' USING ERRCODE = 'LK002';
    END IF;
    RETURN NEW;
END $$
"""
# The lock is taken in an expression: PERFORM would run a query, which costs a new lead 4 % of PostgreSQL's time.
REFUSE_LEADS = (
    """
CREATE OR REPLACE FUNCTION refuse_old_leads() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    accepted bigint;
    refused text[];
BEGIN
    IF pg_advisory_xact_lock_shared(1280002905) IS NULL THEN NULL; END IF;
    SELECT accepts_from, retired_keys INTO accepted, refused FROM public.key_canary;
    IF NEW.index_epoch < accepted AND (
        TG_OP = 'INSERT'
        OR NEW.phone_index IS DISTINCT FROM OLD.phone_index OR NEW.phone_index_2 IS DISTINCT FROM OLD.phone_index_2
        OR NEW.nid_index IS DISTINCT FROM OLD.nid_index OR NEW.nid_index_2 IS DISTINCT FROM OLD.nid_index_2
    ) THEN
        RAISE EXCEPTION 'blind indexes of an old plan' USING ERRCODE = 'LK001';
    END IF;
"""  # noqa: S608 # our own names
    + REFUSE
)
REFUSE_TOKENS = (
    """
CREATE OR REPLACE FUNCTION refuse_retired_keys() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    refused text[];
BEGIN
    IF pg_advisory_xact_lock_shared(1280002905) IS NULL THEN NULL; END IF;
    SELECT retired_keys INTO refused FROM public.key_canary;
"""  # noqa: S608 # our own names
    + REFUSE
)


def upgrade() -> None:
    """Change the links and the triggers. Migration 0010 has every daily file rendered anew already."""
    op.execute("ALTER TABLE lead_conversation DROP CONSTRAINT pk_lead_conversation")
    op.add_column("lead_conversation", sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False))
    op.add_column("lead_conversation", sa.Column("submission_id", sa.Uuid(), nullable=True))
    op.add_column("lead_conversation", sa.Column("conversation_index", sa.Text(), nullable=True))
    # Which submission a link came with was not kept: its token will be bound to the lead's id.
    op.execute("UPDATE lead_conversation SET submission_id = lead_id")
    op.alter_column("lead_conversation", "submission_id", nullable=False)
    op.create_primary_key(op.f("pk_lead_conversation"), "lead_conversation", ["lead_id", "id"])
    op.drop_index(op.f("ix_lead_conversation_lead_id"), "lead_conversation")
    op.create_index(
        op.f("ix_lead_conversation_conversation_index"), "lead_conversation", ["conversation_index"], unique=False
    )
    op.create_check_constraint(
        op.f("ck_lead_conversation_sealed"), "lead_conversation", f"(conversation_index IS NULL) = ({IN_CLEAR})"
    )
    op.execute(f"GRANT UPDATE (conversation_id, conversation_index) ON lead_conversation TO {APPLICATION_ROLE}")
    for table in ("lead", "resubmission", "lead_conflict", "lead_conversation"):
        op.create_index(
            op.f(f"ix_{table}_conversation_id"), table, ["conversation_id"], postgresql_where=sa.text(IN_CLEAR)
        )
    op.execute(REFUSE_LEADS)
    op.execute(REFUSE_TOKENS)
    indexes = "phone_index, nid_index, phone_index_2, nid_index_2"
    for table, columns, function in (
        ("lead", f"{indexes}, {TOKENS}", "refuse_old_leads"),
        ("resubmission", TOKENS, "refuse_retired_keys"),
        ("lead_conflict", TOKENS, "refuse_retired_keys"),
    ):
        op.execute(
            f"CREATE OR REPLACE TRIGGER {table}_is_current BEFORE INSERT OR UPDATE OF {columns} ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION {function}()"
        )
