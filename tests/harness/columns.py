"""What a database holds, column by column, and what erasure, restore, rotation and daily files did to it.

Each check reads the catalogue of the database and compares what is there, so that a new column or table is checked
without being named here. What is named here are the exceptions, each with its reason: a new column that behaves like
one of them must be added by hand, by somebody who has thought of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from tests.harness.disguises import encodings

Contents = Mapping[str, list[dict[str, Any]]]
"""The rows of every table, as PostgreSQL's JSON has them."""

STAYS: Mapping[str, str] = {
    **dict.fromkeys(
        ("tombstone.id", "tombstone.lead_id", "tombstone.created_at", "tombstone.erased_at"),
        "keeps a copy in a spool or file from returning",
    ),
    **dict.fromkeys(("tombstone.erased_by", "tombstone.reason"), "who erased, and why"),
    "tombstone.request_digest": "by which a copy of the request is recognised; a digest of no customer's value",
    **dict.fromkeys(
        (
            *("lead_event.at", "lead_event.transaction_id", "lead_event.id", "lead_event.version"),
            *("lead_event.lead_id", "lead_event.type", "lead_event.actor", "lead_event.reason"),
        ),
        "one event says that this lead was erased, by whom and why",
    ),
    **dict.fromkeys(
        (
            *("access_record.id", "access_record.recorded_at", "access_record.subject", "access_record.operation"),
            *("access_record.lead_id", "access_record.fields", "access_record.reason", "access_record.request_id"),
            *("access_record.chain_id", "access_record.number", "access_record.key_id", "access_record.digest"),
        ),
        "who saw the lead stays on record: an id and names of fields",
    ),
    **dict.fromkeys(
        (
            *("access_chain.number", "access_chain.id", "access_chain.writer", "access_chain.began_at"),
            *("access_chain.earlier_entries", "access_chain.earlier_digest", "access_chain.key_id"),
            *("access_chain.digest", "access_head.id", "access_head.chain_id", "access_head.number"),
            *("access_head.digest", "access_head.ended", "access_head.key_id", "access_head.seal"),
        ),
        "proves the record; digests over its entries",
    ),
    **dict.fromkeys(
        (
            *("key_canary.id", "key_canary.sealed", "key_canary.digest", "key_canary.normaliser"),
            *("key_canary.created_at", "key_canary.database", "key_canary.pair", "key_canary.clearing"),
            *("key_canary.epoch", "key_canary.accepts_from", "key_canary.retired_keys"),
        ),
        "of the keyring",
    ),
    **dict.fromkeys(
        (
            *("replica.name", "replica.state", "replica.epoch", "replica.opens", "replica.seals"),
            *("replica.spool_keys", "replica.started_at", "replica.seen_at"),
        ),
        "of the service",
    ),
    **dict.fromkeys(
        ("daily_file.day", "daily_file.timezone", "daily_file.snapshot_at", "daily_file.lead_count"),
        "how many leads a day's file has",
    ),
    "daily_file.digest": "of the file as it is now, without the lead",
    **dict.fromkeys(("file_turn.id", "file_turn.holder", "file_turn.expires_at"), "which replica renders"),
    **dict.fromkeys(("lead_touch.id", "lead_touch.quarter"), "lets the day's file be rendered anew"),
}
"""What may hold something when every lead is erased, and why."""

NOT_FILLED: Mapping[str, str] = {
    **dict.fromkeys(("key_canary.next_digest", "key_canary.next_normaliser"), "only while `keys reindex` runs"),
    **dict.fromkeys(("lead_touch.id", "lead_touch.quarter"), "only until the day's file is rendered"),
    **dict.fromkeys(
        (
            *("spool_search.id", "spool_search.replica", "spool_search.asked_at", "spool_search.question"),
            "spool_search.answer",
        ),
        "only while a replica is asked",
    ),
    **dict.fromkeys(("access_chain.earlier_entries", "access_chain.earlier_digest"), "of a record older than chains"),
    "lead_event.placed_at": "only behind an event whose submission waited in a spool",
}
"""What this trial need not fill, and why."""

MOVES: Mapping[str, str] = {
    "replica": "a heartbeat a second",
    "file_turn": "the lease of the replica that renders",
    "lead_touch": "settled by each render",
    "daily_file": "noted by each render",
    "access_head": "added when a chain ends",
    "lead_event.transaction_id": "counted by the server: a restore numbers them anew",
}
"""Tables that a running service changes by itself, and why: a backup of them is older a moment later."""

