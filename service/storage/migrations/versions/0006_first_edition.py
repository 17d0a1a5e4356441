"""The tables, guards and rights of the first edition.

Erasing is not in it: 0007 replaces the functions that erased in the first edition.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = None
branch_labels = None
depends_on = None

APPLICATION_ROLE = "leadkeep_app"
STATUSES = "('new', 'contacted', 'converted', 'not_interested')"
TOKENS = "phone, nid, address, email, notes"
SEALED = " AND ".join(f"strpos({column}, '.gAAAAAAAAAAA') > 0" for column in TOKENS.split(", "))
CUSTOMER_FIELDS = """
    name text NOT NULL,
    phone text NOT NULL,
    nid text NOT NULL,
    address text NOT NULL,
    interested_policy text NOT NULL,
    email text,
    preferred_contact_time text,
    notes text,
    conversation_id text"""

TABLES = f"""
CREATE TABLE key_canary (
    id smallint CONSTRAINT pk_key_canary PRIMARY KEY CONSTRAINT ck_key_canary_single CHECK (id = 1),
    sealed text NOT NULL,
    digest bytea NOT NULL,
    normaliser text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    database uuid DEFAULT gen_random_uuid() NOT NULL,
    pair smallint DEFAULT '1' NOT NULL CONSTRAINT ck_key_canary_pair CHECK (pair IN (1, 2)),
    next_digest bytea,
    next_normaliser text,
    clearing boolean DEFAULT false NOT NULL,
    epoch bigint DEFAULT '1' NOT NULL,
    accepts_from bigint DEFAULT '0' NOT NULL,
    retired_keys text[] DEFAULT '{{}}' NOT NULL,
    CONSTRAINT ck_key_canary_next CHECK ((next_digest IS NULL) = (next_normaliser IS NULL)),
    CONSTRAINT ck_key_canary_epoch CHECK (accepts_from <= epoch)
);
CREATE TABLE replica (
    name text CONSTRAINT pk_replica PRIMARY KEY,
    state text NOT NULL CONSTRAINT ck_replica_state CHECK (state IN ('running', 'stopped')),
    epoch bigint NOT NULL,
    opens text[] NOT NULL,
    seals text[] NOT NULL,
    spool_keys text[] NOT NULL,
    started_at timestamptz DEFAULT now() NOT NULL,
    seen_at timestamptz DEFAULT now() NOT NULL
);
CREATE TABLE lead (
    id uuid CONSTRAINT pk_lead PRIMARY KEY,{CUSTOMER_FIELDS},
    status text DEFAULT 'new' NOT NULL CONSTRAINT ck_lead_status CHECK (status IN {STATUSES}),
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    version bigint DEFAULT '1' NOT NULL CONSTRAINT ck_lead_version CHECK (version >= 1),
    assignee text,
    resubmissions integer DEFAULT 0 NOT NULL CONSTRAINT ck_lead_resubmissions CHECK (resubmissions >= 0),
    phone_index bytea,
    nid_index bytea,
    created_by text NOT NULL,
    request_id text,
    content_digest bytea NOT NULL,
    phone_shared boolean DEFAULT false NOT NULL,
    nid_shared boolean DEFAULT false NOT NULL,
    phone_index_2 bytea,
    nid_index_2 bytea,
    index_epoch bigint DEFAULT '0' NOT NULL,
    CONSTRAINT ck_lead_sealed CHECK ({SEALED}),
    CONSTRAINT ck_lead_blind_indexes CHECK (
        num_nonnulls(phone_index, phone_index_2) > 0 AND num_nonnulls(nid_index, nid_index_2) > 0
        AND octet_length(phone_index) = 32 AND octet_length(nid_index) = 32
        AND octet_length(phone_index_2) = 32 AND octet_length(nid_index_2) = 32),
    CONSTRAINT uq_lead_created_by_request_id UNIQUE (created_by, request_id)
);
CREATE INDEX ix_lead_created_at_id ON lead (created_at, id);
CREATE INDEX ix_lead_created_by_created_at_id ON lead (created_by, created_at, id);
CREATE INDEX ix_lead_interested_policy_created_at_id ON lead (interested_policy, created_at, id);
CREATE INDEX ix_lead_status_created_at_id ON lead (status, created_at, id);
CREATE INDEX ix_lead_assignee_created_at_id ON lead (assignee, created_at, id) WHERE assignee IS NOT NULL;
CREATE TABLE lead_conversation (
    conversation_id text NOT NULL,
    lead_id uuid NOT NULL CONSTRAINT fk_lead_conversation_lead_id REFERENCES lead (id),
    linked_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_lead_conversation PRIMARY KEY (conversation_id, lead_id)
);
CREATE INDEX ix_lead_conversation_lead_id ON lead_conversation (lead_id);
CREATE TABLE status_change (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_status_change PRIMARY KEY,
    lead_id uuid NOT NULL CONSTRAINT fk_status_change_lead_id REFERENCES lead (id),
    from_status text NOT NULL,
    to_status text NOT NULL,
    actor text NOT NULL,
    reason text,
    changed_at timestamptz DEFAULT now() NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT ck_status_change_status CHECK (from_status IN {STATUSES} AND to_status IN {STATUSES}),
    CONSTRAINT ck_status_change_changes CHECK (from_status <> to_status),
    CONSTRAINT uq_status_change_lead_id_version UNIQUE (lead_id, version)
);
CREATE TABLE assignment_change (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_assignment_change PRIMARY KEY,
    lead_id uuid NOT NULL CONSTRAINT fk_assignment_change_lead_id REFERENCES lead (id),
    from_assignee text,
    to_assignee text,
    actor text NOT NULL,
    reason text,
    changed_at timestamptz DEFAULT now() NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT uq_assignment_change_lead_id_version UNIQUE (lead_id, version)
);
CREATE TABLE resubmission (
    lead_id uuid NOT NULL CONSTRAINT fk_resubmission_lead_id REFERENCES lead (id),
    slot smallint NOT NULL CONSTRAINT ck_resubmission_slot CHECK (slot >= 0 AND slot < 20),
    submission_id uuid NOT NULL,{CUSTOMER_FIELDS},
    actor text NOT NULL,
    request_id text,
    content_digest bytea NOT NULL,
    verified boolean NOT NULL,
    submitted_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT ck_resubmission_sealed CHECK ({SEALED}),
    CONSTRAINT pk_resubmission PRIMARY KEY (lead_id, slot)
);
CREATE INDEX ix_resubmission_submission_id ON resubmission (submission_id);
CREATE TABLE lead_alias (
    id uuid CONSTRAINT pk_lead_alias PRIMARY KEY,
    lead_id uuid NOT NULL CONSTRAINT fk_lead_alias_lead_id REFERENCES lead (id),
    created_by text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL
);
CREATE INDEX ix_lead_alias_lead_id ON lead_alias (lead_id);
CREATE TABLE lead_conflict (
    id uuid CONSTRAINT pk_lead_conflict PRIMARY KEY,{CUSTOMER_FIELDS},
    created_by text NOT NULL,
    request_id text,
    content_digest bytea NOT NULL,
    phone_lead_id uuid CONSTRAINT fk_lead_conflict_phone_lead_id REFERENCES lead (id),
    nid_lead_id uuid CONSTRAINT fk_lead_conflict_nid_lead_id REFERENCES lead (id),
    request_lead_id uuid CONSTRAINT fk_lead_conflict_request_lead_id REFERENCES lead (id),
    repeats uuid CONSTRAINT fk_lead_conflict_repeats REFERENCES lead_conflict (id),
    accepted_at timestamptz NOT NULL,
    found_at timestamptz DEFAULT now() NOT NULL,
    resolution text CONSTRAINT ck_lead_conflict_resolution CHECK (resolution IN ('keep_first', 'take_new', 'own_lead')),
    resolved_by text,
    resolved_at timestamptz,
    reason text,
    CONSTRAINT ck_lead_conflict_sealed CHECK ({SEALED}),
    CONSTRAINT ck_lead_conflict_meets CHECK (
        phone_lead_id IS NOT NULL OR nid_lead_id IS NOT NULL OR request_lead_id IS NOT NULL),
    CONSTRAINT ck_lead_conflict_resolved CHECK ((resolution IS NULL) = (resolved_at IS NULL))
);
CREATE INDEX ix_lead_conflict_accepted_at_id ON lead_conflict (accepted_at, id) WHERE resolution IS NULL;
CREATE INDEX ix_lead_conflict_created_by_request_id ON lead_conflict (created_by, request_id);
CREATE INDEX ix_lead_conflict_phone_lead_id ON lead_conflict (phone_lead_id);
CREATE INDEX ix_lead_conflict_nid_lead_id ON lead_conflict (nid_lead_id);
CREATE INDEX ix_lead_conflict_request_lead_id ON lead_conflict (request_lead_id);
CREATE INDEX ix_lead_conflict_repeats ON lead_conflict (repeats);
CREATE TABLE tombstone (
    id uuid CONSTRAINT pk_tombstone PRIMARY KEY,
    lead_id uuid NOT NULL,
    created_at timestamptz,
    erased_at timestamptz DEFAULT now() NOT NULL,
    erased_by text NOT NULL,
    reason text,
    request_digest bytea
);
CREATE INDEX ix_tombstone_lead_id ON tombstone (lead_id);
CREATE INDEX ix_tombstone_erased_at ON tombstone (erased_at);
CREATE INDEX ix_tombstone_request_digest ON tombstone (request_digest) WHERE request_digest IS NOT NULL;
CREATE TABLE lead_touch (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_lead_touch PRIMARY KEY,
    quarter timestamptz NOT NULL
);
CREATE TABLE daily_file (
    day date NOT NULL,
    timezone text NOT NULL,
    snapshot_at timestamptz NOT NULL,
    lead_count bigint NOT NULL,
    digest bytea NOT NULL,
    CONSTRAINT pk_daily_file PRIMARY KEY (day, timezone)
);
CREATE TABLE access_record (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_access_record PRIMARY KEY,
    recorded_at timestamptz DEFAULT now() NOT NULL,
    subject text NOT NULL,
    operation text NOT NULL,
    lead_id uuid,
    fields text[] NOT NULL,
    reason text,
    request_id text,
    chain_id uuid,
    number bigint,
    key_id text,
    digest bytea,
    CONSTRAINT ck_access_record_chained CHECK (num_nulls(chain_id, number, key_id, digest) IN (0, 4)),
    CONSTRAINT uq_access_record_chain_id_number UNIQUE (chain_id, number)
);
CREATE INDEX ix_access_record_recorded_at_id ON access_record (recorded_at, id);
CREATE INDEX ix_access_record_lead_id_recorded_at_id ON access_record (lead_id, recorded_at, id);
CREATE INDEX ix_access_record_subject_recorded_at_id ON access_record (subject, recorded_at, id);
CREATE TABLE access_chain (
    number bigint CONSTRAINT pk_access_chain PRIMARY KEY,
    id uuid NOT NULL CONSTRAINT uq_access_chain_id UNIQUE,
    writer text NOT NULL,
    began_at timestamptz NOT NULL,
    earlier_entries bigint,
    earlier_digest bytea,
    key_id text NOT NULL,
    digest bytea NOT NULL,
    CONSTRAINT ck_access_chain_earlier CHECK ((number = 1) = (earlier_entries IS NOT NULL)),
    CONSTRAINT ck_access_chain_earlier_digest CHECK ((earlier_entries IS NULL) = (earlier_digest IS NULL))
);
CREATE TABLE access_head (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_access_head PRIMARY KEY,
    chain_id uuid NOT NULL,
    number bigint NOT NULL,
    digest bytea NOT NULL,
    ended boolean NOT NULL,
    key_id text NOT NULL,
    seal bytea NOT NULL
);
CREATE INDEX ix_access_head_chain_id_number ON access_head (chain_id, number);
"""

# A lead kept apart from another one by a person's decision shares its index entry.
SHARED_INDEXES = "".join(
    f"CREATE {kind} {name}{pair} ON lead ({field}_index{pair}) WHERE {field}_index{pair} IS NOT NULL AND {which};\n"
    for field in ("phone", "nid")
    for pair in ("", "_2")
    for kind, name, which in (
        ("UNIQUE INDEX", f"uq_lead_{field}_index", f"NOT {field}_shared"),
        ("INDEX", f"ix_lead_{field}_shared", f"{field}_shared"),
    )
)

# Both take the lock ("LKKY") that a change of what is refused takes alone (storage/keys/canary.py): when the change is
# made, every transaction that looked before it has ended.
REFUSE_RETIRED = """
    IF refused <> '{}' AND ARRAY[
        split_part(NEW.phone, '.', 1), split_part(NEW.nid, '.', 1), split_part(NEW.address, '.', 1),
        split_part(NEW.email, '.', 1), split_part(NEW.notes, '.', 1)] && refused THEN
        RAISE EXCEPTION 'sealed with a retired key' USING ERRCODE = 'LK002';
    END IF;
    RETURN NEW;
