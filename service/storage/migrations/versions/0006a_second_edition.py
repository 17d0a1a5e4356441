"""The tables, columns, indexes and guards of the second edition. What it erases with comes with 0020.

What needs the keys stays as it is until `keys reseal` has run while the service runs: conversation ids in clear, and
leads, resubmissions and conflicts without the blind indexes by which they are found.
"""

from alembic import op

revision = "0006a"
down_revision = "0006"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
STATUSES = "('new', 'contacted', 'converted', 'not_interested')"
IN_CLEAR = "strpos(conversation_id, '.gAAAAAAAAAAA') = 0"
TOKENS = "phone, nid, address, email, notes, conversation_id"
INDEXES = "phone_index, nid_index, phone_index_2, nid_index_2"
IS_CHANGED = "CAST(updated_at <> created_at AS integer)"
CAME_BACK = "resubmitted_at IS NOT NULL"
FILTERS = "status, assignee, interested_policy, source"
# The last 5 bytes of the id: service/validation/reference.py spells them.
REFERENCE = "(substr(uuid_send(id), 12))"

# From here on nothing is added to the histories of before, and nothing erases as before, so that nothing is lost with
# them or left of them. Neither the log nor a backup has spool_search: a question lasts seconds.
TABLES = f"""
DROP FUNCTION IF EXISTS erase_lead(uuid, text, text, timestamptz, timestamptz, uuid, bytea);
DROP FUNCTION IF EXISTS conflicts_of_lead(uuid, uuid);
CREATE TABLE file_turn (
    id smallint CONSTRAINT pk_file_turn PRIMARY KEY CONSTRAINT ck_file_turn_single CHECK (id = 1),
    holder uuid NOT NULL,
    expires_at timestamptz NOT NULL
);
INSERT INTO file_turn VALUES (1, '00000000-0000-0000-0000-000000000000', '-infinity');
CREATE TABLE lead_event (
    at timestamptz DEFAULT now() NOT NULL,
    transaction_id xid8 DEFAULT pg_current_xact_id() NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    version bigint NOT NULL,
    lead_id uuid NOT NULL,
    type smallint NOT NULL CONSTRAINT ck_lead_event_type CHECK (type BETWEEN 1 AND 7),
    actor text NOT NULL,
    reason text,
    fields text[],
    from_status text,
    to_status text,
    from_assignee text,
    to_assignee text,
    placed_at timestamptz,
    CONSTRAINT pk_lead_event PRIMARY KEY (lead_id, version, id),
    CONSTRAINT ck_lead_event_status CHECK ((type = 3) =
        ((from_status IN {STATUSES} AND to_status IN {STATUSES} AND from_status <> to_status) IS TRUE))
);
CREATE UNLOGGED TABLE spool_search (
    id uuid NOT NULL CONSTRAINT pk_spool_search PRIMARY KEY,
    replica text NOT NULL,
    asked_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    question jsonb NOT NULL,
    answer text
);
CREATE TABLE spool_erasure (
    id bigint GENERATED ALWAYS AS IDENTITY NOT NULL CONSTRAINT pk_spool_erasure PRIMARY KEY,
    replica text NOT NULL,
    erased_id uuid NOT NULL,
    opened_at timestamptz DEFAULT now() NOT NULL,
    sought jsonb NOT NULL
);
CREATE INDEX ix_spool_erasure_replica ON spool_erasure (replica);
CREATE INDEX ix_spool_erasure_erased_id ON spool_erasure (erased_id);
GRANT SELECT, UPDATE ON file_turn TO {APPLICATION_ROLE};
GRANT SELECT, INSERT ON lead_event TO {APPLICATION_ROLE};
REVOKE INSERT ON status_change, assignment_change FROM {APPLICATION_ROLE};
GRANT SELECT, INSERT, UPDATE, DELETE ON spool_search TO {APPLICATION_ROLE};
GRANT SELECT, INSERT, DELETE ON spool_erasure TO {APPLICATION_ROLE};
"""

