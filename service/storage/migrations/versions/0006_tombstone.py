"""Tombstones, and the one way in which the application's role can remove a lead: a function that leaves one."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
# A submission that comes out of a spool and was erased meanwhile gets a tombstone of its own, or its date filled in.
GRANTS = "SELECT, INSERT, UPDATE (created_at)"

# Runs with the rights of its owner, the role that migrates, because the application's role may delete nothing. What it
# can be made to do is bounded by its text: one person's rows go, and a tombstone stays. Every name is qualified and the
# search path is fixed, so that no object of the caller's takes the place of one of ours.
#
# Locks: conflicts before leads, as ResolveConflict takes them. With the lead locked FOR UPDATE nothing can refer to it
# any more, neither a resubmission nor an alias nor a conflict, so what is looked for after that is complete. An id that
# has no row cannot be locked: then every writer of leads is waited for, and kept waiting, for as long as it takes to
# look once more and to put the tombstone up.
ERASE = """
CREATE FUNCTION erase_lead(
    wanted uuid, actor text, why text, born timestamptz DEFAULT NULL, died timestamptz DEFAULT NULL,
    erased_with uuid DEFAULT NULL, request bytea DEFAULT NULL
) RETURNS uuid[] LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target uuid;
    conflicts uuid[];
    submissions uuid[];
    gone uuid[];
