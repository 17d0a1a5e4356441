"""Erasing one person: what shares only a phone or only a nid with it stays. One history, which an erasure empties.

A lead that shares another lead's phone or nid takes its index entry over when that lead goes or changes its own.
"""

from alembic import op

from service.storage.schema import move_histories

revision = "0020"
down_revision = "0006a"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"

# The unique index decides who gets the entry: each lead tries, the oldest first, and one that another lead keeps out
# goes on sharing. To look first would be a guess: while an index key is rotated a lead has two entries of one value.
# Handed over in the transaction that frees the entry, so that an insert which waits for it finds it taken. The row
# itself may have shared a value by an old rule only, whose index it has just lost. An index that was empty before frees
# nothing.
FREES = " OR ".join(
    f"OLD.{column} <> NEW.{column} OR (OLD.{column} IS NOT NULL AND NEW.{column} IS NULL)"
    for column in ("phone_index", "nid_index", "phone_index_2", "nid_index_2")
)
HAND_OVER = f"""
CREATE FUNCTION leads_sharing_with(holder uuid) RETURNS SETOF uuid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.id FROM public.lead h JOIN public.lead s ON s.phone_index = h.phone_index AND s.phone_shared
    WHERE h.id = holder AND NOT h.phone_shared
    UNION
    SELECT s.id FROM public.lead h JOIN public.lead s ON s.phone_index_2 = h.phone_index_2 AND s.phone_shared
    WHERE h.id = holder AND NOT h.phone_shared
    UNION
    SELECT s.id FROM public.lead h JOIN public.lead s ON s.nid_index = h.nid_index AND s.nid_shared
    WHERE h.id = holder AND NOT h.nid_shared
    UNION
    SELECT s.id FROM public.lead h JOIN public.lead s ON s.nid_index_2 = h.nid_index_2 AND s.nid_shared
    WHERE h.id = holder AND NOT h.nid_shared
$$;
CREATE FUNCTION claim_index_entries(candidates uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sharing record;
BEGIN
    FOR sharing IN
        SELECT l.id, l.phone_shared, l.nid_shared FROM public.lead l
        WHERE l.id = ANY (candidates) AND (l.phone_shared OR l.nid_shared) ORDER BY l.created_at, l.id
    LOOP
        IF sharing.phone_shared THEN
            BEGIN
                UPDATE public.lead l SET phone_shared = false WHERE l.id = sharing.id AND l.phone_shared;
            EXCEPTION WHEN unique_violation THEN
                NULL;
            END;
        END IF;
        IF sharing.nid_shared THEN
            BEGIN
                UPDATE public.lead l SET nid_shared = false WHERE l.id = sharing.id AND l.nid_shared;
            EXCEPTION WHEN unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
END $$;
CREATE FUNCTION hand_over_index_entries() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    candidates uuid[];
BEGIN
    candidates := ARRAY(
        SELECT s.id FROM public.lead s WHERE s.phone_shared AND s.phone_index = OLD.phone_index
        UNION SELECT s.id FROM public.lead s WHERE s.phone_shared AND s.phone_index_2 = OLD.phone_index_2
        UNION SELECT s.id FROM public.lead s WHERE s.nid_shared AND s.nid_index = OLD.nid_index
        UNION SELECT s.id FROM public.lead s WHERE s.nid_shared AND s.nid_index_2 = OLD.nid_index_2
        UNION SELECT OLD.id WHERE OLD.phone_shared OR OLD.nid_shared);
    IF candidates <> '{{}}' THEN
        PERFORM public.claim_index_entries(candidates);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER lead_deleted_hands_over AFTER DELETE ON lead
    FOR EACH ROW EXECUTE FUNCTION hand_over_index_entries();
CREATE TRIGGER lead_reindexed_hands_over AFTER UPDATE OF phone_index, nid_index, phone_index_2, nid_index_2 ON lead
    FOR EACH ROW WHEN ({FREES}) EXECUTE FUNCTION hand_over_index_entries();
SELECT claim_index_entries(ARRAY(SELECT id FROM lead WHERE phone_shared OR nid_shared));
"""

