"""Batches of stored tokens and blind indexes, to be resealed or reindexed while the service runs.

Promises: a row is replaced only if nobody changed it since it was read; one that was changed is left to the next
pass. Versions and times stay as they are. A batch is one transaction, short enough for a live call that waits for it.
A batch that a crash of the database undoes is done again.

It uses psycopg directly: these statements carry thousands of rows and read whole tables.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from service.errors import StartRefusedError
from service.lead import SEALED_FORM, SENSITIVE_FIELDS
from service.storage import models
from service.storage.database import session

BATCH_ROWS = 125
"""Rows a transaction: about 10 ms of PostgreSQL's time, which a live call that wants one of them waits for at most."""

_CONNECT_SECONDS = 10
_SESSION: LiteralString = "SET synchronous_commit = off; SET lock_timeout = '2s'; SET jit = off"
# Not behind a pooler, which would keep them for others. synchronous_commit: a batch that is lost is done again, and the
# change of keys that relies on it commits with `on`, behind it in the same log.

_LOCK_FAILURES = ("55P03", "40P01")
"""SQLSTATEs: a live call held a row for too long, or there was a deadlock. These rows are left to the next pass."""

_PHONES = ("uq_lead_phone_index", "uq_lead_phone_index_2")

Indexes = tuple[bytes, bytes | None]
"""The blind indexes of a lead's phone and nid; None: it has no nid."""

RowFilter = sql.Composable
"""A condition on the rows of a table."""

EVERY_ROW: RowFilter = sql.SQL("true")


@dataclass(frozen=True, slots=True)
class SealedTable:
    """A table that holds sealed tokens: the columns of its key, and which id its tokens are bound to."""

    name: str
    key: tuple[str, ...]
    types: tuple[str, ...]
    bound_to: str
    plural: str
    sealed: tuple[str, ...] = SENSITIVE_FIELDS
    """Its columns that hold tokens."""
    indexes: tuple[str, ...] = ()
    """Its columns with blind indexes that are text and not unique: of each token in `sealed`, in that order."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read and replaced."""
        return (*self.sealed, *self.indexes)


TABLES = (
    SealedTable("lead", ("id",), ("uuid",), "id", "leads"),
    SealedTable("resubmission", ("submission_id", "lead_id"), ("uuid", "uuid"), "submission_id", "resubmissions"),
    SealedTable("lead_conflict", ("id",), ("uuid",), "id", "conflicts"),
    SealedTable(
        "lead_conversation",
        ("lead_id", "id"),
        ("uuid", "bigint"),
        "submission_id",
        "conversations",
        sealed=("conversation_id",),
        indexes=("conversation_index",),
    ),
)
LEADS, RESUBMISSIONS, CONFLICTS, CONVERSATIONS = TABLES
EMAILS = SealedTable("lead", ("id",), ("uuid",), "id", "e-mails", sealed=("email",), indexes=("email_index",))
"""The leads by their e-mail alone. None of TABLES, because its tokens are counted and resealed with the leads."""
SUBMISSIONS = tuple(
    replace(table, sealed=("phone", "nid", "email"), indexes=("phone_index", "nid_index", "email_index"))
    for table in (RESUBMISSIONS, CONFLICTS)
)
"""Resubmissions and conflicts by what a person is found by; the tokens are resealed with all others."""
INDEXED = (CONVERSATIONS, EMAILS, *SUBMISSIONS)
"""What is found by blind indexes that are text. The first one shows how all of a row were made."""
NO_INDEX = "."
"""In place of the blind index of a value that does not open: one damaged token must not keep everybody from searching.
It names no key, so that each reindex tries again and every key can be retired."""

