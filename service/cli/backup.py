"""`leadkeep backup` and `leadkeep restore`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from service import factories
from service.cli.command import AsJson, ProgressLine, echo, interruptible, print_json
from service.cli.database import Login, database_url, require_database
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService
from service.storage import schema
from service.storage.backup.backup import (
    make_backup,
    require_empty_target,
    require_known_schema,
    require_own_folder,
    restore_backup,
    verify_backup,
)
from service.storage.backup.backup_manifest import MANIFEST, Manifest, read_manifest, whole_dump
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.spool.rows import peek

Folder = Annotated[Path, typer.Argument(metavar="DIR")]
Unproven = Annotated[
    bool,
    typer.Option(
        "--unproven",
        help="Take a backup that nothing proves to be ours, such as one that was made without this keyring. Whoever "
        "wrote it decides which leads and which code of the database come back, also code that waits there.",
    ),
]


def backup(
    folder: Folder,
    verify: Annotated[
        bool, typer.Option("--verify", help="Restore it into a database of its own and compare.")
    ] = False,
    unproven: Unproven = False,
    as_json: AsJson = False,
) -> None:
    """Back the database up into a new folder. With --verify, a folder that holds a backup already is verified."""
    settings = load_settings()
    earlier = read_manifest(folder) if verify and (folder / MANIFEST).exists() else None
    if earlier is None:
        require_own_folder(folder)
    elif not unproven:
        earlier.require_proof(factories.encryption_of(settings))
    require_database(settings)
    with ProgressLine() as progress, interruptible():
        progress.show("verifying" if earlier else "dumping")
        manifest = earlier or _made(settings, folder)
        if verify:
            progress.show("verifying")
            _verify(settings, folder, manifest)
    waiting = peek(settings.spool_path)[0].waiting
    opens = _opens(settings, manifest)
    leads = manifest.tables["lead"].rows
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "leads": leads,
                "bytes": manifest.dump_bytes,
                "verified": verify,
                "made_at": manifest.made_at,
                "waiting_in_spool": waiting,
                "opens": opens,
            }
        )
        return
    done = "verified: it was restored and is equal" if verify else "not verified: run it with --verify"
    echo(f"{folder}: {leads} leads, {manifest.dump_bytes} bytes, {done}.")
    name = factories.keyring_source(settings).name
    if opens:
        echo(f"{name[0].upper()}{name[1:]} is not in it: keep a copy of it apart, without which nothing opens.")
    else:
        echo(
            f"leadkeep: {name}, with these settings, is not what the backed-up leads were sealed with: keep a copy of "
            "the keyring that the service has, without which nothing opens",
            err=True,
        )
    if manifest.proof is None:
        echo("leadkeep: nothing proves that this backup is ours: restore needs --unproven", err=True)
    if waiting:
        echo(f"{waiting} leads wait in this machine's spool and are not in it: leadkeep spool drain")


def _made(settings: Settings, folder: Path) -> Manifest:
    """A new backup, which is worth having also without the keyring."""
    encryption: EncryptionService | None = None
    with suppress(StartRefusedError):
        encryption = factories.encryption_of(settings)
    with database_url(settings, Login.OWNER) as url:
        return make_backup(url, folder, encryption)


def _verify(settings: Settings, folder: Path, manifest: Manifest) -> None:
    with whole_dump(folder, manifest) as dump, database_url(settings, Login.SUPERUSER) as url:
        differing = verify_backup(url, dump, manifest)
    if differing:
        raise StartRefusedError(f"the backup in {folder} is not good: {'; '.join(differing)}")


def _require_keyring(settings: Settings, manifest: Manifest) -> EncryptionService:
    """The keyring of the backed-up leads, when these settings name it. Raises StartRefusedError."""
    encryption = factories.encryption_of(settings)
    manifest.require_keyring(encryption, factories.validation_of(settings).normaliser_identity)
    return encryption


def _opens(settings: Settings, manifest: Manifest) -> bool:
    """Whether a restore with these settings would be let in. A backup is worth having all the same."""
    try:
        _require_keyring(settings, manifest)
    except StartRefusedError:
        return False
    return True


def restore(folder: Folder, unproven: Unproven = False) -> None:
    """Restore a backup into an empty database. Everything is checked before anything is changed."""
    settings = load_settings()
    manifest = read_manifest(folder)
    require_known_schema(manifest)
    encryption = _require_keyring(settings, manifest)
    if not unproven:
        manifest.require_proof(encryption)
    with ProgressLine() as progress, interruptible():
        progress.show("checking")
        with whole_dump(folder, manifest) as dump, _target_url(settings, manifest) as url:
            progress.show("restoring")
            restore_backup(url, dump, manifest)
    echo(f"Restored {manifest.tables['lead'].rows} leads as of {manifest.made_at.isoformat()}.")
    echo("Now: leadkeep doctor, then leadkeep serve; the daily files are rendered afresh.")


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
