"""Ways in which a database refuses what the service asks of it, each with what mends it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.harness import faults
from tests.harness.postgres import TestDatabase

RAISE = "CREATE FUNCTION raise_on_purpose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'on purpose'"
END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'leadkeep'"
)

NO_DUPLICATES = (
    "CREATE UNIQUE INDEX uq_lead_phone_index ON lead (phone_index) WHERE (phone_index IS NOT NULL AND NOT phone_shared)"
)


@dataclass(frozen=True)
class Refusal:
    """A fault of the environment, as SQL that a superuser runs."""

    begin: Sequence[str]
    end: Sequence[str]
    named: str
    """What `leadkeep doctor` prints about it."""


def _revoked(right: str, table: str) -> Refusal:
    return Refusal(
        [f"REVOKE {right} ON {table} FROM leadkeep_app"],
        [f"GRANT {right} ON {table} TO leadkeep_app"],
        f"GRANT {right} ON {table} TO leadkeep_app",
    )


def _renamed(table: str) -> Refusal:
    return Refusal([f"ALTER TABLE {table} RENAME TO gone"], [f"ALTER TABLE gone RENAME TO {table}"], f"table {table} ")


def _raising(sqlstate: str) -> Refusal:
    return Refusal(
        [
            f"{RAISE} USING ERRCODE = '{sqlstate}'; END $$",
            "CREATE TRIGGER auditor BEFORE INSERT ON lead FOR EACH ROW EXECUTE FUNCTION raise_on_purpose()",
        ],
        ["DROP TRIGGER auditor ON lead", "DROP FUNCTION raise_on_purpose"],
        "ALTER TABLE lead DISABLE TRIGGER auditor",
    )


def dropping(operation: str, table: str) -> Refusal:
    """A trigger that drops the rows of an operation without an error."""
    return Refusal(
        [
            "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
            f"CREATE TRIGGER auditor BEFORE {operation} ON {table} FOR EACH ROW EXECUTE FUNCTION drop_row()",
        ],
        [f"DROP TRIGGER auditor ON {table}", "DROP FUNCTION drop_row"],
        f"ALTER TABLE {table} DISABLE TRIGGER auditor",
    )


def _raising_at_commit() -> Refusal:
    return Refusal(
        [
            f"{RAISE}; END $$",
            "CREATE CONSTRAINT TRIGGER auditor AFTER INSERT ON lead DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION raise_on_purpose()",
        ],
        ["DROP TRIGGER auditor ON lead", "DROP FUNCTION raise_on_purpose"],
        "ALTER TABLE lead DISABLE TRIGGER auditor",
    )


def _hiding(table: str) -> Refusal:
    row_security = f"ALTER TABLE {table} {{}} ROW LEVEL SECURITY"
    return Refusal([row_security.format("ENABLE")], [row_security.format("DISABLE")], row_security.format("DISABLE"))


def _read_only() -> Refusal:
    setting = "SET default_transaction_read_only = on', current_database()"
    reset = "RESET default_transaction_read_only', current_database()"
    alter = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {}); END $$"
    return Refusal(
        [alter.format(setting), END_SESSIONS],
        ["SET default_transaction_read_only = off", alter.format(reset), END_SESSIONS],
        "default_transaction_read_only",
    )


REFUSALS = {
    **{f"no INSERT on {table}": _revoked("INSERT", table) for table in ("lead", "lead_conversation", "lead_touch")},
    "no INSERT on resubmission": _revoked("INSERT", "resubmission"),
    **{f"no SELECT on {table}": _revoked("SELECT", table) for table in ("tombstone", "key_canary", "lead_conflict")},
    "no UPDATE on lead": _revoked("UPDATE", "lead"),
    "a trigger raises": _raising("P0001"),
    "a trigger raises as for content": _raising("23514"),
    "a trigger raises at the commit": _raising_at_commit(),
    **{
        f"a trigger drops what is inserted into {table}": dropping("INSERT", table)
        for table in ("lead", "resubmission")
    },
    **{f"row-level security on {table}": _hiding(table) for table in ("lead", "tombstone")},
    **{f"{table} renamed": _renamed(table) for table in ("lead", "lead_touch")},
    "a column renamed": Refusal(
        ["ALTER TABLE lead RENAME COLUMN notes TO remarks"],
        ["ALTER TABLE lead RENAME COLUMN remarks TO notes"],
        "column lead.notes ",
    ),
    "the schema renamed": Refusal(
        ["ALTER SCHEMA public RENAME TO aside", END_SESSIONS],
        ["ALTER SCHEMA aside RENAME TO public"],
        "no Leadkeep schema",
    ),
    "no USAGE on the schema": Refusal(
        ["REVOKE USAGE ON SCHEMA public FROM leadkeep_app, PUBLIC"],
        ["GRANT USAGE ON SCHEMA public TO leadkeep_app, PUBLIC"],
        "GRANT USAGE ON SCHEMA public TO leadkeep_app",
    ),
    "read-only": _read_only(),
}
"""By name."""

SEEN = {
    **{
        f"no EXECUTE on {name}": Refusal(
            [f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC, leadkeep_app"],
            [f"GRANT EXECUTE ON FUNCTION {name} TO leadkeep_app"],
            f"GRANT EXECUTE ON FUNCTION {name} TO leadkeep_app",
        )
        for name in ("erase_lead", "lock_for_erasure", "leads_sharing_with", "claim_index_entries")
    },
    "no UPDATE on most columns": Refusal(
        ["REVOKE UPDATE ON lead_conflict FROM leadkeep_app", "GRANT UPDATE (id) ON lead_conflict TO leadkeep_app"],
        ["GRANT UPDATE ON lead_conflict TO leadkeep_app"],
        "GRANT UPDATE ON lead_conflict TO leadkeep_app",
    ),
    "no UPDATE on a column": Refusal(
        ["REVOKE UPDATE (request_digest) ON tombstone FROM leadkeep_app"],
        ["GRANT UPDATE (request_digest) ON tombstone TO leadkeep_app"],
        "GRANT UPDATE ON tombstone TO leadkeep_app",
    ),
    "a unique index is gone": Refusal(
        ["DROP INDEX uq_lead_phone_index"],
        [NO_DUPLICATES],
        NO_DUPLICATES,
    ),
    "a trigger of ours is disabled": Refusal(
        ["ALTER TABLE lead DISABLE TRIGGER lead_insert_is_not_erased"],
        ["ALTER TABLE lead ENABLE TRIGGER lead_insert_is_not_erased"],
        "ALTER TABLE lead ENABLE TRIGGER lead_insert_is_not_erased",
    ),
    "a trigger of ours is for replicas": Refusal(
        ["ALTER TABLE lead_event ENABLE REPLICA TRIGGER lead_event_has_place"],
        ["ALTER TABLE lead_event ENABLE TRIGGER lead_event_has_place"],
        "ALTER TABLE lead_event ENABLE TRIGGER lead_event_has_place",
    ),
    "foreign keys are not checked": Refusal(
        ["ALTER TABLE lead_alias DISABLE TRIGGER ALL"],
        ["ALTER TABLE lead_alias ENABLE TRIGGER ALL"],
        'ALTER TABLE lead_alias ENABLE TRIGGER "RI_ConstraintTrigger',
    ),
    "the function that erases lacks a right": Refusal(
        ["ALTER TABLE lead_alias OWNER TO postgres"],
        ["ALTER TABLE lead_alias OWNER TO leadkeep_owner"],
        "GRANT ALL ON lead_alias TO leadkeep_owner",
    ),
    "a table that a crash would empty": Refusal(
        ["ALTER TABLE tombstone SET UNLOGGED"],
        ["ALTER TABLE tombstone SET LOGGED"],
        "ALTER TABLE tombstone SET LOGGED",
    ),
}
"""Those that no new lead meets, and the catalogue shows."""

REFUSING = {
    "a check": Refusal(
        ["ALTER TABLE lead ADD CONSTRAINT brief CHECK (length(name) < 3) NOT VALID"],
        ["ALTER TABLE lead DROP CONSTRAINT brief"],
        "ALTER TABLE lead DROP CONSTRAINT brief",
    ),
    "a column": Refusal(
        ["ALTER TABLE lead ADD COLUMN region text NOT NULL"],
        ["ALTER TABLE lead DROP COLUMN region"],
        "ALTER TABLE lead ALTER COLUMN region DROP NOT NULL",
    ),
}
"""What others added to a table, and each new lead violates."""

IN_THE_WAY = {
    "a unique index": Refusal(
        ["CREATE UNIQUE INDEX one_address ON lead (email_index)"],
        ["DROP INDEX one_address"],
        "DROP INDEX one_address",
    ),
    "a reference": Refusal(
        ["CREATE TABLE crm (lead_id uuid REFERENCES lead)"],
        ["DROP TABLE crm"],
        "ALTER TABLE crm DROP CONSTRAINT crm_lead_id_fkey",
    ),
}
"""What others added, and some leads violate, or their erasures."""

DROPPING = {
    table: dropping("INSERT", table)
    for table in ("lead_event", "lead_touch", "lead_conflict", "lead_alias", "tombstone")
}
"""Those by which a trigger drops rows that come with a lead, and not the lead, by table."""


@contextmanager
def refusing(database: TestDatabase, refusal: Refusal) -> Iterator[None]:
    """The database is like this until the block ends."""
    faults.execute(database.admin_url, *refusal.begin)
    try:
        yield
    finally:
        faults.execute(database.admin_url, *refusal.end)
