"""A lead that shares another lead's phone or nid takes its index entry over when that lead goes or changes its own."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"

SHARING = """
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
$$
"""
# The unique index decides who gets the entry: each lead tries, the oldest first, and one that another lead keeps out
# goes on sharing. To look first would be a guess: while an index key is rotated a lead has two entries of one value.
CLAIM = """
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
END $$
"""
# In the transaction that frees the entry, so that an insert which waits for it finds it taken. The row itself may have
# shared a value by an old rule only, whose index it has just lost.
HAND_OVER = """
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
    IF candidates <> '{}' THEN
        PERFORM public.claim_index_entries(candidates);
    END IF;
    RETURN NULL;
END $$
"""
# An index that was empty before frees nothing.
FREES = " OR ".join(
    f"OLD.{column} <> NEW.{column} OR (OLD.{column} IS NOT NULL AND NEW.{column} IS NULL)"
    for column in ("phone_index", "nid_index", "phone_index_2", "nid_index_2")
)
# Locks (docs/architecture.md, "Which locks are taken, and in which order"): leads in the order of ids, together with
# those that take an entry over; then conflicts. What the id leads to is looked up again with the locks held, because it
# may have been decided, or erased, while this waited. With the lead locked nothing can refer to it any more, neither a
# resubmission nor an alias nor a conflict, so what the caller reads after this is complete. An id without a row
# cannot be locked: then all who write leads are waited for, and kept waiting, until the tombstone is up.
TARGET = """
CREATE OR REPLACE FUNCTION lock_for_erasure(wanted uuid) RETURNS uuid
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
# As in 0006 again: what stores drained submissions excludes erasures, so it sees the tombstone of a request itself. The
# time of a row here is a replica's, which must not be compared with the database's.
REFUSE = """
CREATE OR REPLACE FUNCTION refuse_erased_leads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM touched JOIN public.tombstone USING (id)) THEN
        RAISE EXCEPTION 'a lead was erased while it was stored' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Add the triggers, let leads take over what is free already, and follow ids with the locks held."""
    for function in (SHARING, CLAIM, HAND_OVER, TARGET, REFUSE):
        op.execute(function)
    for event, condition in (
        ("deleted", "AFTER DELETE ON lead FOR EACH ROW"),
        (
            "reindexed",
            f"AFTER UPDATE OF phone_index, nid_index, phone_index_2, nid_index_2 ON lead FOR EACH ROW WHEN ({FREES})",
        ),
    ):
        op.execute(f"CREATE TRIGGER lead_{event}_hands_over {condition} EXECUTE FUNCTION hand_over_index_entries()")
    op.execute("SELECT claim_index_entries(ARRAY(SELECT id FROM lead WHERE phone_shared OR nid_shared))")