"""
GUARDS = f"""
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
    END IF;{REFUSE_RETIRED}END $$;
CREATE FUNCTION refuse_retired_keys() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    refused text[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1280002905);
    SELECT retired_keys INTO refused FROM public.key_canary;{REFUSE_RETIRED}END $$;
CREATE TRIGGER lead_is_current BEFORE INSERT OR UPDATE OF phone_index, nid_index, phone_index_2, nid_index_2, {TOKENS}
    ON lead FOR EACH ROW EXECUTE FUNCTION refuse_old_leads();
CREATE TRIGGER resubmission_is_current BEFORE INSERT OR UPDATE OF {TOKENS} ON resubmission
    FOR EACH ROW EXECUTE FUNCTION refuse_retired_keys();
CREATE TRIGGER lead_conflict_is_current BEFORE INSERT OR UPDATE OF {TOKENS} ON lead_conflict
    FOR EACH ROW EXECUTE FUNCTION refuse_retired_keys();

-- The insert of a lead looks for tombstones with its own snapshot; one that was put up while it waited is seen here.
CREATE FUNCTION refuse_erased_leads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM touched JOIN public.tombstone USING (id)) THEN
        RAISE EXCEPTION 'a lead was erased while it was stored' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER lead_insert_is_not_erased AFTER INSERT ON lead
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased_leads();

