"""Diagnosis of the database: whether it can serve now, and what stands in the way, by looking at its catalogue alone.

Readiness asks every second, `doctor` when it is run. What only shows when something is stored, such as a trigger that
raises, `SubmissionStore.trial` finds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage import models
from service.storage.database.database import DIALECT, Database, Statement
from service.storage.database.failures import cause_of, is_refused
from service.storage.schema import APPLICATION_ROLE

_RIGHTS = {
    "SELECT": (
        "lead lead_event lead_conversation resubmission lead_alias lead_conflict tombstone "
        "key_canary replica spool_search spool_erasure lead_touch daily_file file_turn "
        "access_record access_chain access_head alembic_version"
    ),
    "INSERT": (
        "lead lead_event lead_conversation resubmission lead_alias lead_conflict tombstone "
        "replica spool_search spool_erasure lead_touch daily_file access_record access_chain access_head"
    ),
    "UPDATE": "lead resubmission lead_conflict tombstone replica spool_search daily_file file_turn",
    "DELETE": "replica spool_search spool_erasure lead_touch",
}
"""What the service needs while it runs. Any other right to change or delete what is stored is one too many."""

_UPDATED = {"tombstone": {"created_at", "request_digest"}}
"""The columns that the service changes, where it does not change any of the table."""

_CALLED = ("erase_lead", "lock_for_erasure", "leads_sharing_with", "claim_index_entries")
"""The functions that it calls. Those of triggers need no right."""

_UNIQUE = {
    "uq_lead_created_by_request_id": "created_by, request_id",
    **{
        f"uq_lead_{field}_index{pair}": (
            f"{field}_index{pair}) WHERE ({field}_index{pair} IS NOT NULL AND NOT {field}_shared"
        )
        for field in ("phone", "nid")
        for pair in ("", "_2")
    },
}
"""The unique indexes that decide duplicates, each with what stands in the brackets of CREATE UNIQUE INDEX."""

_TRIGGERS = {
    "lead": (
        "lead_delete_is_noted lead_deleted_hands_over lead_insert_is_not_erased lead_insert_is_noted lead_is_current "
        "lead_reindexed_hands_over lead_update_is_noted"
    ),
    "lead_alias": "lead_alias_insert_is_noted",
    "lead_conflict": "lead_conflict_is_current",
    "lead_event": "lead_event_has_place",
    "resubmission": "resubmission_delete_counts resubmission_insert_counts resubmission_is_current",
}
"""The triggers of the migrations, by table."""

_ERASED = ["lead", "lead_event", "lead_conversation", "resubmission", "lead_alias", "lead_conflict"]
"""The tables from which `erase_lead` deletes, with the rights of its owner."""

_UNLOGGED = "spool_search"
"""The table that may be lost: a question lasts seconds."""

_ROTATED = "key_canary lead_conversation"
"""What the first start and a rotation of keys change too."""

# By the catalogue and not by names: looking up a name fails where its schema or table is missing. Our own rows of
# pg_stat_activity can be seen without pg_monitor; those of pg_stat_replication cannot.
_STATE = Statement("""
    SELECT current_setting('transaction_read_only') = 'on' AS read_only,
        current_setting('synchronous_standby_names') AS standby_names,
        pg_has_role(current_user, 'pg_monitor', 'USAGE') AS monitors,
        (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS standbys,
        (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user AND wait_event = 'SyncRep'
            AND query_start < clock_timestamp() - interval '1 s') AS hanging,
        has_schema_privilege(current_user, (SELECT oid FROM pg_namespace WHERE nspname = 'public'), 'USAGE') AS schema,
        ARRAY(SELECT p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname = 'public' AND has_function_privilege(p.oid, 'EXECUTE')) AS functions
""")
_TABLES = Statement("""
    SELECT c.relname AS name,
        ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped) AS columns,
        ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped
            AND has_column_privilege(c.oid, a.attnum, 'UPDATE')) AS updatable,
        has_table_privilege(c.oid, 'SELECT') AS may_select, has_table_privilege(c.oid, 'INSERT') AS may_insert,
        has_any_column_privilege(c.oid, 'UPDATE') AS may_update, has_table_privilege(c.oid, 'DELETE') AS may_delete,
        ARRAY(SELECT i.relname::text FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
            WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid) AS unique_indexes,
        ARRAY(SELECT t.tgname::text FROM pg_trigger t WHERE t.tgrelid = c.oid
            AND t.tgenabled IN ('O', 'A')) AS triggers,
        ARRAY(SELECT t.tgname::text FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled NOT IN ('O', 'A')
            AND t.tgisinternal) AS unchecked,
        row_security_active(c.oid) AS hides_rows, c.relpersistence = 'u' AS unlogged,
        (SELECT pg_get_userbyid(p.proowner) FROM pg_proc p WHERE p.pronamespace = n.oid AND p.proname = 'erase_lead'
            AND NOT has_table_privilege(p.proowner, c.oid, 'DELETE')) AS cannot_erase
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')
""")
_MEMBER = text(
    "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role AND pg_has_role(current_user, oid, 'USAGE')) AS member,"
    " current_user AS login"
)
_BEYOND_TABLES = text("""
    SELECT has_schema_privilege(current_user, 'public', 'CREATE') AS creates, rolsuper AS superuser
    FROM pg_roles WHERE rolname = current_user