# Both functions run with the rights of their owner, the role that migrates, because the application's role may delete
# nothing. What they can be made to do is bounded by their text: a tombstone stays for each id that goes. Every name is
# qualified and the search path is fixed, so that no object of the caller's takes the place of one of ours.
#
# Locks (docs/architecture.md, "Which locks are taken, and in which order"): leads in the order of ids, together with
# those that take an entry over; then conflicts. What the id leads to is looked up again with the locks held, because it
# may have been decided, or erased, while this waited. With the lead locked nothing can refer to it any more, neither a
# resubmission nor an alias nor a conflict, so what the caller reads after this is complete. An id without a row
# cannot be locked: then all who write leads are waited for, and kept waiting, until the tombstone is up.
LOCK = """
CREATE FUNCTION lock_for_erasure(wanted uuid) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target uuid;
    known boolean;
    writers_wait boolean := false;
BEGIN
    PERFORM pg_advisory_xact_lock(1280001362);  -- "LKER", see service/storage/leads/erasing.py
    LOOP
        target := coalesce((SELECT a.lead_id FROM public.lead_alias a WHERE a.id = wanted), wanted);
        PERFORM FROM public.lead l
            WHERE l.id IN (SELECT target UNION ALL SELECT public.leads_sharing_with(target)) ORDER BY l.id FOR UPDATE;
        PERFORM FROM public.lead_conflict c
            WHERE c.id IN (wanted, target) OR c.phone_lead_id = target OR c.nid_lead_id = target
               OR c.request_lead_id = target
               OR c.id IN (SELECT a.id FROM public.lead_alias a WHERE a.lead_id = target)
            ORDER BY c.id FOR UPDATE;
        known := FOUND OR EXISTS (SELECT FROM public.lead l WHERE l.id = target);
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
# with no other lead becomes a conflict, with all columns that both have, unless `keeps_others` is false. With a
# submission goes the link by which its conversation leads to another person's lead. Of the history one event stays.
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
        INSERT INTO public.lead_conflict SELECT conflict.*
        FROM public.resubmission kept, jsonb_populate_record(NULL::public.lead_conflict, to_jsonb(kept)
            || jsonb_build_object('id', kept.submission_id, 'created_by', kept.actor,
                'accepted_at', kept.submitted_at, 'found_at', now(),
                'erased_lead_id', buried_with)) AS conflict
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

    DELETE FROM public.lead_event e WHERE e.lead_id = target;
    INSERT INTO public.lead_event (type, lead_id, version, actor, reason, at)
    SELECT 7, l.id, l.version, actor, why, coalesce(died, now()) FROM public.lead l WHERE l.id = target;
    WITH unlinked AS (
        DELETE FROM public.lead_conversation link WHERE link.lead_id = ANY (ARRAY(
            SELECT target
            UNION ALL SELECT kept.lead_id FROM public.resubmission kept
            WHERE kept.submission_id = ANY (own_submissions)
            UNION ALL SELECT a.lead_id FROM public.lead_alias a WHERE a.id = ANY (conflicts)))
          AND (link.lead_id = target OR link.submission_id = ANY (array_cat(conflicts, own_submissions)))
        RETURNING link.lead_id
    )
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin('15 minutes', l.created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z')
    FROM unlinked JOIN public.lead l ON l.id = unlinked.lead_id;
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
FUNCTIONS = (
    "lock_for_erasure(uuid)",
    "erase_lead(uuid, uuid, text, text, uuid[], uuid[], boolean, timestamptz, timestamptz, uuid, bytea)",
)


def upgrade() -> None:
    """Move what `migrate` has not moved yet, remove what was there before, and have every daily file rendered anew."""
    while move_histories(op.get_bind()):
        pass
    op.execute("DROP TABLE status_change, assignment_change")
    for script in (HAND_OVER, LOCK, ERASE):
        op.execute(script)
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {APPLICATION_ROLE}")
    # A copy of an erased request may still wait in another replica's spool: the one that is drained first names it.
    op.execute(f"GRANT UPDATE (request_digest) ON tombstone TO {APPLICATION_ROLE}")
    op.execute(
        "INSERT INTO lead_touch (quarter)"
        " SELECT DISTINCT date_bin('15 minutes', created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM lead"
    )
