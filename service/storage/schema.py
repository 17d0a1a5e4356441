"""Schema of the database: its revision, its migration, and the rights of the service's role.

`migrate` needs a role with DDL rights; the service itself never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from service.errors import StartRefusedError
from service.storage.database.database import Database
from service.storage.database.failures import StorageFaultError, cause_of, is_transient
from service.storage.database.session import SETTINGS, encoding_refusal, open_unproven, shown
from service.storage.postgres.embedded import EmbeddedPostgres

REVISION = "0020"
"""The schema that this release works with: the newest file in migrations/versions."""

_HISTORIES_MOVE = "0006a"
"""The schema at which `migrate` moves the histories; the next revision removes the tables of before."""

APPLICATION_ROLE = "leadkeep_app"
"""The group role that holds the rights of `serve`; the login role of `serve` is a member of it."""

OWN_DATABASE = "leadkeep"
OWN_LOGIN = "leadkeep_serve"
"""Database and login role on the embedded server."""

OWN_OWNER = "leadkeep_owner"
"""Owner of the database on the embedded server, no superuser: what a restored dump left there runs with its rights."""

_FOREIGN_OBJECTS = """
    SELECT format('ALTER TABLE public.%I OWNER TO leadkeep_owner', relname) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relowner <> 'leadkeep_owner'::regrole
    UNION ALL
    SELECT format('ALTER FUNCTION %s OWNER TO leadkeep_owner', oid::regprocedure) FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace AND proowner <> 'leadkeep_owner'::regrole
"""

UNREACHABLE_AT_START = (
    "the database cannot be reached: see that it runs, and that LEADKEEP_DATABASE_URL (for migrate: "
    "LEADKEEP_ADMIN_DATABASE_URL), its user, its password and its certificates (sslmode, sslrootcert) are right"
)

_CONNECT_SECONDS = 10

_MIGRATION_LOCK = 0x4C4B_4D49  # "LKMI": two operators who migrate at once take turns
_UNDEFINED_TABLE = "42P01"
_INSUFFICIENT_PRIVILEGE = "42501"

_SERVING_ROLES = text(
    "SELECT quote_ident(rolname) FROM pg_roles WHERE rolcanlogin AND NOT rolsuper"
    " AND pg_has_role(oid, CAST(:group AS name), 'USAGE')"
)

BATCH_LEADS = 1000
"""Leads whose histories move in a transaction: tens of milliseconds, so that no snapshot is held for long, however many
leads there are."""

# The numbers are those of the contract's LeadEventType.
_MOVE_HISTORIES = text(f"""
    WITH batch AS (
        SELECT id, created_at, created_by FROM lead
        WHERE id > coalesce((SELECT lead_id FROM lead_event ORDER BY lead_id DESC LIMIT 1), CAST(:lowest AS uuid))
        ORDER BY id LIMIT {BATCH_LEADS}
    )
    INSERT INTO lead_event (lead_id, version, type, actor, reason, at, from_status, to_status, from_assignee,
        to_assignee)
    SELECT * FROM (
        SELECT id, 1 AS version, 1, created_by, NULL, created_at, NULL, NULL, NULL, NULL FROM batch
        UNION ALL
        SELECT lead_id, version, 3, actor, reason, changed_at, from_status, to_status, NULL, NULL
        FROM batch JOIN status_change ON lead_id = batch.id
        UNION ALL
        SELECT lead_id, version, 4, actor, reason, changed_at, NULL, NULL, from_assignee, to_assignee
        FROM batch JOIN assignment_change ON lead_id = batch.id
    ) AS moved ORDER BY id, version
""")  # noqa: S608 # our own number

_HOLDS_SOMETHING = (
    "SELECT EXISTS (SELECT FROM lead) OR EXISTS (SELECT FROM lead_conflict) OR EXISTS (SELECT FROM access_record)"
)


def engine_of(url: str) -> Engine:
    """An engine without a pool. The URL is libpq's own, which names no driver and may list several hosts."""

    def connect() -> psycopg.Connection:
        connection = open_unproven(url, "leadkeep-migrate", connect_timeout=_CONNECT_SECONDS)
        connection.prepare_threshold = None  # a pooler would keep what is prepared for the session of somebody else
        return connection

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool, hide_parameters=True)


