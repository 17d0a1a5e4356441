"""Statements of the busiest paths: compiled by SQLAlchemy once, run by psycopg itself.

A read by key costs 430 µs of CPU through SQLAlchemy's execution and 140 µs without it (docs/performance.md); what is
left out is the work that it repeats each time: events, contexts, results with named columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from psycopg.rows import AsyncRowFactory, namedtuple_row, tuple_row
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ClauseElement

from service.storage.connections import driver_of

T = TypeVar("T")

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy says nothing of its arguments


class Statement:
    """One statement with named parameters. It must not expand lists: their length would be compiled in."""

    def __init__(self, statement: ClauseElement) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._sql = compiled.string.encode()
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run it; what it answers, as tuples. Raises psycopg's errors."""
        return await self._run(connection, parameters, tuple_row)

    async def named_rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> list[Any]:
        """Like `rows`, with the columns' names."""
        return await self._run(connection, parameters, namedtuple_row)

    async def _run(
        self, connection: AsyncConnection, parameters: Mapping[str, Any], row_factory: AsyncRowFactory[T]
    ) -> list[T]:
        cursor = driver_of(connection).cursor(row_factory=row_factory)
        await cursor.execute(self._sql, self._fixed | dict(parameters))
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []
