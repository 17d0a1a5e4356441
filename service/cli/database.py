"""The database as an operator's command reaches it, whether the service runs or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from service import factories
from service.config import Settings
from service.encryption import EncryptionService
from service.errors import StartRefusedError
from service.storage.canary import compare_canary, plan_of
from service.storage.database import Database
from service.storage.embedded import DataDirInUseError, EmbeddedPostgres
from service.storage.schema import OWN_DATABASE, OWN_LOGIN, embedded_database, require_current, revision_of

T = TypeVar("T")

ATTEMPT_SECONDS = 30.0
"""How long an attempt at the database may take. No customer waits, and an import stores hundreds of leads at once."""


@contextmanager
def operators_database_url(settings: Settings) -> Iterator[str]:
    """The URL of the database as the role of `serve`. Raises StartRefusedError."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    with embedded_url(settings, user=OWN_LOGIN) as url:
        yield url


@contextmanager
def embedded_url(settings: Settings, *, user: str) -> Iterator[str]:
    """The URL of the embedded database of the service that runs; if none runs, a server is started for the command.

    Raises StartRefusedError, also while the service that runs restarts its server.
    """
    running = EmbeddedPostgres.running_url(settings.data_dir, user=user, database=OWN_DATABASE)
    if running is not None:
        yield running
        return
    with ExitStack() as stack:
        try:
            postgres = stack.enter_context(embedded_database(settings.data_dir))
        except DataDirInUseError as used:
            if not used.restarts_server:
                raise
            raise StartRefusedError(
                f"PostgreSQL of the running service (process {used.owner}) is not running, it is being restarted; "
                f"new leads wait in its spool; see {EmbeddedPostgres(settings.data_dir).log_file}"
            ) from None
        yield postgres.url(user=user, database=OWN_DATABASE)


@contextmanager
def confirmed_database_url(settings: Settings) -> Iterator[str]:
    """The URL of the database, which was compared with the keyring. Raises StartRefusedError."""
    _require_database(settings)
    with operators_database_url(settings) as url:
        asyncio.run(_confirm(settings, url, _nothing))
        yield url


def with_database(
    settings: Settings, work: Callable[[Database, EncryptionService], Awaitable[T]], *, may_be_new: bool = False
) -> T:
    """Run `work` with the database, which was compared with the keyring. Raises StartRefusedError.

    With `may_be_new` an embedded database is made if there is none, but only for a keyring that is there.
    """
    if not (may_be_new and settings.keyring_path.exists()):
        _require_database(settings)
    with operators_database_url(settings) as url:
        return asyncio.run(_confirm(settings, url, work))


def with_keys(settings: Settings, work: Callable[[str, Database, EncryptionService], Awaitable[T]]) -> T:
    """Run `work` with the database's URL, the database and its keyring, whatever normaliser the settings mean.

    Raises StartRefusedError.
    """
    _require_database(settings)
    with operators_database_url(settings) as url:

        async def with_url(database: Database, encryption: EncryptionService) -> T:
            return await work(url, database, encryption)

        return asyncio.run(_confirm(settings, url, with_url, any_normaliser=True))


async def _confirm(
    settings: Settings,
    url: str,
    work: Callable[[Database, EncryptionService], Awaitable[T]],
    *,
    any_normaliser: bool = False,
) -> T:
    database = Database(url, attempt_seconds=ATTEMPT_SECONDS)
    try:
        require_current(await revision_of(database))
        encryption = factories.encryption_of(settings)
        normaliser = None if any_normaliser else factories.validation_of(settings).normaliser_identity
        state = await compare_canary(database, encryption, normaliser)
        if state is not None:
            encryption.plan = plan_of(state, encryption)
        return await work(database, encryption)
    finally:
        await database.close()


async def _nothing(_database: Database, _encryption: EncryptionService) -> None:
    pass


def _require_database(settings: Settings) -> None:
    if settings.embedded and not EmbeddedPostgres.has_database(settings.data_dir):
        raise StartRefusedError("there is no database yet; the first serve makes it")