""")
_IN_THE_WAY = text("""
    WITH kept AS (
        SELECT c.oid, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relname = ANY (:tables)
    )
    SELECT format('ALTER TABLE %I DISABLE TRIGGER %I', c.relname, t.tgname) AS mend
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_proc f ON f.oid = t.tgfoid
    WHERE n.nspname = 'public' AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND f.proname <> ALL (ARRAY[
        'note_touched_leads', 'note_touched_aliases', 'refuse_old_leads', 'refuse_retired_keys', 'refuse_erased_leads',
        'hand_over_index_entries', 'count_resubmissions', 'place_event'])
    UNION ALL
    SELECT format('DROP RULE %I ON %I', r.rulename, r.tablename) FROM pg_rules r WHERE r.schemaname = 'public'
    UNION ALL
    SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname) FROM pg_constraint k
    WHERE k.contype IN ('c', 'f', 'u', 'x') AND k.conname <> ALL (:ours)
        AND (k.conrelid IN (SELECT oid FROM kept) OR k.confrelid IN (SELECT oid FROM kept))
    UNION ALL
    SELECT format('DROP INDEX %s', x.indexrelid::regclass) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    WHERE x.indisunique AND x.indrelid IN (SELECT oid FROM kept) AND i.relname <> ALL (:ours)
        AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid)
    UNION ALL
    SELECT format('ALTER TABLE %I ALTER COLUMN %I DROP NOT NULL', c.relname, a.attname)
    FROM kept c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE a.attnum > 0 AND a.attnotnull AND NOT a.atthasdef AND c.relname || '.' || a.attname <> ALL (:columns)
    ORDER BY 1
""")

_COUNTED_LIST = re.compile(r"\s*(?:(?:ANY|FIRST)\s*)?(\d+)\s*\(", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of a database at one moment.

    `reachable`: it answered. `refused`: the SQLSTATE with which it refused even to be looked at; `failed`: why the look
    ended otherwise, an SQLSTATE or a word of `cause_of`. `lacking`: rights, tables and columns that are missing, each
    as what an operator has to do. `standbys`: synchronous standbys that are there, None without pg_monitor. `hanging`:
    commits of this role that have waited for one for more than a second.
    """

    reachable: bool = True
    refused: str | None = None
    failed: str | None = None
    read_only: bool = False
    lacking: tuple[str, ...] = ()
    commits_wait_for: int = 0
    """How many standbys a commit waits for; 0: this server's disk only."""
    standbys: int | None = None
    hanging: int = 0

    @property
    def commits_hang(self) -> bool:
        """Whether commits do not end, or would not."""
        return self.hanging > 0 or (self.standbys is not None and self.standbys < self.commits_wait_for)


AWAY = Diagnosis(reachable=False)

AT_ONCE_SECONDS = 0.25
"""Within which a session fails that was ended before; what takes longer would take as long again."""


async def diagnose(database: Database) -> Diagnosis:
    """Look at the database once. Never raises for what the database does.

    A session that was ended alone, by an operator or for its age, is no outage: a new one is asked at once.
    """
    began = time.monotonic()
    try:
        try:
            return await database.read_once(_look)
        except Exception as error:
            if is_refused(error) or time.monotonic() - began > AT_ONCE_SECONDS:
                raise
        return await database.read_once(_look)
    except Exception as error:  # noqa: BLE001 # classified here
        cause = cause_of(error)
        return Diagnosis(refused=cause) if is_refused(error) else Diagnosis(reachable=False, failed=cause)


async def _look(connection: AsyncConnection) -> Diagnosis:
    (state,) = await _STATE.rows(connection, {})
    tables = await _TABLES.rows(connection, {}) if state.schema else []
    return Diagnosis(
        read_only=state.read_only,
        lacking=_mends(state.schema, {table.name: table for table in tables}, state.functions),
        commits_wait_for=standbys_waited_for(state.standby_names),
        standbys=state.standbys if state.monitors else None,
        hanging=state.hanging,
    )


def _may(right: str, table: Any) -> bool:
    """Whether the service may do to a table what it needs to."""
    if right != "UPDATE":
        return bool(getattr(table, f"may_{right.lower()}"))
    return _UPDATED.get(table.name, {*models.metadata.tables[table.name].columns.keys()}) <= {*table.updatable}


