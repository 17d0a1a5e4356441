"""The database of an operator's command, whether the service runs or not; `leadkeep migrate`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import TypeVar

from service import factories
from service.cli.command import echo
from service.config import Settings, load_settings
from service.errors import StartRefusedError, StorageUnavailableError
from service.keys.encryption import EncryptionService
from service.storage import schema
from service.storage.database.database import Database
from service.storage.database.failures import StorageFaultError
from service.storage.database.fence import Fence
from service.storage.keys.canary import compare_canary, plan_of
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.postgres.folders import DataDirInUseError

T = TypeVar("T")

ATTEMPT_SECONDS = 30.0
"""How long an attempt at the database may take. No customer waits, and an import stores hundreds of leads at once."""


class Login(StrEnum):
    """Who a command is to the embedded server. On another one OWNER and SUPERUSER are LEADKEEP_ADMIN_DATABASE_URL."""

    SERVE = schema.OWN_LOGIN
    OWNER = schema.OWN_OWNER
    SUPERUSER = "postgres"


@contextmanager
def database_url(settings: Settings, login: Login = Login.SERVE) -> Iterator[str]:
    """The URL of the database for this login. An embedded server is started if none runs.

    Raises StartRefusedError, also while the service that runs restarts its server.
    """
    url = settings.database_url if login is Login.SERVE else settings.migration_url
    if url is not None:
        yield url
        return
    running = EmbeddedPostgres.running_url(settings.data_dir, user=login, database=schema.OWN_DATABASE)
    if running is not None:
        yield running
        return
    with ExitStack() as stack:
        try:
            postgres = stack.enter_context(schema.embedded_database(settings.data_dir))
        except DataDirInUseError as used:
            if not used.restarts_server:
                raise
            raise StartRefusedError(
                f"PostgreSQL of the running service (process {used.owner}) is not running, it is being restarted; "
                f"new leads wait in its spool; see {EmbeddedPostgres(settings.data_dir).log_file}"
            ) from None
        yield postgres.url(user=login, database=schema.OWN_DATABASE)


@contextmanager
def confirmed_database_url(settings: Settings) -> Iterator[str]:
    """The URL of the database, which was compared with the keyring. Raises StartRefusedError."""
    require_database(settings)
    with database_url(settings) as url:
        asyncio.run(_with_confirmed(settings, url, _nothing))
        yield url


def with_database(
    settings: Settings,
    work: Callable[[str, Database, EncryptionService], Awaitable[T]],
    *,
    may_be_new: bool = False,
    any_normaliser: bool = False,
) -> T:
    """Run `work` with the URL, the database, and its keyring, which were compared. Raises StartRefusedError.

    With `may_be_new` an embedded database is made if there is none, but only for a keyring that is there. With
    `any_normaliser` the settings may mean another normaliser than that of the stored leads.
    """
    if not (may_be_new and settings.keyring_path.exists()):
        require_database(settings)
    with database_url(settings) as url:
        return asyncio.run(_with_confirmed(settings, url, work, any_normaliser=any_normaliser))


async def _with_confirmed(
    settings: Settings,
    url: str,
    work: Callable[[str, Database, EncryptionService], Awaitable[T]],
    *,
    any_normaliser: bool = False,
) -> T:
    # What a look notes in the service's folder would belong to whoever runs the command.
    fence = Fence(url, settings.spool_path, remembers=False)
    database = Database(url, fence=fence, attempt_seconds=ATTEMPT_SECONDS)
    try:
        schema.require_current(await schema.revision_of(database))
        encryption = factories.encryption_of(settings)
        normaliser = None if any_normaliser else factories.validation_of(settings).normaliser_identity
        state = await compare_canary(database, encryption, normaliser)
        if state is not None:
            encryption.plan = plan_of(state, encryption)
        return await work(url, database, encryption)
    except StorageFaultError as fault:
        raise StartRefusedError(refusal_of(fault)) from None
    except StorageUnavailableError:
        raise await database.why_refused() or StorageUnavailableError from None
    finally:
        await database.close()
        await fence.close()


def refusal_of(fault: StorageFaultError) -> str:
    """What to tell the operator when the database refuses whatever is asked of it."""
    return (
        f"the database refuses this (SQLSTATE {fault.cause}): leadkeep doctor names the cause; mend it, and run the "
        "same command again"
    )


async def _nothing(_url: str, _database: Database, _encryption: EncryptionService) -> None:
    pass


def is_untouched(settings: Settings) -> bool:
    """Whether the embedded service has never been started."""
    return settings.embedded and not EmbeddedPostgres.has_database(settings.data_dir)


def require_database(settings: Settings) -> None:
    """Raise StartRefusedError when the embedded database was never made."""
    if is_untouched(settings):
        raise StartRefusedError("there is no database yet; the first serve makes it")


def migrate() -> None:
    """Migrate the database's schema to this release; needs a role with DDL rights. Safe to repeat."""
    settings = load_settings()
    if settings.migration_url is None:
        raise StartRefusedError(
            "the embedded database is migrated when the service starts; set LEADKEEP_DATABASE_URL for another one"
        )
    before = schema.migrate(settings.migration_url)
    if before == schema.REVISION:
        echo(f"The schema is up to date ({schema.REVISION}).")
    else:
        echo(f"The schema is at {schema.REVISION} now (before: {before or 'none'}).")
