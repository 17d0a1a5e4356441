"""PostgreSQL servers for measurements: each contender gets one of its own, all with the same settings, fsync on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg

from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import OWN_LOGIN, migrate, prepare_own_database
from tests.harness.postgres import folder_for_postgres

SETTINGS = {"max_connections": "400"}
"""pgbench opens one for each of 256 callers. Everything else is what Leadkeep's embedded server has: fsync on."""


@contextmanager
def fresh_postgres(settings: Mapping[str, str] = SETTINGS) -> Iterator[EmbeddedPostgres]:
    """A new server with the roles that `serve` needs. Start it in the main thread, before gRPC is at work here."""
    with folder_for_postgres() as base:
        postgres = EmbeddedPostgres(base / "data", settings=settings, root_base=base / "root-base")
        postgres.start()
        try:
            prepare_own_database(postgres)
            yield postgres
        finally:
            postgres.stop()


def database(postgres: EmbeddedPostgres, name: str) -> str:
    """A migrated database; its URL as the role of `serve`."""
    empty_database(postgres, name)
    migrate(postgres.url(user="postgres", database=name))
    return postgres.url(user=OWN_LOGIN, database=name)


def empty_database(postgres: EmbeddedPostgres, name: str) -> str:
    """A database without a schema; its URL as its owner."""
    with psycopg.connect(postgres.url(user="postgres", database="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return postgres.url(user="postgres", database=name)
