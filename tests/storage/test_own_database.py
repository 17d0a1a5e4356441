"""The embedded server's own database belongs to a role that is no superuser."""

from __future__ import annotations

import psycopg
import pytest

from service.errors import StartRefusedError
from service.storage.schema import OWN_OWNER, new_own_database, prepare_own_database
from tests.harness.faults import execute
from tests.harness.postgres import TestServer

OWNERS = """
    SELECT DISTINCT pg_get_userbyid(by) FROM (
        SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT datdba FROM pg_database WHERE datname = 'leadkeep'
    ) owned (by)
"""


def owners(server: TestServer) -> set[str]:
    with psycopg.connect(server.postgres.url(user="postgres", database="leadkeep")) as connection:
        return {name for (name,) in connection.execute(OWNERS)}


def test_a_new_database_belongs_to_no_superuser(server: TestServer) -> None:
    assert owners(server) == {OWN_OWNER}


def test_one_that_the_superuser_owned_is_handed_over(server: TestServer) -> None:
    with psycopg.connect(server.postgres.url(user="postgres", database="leadkeep"), autocommit=True) as connection:
        connection.execute("ALTER DATABASE leadkeep OWNER TO postgres")
        connection.execute("REASSIGN OWNED BY leadkeep_owner TO postgres")
    prepare_own_database(server.postgres)
    assert owners(server) == {OWN_OWNER}


def as_a_killed_start_left_it(server: TestServer) -> None:
    """The database, without a table."""
    with psycopg.connect(server.postgres.url(user="postgres", database="postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS leadkeep")
        connection.execute("CREATE DATABASE leadkeep OWNER leadkeep_owner TEMPLATE template0")


def test_what_a_killed_start_left_is_no_obstacle_to_a_restore(server: TestServer) -> None:
    as_a_killed_start_left_it(server)
    with new_own_database(server.postgres):
        pass
    assert owners(server) == {OWN_OWNER}


def test_a_database_of_somebody_elses_tables_is_no_place_for_a_restore(server: TestServer) -> None:
    as_a_killed_start_left_it(server)
    with psycopg.connect(server.postgres.url(user=OWN_OWNER, database="leadkeep")) as connection:
        connection.execute("CREATE TABLE mine ()")
    with pytest.raises(StartRefusedError, match="a new one only"), new_own_database(server.postgres):
        pass


def test_a_new_database_that_cannot_be_made_ready_does_not_stay(server: TestServer) -> None:
    as_a_killed_start_left_it(server)
    of_later = "CREATE TABLE alembic_version AS SELECT '9999' AS version_num"
    with pytest.raises(StartRefusedError, match="newer"), new_own_database(server.postgres) as url:
        execute(url, of_later)
    with psycopg.connect(server.postgres.url(user="postgres", database="postgres")) as connection:
        assert connection.execute("SELECT FROM pg_database WHERE datname = 'leadkeep'").fetchall() == []