# A conversation id that is not sealed yet has no key, and nothing of it may be taken for one.
_SEALED_COUNTS = sql.SQL("""
    SELECT split_part(token, '.', 1), holder, count(*) FROM ({}) tokens WHERE strpos(token, {}) > 0 GROUP BY 1, 2
    ORDER BY 1, 2
""").format(
    sql.SQL(" UNION ALL ").join(
        [
            *(
                sql.SQL("SELECT {} AS holder, unnest(ARRAY[{}]) AS token FROM {}").format(
                    sql.Literal(table.plural),
                    sql.SQL(", ").join(map(sql.Identifier, table.sealed)),
                    sql.Identifier(table.name),
                )
                for table in TABLES
            ),
            sql.SQL("SELECT 'canary', sealed FROM key_canary"),
        ]
    ),
    sql.Literal(SEALED_FORM),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A row as it was read. `seen` differs when it was changed since."""

    key: tuple[Any, ...]
    bound_to: UUID
    seen: str
    tokens: dict[str, str] = field(repr=False)
    """By column; of a table with `indexes` those too."""
    indexes: tuple[bytes | None, bytes | None] = field(default=(None, None), repr=False)
    """The blind indexes of phone and nid in the pair of columns that was asked for; of leads only."""


@asynccontextmanager
async def rekeying(url: str) -> AsyncIterator[Rekeying]:
    """The tables of one database, on a connection of their own. Raises StartRefusedError."""
    try:
        parameters = session.parameters_of(url, "leadkeep-keys", connect_timeout=_CONNECT_SECONDS)
        async with await psycopg.AsyncConnection.connect(make_conninfo(**parameters), autocommit=True) as connection:
            if not (await session.prove(connection, None)).behind_pooler:
                await connection.execute(_SESSION)
            yield Rekeying(connection)
    except psycopg.Error as error:
        # The driver prints values into its errors, so that none gets beyond this module.
        raise StartRefusedError(
            f"the database failed ({error.sqlstate or 'it cannot be reached'}): what was done stays done, run the same "
            "command again to go on"
        ) from None


@dataclass(frozen=True, slots=True)
class Rekeying:
    """Reads and replaces rows, one batch at a time."""

    connection: psycopg.AsyncConnection

    async def count(self, table: SealedTable, where: RowFilter = EVERY_ROW) -> int:
        """How many rows of a table match a condition."""
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(sql.Identifier(table.name), where)
        [[count]] = await (await self.connection.execute(query)).fetchall()
        return int(count)

    async def in_clear(self) -> dict[str, int]:
        """How many conversation ids are in clear yet, by where they are; only where there are some."""
        return await self._counts(TABLES, sql.SQL(models.IN_CLEAR))

    async def not_found(self, schemes: Sequence[str]) -> dict[str, int]:
        """How many resubmissions and conflicts cannot be found by these schemes; only where there are some."""
        return await self._counts(SUBMISSIONS, lacks_scheme(*schemes, ""))

    async def _counts(self, tables: Sequence[SealedTable], where: RowFilter) -> dict[str, int]:
        counts = {table.plural: await self.count(table, where) for table in tables}
        return {plural: count for plural, count in counts.items() if count}

    async def sealed_counts(self) -> dict[str, dict[str, int]]:
        """How many tokens are sealed with each key, by where they are: {key id: {leads: 5, …}}."""
        counts: dict[str, dict[str, int]] = {}
        for key_id, holder, tokens in await (await self.connection.execute(_SEALED_COUNTS)).fetchall():
            counts.setdefault(key_id, {})[holder] = tokens
        return counts

    async def read(
        self, table: SealedTable, where: RowFilter, after: tuple[Any, ...] | None, *, pair: int | None = None
    ) -> list[Stored]:
        """The next batch of rows behind a key that match a condition, in the key's order.

        With `pair`, leads come with their indexes of that pair of columns.
        """
        key = sql.SQL(", ").join(map(sql.Identifier, table.key))
        indexes: sql.Composable = sql.SQL("NULL, NULL")
        if pair is not None:
            indexes = sql.SQL(", ").join(map(sql.Identifier, _columns(pair)))
        behind: sql.Composable = sql.SQL("true")
        if after is not None:
            behind = sql.SQL("({}) > ({})").format(key, sql.SQL(", ").join(map(sql.Literal, after)))
        query = sql.SQL(
            "SELECT {bound_to}, xmin::text, {indexes}, {tokens}, {key} FROM {table} WHERE {behind} AND {condition}"
            " ORDER BY {key} LIMIT {limit}"
        ).format(
            bound_to=sql.Identifier(table.bound_to),
            indexes=indexes,
            tokens=sql.SQL(", ").join(map(sql.Identifier, table.columns)),
            key=key,
            table=sql.Identifier(table.name),
            behind=behind,
            condition=where,
            limit=sql.Literal(BATCH_ROWS),
        )
        cursor = await self.connection.execute(query)
        width = 4 + len(table.columns)
        return [
            Stored(
                key=row[width:],
                bound_to=row[0],
                seen=row[1],
                indexes=(row[2], row[3]),
                tokens={
                    name: token for name, token in zip(table.columns, row[4:width], strict=True) if token is not None
                },
            )
            for row in await cursor.fetchall()
        ]

    async def replace_tokens(self, table: SealedTable, rows: Sequence[tuple[Stored, dict[str, str]]]) -> int:
        """Give rows new tokens; how many had not been changed meanwhile."""
        assigned = sql.SQL(", ").join(sql.SQL("{0} = given.{0}").format(sql.Identifier(name)) for name in table.columns)
        given = [dict(zip(table.key, row.key, strict=True)) | {"seen": row.seen} | tokens for row, tokens in rows]
        async with self.connection.transaction():
            done = await self._update(table, assigned, [f"{name} text" for name in table.columns], given)
            if done and "lead_id" in table.key:
                # What belongs to a lead is in its day's file, and only the lead's own changes are noted by themselves.
                await self.connection.execute(
                    "INSERT INTO lead_touch (quarter) SELECT DISTINCT date_bin('15 minutes', created_at,"
                    " TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM lead WHERE id = ANY(%s)",
                    [[row.key[table.key.index("lead_id")] for row, _ in rows]],
                )
        return done

    async def fill_indexes(self, pair: int, epoch: int, rows: Sequence[tuple[Stored, Indexes]]) -> int:
        """Give leads their indexes of a pair; how many got them.

        Two leads that were different under the old rules may be one under the new ones. None of them is dropped: the
        second one may share the first one's phone or nid, as by a person's decision.
        """
        phone, nid = _columns(pair)
        assigned = sql.SQL("{} = decode(given.p, 'hex'), {} = decode(given.n, 'hex'), index_epoch = {}").format(
            sql.Identifier(phone), sql.Identifier(nid), sql.Literal(epoch)
        )
        given = [
            {"id": row.key[0], "seen": row.seen, "p": phone_index.hex(), "n": nid_index and nid_index.hex()}
            for row, (phone_index, nid_index) in rows
        ]
        try:
            return await self._update(LEADS, assigned, ["p text", "n text"], given)
        except psycopg.errors.UniqueViolation as violation:
            if len(rows) > 1:
                half = len(rows) // 2
                filled = await self.fill_indexes(pair, epoch, rows[:half])
                return filled + await self.fill_indexes(pair, epoch, rows[half:])
            is_phone = violation.diag.constraint_name in _PHONES
            await self._share(rows[0], phone if is_phone else nid, is_phone=is_phone)
            return 0

    async def _share(self, row: tuple[Stored, Indexes], column: str, *, is_phone: bool) -> None:
        """Let a lead share its phone or nid with the lead that has the index of it, unless that gave it up meanwhile.

        Its row changes by that, so the next pass gives it its indexes. The other lead is locked, because whoever
        frees an index hands it over to those that share it.
        """
        await self.connection.execute(
            sql.SQL(
                "WITH holder AS (SELECT id FROM lead WHERE {column} = %s AND NOT {shared} FOR KEY SHARE)"
                " UPDATE lead SET {shared} = true FROM holder WHERE lead.id = %s AND NOT lead.{shared}"
            ).format(
                column=sql.Identifier(column), shared=sql.Identifier("phone_shared" if is_phone else "nid_shared")
            ),
            [row[1][0 if is_phone else 1], row[0].key[0]],
        )

    async def sharing_leads(self, pair: int) -> list[dict[str, str]]:
        """Leads that may share another lead's phone or nid: the `lead`, the other one (`beside`), and the `field`."""
        found: list[dict[str, str]] = []
        for name, column in zip(("phone", "nid"), _columns(pair), strict=True):
            query = sql.SQL(
                "SELECT beside.id, first.id FROM lead beside JOIN lead first ON first.{column} = beside.{column}"
                " AND NOT first.{shared} WHERE beside.{shared} AND beside.{column} IS NOT NULL ORDER BY 1"
            ).format(column=sql.Identifier(column), shared=sql.Identifier(f"{name}_shared"))
            cursor = await self.connection.execute(query)
            found += [
                {"lead": str(lead), "beside": str(other), "field": name} for lead, other in await cursor.fetchall()
            ]
        return found

    async def clear_indexes(self, pair: int) -> int:
        """Empty a pair of columns of a batch of leads; how many it was. The other pair must be whole."""
        phone, nid = (sql.Identifier(name) for name in _columns(pair))
        query = sql.SQL(
            "UPDATE lead SET {phone} = NULL, {nid} = NULL, index_epoch = (SELECT epoch FROM key_canary)"
            " WHERE id = ANY(ARRAY(SELECT id FROM lead WHERE {phone} IS NOT NULL OR {nid} IS NOT NULL LIMIT {limit}))"
        ).format(phone=phone, nid=nid, limit=sql.Literal(BATCH_ROWS))
        return await self._changed(query, if_locked=1)  # at least one is left

    async def _update(
        self, table: SealedTable, assigned: sql.Composable, types: Sequence[str], given: list[dict[str, Any]]
    ) -> int:
        declared = [f"{name} {kind}" for name, kind in zip(table.key, table.types, strict=True)]
        same = sql.SQL(" AND ").join(sql.SQL("t.{0} = given.{0}").format(sql.Identifier(name)) for name in table.key)
        query = sql.SQL(
            "UPDATE {table} t SET {assigned} FROM json_to_recordset(%s::json) AS given ({declared})"
            " WHERE {same} AND t.xmin::text = given.seen"
        ).format(
            table=sql.Identifier(table.name),
            assigned=assigned,
            declared=sql.SQL(", ".join([*declared, "seen text", *types])),
            same=same,
        )
        return await self._changed(query, [json.dumps(given, default=str)], if_locked=0)

    async def _changed(self, query: sql.Composed, parameters: Sequence[str] | None = None, *, if_locked: int) -> int:
        """How many rows a statement changed; `if_locked` where a live call held one of them for too long."""
        try:
            return (await self.connection.execute(query, parameters)).rowcount
        except psycopg.Error as error:
            if error.sqlstate not in _LOCK_FAILURES:
                raise
            return if_locked


def _columns(pair: int) -> tuple[str, str]:
    return ("phone_index", "nid_index") if pair == 1 else ("phone_index_2", "nid_index_2")


def lacks_index(pair: int) -> RowFilter:
    """The condition of leads that lack an index of a pair of columns."""
    phone, nid = _columns(pair)
    lacking = "({} IS NULL OR {} IS NULL AND nid IS NOT NULL)"
    return sql.SQL(lacking).format(sql.Identifier(phone), sql.Identifier(nid))


def sealed_otherwise(table: SealedTable, key_id: str) -> RowFilter:
    """The condition of rows of a table with a token of another key than this one, or with a value in clear."""
    begins: LiteralString = "coalesce(starts_with({}, {}), true)"
    sealed = (sql.SQL(begins).format(sql.Identifier(name), sql.Literal(f"{key_id}.")) for name in table.sealed)
    return sql.SQL("NOT ({})").format(sql.SQL(" AND ").join(sealed))


LACKS_EMAIL_INDEX: RowFilter = sql.SQL(models.LACKS_EMAIL_INDEX)
"""The condition of leads that lack the blind index of their e-mail."""


def is_indexed(table: SealedTable) -> RowFilter:
    """The condition of rows that have a blind index, which is text."""
    return sql.SQL("{} IS NOT NULL").format(sql.Identifier(table.indexes[0]))


def indexed_with(table: SealedTable, key_id: str) -> RowFilter:
    """The condition of rows with a blind index, which is text, that is made with this key."""
    made = (
        sql.SQL("starts_with({}, {})").format(sql.Identifier(name), sql.Literal(f"{key_id}.")) for name in table.indexes
    )
    return sql.SQL("({})").format(sql.SQL(" OR ").join(made))


def indexed_otherwise(table: SealedTable, key_id: str) -> RowFilter:
    """The condition of rows whose blind index is made with another key; not of those that have none yet."""
    return sql.SQL("NOT starts_with({}, {})").format(sql.Identifier(table.indexes[0]), sql.Literal(f"{key_id}."))


def lacks_scheme(*schemes: str) -> RowFilter:
    """The condition of resubmissions or conflicts whose blind indexes were made by none of these, or not yet."""
    made = sql.SQL(models.INDEX_SCHEME)
    return sql.SQL("coalesce({} <> ALL ({}), true)").format(made, sql.Literal(list(schemes)))