BEGIN
    FOR attempt IN 1..2 LOOP
        target := coalesce((SELECT a.lead_id FROM public.lead_alias a WHERE a.id = wanted), wanted);
        PERFORM FROM public.lead_conflict c WHERE c.id = ANY (public.conflicts_of_lead(wanted, target))
            ORDER BY c.repeats IS NOT NULL, c.id FOR UPDATE;
        PERFORM FROM public.lead l WHERE l.id = target FOR UPDATE;
        conflicts := public.conflicts_of_lead(wanted, target);
        EXIT WHEN conflicts <> '{}' OR EXISTS (SELECT FROM public.lead l WHERE l.id = target);
        target := NULL;
        EXIT WHEN attempt = 2;
        PERFORM FROM public.tombstone t WHERE t.id = wanted FOR KEY SHARE;
        EXIT WHEN FOUND;
        LOCK TABLE public.lead IN SHARE ROW EXCLUSIVE MODE;
    END LOOP;

    IF target IS NULL THEN
        INSERT INTO public.tombstone AS t (id, lead_id, created_at, erased_at, erased_by, reason, request_digest)
        VALUES (wanted, coalesce(erased_with, wanted), born, coalesce(died, now()), actor, why, request)
        ON CONFLICT (id) DO UPDATE SET created_at = coalesce(t.created_at, excluded.created_at);
        RETURN (
            SELECT array_agg(other.id) FROM public.tombstone t JOIN public.tombstone other USING (lead_id)
            WHERE t.id = wanted AND t.created_at IS NOT NULL
        );
    END IF;

    SELECT coalesce(array_agg(DISTINCT kept.submission_id), '{}') INTO submissions
    FROM public.resubmission kept WHERE kept.lead_id = target;
    WITH entombed AS (
        INSERT INTO public.tombstone AS t (id, lead_id, created_at, erased_at, erased_by, reason, request_digest)
        SELECT DISTINCT ON (was.id) was.id, target, was.created_at, coalesce(died, now()), actor, why,
               sha256(convert_to(was.subject || E'\\n' || was.request_id, 'UTF8'))
        FROM (
            SELECT l.id, l.created_at, l.created_by, l.request_id, 1 FROM public.lead l WHERE l.id = target
            UNION ALL SELECT a.id, a.created_at, a.created_by, NULL, 2 FROM public.lead_alias a WHERE a.lead_id = target
            UNION ALL SELECT c.id, c.accepted_at, c.created_by, c.request_id, 3 FROM public.lead_conflict c
            WHERE c.id = ANY (conflicts)
            UNION ALL SELECT kept.submission_id, kept.submitted_at, kept.actor, kept.request_id, 4
            FROM public.resubmission kept WHERE kept.submission_id = ANY (submissions)
        ) was (id, created_at, subject, request_id, place)
        -- A conflict's id may have become another lead, or lead to one: those stay.
        WHERE NOT EXISTS (SELECT FROM public.lead l WHERE l.id = was.id AND l.id <> target)
          AND NOT EXISTS (SELECT FROM public.lead_alias a WHERE a.id = was.id AND a.lead_id <> target)
        ORDER BY was.id, was.request_id IS NULL, was.place
        ON CONFLICT (id) DO UPDATE SET created_at = coalesce(t.created_at, excluded.created_at),
            request_digest = coalesce(t.request_digest, excluded.request_digest)
        RETURNING t.id
    )
    SELECT array_agg(id) INTO gone FROM entombed;

    DELETE FROM public.status_change s WHERE s.lead_id = target;
    DELETE FROM public.assignment_change s WHERE s.lead_id = target;
    DELETE FROM public.lead_conversation link WHERE link.lead_id = target;
    WITH removed AS (
        DELETE FROM public.resubmission kept WHERE kept.lead_id = target OR kept.submission_id = ANY (gone)
        RETURNING kept.lead_id
    )
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin('15 minutes', l.created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z')
    FROM removed JOIN public.lead l ON l.id = removed.lead_id;
    DELETE FROM public.lead_alias a WHERE a.lead_id = target;
    DELETE FROM public.lead_conflict c WHERE c.id = ANY (conflicts);
    DELETE FROM public.lead l WHERE l.id = target;
    RETURN gone;
END $$
"""
# All conflicts that hold something of a lead: those that it came out of, those that met it, and what repeats them.
CONFLICTS_OF_LEAD = """
CREATE FUNCTION conflicts_of_lead(wanted uuid, target uuid) RETURNS uuid[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH met AS (
        SELECT coalesce(c.repeats, c.id) AS first FROM public.lead_conflict c
        WHERE c.id IN (wanted, target) OR c.id IN (SELECT a.id FROM public.lead_alias a WHERE a.lead_id = target)
           OR c.phone_lead_id = target OR c.nid_lead_id = target OR c.request_lead_id = target
    )
    SELECT coalesce(array_agg(c.id), '{}') FROM public.lead_conflict c
    WHERE c.id IN (SELECT first FROM met) OR c.repeats IN (SELECT first FROM met)
$$
"""
# The insert of a lead looks for tombstones with its own snapshot; one that was put up while it waited is seen here.
REFUSE = """
CREATE FUNCTION refuse_erased_leads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM touched JOIN public.tombstone USING (id)) THEN
        RAISE EXCEPTION 'a lead was erased while it was stored' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END $$
"""
FUNCTIONS = ("erase_lead(uuid, text, text, timestamptz, timestamptz, uuid, bytea)", "conflicts_of_lead(uuid, uuid)")


def upgrade() -> None:
    """Add the table, the function that erases, and the guard at the insert of leads."""
    op.create_table(
        "tombstone",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lead_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("erased_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("request_digest", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tombstone")),
    )
    op.create_index(op.f("ix_tombstone_lead_id"), "tombstone", ["lead_id"])
    op.create_index(op.f("ix_tombstone_erased_at"), "tombstone", ["erased_at"])
    op.create_index(
        op.f("ix_tombstone_request_digest"),
        "tombstone",
        ["request_digest"],
        postgresql_where=sa.text("request_digest IS NOT NULL"),
    )
    op.create_index(op.f("ix_resubmission_submission_id"), "resubmission", ["submission_id"])
    op.execute(CONFLICTS_OF_LEAD)
    op.execute(ERASE)
    op.execute(REFUSE)
    op.execute(
        "CREATE TRIGGER lead_insert_is_not_erased AFTER INSERT ON lead "
        "REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased_leads()"
    )
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {FUNCTIONS[0]} TO {APPLICATION_ROLE}")
    op.execute(f"GRANT {GRANTS} ON tombstone TO {APPLICATION_ROLE}")