# A lead without a nid has no blind index of one. A lead that had waited in the spool of a machine whose clock was ahead
# was last changed before it was created: lists take for granted that none was.
LEADS = f"""
ALTER TABLE lead ADD COLUMN source text, ADD COLUMN email_index text, ADD COLUMN resubmitted_at timestamptz,
    ALTER COLUMN nid DROP NOT NULL, ALTER COLUMN address DROP NOT NULL, ALTER COLUMN interested_policy DROP NOT NULL,
    DROP CONSTRAINT ck_lead_blind_indexes,
    ADD CONSTRAINT ck_lead_blind_indexes CHECK (
        num_nonnulls(phone_index, phone_index_2) > 0
        AND (num_nonnulls(nid_index, nid_index_2) > 0) = (nid IS NOT NULL)
        AND octet_length(phone_index) = 32 AND octet_length(nid_index) = 32
        AND octet_length(phone_index_2) = 32 AND octet_length(nid_index_2) = 32),
    ADD CONSTRAINT ck_lead_email_index CHECK (email IS NOT NULL OR email_index IS NULL);
DROP INDEX ix_lead_created_at_id, ix_lead_status_created_at_id, ix_lead_interested_policy_created_at_id,
    ix_lead_created_by_created_at_id, ix_lead_assignee_created_at_id;
UPDATE lead SET resubmitted_at = last.at
    FROM (SELECT lead_id, max(submitted_at) AS at FROM resubmission GROUP BY lead_id) last
    WHERE lead.id = last.lead_id;
UPDATE lead SET updated_at = created_at WHERE updated_at < created_at;
CREATE INDEX ix_lead_conversation_id ON lead (conversation_id) WHERE {IN_CLEAR};
CREATE INDEX ix_lead_email_index ON lead (email_index) WHERE email_index IS NOT NULL;
CREATE INDEX ix_lead_lacks_email_index ON lead (email_index) WHERE email IS NOT NULL AND email_index IS NULL;
CREATE INDEX ix_lead_reference ON lead ({REFERENCE});
CREATE INDEX ix_lead_alias_reference ON lead_alias ({REFERENCE});
CREATE INDEX ix_lead_name_prefix ON lead (lower(name) text_pattern_ops);
CREATE INDEX ix_lead_created_at ON lead (created_at, id, updated_at) INCLUDE ({FILTERS});
CREATE INDEX ix_lead_updated_at ON lead (updated_at, id, created_at);
CREATE INDEX ix_lead_resubmitted_at ON lead (resubmitted_at, id, created_at, updated_at, {FILTERS}) WHERE {CAME_BACK};
CREATE INDEX ix_lead_created_by_resubmitted_at ON lead (created_by, resubmitted_at, id) WHERE {CAME_BACK};
""" + "".join(
    f"""
CREATE INDEX ix_lead_{name}_created_at ON lead ({name}, ({IS_CHANGED}), created_at{behind}){where};
CREATE INDEX ix_lead_{name}_updated_at ON lead ({name}, updated_at{behind}) WHERE {IS_CHANGED} = 1;
"""
    for name, behind, where in (
        ("assignee", ", status, interested_policy, source", ""),
        ("interested_policy", ", status, source", ""),
        ("source", ", status", " WHERE source IS NOT NULL"),
        ("status", "", ""),
        ("created_by", "", ""),
    )
)

# Every resubmission is kept: the ids of the submissions replace a ring of slots. A conflict outlives the lead that it
# shared something with. Which submission a conversation came with was not kept: its token will be bound to the lead.
SUBMISSIONS = f"""
ALTER TABLE resubmission DROP CONSTRAINT pk_resubmission;
DROP INDEX ix_resubmission_submission_id;
ALTER TABLE resubmission DROP COLUMN slot, ADD CONSTRAINT pk_resubmission PRIMARY KEY (submission_id, lead_id);
CREATE INDEX ix_resubmission_lead_id_submitted_at_submission_id ON resubmission (lead_id, submitted_at, submission_id);
CREATE INDEX ix_resubmission_lead_id_actor_request_id ON resubmission (lead_id, actor, request_id)
    WHERE request_id IS NOT NULL;
CREATE INDEX ix_resubmission_actor_submitted_at ON resubmission (actor, submitted_at) WHERE NOT verified;
ALTER TABLE lead_conflict ADD COLUMN erased_lead_id uuid,
    DROP CONSTRAINT ck_lead_conflict_meets,
    ADD CONSTRAINT ck_lead_conflict_meets CHECK (
        num_nonnulls(phone_lead_id, nid_lead_id, request_lead_id, erased_lead_id) > 0);
CREATE INDEX ix_lead_conflict_erased_lead_id ON lead_conflict (erased_lead_id) WHERE erased_lead_id IS NOT NULL;
CREATE INDEX ix_lead_conflict_reference ON lead_conflict ({REFERENCE}) WHERE resolution IS NULL;
ALTER TABLE lead_conversation DROP CONSTRAINT pk_lead_conversation,
    ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    ADD COLUMN submission_id uuid, ADD COLUMN conversation_index text;
UPDATE lead_conversation SET submission_id = lead_id;
ALTER TABLE lead_conversation ALTER COLUMN submission_id SET NOT NULL,
    ADD CONSTRAINT pk_lead_conversation PRIMARY KEY (lead_id, id),
    ADD CONSTRAINT ck_lead_conversation_sealed CHECK ((conversation_index IS NULL) = ({IN_CLEAR}));
DROP INDEX ix_lead_conversation_lead_id;
CREATE INDEX ix_lead_conversation_conversation_index ON lead_conversation (conversation_index);
CREATE INDEX ix_lead_conversation_conversation_id ON lead_conversation (conversation_id) WHERE {IN_CLEAR};
GRANT UPDATE (conversation_id, conversation_index) ON lead_conversation TO {APPLICATION_ROLE};
""" + "".join(
    f"""
ALTER TABLE {table} ADD COLUMN source text, ADD COLUMN phone_index text COLLATE "C",
    ADD COLUMN nid_index text COLLATE "C", ADD COLUMN email_index text COLLATE "C",
    ALTER COLUMN nid DROP NOT NULL, ALTER COLUMN address DROP NOT NULL, ALTER COLUMN interested_policy DROP NOT NULL,
    ADD CONSTRAINT ck_{table}_blind_indexes CHECK (
        CASE WHEN phone_index IS NULL THEN num_nonnulls(nid_index, email_index) = 0
        ELSE (nid_index IS NULL) = (nid IS NULL) AND (email_index IS NULL) = (email IS NULL) END);
CREATE INDEX ix_{table}_conversation_id ON {table} (conversation_id) WHERE {IN_CLEAR};
CREATE INDEX ix_{table}_phone_index ON {table} (phone_index) WHERE phone_index IS NOT NULL;
CREATE INDEX ix_{table}_nid_index ON {table} (nid_index) WHERE nid_index IS NOT NULL;
CREATE INDEX ix_{table}_email_index ON {table} (email_index) WHERE email_index IS NOT NULL;
CREATE INDEX ix_{table}_index_scheme ON {table} (left(phone_index, -44));
"""
    for table in ("resubmission", "lead_conflict")
)

