"""`leadkeep backup` and `leadkeep restore`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.command import AsJson, interruptible, print_json, refusals_are_told
from service.config import Settings, load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from service.storage.backup_manifest import Manifest

Folder = Annotated[Path, typer.Argument(metavar="DIR")]


@refusals_are_told
def backup(
    folder: Folder,
    verify: Annotated[
        bool, typer.Option("--verify", help="Restore it into a database of its own and compare.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Back the database up into a new folder. With --verify, a folder that holds a backup already is verified."""
    settings = load_settings()
    from service import factories
    from service.storage.backup import make_backup, require_own_folder, verify_backup
    from service.storage.backup_manifest import MANIFEST, read_manifest
    from service.storage.spool_rows import peek

    there = verify and (folder / MANIFEST).exists()
    earlier = read_manifest(folder) if there else None
    if earlier is None:
        require_own_folder(folder)
    try:
        with interruptible(), _owners_database_url(settings) as url:
            _tell("verifying" if there else "dumping")
            manifest = earlier or make_backup(url, folder)
            if verify:
                _tell("verifying")
                if differing := verify_backup(url, folder, manifest):
                    raise StartRefusedError(f"the backup in {folder} is not good: {'; '.join(differing)}")
    finally:
        _tell("")
    waiting = peek(settings.spool_path)[0].waiting
    opens = _opens(settings, manifest)
    leads = manifest.tables["lead"].rows
    if as_json:
        told = {"folder": str(folder), "leads": leads, "bytes": manifest.dump_bytes, "verified": verify}
        told |= {"made_at": manifest.made_at.isoformat(), "waiting_in_spool": waiting, "opens": opens}
        print_json(told)
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
    """Raise StartRefusedError unless what these settings name is the keyring of the backed-up leads."""
    from service import factories
    from service.storage.backup import require_keyring

    encryption = factories.encryption_of(settings)
    require_keyring(manifest, encryption, factories.validation_of(settings).normaliser_identity)


def _opens(settings: Settings, manifest: Manifest) -> bool:
    """Whether a restore with these settings would be let in. A backup is worth having all the same."""
    try:
        _require_keyring(settings, manifest)
    except StartRefusedError:
        return False
    return True


@refusals_are_told
def restore(folder: Folder) -> None:
    """Bring a backup into an empty database. Everything is checked before anything is touched."""
    settings = load_settings()
    from service.storage.backup import require_known_schema, restore_backup
    from service.storage.backup_manifest import read_manifest, require_whole_dump

    manifest = read_manifest(folder)
    require_known_schema(manifest)
    _require_keyring(settings, manifest)
    _tell("checking")
    require_whole_dump(folder, manifest)
    try:
        with interruptible(), _target_url(settings, manifest) as url:
            _tell("restoring")
            restore_backup(url, folder, manifest)
    finally:
        _tell("")
    typer.echo(f"Restored {manifest.tables['lead'].rows} leads as of {manifest.made_at.isoformat()}.")
    typer.echo("Now: leadkeep doctor, then leadkeep serve; the daily files are rendered afresh.")


@contextmanager
def _owners_database_url(settings: Settings) -> Iterator[str]:
    """The database as its owner sees it; an embedded server is started if none runs."""
    from service.cli.database import embedded_url
    from service.storage.embedded import EmbeddedPostgres

    if settings.migration_url is not None:
        yield settings.migration_url
        return
    if not EmbeddedPostgres.has_database(settings.data_dir):
        raise StartRefusedError("there is no database yet; the first serve makes it")
    with embedded_url(settings, user="postgres") as url:
        yield url


@contextmanager
def _target_url(settings: Settings, manifest: Manifest) -> Iterator[str]:
    """The empty database that is restored into, checked; the embedded one is made. What fails leaves it empty."""
    from service.storage.backup import require_empty_target
    from service.storage.embedded import EmbeddedPostgres
    from service.storage.schema import new_own_database

    if settings.migration_url is not None:
        require_empty_target(settings.migration_url, manifest)
        yield settings.migration_url
        return
    postgres = EmbeddedPostgres(settings.data_dir)
    postgres.start()
    try:
        with new_own_database(postgres) as url:
            require_empty_target(url, manifest)
            yield url
    finally:
        postgres.stop()


def _tell(what: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r\033[K{what}", err=True, nl=False)
