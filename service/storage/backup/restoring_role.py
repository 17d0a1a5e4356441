"""Role that restores a dump: it owns one database and may do nothing beyond it.

A dump is SQL. Whatever it holds, such as a CHECK that calls a function, runs with the rights of the role that restores,
and a superuser may run programs and read files of the server's machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from service.errors import StartRefusedError

_RIGHTS = """
    SELECT rolsuper, EXISTS (
        SELECT FROM pg_roles given WHERE pg_has_role(me.oid, given.oid, 'MEMBER')
        AND given.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
    FROM pg_roles me WHERE rolname = current_user
"""


@contextmanager
def restoring_role(connection: psycopg.Connection, url: str, name: str, *, stays: bool) -> Iterator[str]:
    """Yield the URL of the database as a role that may do nothing beyond it; all that the block makes is that role's.

    `connection` is in autocommit and may change roles. The role of the URL itself is used unless it is a superuser:
    then the role `name` is made, which becomes the database's owner. It is removed, with all that it owns, when the
    block fails, and always unless it `stays`; one that stays cannot log in any more. Raises StartRefusedError.
    """
    row = connection.execute(_RIGHTS).fetchone()
    superuser, reaches_server = row or (False, False)
    if not superuser:
        if reaches_server:
            raise StartRefusedError(
                "a dump would run with rights beyond the database: LEADKEEP_ADMIN_DATABASE_URL must name a role that "
                "is no member of pg_execute_server_program, pg_read_server_files or pg_write_server_files"
            )
        yield url
        return
    with psycopg.connect(url) as target:
        found = target.execute(
            "SELECT datname, pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert found is not None  # noqa: S101 # the database that it is connected to
    database, owner = found
    role, password = sql.Identifier(name), secrets.token_urlsafe(24)
    # Digested here: a statement may be logged by the server.
    digest = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
        connection.execute(sql.SQL("CREATE ROLE {}").format(role))
    connection.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER LOGIN PASSWORD {}").format(role, digest))
    _own(connection, database, name)
    as_role = make_conninfo(url, user=name, password=password)
    kept = False
    try:
        _require_login(as_role)
        yield as_role
        kept = stays
    finally:
        if kept:
            connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(role))
        else:
            with psycopg.connect(url, autocommit=True) as target:
                _own(connection, database, owner)
                target.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def _own(connection: psycopg.Connection, database: str, role: str) -> None:
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), sql.Identifier(role)))


def _require_login(url: str) -> None:
    try:
        psycopg.connect(url, connect_timeout=10).close()
    except psycopg.OperationalError:
        raise StartRefusedError(
            "LEADKEEP_ADMIN_DATABASE_URL names a superuser, and a dump must not run as one; the server's pg_hba.conf "
            "does not let in the role that was made instead: name the database's owner, who is no superuser"
        ) from None
