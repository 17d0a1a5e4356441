"""What the commands of `leadkeep keys` share: the keyring and the database to change, and telling how far it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from service.cli.command import ProgressLine, end_interrupted
from service.config import Settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.key_service import KeyService
    from service.keyring import Keyring
    from service.keyring_source import KeyringSource
    from service.storage.database import Database

T = TypeVar("T")


def source_of(settings: Settings) -> KeyringSource:
    """Where the keyring comes from."""
    from service.factories import keyring_source

    return keyring_source(settings)


def run_keys(
    settings: Settings,
    work: Callable[[KeyService], Awaitable[T]],
    *,
    timeout: timedelta = timedelta(seconds=1),
    rate: float = 0.0,
) -> T:
    """What `work` makes of the keys, told as it goes; Ctrl-C leaves done what was done. Raises StartRefusedError."""
    from service.cli.database import with_keys
    from service.key_service import KeyService
    from service.key_workers import NICE
    from service.log import configure_logging
    from service.storage.rekeying import rekeying

    configure_logging("error")
    # Live callers first: on a small machine this command and the service share the processors.
    os.nice(NICE)
    line = ProgressLine()

    def tell(what: str) -> None:
        line.end()
        typer.echo(what, err=True)

    async def run(url: str, database: Database, encryption: EncryptionService) -> T:
        async with rekeying(url) as tables:
            keys = KeyService(
                database=database,
                rekeying=tables,
                encryption=encryption,
                on_wait=tell,
                on_progress=line.show,
                spool=settings.spool_path,
                timeout=timeout.total_seconds(),
                rate=rate,
            )
            return await work(keys)

    try:
        return with_keys(settings, run)
    except KeyboardInterrupt:
        end_interrupted()
    finally:
        line.end()


@contextmanager
def keyring_to_change(settings: Settings, output: Path | None) -> Iterator[tuple[Keyring, Callable[[Keyring], Path]]]:
    """The keyring, and how to put another one in its place; of two operators the second waits for the first."""
    from service.secret_file import create_secret_file, replace_secret_file

    source = source_of(settings)
    path = source.path
    if path is None and output is None:
        raise StartRefusedError(
            f"{source.name} cannot be written from here: give a new file with --output FILE, and put that where the "
            "keyring comes from"
        )

    def write(changed: Keyring) -> Path:
        content = changed.to_json().encode()
        try:
            if output is not None:
                if not create_secret_file(output, content):
                    raise StartRefusedError(f"{output} is there already: give a new file")
                return output
            assert path is not None  # noqa: S101 # refused above
            replace_secret_file(path.resolve(), content)
        except OSError as error:
            raise StartRefusedError(
                f"{output or path} cannot be written ({error.strerror}): give a new file with --output FILE, and put "
                "that in its place"
            ) from None
        return path

    with _alone(path):
        yield source.load(), write


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Hold the keyring's folder, so that no two commands change the keyring at once."""
    if path is None or not path.resolve().parent.is_dir():
        yield
        return
    folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartRefusedError(f"another leadkeep keys command is changing {path}; let it end") from None
        yield
    finally:
        os.close(folder)


def files_by_key(settings: Settings) -> dict[str, list[str]]:
    """The daily files of this machine by the keys that their headers name."""
    from service.file_storage import DailyFileError, read_header

    found: dict[str, list[str]] = {}
    folder = settings.files_path
    names: Sequence[Path] = sorted(folder.glob("leads_*.json")) if folder.is_dir() else ()
    for path in names:
        try:
            for key_id in read_header(path).key_ids:
                found.setdefault(key_id, []).append(path.name)
        except (DailyFileError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise StartRefusedError(
                f"{path} cannot be read ({why}), so that nobody knows which keys it needs"
            ) from None
    return found


def bring(settings: Settings, output: Path | None) -> str:
    """How the operator's next sentence begins."""
    return f"Put {output} where {source_of(settings).name} comes from, " if output else "Now "