def _mends(schema: bool | None, found: dict[str, Any], functions: Collection[str]) -> tuple[str, ...]:
    if schema is None:
        return ("the schema public is missing: rename it back, or restore a backup",)
    if not schema:
        return (f"a right is missing; run: GRANT USAGE ON SCHEMA public TO {APPLICATION_ROLE}",)
    if not found.keys() & models.metadata.tables.keys():
        return ("the tables of Leadkeep are missing; run: leadkeep migrate, or restore a backup",)
    there = [table for name, table in models.metadata.tables.items() if name in found]
    return (
        *(
            f"the table {name} is missing: rename it back, or restore a backup"
            for name in sorted({*_RIGHTS["SELECT"].split()} - found.keys())
        ),
        *(
            f"the column {table.name}.{column.name} is missing: rename it back, or restore a backup"
            for table in there
            for column in table.columns
            if column.name not in found[table.name].columns
        ),
        *(
            f"a right is missing; run: GRANT {right} ON {name} TO {APPLICATION_ROLE}"
            for right, names in _RIGHTS.items()
            for name in names.split()
            if name in found and not _may(right, found[name])
        ),
        *(
            f"a right is missing, or the function itself; run: GRANT EXECUTE ON FUNCTION {name} TO {APPLICATION_ROLE}"
            for name in _CALLED
            if name not in functions
        ),
        *(
            f"a unique index is missing, and duplicates come in; run: CREATE UNIQUE INDEX {name} ON lead ({on})"
            for name, on in _UNIQUE.items()
            if "lead" in found and name not in found["lead"].unique_indexes
        ),
        *(
            f"a trigger of Leadkeep is disabled or gone; run: ALTER TABLE {table} ENABLE TRIGGER {name}, or restore a "
            "backup"
            for table, names in _TRIGGERS.items()
            for name in names.split()
            if table in found and name not in found[table].triggers
        ),
        *(
            f'a foreign key is not checked; run as a superuser: ALTER TABLE {table.name} ENABLE TRIGGER "{trigger}"'
            for table in there
            for trigger in found[table.name].unchecked
        ),
        *(
            f"a right to erase is missing; run: GRANT ALL ON {table.name} TO {found[table.name].cannot_erase}"
            for table in there
            if table.name in _ERASED and found[table.name].cannot_erase is not None
        ),
        *(
            f"row-level security would hide rows of {table.name}; run: ALTER TABLE {table.name} DISABLE ROW LEVEL "
            "SECURITY, or give the login of the service BYPASSRLS"
            for table in there
            if found[table.name].hides_rows
        ),
        *(
            f"the table {table.name} is unlogged: a crash of PostgreSQL would empty it; run: ALTER TABLE {table.name} "
            "SET LOGGED"
            for table in there
            if found[table.name].unlogged and table.name not in _UNLOGGED
        ),
    )


def standbys_waited_for(standby_names: str) -> int:
    """How many standbys a commit waits for, by the value of synchronous_standby_names."""
    if not standby_names.strip():
        return 0
    counted = _COUNTED_LIST.match(standby_names)
    return int(counted[1]) if counted else 1


async def lacks_group(database: Database) -> str | None:
    """The login of the service if it does not have the rights of the group role, and so none at all."""
    (row,) = await database.rows(_MEMBER, {"role": APPLICATION_ROLE})
    return None if row.member else str(row.login)


async def excess_rights(database: Database) -> list[str]:
    """What the role of `serve` may do and should not; empty when all is well."""
    (role,) = await database.rows(_BEYOND_TABLES)
    tables = await database.read(lambda connection: _TABLES.rows(connection, {}))
    ours = sorted((table for table in tables if table.name in _RIGHTS["SELECT"].split()), key=lambda table: table.name)
    return [
        *(["create tables"] if role.creates else []),
        *(["be a superuser"] if role.superuser else []),
        *(
            f"{verb} {table.name}"
            for right, verb, needed in (("delete", "delete from", ""), ("update", "change", _ROTATED))
            for table in ours
            if getattr(table, f"may_{right}") and table.name not in f"{_RIGHTS[right.upper()]} {needed}".split()
        ),
    ]


async def in_the_way(database: Database) -> list[str]:
    """What removes each trigger, rule, constraint and unique index on the tables that no migration has made."""
    tables = models.metadata.tables.values()
    names = DIALECT.identifier_preparer  # completes a name by its convention
    ours = {
        "tables": [table.name for table in tables],
        "columns": [f"{table.name}.{column.name}" for table in tables for column in table.columns],
        "ours": [
            *(names.format_constraint(each) for table in tables for each in table.constraints),
            *(names.format_index(each) for table in tables for each in table.indexes),
        ],
    }
    return [row.mend for row in await database.rows(_IN_THE_WAY, ours)]
