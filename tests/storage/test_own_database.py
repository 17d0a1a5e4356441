"""The embedded server's own database belongs to a role that is no superuser."""

from __future__ import annotations

import psycopg

from service.storage.schema import OWN_OWNER, prepare_own_database
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
