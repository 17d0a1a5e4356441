"""An erasure takes one person. What shares only a phone or only a nid with it stays, as an undecided conflict."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
OLD_FUNCTIONS = (
    "erase_lead(uuid, text, text, timestamptz, timestamptz, uuid, bytea)",
    "conflicts_of_lead(uuid, uuid)",
)

# Both functions run with the rights of their owner, the role that migrates, because the application's role may delete
# nothing. What they can be made to do is bounded by their text: a tombstone stays for each id that goes. Every name is
# qualified and the search path is fixed, so that no object of the caller's takes the place of one of ours.
#
# Locks: conflicts before leads, as ResolveConflict takes them. With the lead locked FOR UPDATE nothing can refer to it
# any more, neither a resubmission nor an alias nor a conflict, so what the caller reads after this is complete. An id
# that has no row cannot be locked: then every writer of leads is waited for, and kept waiting, for as long as it takes
# to look once more and to put the tombstone up.
TARGET = """
CREATE FUNCTION lock_for_erasure(wanted uuid) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target uuid;
    known boolean;
    writers_wait boolean := false;
BEGIN
    LOOP
        target := coalesce((SELECT a.lead_id FROM public.lead_alias a WHERE a.id = wanted), wanted);
        PERFORM FROM public.lead_conflict c
            WHERE c.id IN (wanted, target) OR c.phone_lead_id = target OR c.nid_lead_id = target
               OR c.request_lead_id = target
               OR c.id IN (SELECT a.id FROM public.lead_alias a WHERE a.lead_id = target)
            ORDER BY c.repeats IS NOT NULL, c.id FOR UPDATE;
        known := FOUND;
        PERFORM FROM public.lead l WHERE l.id = target FOR UPDATE;
        known := known OR FOUND;
        -- While this waited, the id may have been decided to lead to a lead, or its lead may have been erased.
        CONTINUE WHEN target <> coalesce((SELECT a.lead_id FROM public.lead_alias a WHERE a.id = wanted), wanted);
        IF known THEN
            RETURN target;
        END IF;
        EXIT WHEN writers_wait;
        PERFORM FROM public.tombstone t WHERE t.id = wanted FOR KEY SHARE;
        EXIT WHEN FOUND;
        LOCK TABLE public.lead IN SHARE ROW EXCLUSIVE MODE;
        writers_wait := true;
    END LOOP;
    RETURN NULL;
END $$
"""
# `target` is what lock_for_erasure answered in this transaction. `own_conflicts` and `own_submissions` are the
# person's; what else refers to the lead is another person's: a conflict loses the lead, and a resubmission that is kept
# with no other lead becomes a conflict, unless `keeps_others` is false.
ERASE = """
CREATE FUNCTION erase_lead(
    wanted uuid, target uuid, actor text, why text, own_conflicts uuid[], own_submissions uuid[], keeps_others boolean,
    born timestamptz, died timestamptz, erased_with uuid, request bytea
) RETURNS uuid[] LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    buried_with uuid := coalesce(erased_with, target, wanted);
    conflicts uuid[];
    gone uuid[];