def migrate(url: str) -> str | None:
    """Bring the schema to REVISION; the revision found before, None for an empty database. Safe to repeat.

    In several transactions where rows move, none of them long; when it is interrupted, the same again goes on.
    Raises StartRefusedError when the database is of a later release or of none, cannot be reached, or refuses.
    """
    from alembic.util import CommandError  # costs 440 ms, which a start without migrations should not pay

    engine = engine_of(url)
    try:
        with _migrating(engine) as connection:
            before = _revision(connection)
            if before is not None and before > REVISION:
                raise StartRefusedError(_newer(before))
            if before is not None and before < _HISTORIES_MOVE:
                _upgrade(connection, _HISTORIES_MOVE)
        goes_on = True
        while goes_on:
            with _migrating(engine) as connection:
                goes_on = _revision(connection) == _HISTORIES_MOVE and move_histories(connection)
        with _migrating(engine) as connection:
            _upgrade(connection, "head")
            _grant_where_allowed(connection)
    except CommandError:
        raise StartRefusedError(f"the database is at schema {before}, which no release knows how to migrate") from None
    except DBAPIError as error:
        if is_transient(error):
            raise StartRefusedError(UNREACHABLE_AT_START) from None
        raise StartRefusedError(
            f"the migration failed (SQLSTATE {cause_of(error)}): the role of LEADKEEP_ADMIN_DATABASE_URL must be able "
            f"to create tables and grant rights, and must be able to create the role {APPLICATION_ROLE} or find it made"
        ) from None
    finally:
        engine.dispose()
    return before


def move_histories(connection: Connection) -> bool:
    """Move the histories of the first edition's next leads into the table `lead_event`; whether there were any.

    A batch goes on where the table ends: it holds all that belongs to its leads, so a kill between two transactions or
    within one loses nothing and doubles nothing. A lead of before gets its first event from its own row.
    """
    return connection.execute(_MOVE_HISTORIES, {"lowest": "00000000-0000-0000-0000-000000000000"}).rowcount > 0


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """One transaction of a migration, in its turn, with the settings of a session that decide what a migration makes.

    A pooler would keep the lock of a session for others. Raises StartRefusedError.
    """
    with engine.begin() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))
        for name in SETTINGS:
            if not name.endswith("_timeout"):
                connection.execute(
                    text("SELECT set_config(:name, :value, true)"), {"name": name, "value": SETTINGS[name]}
                )
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise StartRefusedError(encoding_refusal(encoding))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        yield connection


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _grant_where_allowed(connection: Connection) -> None:
    """Give the service what the role that migrates may be unable to give; `doctor` reports what is missing.

    The logins of `serve` need the settings of a session behind a pooler, and the group role sees the standbys.
    """
    roles = connection.execute(_SERVING_ROLES, {"group": APPLICATION_ROLE}).scalars().all()
    settings = [[f"ALTER ROLE {role} SET {name} = {shown(name)}" for name in SETTINGS] for role in roles]
    for statements in (*settings, [f"GRANT pg_monitor TO {APPLICATION_ROLE}"]):
        try:
            with connection.begin_nested():
                for statement in statements:
                    connection.execute(text(statement))
        except DBAPIError as error:
            if cause_of(error) != _INSUFFICIENT_PRIVILEGE:
                raise


def _revision(connection: Connection) -> str | None:
    if not connection.execute(text("SELECT to_regclass('alembic_version') IS NOT NULL")).scalar_one():
        return None
    return _only_revision(connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all())


def prepare_own_database(postgres: EmbeddedPostgres) -> None:
    """Make the database, the schema and the roles on the embedded server. Safe to repeat."""
    with psycopg.connect(postgres.url(user="postgres", database="postgres"), autocommit=True) as server:
        _make_roles(server)
        owner = _owner_of_database(server)
        if owner is None:
            server.execute(f"CREATE DATABASE {OWN_DATABASE} OWNER {OWN_OWNER}")
        elif owner != OWN_OWNER:
            _hand_over(server, postgres)
    owner_url = postgres.url(user=OWN_OWNER, database=OWN_DATABASE)
    engine = engine_of(owner_url)
    with engine.connect() as connection:
        current = _revision(connection) == REVISION
    engine.dispose()
    if not current:
        migrate(owner_url)


