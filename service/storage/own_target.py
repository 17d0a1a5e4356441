"""The embedded server's database as the target of a restore: made afresh, and gone again when the restore fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from service.errors import StartRefusedError
from service.storage.embedded import EmbeddedPostgres
from service.storage.schema import OWN_DATABASE, prepare_own_database

_HOLDS_SOMETHING = (
    "SELECT EXISTS (SELECT FROM lead) OR EXISTS (SELECT FROM lead_conflict) OR EXISTS (SELECT FROM access_record)"
)


@contextmanager
def new_own_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of Leadkeep's own database as the superuser, empty; with the login of `serve` when the block ends well.

    A database in which a service was started but nothing was stored counts as empty. Raises StartRefusedError for any
    other one.
    """
    admin = postgres.url(user="postgres", database="postgres")
    owner = postgres.url(user="postgres", database=OWN_DATABASE)
    name = sql.Identifier(OWN_DATABASE)
    with psycopg.connect(admin, autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [OWN_DATABASE]).fetchone() is not None:
            if _holds_something(owner):
                raise StartRefusedError(
                    "the data folder has a database with leads already: restore goes into a new one only; set "
                    "LEADKEEP_DATA_DIR to another folder. Nothing was changed"
                )
            connection.execute(sql.SQL("DROP DATABASE {}").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
        try:
            yield owner
        except BaseException:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            raise
    prepare_own_database(admin, owner)


def _holds_something(owner: str) -> bool:
    with psycopg.connect(owner) as connection:
        try:
            row = connection.execute(_HOLDS_SOMETHING).fetchone()
        except psycopg.errors.UndefinedTable:
            row = connection.execute("SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'public')").fetchone()
    return row is not None and bool(row[0])
