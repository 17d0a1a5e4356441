"""Backups: one snapshot of the whole database, dumped by pg_dump, with a manifest; and back again.

Promise: a backup that has a manifest holds every lead that was acknowledged as saved before it began. It is taken
without holding up anybody. A restore has checked everything that can be checked before it changes anything, and leaves
the whole backup or nothing. What a dump holds runs as a role that may do nothing beyond the database.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import IsolationLevel, sql
from psycopg.conninfo import make_conninfo

from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService
from service.keys.secret_file import sync_folder
from service.storage.backup.backup_manifest import (
    DUMP,
    TRANSACTION,
    Manifest,
    canary_of,
    contents,
    differences,
    key_ids,
    unlogged_tables,
)
from service.storage.database.session import open_unproven
from service.storage.postgres.process import ProgramFailedError, environment, program, run_program
from service.storage.schema import APPLICATION_ROLE, REVISION, migrate

_connected = partial(open_unproven, name="leadkeep-backup", connect_timeout=10)

_OURS = "--schema=public"
"""What the programs dump and restore. Beside it the database's administrators may have extensions, publications or
schemas of their own, which a role that is no superuser may neither read nor make anew."""

_VERIFY_LOCK = 0x4C4B_5646  # "LKVF": two verifications of backups of one database take turns

_RIGHTS = """
    SELECT rolsuper, EXISTS (
        SELECT FROM pg_roles given WHERE pg_has_role(me.oid, given.oid, 'MEMBER')
        AND given.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
    FROM pg_roles me WHERE rolname = current_user
"""

_DROPS = """
    SELECT format('DROP TABLE %s CASCADE', oid::regclass) FROM pg_class c
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    UNION ALL
    SELECT format('DROP FUNCTION %s', oid::regprocedure) FROM pg_proc p
    WHERE pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


def make_backup(url: str, folder: Path, encryption: EncryptionService | None) -> Manifest:
    """Back the database up into a folder that is new or empty, proven when `encryption` opens it.

    What was begun is removed when it fails or is interrupted. Raises StartRefusedError.
    """
    require_own_folder(folder)
    dump, is_new = folder / DUMP, not folder.exists()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise StartRefusedError(f"{folder} cannot be made: {error.strerror}") from None
    try:
        with _failures_as_refusals("backup"), _connected(url) as connection:
            manifest = _dump(connection, dump)
        if encryption is not None and manifest.canary.is_of(encryption):
            manifest = manifest.proven(encryption)
        manifest.write(folder)
    except BaseException:
        dump.unlink(missing_ok=True)
        if is_new:
            folder.rmdir()
        raise
    return manifest


def require_own_folder(folder: Path) -> None:
    """Raise StartRefusedError when something is in the way of a backup in this folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StartRefusedError(f"{folder} is not empty: give the backup a folder of its own")


def _dump(connection: psycopg.Connection, dump: Path) -> Manifest:
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    connection.execute(TRANSACTION)
    major = _major_of(connection)
    (snapshot,) = _row(connection, "SELECT pg_export_snapshot()")
    try:
        (schema,) = _row(connection, "SELECT version_num FROM alembic_version")
    except psycopg.errors.UndefinedTable:
        raise StartRefusedError("the database has no Leadkeep schema: there is nothing to back up") from None
    if unlogged := unlogged_tables(connection):
        raise StartRefusedError(
            f"tables are unlogged, and a backup would lack what they hold: {', '.join(unlogged)}. Run leadkeep doctor"
        )
    made_at = datetime.now(UTC)
    # An unlogged table holds what lasts seconds. A restore names the schema's revision when it has ended: without one,
    # nothing starts on what a killed restore left.
    options = ["--format=custom", "--no-owner", "--no-unlogged-table-data", "--exclude-table-data=alembic_version"]
    options += [_OURS, f"--snapshot={snapshot}", "--lock-wait-timeout=30s"]
    # One open file from the first byte to the digest: another one in its place would not be proven.
    with os.fdopen(os.open(dump, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "rb") as file:
        run_program(program("pg_dump", major), options, environment(connection), output=file)
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
    sync_folder(dump.parent)
    return Manifest(
        made_at=made_at,
        leadkeep=importlib.metadata.version("leadkeep"),
        postgres=major,
        schema=schema,
        # In the snapshot of the dump.
        key_ids=key_ids(connection),
        canary=canary_of(connection),
        tables=contents(connection),
        dump_bytes=size,
        dump_sha256=digest.hexdigest(),
    )


def verify_backup(url: str, dump: IO[bytes], manifest: Manifest) -> list[str]:
    """Restore into a database of its own on the same server, compare, and remove it: what differs, in words.

    That database has the same name every time, so that one that a killed verification left is removed by the next.
    """
    with _failures_as_refusals("verification"), _connected(url) as turn, _connected(url) as connection:
        # In a transaction of its own, which ends with it: a pooler would keep the lock of a session for others.
        turn.execute(TRANSACTION)
        turn.execute("SELECT pg_advisory_xact_lock(%s)", [_VERIFY_LOCK])
        connection.autocommit = True
        (number,) = _row(connection, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
        scratch = f"leadkeep_verify_{number}"
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(scratch))
        try:
            connection.execute(drop)
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(scratch)))
            with _restoring_role(connection, make_conninfo(url, dbname=scratch), scratch, stays=False) as scratch_url:
                _restore_dump(scratch_url, dump)
                with _connected(scratch_url) as restored:
                    return _differences(restored, manifest)
        except psycopg.errors.InsufficientPrivilege:
            raise StartRefusedError(
                "--verify restores into a database of its own, which this role may not create: as a superuser run "
                "ALTER ROLE … CREATEDB, or verify elsewhere with leadkeep restore"
            ) from None
        finally:
            with _uninterrupted(), suppress(psycopg.errors.InsufficientPrivilege):  # then it is somebody else's
                connection.execute(drop)


def require_known_schema(manifest: Manifest) -> None:
    """Raise StartRefusedError for a backup of a later release."""
    if manifest.schema > REVISION:
        raise StartRefusedError(
            f"the backup has schema {manifest.schema}, newer than this release, which knows {REVISION}: restore it "
            "with the release that made it, or a later one. Nothing was changed"
        )


def require_empty_target(url: str, manifest: Manifest) -> None:
    """Raise StartRefusedError unless the backup can go into this database, which must hold nothing."""
    with _failures_as_refusals("restore"), _connected(url) as connection:
        major = _major_of(connection)
        objects, role_exists, may_make_roles, may_create = _row(
            connection,
            """SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'
                       AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
                       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'))
                   + (SELECT count(*) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
                      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')),
                      EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s),
                      (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user),
                      has_schema_privilege(current_user, 'public', 'CREATE')""",
            {"role": APPLICATION_ROLE},
        )
    obstacles = {
        "the target database is not empty: restore goes into a new database only": objects,
        f"the backup is of PostgreSQL {manifest.postgres}, the target is {major}: use a server that is not older": (
            major < manifest.postgres
        ),
        f"the role {APPLICATION_ROLE} is missing and this role may not make it: as a superuser run CREATE ROLE "
        f"{APPLICATION_ROLE} NOLOGIN": not (role_exists or may_make_roles),
        "this role may not create tables in the target: set LEADKEEP_ADMIN_DATABASE_URL to the database's owner": (
            not may_create
        ),
    }
    for why, is_there in obstacles.items():
        if is_there:
            raise StartRefusedError(f"{why}. Nothing was changed")


def restore_backup(url: str, dump: IO[bytes], manifest: Manifest) -> None:
    """Bring the backup into an empty database that was checked before. Raises StartRefusedError.

    Two transactions: one restores, one compares and makes the database usable. Afterwards an older schema is migrated.
    """
    with _failures_as_refusals("restore"), _connected(url) as connection:
        connection.autocommit = True
        _make_role(connection, APPLICATION_ROLE)
        (number,) = _row(connection, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
        with _restoring_role(connection, url, f"leadkeep_restored_{number}", stays=True) as as_role:
            _restore_dump(as_role, dump)
            try:
                _finish(as_role, manifest)
                if manifest.schema < REVISION:
                    migrate(as_role)
            except BaseException:
                _empty(as_role)
                raise


@contextmanager
def _restoring_role(connection: psycopg.Connection, url: str, name: str, *, stays: bool) -> Iterator[str]:
    """Yield the URL of the database as a role that may do nothing beyond it; all that the block makes is that role's.

    A dump is SQL: whatever it holds, such as a CHECK that calls a function, runs with the rights of the role that
    restores, and a superuser may run programs and read files of the server's machine.

    `connection` is in autocommit and may change roles. The role of the URL itself is used unless it is a superuser:
    then the role `name` is made, which becomes the database's owner. It is removed, with all that it owns, when the
    block fails, and always unless it `stays`; one that stays cannot log in any more. Raises StartRefusedError.
    """
    superuser, reaches_server = _row(connection, _RIGHTS)
    if not superuser:
        if reaches_server:
            raise StartRefusedError(
                "a dump would run with rights beyond the database: LEADKEEP_ADMIN_DATABASE_URL must name a role that "
                "is no member of pg_execute_server_program, pg_read_server_files or pg_write_server_files"
            )
        yield url
        return
    with psycopg.connect(url) as target:
        database, owner = _row(
            target, "SELECT datname, pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        )
    role, password = sql.Identifier(name), secrets.token_urlsafe(24)
    # Digested here: a statement may be logged by the server.
    digest = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    as_role = make_conninfo(url, user=name, password=password)
    kept = False
    try:
        with _uninterrupted():
            _make_role(connection, name)
            connection.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER LOGIN PASSWORD {}").format(role, digest))
            _own(connection, database, name)
        try:
            psycopg.connect(as_role, connect_timeout=10).close()
        except psycopg.OperationalError:
            raise StartRefusedError(
                "LEADKEEP_ADMIN_DATABASE_URL names a superuser, and a dump must not run as one; the server's "
                "pg_hba.conf does not let in the role that was made instead: name the database's owner, who is no "
                "superuser"
            ) from None
        yield as_role
        kept = stays
    finally:
        with _uninterrupted():
            if kept:
                connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(role))
            else:
                with psycopg.connect(url, autocommit=True) as target:
                    _own(connection, database, owner)
                    target.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
                connection.execute(sql.SQL("DROP ROLE {}").format(role))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block ends: PostgreSQL would cancel what cleans up, and it would stay."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_role(connection: psycopg.Connection, name: str) -> None:
    """Make a role that cannot log in, unless there is one of this name."""
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))


def _own(connection: psycopg.Connection, database: str, role: str) -> None:
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), sql.Identifier(role)))


def _finish(url: str, manifest: Manifest) -> None:
    """Compare, and name the schema's revision, without which nothing starts on this database.

    Every day is noted for rendering: the daily files of the backed-up service are not those of this one.
    """
    with _connected(url) as connection:
        if differing := _differences(connection, manifest):
            raise StartRefusedError(
                f"what was restored is not what was backed up ({'; '.join(differing)}): the target is empty again"
            )
        # Rights to a schema are not among what is in it.
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute(f"GRANT USAGE ON SCHEMA public TO {APPLICATION_ROLE}")
        connection.execute("DELETE FROM daily_file")
        # The backed-up service's replicas are none of this one's: nobody needs to wait for them.
        connection.execute("DELETE FROM replica")
        connection.execute("DELETE FROM lead_touch")
        connection.execute(
            "INSERT INTO lead_touch (quarter) SELECT DISTINCT"
            " date_bin('15 minutes', created_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') FROM lead"
        )
        # Those of the backed-up server may be ahead of this one's, and would hide an event from a reader until then.
        # The first edition had no events.
        connection.execute(
            "ALTER TABLE IF EXISTS lead_event ALTER COLUMN transaction_id TYPE xid8 USING pg_current_xact_id()"
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("ANALYZE")


def _empty(url: str) -> None:
    """Remove what was restored. There was neither table nor function before, so all of them are ours."""
    try:
        with _uninterrupted(), _connected(url) as connection:
            for (statement,) in connection.execute(_DROPS).fetchall():
                connection.execute(statement)
    except psycopg.Error:
        raise StartRefusedError(
            "the restore failed and the target could not be emptied again: drop that database, and make it anew"
        ) from None


def _restore_dump(url: str, dump: IO[bytes]) -> None:
    """In one transaction."""
    with _connected(url) as connection:
        major, name, env = _major_of(connection), connection.info.dbname, environment(connection)
    options = ["--single-transaction", "--exit-on-error", "--no-owner", _OURS, f"--dbname={name}"]
    dump.seek(0)
    run_program(program("pg_restore", major), options, env, given=dump)


def _differences(connection: psycopg.Connection, manifest: Manifest) -> list[str]:
    """In what a restored dump and the manifest differ, with the revision that the manifest names."""
    connection.execute(TRANSACTION)
    connection.execute("INSERT INTO alembic_version VALUES (%s) ON CONFLICT DO NOTHING", [manifest.schema])
    return differences(manifest.tables, contents(connection))


def _major_of(connection: psycopg.Connection) -> int:
    return connection.info.server_version // 10_000


def _row(connection: psycopg.Connection, query: str, parameters: dict[str, str] | None = None) -> tuple[Any, ...]:
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None  # noqa: S101 # these have one row
    return row


@contextmanager
def _failures_as_refusals(what: str) -> Iterator[None]:
    """Drivers print values into their errors, so that none gets beyond this module."""
    try:
        yield
    except psycopg.errors.DiskFull:
        raise StartRefusedError(f"the {what} failed: the disk of the database's server is full") from None
    except psycopg.Error as error:
        raise StartRefusedError(
            f"the {what} failed ({error.sqlstate or 'the database cannot be reached'}): see that the database runs, "
            "and that LEADKEEP_ADMIN_DATABASE_URL names its owner"
        ) from None
    except ProgramFailedError as failed:
        raise StartRefusedError(f"the {what} failed: {failed}") from None
    except OSError as error:
        raise StartRefusedError(f"the {what} failed: {error.strerror}") from None