NOT_IN_FILES: Mapping[str, str] = {
    **dict.fromkeys(
        ("lead.phone_index", "lead.nid_index", "lead.phone_index_2", "lead.nid_index_2", "lead.index_epoch"),
        "computed anew, for the pair of columns that the database which imports uses",
    ),
    "lead_conversation.id": "a number of the database's own",
    **dict.fromkeys(("lead_event.id", "lead_event.transaction_id"), "numbers of the database's own"),
    **dict.fromkeys(
        ("tombstone", "lead_conflict", "access_record", "access_chain", "access_head"),
        "of no lead that is in the file",
    ),
    **dict.fromkeys(
        ("key_canary", "replica", "daily_file", "file_turn", "lead_touch", "spool_search"), "of the database itself"
    ),
    "spool_erasure": "of no lead that is in the file",
}
"""Columns and whole tables that an import of daily files does not bring back, and why."""

KEEPS_KEY: Mapping[str, str] = {
    "key_canary.retired_keys": "names the keys with which nothing is sealed any more",
    **dict.fromkeys(
        ("lead.content_digest", "resubmission.content_digest", "lead_conflict.content_digest"),
        "of what was submitted, which may have been corrected since; compared by every index key",
    ),
}
"""What may name or use a key that was rotated out, and why."""


SHORTEST_TRACE = 12
"""Characters of a text that is somewhere else by no chance."""


def contents(url: str) -> Contents:
    """Every row of every table, in one snapshot."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        tables = sorted(row[0] for row in connection.execute(query))
        return {
            table: [row[0] for row in connection.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY 1".encode())]
            for table in tables
        }


def types(url: str) -> dict[str, str]:
    """Every column, as `table.column`, with its type."""
    with psycopg.connect(url) as connection:
        query = (
            "SELECT table_name || '.' || column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        )
        return dict(connection.execute(query).fetchall())


def never_filled(names: Iterable[str], *held: Contents) -> set[str]:
    """The columns in which nothing ever was, but those that need not."""
    return {name for name in names if not any(_values(each, name) for each in held)} - NOT_FILLED.keys()


def left(held: Contents) -> set[str]:
    """The columns that hold something after every lead was erased, but those that may."""
    return {name for name in _names(held) if _values(held, name)} - STAYS.keys()


def traces(held: Contents, types: Mapping[str, str]) -> dict[str, set[bytes]]:
    """The texts, tokens and digests that an erasure must take away, by column, as a dump shows them."""
    found: dict[str, set[bytes]] = {}
    for name in _names(held) - STAYS.keys():
        forms = found.setdefault(name, set())
        for value in _values(held, name):
            if types[name] == "bytea":
                forms.update(encodings(_bytes(value)))
            elif types[name] == "text" and len(value) >= SHORTEST_TRACE:
                forms.update((value.encode(), value.encode()[-60:]))
    return {name: forms for name, forms in found.items() if forms}


def differing(before: Contents, after: Contents, but: Mapping[str, str]) -> set[str]:
    """The columns whose values are not those of before; `but`: columns and whole tables that may differ."""
    names = {name for name in _names(before) if name not in but and name.partition(".")[0] not in but}
    return {name for name in names if _texts(before, name) != _texts(after, name)}


def not_rekeyed(before: Contents, after: Contents, types: Mapping[str, str], old_keys: Iterable[str]) -> set[str]:
    """The columns with something that was sealed or digested with a key which was rotated out since."""
    beginnings = tuple(f"{key}." for key in old_keys)
    checked = _names(after) - KEEPS_KEY.keys()
    return {
        name
        for name in checked
        if (types[name] == "text" and any(value.startswith(beginnings) for value in _values(after, name)))
        or (types[name] == "bytea" and name not in STAYS and set(_values(before, name)) & set(_values(after, name)))
    }


def _names(held: Contents) -> set[str]:
    return {f"{table}.{name}" for table, rows in held.items() for row in rows for name in row}


def _values(held: Contents, column: str) -> list[Any]:
    """What a column holds, without NULL."""
    table, _, name = column.partition(".")
    return [row[name] for row in held.get(table, []) if row.get(name) is not None]


def _texts(held: Contents, column: str) -> list[str]:
    return sorted(json.dumps(value) for value in _values(held, column))


def _bytes(value: str) -> bytes:
    """A bytea in PostgreSQL's JSON."""
    return bytes.fromhex(value.removeprefix("\\x"))