-- Every time zone's offset is a multiple of 15 minutes, so that a quarter belongs to one day in each of them. One row a
-- statement and quarter, never one that is shared: transactions that touch the same day must not wait for each other.
CREATE FUNCTION note_touched_leads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin('15 minutes', created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM touched;
    RETURN NULL;
END $$;
CREATE FUNCTION note_touched_aliases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.lead_touch (quarter)
    SELECT DISTINCT date_bin('15 minutes', lead.created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z')
    FROM touched JOIN public.lead ON lead.id = touched.lead_id;
    RETURN NULL;
END $$;
CREATE TRIGGER lead_insert_is_noted AFTER INSERT ON lead
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_touched_leads();
CREATE TRIGGER lead_update_is_noted AFTER UPDATE ON lead
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_touched_leads();
CREATE TRIGGER lead_delete_is_noted AFTER DELETE ON lead
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_touched_leads();
CREATE TRIGGER lead_alias_insert_is_noted AFTER INSERT ON lead_alias
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_touched_aliases();
"""

GRANTS = f"""
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO {APPLICATION_ROLE};
GRANT SELECT ON alembic_version TO {APPLICATION_ROLE};
GRANT SELECT, INSERT ON status_change, assignment_change, lead_conversation, lead_alias, tombstone, key_canary,
    access_record, access_chain, access_head TO {APPLICATION_ROLE};
GRANT SELECT, INSERT, UPDATE ON lead, resubmission, lead_conflict, daily_file TO {APPLICATION_ROLE};
GRANT SELECT, INSERT, DELETE ON lead_touch TO {APPLICATION_ROLE};
GRANT SELECT, INSERT, UPDATE, DELETE ON replica TO {APPLICATION_ROLE};
GRANT UPDATE (sealed, digest, normaliser, pair, next_digest, next_normaliser, clearing, epoch, accepts_from,
    retired_keys) ON key_canary TO {APPLICATION_ROLE};
-- A submission that comes out of a spool and was erased meanwhile gets a tombstone of its own, or its date filled in.
GRANT UPDATE (created_at) ON tombstone TO {APPLICATION_ROLE};
-- An import keeps the histories' numbers, so it must be able to move the counters past them.
GRANT SELECT, UPDATE ON SEQUENCE status_change_id_seq, assignment_change_id_seq TO {APPLICATION_ROLE};
"""


def upgrade() -> None:
    """Create everything."""
    found = op.get_bind().execute(sa.text("SELECT FROM pg_roles WHERE rolname = :role"), {"role": APPLICATION_ROLE})
    if not found.rowcount:
        op.execute(f"CREATE ROLE {APPLICATION_ROLE} NOLOGIN")
    for script in (TABLES, SHARED_INDEXES, GUARDS, GRANTS):
        op.execute(script)