# As in 0006, and for conversation_id: a row that is in clear yet can be changed otherwise, a lead's status for one. The
# lock is taken in an expression: PERFORM would run a query, which costs a new lead 4 % of PostgreSQL's time.
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
END $$;
"""
GUARDS = f"""
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
{REFUSE}
CREATE OR REPLACE FUNCTION refuse_retired_keys() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    refused text[];
BEGIN
    IF pg_advisory_xact_lock_shared(1280002905) IS NULL THEN NULL; END IF;
    SELECT retired_keys INTO refused FROM public.key_canary;
{REFUSE}
CREATE OR REPLACE TRIGGER lead_is_current BEFORE INSERT OR UPDATE OF {INDEXES}, {TOKENS} ON lead
    FOR EACH ROW EXECUTE FUNCTION refuse_old_leads();
CREATE OR REPLACE TRIGGER resubmission_is_current BEFORE INSERT OR UPDATE OF {TOKENS} ON resubmission
    FOR EACH ROW EXECUTE FUNCTION refuse_retired_keys();
CREATE OR REPLACE TRIGGER lead_conflict_is_current BEFORE INSERT OR UPDATE OF {TOKENS} ON lead_conflict
    FOR EACH ROW EXECUTE FUNCTION refuse_retired_keys();
"""

# A lead may count more than are kept: of those from before this revision only the newest 20 were. An erased
# resubmission takes its time back. A place lets a page of a history and of the looks at its lead do without the events
# before it; the first event needs none.
NOTES = """
CREATE FUNCTION count_resubmissions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.lead l SET resubmissions = greatest(0, l.resubmissions + by_lead.difference),
        resubmitted_at = (SELECT max(kept.submitted_at) FROM public.resubmission kept WHERE kept.lead_id = l.id)
    FROM (
        SELECT changed.lead_id, CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END AS difference
        FROM changed GROUP BY changed.lead_id
    ) by_lead
    WHERE l.id = by_lead.lead_id;
    RETURN NULL;
END $$;
CREATE TRIGGER resubmission_insert_counts AFTER INSERT ON resubmission
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_resubmissions();
CREATE TRIGGER resubmission_delete_counts AFTER DELETE ON resubmission
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_resubmissions();

CREATE FUNCTION place_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT coalesce(e.placed_at, e.at) INTO NEW.placed_at FROM public.lead_event e
    WHERE e.lead_id = NEW.lead_id ORDER BY e.version DESC, e.id DESC LIMIT 1;
    IF NEW.placed_at <= NEW.at THEN
        NEW.placed_at := NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER lead_event_has_place BEFORE INSERT ON lead_event
    FOR EACH ROW WHEN (NEW.type <> 1) EXECUTE FUNCTION place_event();
"""


def upgrade() -> None:
    """Create and change everything; `migrate` moves the histories of before then, and 0020 removes them."""
    for script in (TABLES, LEADS, SUBMISSIONS, GUARDS, NOTES):
        op.execute(script)