def _owner_of_database(server: psycopg.Connection) -> str | None:
    found = server.execute(
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [OWN_DATABASE]
    ).fetchone()
    return None if found is None else str(found[0])


def _make_roles(server: psycopg.Connection) -> None:
    made = {name for (name,) in server.execute("SELECT rolname FROM pg_roles")}
    for name, options in (
        (APPLICATION_ROLE, "NOLOGIN"),
        (OWN_OWNER, "LOGIN"),
        (OWN_LOGIN, f"LOGIN IN ROLE {APPLICATION_ROLE}"),
    ):
        if name not in made:
            server.execute(sql.SQL("CREATE ROLE {} " + options).format(sql.Identifier(name)))


def _hand_over(server: psycopg.Connection, postgres: EmbeddedPostgres) -> None:
    """Give a database that the superuser owned, as before there was an owner, to that owner."""
    server.execute(f"ALTER DATABASE {OWN_DATABASE} OWNER TO {OWN_OWNER}")
    with psycopg.connect(postgres.url(user="postgres", database=OWN_DATABASE)) as connection:
        for (statement,) in connection.execute(_FOREIGN_OBJECTS).fetchall():
            connection.execute(statement)


@contextmanager
def new_own_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of Leadkeep's own database as its owner, empty; with the login of `serve` when the block ends well.

    A database in which a service was started but nothing was stored counts as empty. Raises StartRefusedError for any
    other one.
    """
    owner = postgres.url(user=OWN_OWNER, database=OWN_DATABASE)
    name = sql.Identifier(OWN_DATABASE)
    with psycopg.connect(postgres.url(user="postgres", database="postgres"), autocommit=True) as connection:
        _make_roles(connection)
        if (found := _owner_of_database(connection)) is not None:
            # As its owner: a table of it may be a view by now, whose functions run with the rights of who looks.
            if _holds_something(postgres.url(user=found, database=OWN_DATABASE)):
                raise StartRefusedError(
                    "the data folder has a database with leads already: restore goes into a new one only; set "
                    "LEADKEEP_DATA_DIR to another folder. Nothing was changed"
                )
            connection.execute(sql.SQL("DROP DATABASE {}").format(name))
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(name, sql.Identifier(OWN_OWNER))
        )
        try:
            yield owner
            prepare_own_database(postgres)
        except BaseException:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            raise


def _holds_something(owner: str) -> bool:
    # Each statement alone: the first fails where a start was killed before it made the tables.
    with psycopg.connect(owner, autocommit=True) as connection:
        try:
            row = connection.execute(_HOLDS_SOMETHING).fetchone()
        except psycopg.errors.UndefinedTable:
            row = connection.execute("SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'public')").fetchone()
    return row is not None and bool(row[0])


@contextmanager
def embedded_database(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The embedded server with an up-to-date schema, running as long as it is used. Enter it in the main thread."""
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    try:
        prepare_own_database(postgres)
        yield postgres
    finally:
        postgres.stop()


async def revision_of(database: Database) -> str | None:
    """The schema revision that the database is at; None for a database that was never migrated.

    Raises StartRefusedError for one that a restore did not finish.
    """
    try:
        rows = await database.rows(text("SELECT version_num FROM alembic_version"))
    except StorageFaultError as error:
        if error.cause == _UNDEFINED_TABLE:
            return None
        raise
    return _only_revision([row.version_num for row in rows])


def _only_revision(revisions: Sequence[str]) -> str:
    """A migration makes table and row together; a backup holds no row, and a restore adds it at its end."""
    if not revisions:
        raise StartRefusedError(
            "a restore into this database did not come to its end: make a new database (an embedded service: a new "
            "data folder) and restore again"
        )
    return revisions[0]


def require_current(revision: str | None) -> None:
    """Raise StartRefusedError, which names the command to run, unless the schema is this release's."""
    if revision is None:
        raise StartRefusedError("the database has no Leadkeep schema yet; run: leadkeep migrate")
    if revision < REVISION:
        raise StartRefusedError(
            f"the database is at schema {revision}, this release needs {REVISION}; run: leadkeep migrate"
        )
    if revision > REVISION:
        raise StartRefusedError(_newer(revision))


def _newer(revision: str) -> str:
    return (
        f"the database is at schema {revision}, newer than this release, which knows {REVISION}; "
        "run the release that migrated it, or a later one"
    )