BEGIN
    IF target IS NULL THEN
        INSERT INTO public.tombstone AS t (id, lead_id, created_at, erased_at, erased_by, reason, request_digest)
        VALUES (wanted, buried_with, born, coalesce(died, now()), actor, why, request)
        ON CONFLICT (id) DO UPDATE SET created_at = coalesce(t.created_at, excluded.created_at),
            request_digest = coalesce(t.request_digest, excluded.request_digest);
        RETURN (
            SELECT array_agg(other.id) FROM public.tombstone t JOIN public.tombstone other USING (lead_id)
            WHERE t.id = wanted AND t.created_at IS NOT NULL
        );
    END IF;

    -- What repeats a conflict's request shares its fate.
    SELECT coalesce(array_agg(c.id), '{}') INTO conflicts FROM public.lead_conflict c
    WHERE c.id = ANY (own_conflicts) OR c.repeats = ANY (own_conflicts)
       OR c.id IN (SELECT r.repeats FROM public.lead_conflict r WHERE r.id = ANY (own_conflicts));
    SELECT array_cat(conflicts, coalesce(array_agg(c.id), '{}')) INTO conflicts FROM public.lead_conflict c
    WHERE c.repeats = ANY (conflicts) AND c.id <> ALL (conflicts);

    WITH entombed AS (
        INSERT INTO public.tombstone AS t (id, lead_id, created_at, erased_at, erased_by, reason, request_digest)
        SELECT DISTINCT ON (was.id) was.id, buried_with, was.created_at, coalesce(died, now()), actor, why,
               sha256(convert_to(was.subject || E'\\n' || was.request_id, 'UTF8'))
        FROM (
            SELECT l.id, l.created_at, l.created_by, l.request_id, 1 FROM public.lead l WHERE l.id = target
            UNION ALL SELECT a.id, a.created_at, a.created_by, NULL, 2 FROM public.lead_alias a WHERE a.lead_id = target
            UNION ALL SELECT c.id, c.accepted_at, c.created_by, c.request_id, 3 FROM public.lead_conflict c
            WHERE c.id = ANY (conflicts)
            UNION ALL SELECT kept.submission_id, kept.submitted_at, kept.actor, kept.request_id, 4
            FROM public.resubmission kept WHERE kept.submission_id = ANY (own_submissions)
        ) was (id, created_at, subject, request_id, place)
        -- A conflict's id may have become another lead, or lead to one: those stay.
        WHERE NOT EXISTS (SELECT FROM public.lead l WHERE l.id = was.id AND l.id <> target)
          AND NOT EXISTS (SELECT FROM public.lead_alias a WHERE a.id = was.id AND a.lead_id <> target)
        ORDER BY was.id, was.request_id IS NULL, was.place
        ON CONFLICT (id) DO UPDATE SET created_at = coalesce(t.created_at, excluded.created_at),
            request_digest = coalesce(t.request_digest, excluded.request_digest)
        RETURNING t.id
    )
    SELECT coalesce(array_agg(id), '{}') INTO gone FROM entombed;

    IF keeps_others THEN
        INSERT INTO public.lead_conflict (id, name, phone, nid, address, interested_policy, email,
            preferred_contact_time, notes, conversation_id, created_by, request_id, content_digest, accepted_at,
            erased_lead_id)
        SELECT kept.submission_id, kept.name, kept.phone, kept.nid, kept.address, kept.interested_policy, kept.email,
            kept.preferred_contact_time, kept.notes, kept.conversation_id, kept.actor, kept.request_id,
            kept.content_digest, kept.submitted_at, buried_with
        FROM public.resubmission kept
        WHERE kept.lead_id = target AND kept.submission_id <> ALL (own_submissions) AND NOT EXISTS (
            SELECT FROM public.resubmission other
            WHERE other.submission_id = kept.submission_id AND other.lead_id <> target)
        ON CONFLICT DO NOTHING;
    END IF;
    UPDATE public.lead_conflict c SET phone_lead_id = nullif(c.phone_lead_id, target),
        nid_lead_id = nullif(c.nid_lead_id, target), request_lead_id = nullif(c.request_lead_id, target),
        erased_lead_id = buried_with
    WHERE (c.phone_lead_id = target OR c.nid_lead_id = target OR c.request_lead_id = target)
      AND c.id <> ALL (conflicts);

    DELETE FROM public.status_change s WHERE s.lead_id = target;
    DELETE FROM public.assignment_change s WHERE s.lead_id = target;
    DELETE FROM public.lead_conversation link WHERE link.lead_id = target;
    WITH removed AS (
        DELETE FROM public.resubmission kept
        WHERE kept.lead_id = target OR kept.submission_id = ANY (own_submissions) OR kept.submission_id = ANY (gone)
        RETURNING kept.lead_id
    )
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin('15 minutes', l.created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z')
    FROM removed JOIN public.lead l ON l.id = removed.lead_id;
    DELETE FROM public.lead_alias a WHERE a.lead_id = target;
    DELETE FROM public.lead_conflict c WHERE c.id = ANY (conflicts);
    DELETE FROM public.lead l WHERE l.id = target;
    RETURN nullif(gone, '{}');
END $$
"""
# As in 0006, and for a copy of an erased request, whose insert waited for the erased row: its id has no tombstone. A
# submission that is new bears the time of its own transaction.
REFUSE = """
CREATE OR REPLACE FUNCTION refuse_erased_leads() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    erased boolean;
    late boolean;
BEGIN
    SELECT bool_or(t.id IS NOT NULL), bool_or(touched.created_at < now()) INTO erased, late
    FROM touched LEFT JOIN public.tombstone t USING (id);
    -- Apart, so that an insert of new submissions alone does not pay for it.
    IF late AND NOT erased THEN
        erased := EXISTS (
            SELECT FROM touched
            JOIN public.tombstone t
                ON t.request_digest = sha256(convert_to(touched.created_by || E'\\n' || touched.request_id, 'UTF8'))
                AND t.erased_at >= touched.created_at
            WHERE touched.created_at < now()
        );
    END IF;
    IF erased THEN
        RAISE EXCEPTION 'a lead was erased while it was stored' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END $$
"""
FUNCTIONS = (
    "lock_for_erasure(uuid)",
    "erase_lead(uuid, uuid, text, text, uuid[], uuid[], boolean, timestamptz, timestamptz, uuid, bytea)",
)


def upgrade() -> None:
    """Let a conflict outlive the lead that it shared something with, and replace the function that erases."""
    op.add_column("lead_conflict", sa.Column("erased_lead_id", sa.Uuid(), nullable=True))
    op.create_index(
        op.f("ix_lead_conflict_erased_lead_id"),
        "lead_conflict",
        ["erased_lead_id"],
        postgresql_where=sa.text("erased_lead_id IS NOT NULL"),
    )
    op.drop_constraint(op.f("ck_lead_conflict_meets"), "lead_conflict")
    op.create_check_constraint(
        op.f("ck_lead_conflict_meets"),
        "lead_conflict",
        "num_nonnulls(phone_lead_id, nid_lead_id, request_lead_id, erased_lead_id) > 0",
    )
    for function in OLD_FUNCTIONS:
        op.execute(f"DROP FUNCTION IF EXISTS {function}")
    op.execute(TARGET)
    op.execute(ERASE)
    op.execute(REFUSE)
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {APPLICATION_ROLE}")
    # A copy of an erased request may still wait in another replica's spool: the one that is drained first names it.
    op.execute(f"GRANT UPDATE (request_digest) ON tombstone TO {APPLICATION_ROLE}")
