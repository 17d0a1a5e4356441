"""The database of an operator's command, whether the service runs or not; `leadkeep migrate`, `backup`, `restore`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from service import factories
from service.cli.command import AsJson, ProgressLine, interruptible, print_json
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService
from service.storage import schema
from service.storage.backup.backup import (
    make_backup,
    require_empty_target,
    require_keyring,
    require_known_schema,
    require_own_folder,
    restore_backup,
    verify_backup,
)
from service.storage.backup.backup_manifest import MANIFEST, Manifest, read_manifest, require_whole_dump
from service.storage.database.database import Database
from service.storage.keys.canary import compare_canary, plan_of
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.postgres.folders import DataDirInUseError
from service.storage.spool.rows import peek

T = TypeVar("T")

Folder = Annotated[Path, typer.Argument(metavar="DIR")]

ATTEMPT_SECONDS = 30.0
"""How long an attempt at the database may take. No customer waits, and an import stores hundreds of leads at once."""


@contextmanager
def database_url(settings: Settings, *, as_owner: bool = False) -> Iterator[str]:
    """The URL of the database, for the role of `serve` or its owner. An embedded server is started if none runs.

    Raises StartRefusedError, also while the service that runs restarts its server.
    """
    url = settings.migration_url if as_owner else settings.database_url
    if url is not None:
        yield url
        return
    user = "postgres" if as_owner else schema.OWN_LOGIN
    running = EmbeddedPostgres.running_url(settings.data_dir, user=user, database=schema.OWN_DATABASE)
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
        yield postgres.url(user=user, database=schema.OWN_DATABASE)


@contextmanager
def confirmed_database_url(settings: Settings) -> Iterator[str]:
    """The URL of the database, which was compared with the keyring. Raises StartRefusedError."""
    _require_database(settings)
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
        _require_database(settings)
    with database_url(settings) as url:
        return asyncio.run(_with_confirmed(settings, url, work, any_normaliser=any_normaliser))


async def _with_confirmed(
    settings: Settings,
    url: str,
    work: Callable[[str, Database, EncryptionService], Awaitable[T]],
    *,
    any_normaliser: bool = False,
) -> T:
    database = Database(url, attempt_seconds=ATTEMPT_SECONDS)
    try:
        schema.require_current(await schema.revision_of(database))
        encryption = factories.encryption_of(settings)
        normaliser = None if any_normaliser else factories.validation_of(settings).normaliser_identity
        state = await compare_canary(database, encryption, normaliser)
        if state is not None:
            encryption.plan = plan_of(state, encryption)
        return await work(url, database, encryption)
    finally:
        await database.close()


async def _nothing(_url: str, _database: Database, _encryption: EncryptionService) -> None:
    pass


def is_untouched(settings: Settings) -> bool:
    """Whether the embedded service has never been started."""
    return settings.embedded and not EmbeddedPostgres.has_database(settings.data_dir)


def _require_database(settings: Settings) -> None:
    if is_untouched(settings):
        raise StartRefusedError("there is no database yet; the first serve makes it")


def migrate() -> None:
    """Bring the database's schema to this release; needs a role with DDL rights. Safe to repeat."""
    settings = load_settings()
    if settings.migration_url is None:
        raise StartRefusedError(
            "the embedded database is migrated when the service starts; set LEADKEEP_DATABASE_URL for another one"
        )
    before = schema.migrate(settings.migration_url)
    if before == schema.REVISION:
        typer.echo(f"The schema is up to date ({schema.REVISION}).")
    else:
        typer.echo(f"The schema is at {schema.REVISION} now (before: {before or 'none'}).")


def backup(
    folder: Folder,
    verify: Annotated[
        bool, typer.Option("--verify", help="Restore it into a database of its own and compare.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Back the database up into a new folder. With --verify, a folder that holds a backup already is verified."""
    settings = load_settings()
    earlier = read_manifest(folder) if verify and (folder / MANIFEST).exists() else None
    if earlier is None:
        require_own_folder(folder)
    _require_database(settings)
    progress = ProgressLine()
    try:
        with interruptible(), database_url(settings, as_owner=True) as url:
            progress.show("verifying" if earlier else "dumping")
            manifest = earlier or make_backup(url, folder)
            if verify:
                progress.show("verifying")
                if differing := verify_backup(url, folder, manifest):
                    raise StartRefusedError(f"the backup in {folder} is not good: {'; '.join(differing)}")
    finally:
        progress.end()
    waiting = peek(settings.spool_path)[0].waiting
    opens = _opens(settings, manifest)
    leads = manifest.tables["lead"].rows
    if as_json:
        shown = {"folder": str(folder), "leads": leads, "bytes": manifest.dump_bytes, "verified": verify}
        shown |= {"made_at": manifest.made_at.isoformat(), "waiting_in_spool": waiting, "opens": opens}
        print_json(shown)
        return
    done = "verified: it was restored and is equal" if verify else "not verified: run it with --verify"
    typer.echo(f"{folder}: {leads} leads, {manifest.dump_bytes} bytes, {done}.")
    name = factories.keyring_source(settings).name
    if opens:
        typer.echo(f"{name[0].upper()}{name[1:]} is not in it: keep a copy of it apart, without which nothing opens.")
    else:
        typer.echo(
            f"leadkeep: {name}, with these settings, is not what the backed-up leads were sealed with: keep a copy of "
            "the keyring that the service has, without which nothing opens",
            err=True,
        )
    if waiting:
        typer.echo(f"{waiting} leads wait in this machine's spool and are not in it: leadkeep spool drain")


def _require_keyring(settings: Settings, manifest: Manifest) -> None:
    """Raise StartRefusedError unless these settings name the keyring of the backed-up leads."""
    normaliser = factories.validation_of(settings).normaliser_identity
    require_keyring(manifest, factories.encryption_of(settings), normaliser)


def _opens(settings: Settings, manifest: Manifest) -> bool:
    """Whether a restore with these settings would be let in. A backup is worth having all the same."""
    try:
        _require_keyring(settings, manifest)
    except StartRefusedError:
        return False
    return True


def restore(folder: Folder) -> None:
    """Bring a backup into an empty database. Everything is checked before anything is touched."""
    settings = load_settings()
    manifest = read_manifest(folder)
    require_known_schema(manifest)
    _require_keyring(settings, manifest)
    progress = ProgressLine()
    progress.show("checking")
    require_whole_dump(folder, manifest)
    try:
        with interruptible(), _target_url(settings, manifest) as url:
            progress.show("restoring")
            restore_backup(url, folder, manifest)
    finally:
        progress.end()
    typer.echo(f"Restored {manifest.tables['lead'].rows} leads as of {manifest.made_at.isoformat()}.")
    typer.echo("Now: leadkeep doctor, then leadkeep serve; the daily files are rendered afresh.")


@contextmanager
def _target_url(settings: Settings, manifest: Manifest) -> Iterator[str]:
    """The empty database to restore into, checked; an embedded one is made. A failed restore leaves it empty."""
    if settings.migration_url is not None:
        require_empty_target(settings.migration_url, manifest)
        yield settings.migration_url
        return
    postgres = EmbeddedPostgres(settings.data_dir)
    postgres.start()
    try:
        with schema.new_own_database(postgres) as url:
            require_empty_target(url, manifest)
            yield url
    finally:
        postgres.stop()
