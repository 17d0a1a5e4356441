"""`leadkeep keys`: the keyring, and changing its keys while the service runs."""

from __future__ import annotations

import getpass
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from service.cli.command import AsJson, ProgressLine, duration, echo, end_interrupted, report
from service.cli.database import with_database
from service.config import Settings, load_settings
from service.errors import LeadkeepError, StartRefusedError
from service.factories import keyring_source, validation_of
from service.files.daily_file import DailyFileError, read_header
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, KeyState, Purpose, RootKey, create_keyring
from service.keys.secret_file import create_secret_file, replace_secret_file, takes_lock
from service.log import configure_logging
from service.rotation.key_service import KeyService
from service.rotation.workers import NICE
from service.storage.database.database import Database
from service.storage.keys.canary import read_key_state, schemes_of
from service.storage.keys.rekeying import rekeying
from service.storage.keys.replicas import replicas

T = TypeVar("T")

PACE = 5000
"""Rows a second: a million leads in three minutes, while PostgreSQL has most of its time for live callers."""

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="See leadkeep keys status.")]
Timeout = Annotated[
    timedelta,
    typer.Option(
        parser=duration, metavar="TIME", show_default="5m", help="How long to wait for replicas: 30s, 5m, 1h."
    ),
]
PATIENCE = timedelta(minutes=5)
Forget = Annotated[
    list[str] | None, typer.Option("--forget", metavar="REPLICA", help="Leave out a replica that is gone for good.")
]
Output = Annotated[
    Path | None,
    typer.Option(help="Write the keyring to this new file instead (mode 0600); put it where yours is kept."),
]


def init(output: Output = None) -> None:
    """Make a keyring with fresh keys. An existing one is never touched."""
    settings = load_settings()
    source = keyring_source(settings)
    path = output or source.path
    if path is None:
        raise StartRefusedError(f"{source.name} cannot be written from here; give the file to make: --output FILE")
    try:
        made = create_keyring(path, now=datetime.now(UTC))
    except OSError as error:
        raise StartRefusedError(f"the keyring {path} cannot be made: {error.strerror}") from None
    if not made:
        raise StartRefusedError(f"there is a keyring at {path} already; it stays as it is")
    there = "" if source.path and not output else f" Put it where {source.name} comes from."
    echo(
        f"Made {path} (mode 0600).{there} Without it no stored lead can be opened: "
        "keep a copy in a safe place, apart from the database's backups."
    )


def status(as_json: AsJson = False) -> None:
    """Show every key with its state and what is sealed with it, where a rotation stands, and what replicas have."""
    settings = load_settings()
    keyring = keyring_source(settings).load()
    try:
        stored, fault = with_database(settings, _stored, any_normaliser=True), None
    except (StartRefusedError, LeadkeepError) as error:
        stored, fault = {}, str(error)
    counts = stored.get("sealed", {})
    keys = [
        {
            "id": key.id,
            "purpose": key.purpose.value,
            "state": key.state.value,
            "created_at": key.created_at,
            "sealed": counts.get(key.id, {}) if key.purpose is Purpose.ENCRYPTION and not fault else None,
        }
        for key in keyring.keys
    ]
    shown = {"keys": keys, "index": stored.get("index"), "replicas": stored.get("replicas"), "fault": fault}
    report(shown, _status_lines(shown), as_json=as_json)


def _status_lines(shown: dict[str, Any]) -> Iterator[str]:
    for key in shown["keys"]:
        sealed = ", ".join(f"{count} tokens of {holder}" for holder, count in (key["sealed"] or {}).items())
        made_at = f"{key['created_at']:%Y-%m-%dT%H:%M:%S}"
        yield f"{key['purpose']:<10}  {key['id']:<12}  {key['state']:<8}  {made_at}  {sealed}"
    if index := shown["index"]:
        yield f"blind indexes: {index['state']}, key {index['key_id']}, normaliser {index['normaliser']}"
        if index["next_key_id"]:
            yield f"  being rotated to: key {index['next_key_id']}, normaliser {index['next_normaliser']}"
    for replica in shown["replicas"] or []:
        needs = f", its spool needs {' '.join(replica['spool_keys'])}" if replica["spool_keys"] else ""
        yield (
            f"replica {replica['name']}: {replica['state']}, seals with {' '.join(replica['seals'])}, "
            f"last heartbeat {replica['silent_seconds']:.0f} s ago{needs}"
        )
    if shown["fault"]:
        yield f"no information from the database: {shown['fault']}"


async def _stored(url: str, database: Database, encryption: EncryptionService) -> dict[str, Any]:
    state = await database.read(read_key_state)
    index = None
    if state is not None:
        current, other = schemes_of(state, encryption)
        index = {
            "state": "rotating" if other else "clearing" if state.clearing else "steady",
            "key_id": current.key_id,
            "normaliser": state.normaliser,
            "next_key_id": other.key_id if other else None,
            "next_normaliser": state.next_normaliser,
            "epoch": state.epoch,
        }
    shown = [asdict(each) | {"silent_seconds": round(each.silent_seconds, 1)} for each in await replicas(database)]
    async with rekeying(url) as tables:
        return {"sealed": await tables.sealed_counts(), "index": index, "replicas": shown}


def add(
    purpose: Annotated[Purpose, typer.Option(help="What the key is for.")] = Purpose.ENCRYPTION,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Add a fresh key, which opens and does not seal yet (active). Then SIGHUP to every service, and keys promote."""
    settings = load_settings()
    with _keyring_to_change(settings, output) as (keyring, write):
        changed, made = keyring.with_new_key(purpose, now=datetime.now(UTC))
        where = write(changed)
    lines = (
        f"Added the {purpose} key {made.id} (active) to {where}. Keep a copy of it apart.",
        f"{_first_step(settings, output)}send SIGHUP to every service, then run: leadkeep keys promote {made.id}",
    )
    shown = {"id": made.id, "purpose": made.purpose.value, "state": made.state.value, "keyring": str(where)}
    report(shown, lines, as_json=as_json)


def promote(key_id: KeyId, timeout: Timeout = PATIENCE, forget: Forget = None, output: Output = None) -> None:
    """Make a key the one that seals (primary), once every running replica can open with it; the previous one stays
    active."""
    settings = load_settings()
    with _keyring_to_change(settings, output) as (keyring, write):
        key = _usable_key(keyring, key_id)
        _run(settings, lambda keys: keys.prepare_promotion(key), timeout=timeout, forget=forget)
        if key.state is KeyState.PRIMARY:
            echo(f"The {key.purpose} key {key.id} is the primary one already.")
            return
        where = write(keyring.with_primary(key.id))
    echo(f"The {key.purpose} key {key.id} is the primary one now, in {where}.")
    then = {
        Purpose.ENCRYPTION: ", then run: leadkeep keys reseal",
        Purpose.INDEX: ", then run: leadkeep keys reindex",
        Purpose.SPOOL: "; the key before may be retired when no spool needs it",
        Purpose.AUDIT: "; leave the key before in the keyring: it verifies what it signed, active or retired",
    }[key.purpose]
    echo(f"{_first_step(settings, output)}send SIGHUP to every service{then}")


def reseal(
    rate: Annotated[int, typer.Option(help="Rows a second at most; 0: as fast as it goes.", min=0)] = PACE,
    timeout: Timeout = PATIENCE,
    as_json: AsJson = False,
) -> None:
    """Seal everything in the database with the primary encryption key, and index what is not indexed yet.

    May be stopped and run again.
    """
    done = _run(load_settings(), lambda keys: keys.reseal(), timeout=timeout, rate=rate)
    counted = ", ".join(f"{count} {kind}" for kind, count in done.sealed_anew.items())
    indexed = f"{done.emails} e-mails, {done.submissions} resubmissions and conflicts"
    line = f"Sealed anew with {done.key_id}: {counted}. Indexed {indexed}. It took {done.seconds:.1f} s."
    report(asdict(done), [line], as_json=as_json)
    if done.unreadable:
        named = ", ".join(done.unreadable[:10])
        echo(f"leadkeep: {len(done.unreadable)} rows do not open and stay as they are: {named}", err=True)
    if (others := done.left - len(done.unreadable)) > 0:
        echo(
            f"leadkeep: {others} rows are still sealed with another key: send SIGHUP to every service and run it again",
            err=True,
        )
    if done.left:
        raise typer.Exit(1)


def reindex(
    rate: Annotated[int, typer.Option(help="Leads a second at most; 0: as fast as it goes.", min=0)] = PACE,
    timeout: Timeout = PATIENCE,
    forget: Forget = None,
    as_json: AsJson = False,
) -> None:
    """Compute the blind indexes anew: with a new primary index key, or after the rules for phone and NID changed.

    May be stopped and run again.
    """
    settings = load_settings()
    normaliser = validation_of(settings).normaliser_identity
    done = _run(settings, lambda keys: keys.reindex(normaliser), timeout=timeout, rate=rate, forget=forget)
    if done.needed or done.conversations or done.emails or done.submissions:
        counted = (
            f"{done.leads} leads, {done.conversations} conversations, {done.emails} e-mails, {done.submissions} "
            "resubmissions and conflicts"
        )
        lines = [f"Indexed {counted} anew, in {done.seconds:.1f} s."]
    else:
        lines = ["The blind indexes are those of the primary index key and of these settings already."]
    lines += [f"  lead {each['lead']} has the same {each['field']} as lead {each['beside']}" for each in done.beside]
    report(asdict(done), lines, as_json=as_json)


def retire(key_id: KeyId, timeout: Timeout = PATIENCE, forget: Forget = None, output: Output = None) -> None:
    """Take a key out of use; refused while anything needs it: rows, conflicts, spools, daily files."""
    settings = load_settings()
    with _keyring_to_change(settings, output) as (keyring, write):
        key = _usable_key(keyring, key_id)
        if key.state is KeyState.PRIMARY:
            raise StartRefusedError(
                f"{key.id} is the primary {key.purpose} key: add another one and promote that first"
            )
        _run(
            settings,
            lambda keys: keys.retire(key, files=lambda: _files_by_key(settings)),
            timeout=timeout,
            forget=forget,
        )
        where = write(keyring.with_retired(key.id))
    echo(f"The {key.purpose} key {key.id} is retired, in {where}. Copies of the keyring from before are now old.")
    echo(f"{_first_step(settings, output)}send SIGHUP to every service.")


def verify(as_json: AsJson = False) -> None:
    """Open everything that is stored and compare every blind index; exit code 3 if something is wrong."""
    found = _run(load_settings(), lambda keys: keys.verify())
    counted = ", ".join(f"{count} {kind}" for kind, count in found.rows.items())
    lines = [f"Looked at {counted}: {len(found.faults) or 'no'} faults.", *(f"FAIL  {each}" for each in found.faults)]
    report({"sound": not found.faults, **asdict(found)}, lines, as_json=as_json, sound=not found.faults)


def _run(
    settings: Settings,
    work: Callable[[KeyService], Awaitable[T]],
    *,
    timeout: timedelta = timedelta(seconds=1),
    rate: float = 0.0,
    forget: Sequence[str] | None = None,
) -> T:
    """Return what `work` makes of the keys, with progress; Ctrl-C keeps what was done. Raises StartRefusedError."""
    configure_logging("error")
    # Live callers first: on a small machine this command and the service share the processors.
    os.nice(NICE)
    with ProgressLine() as progress:

        def print_event(what: str) -> None:
            progress.end()
            echo(what, err=True)

        async def run(url: str, database: Database, encryption: EncryptionService) -> T:
            async with rekeying(url) as tables:
                keys = KeyService(
                    database=database,
                    rekeying=tables,
                    encryption=encryption,
                    on_wait=print_event,
                    on_progress=progress.show,
                    spool=settings.spool_path,
                    timeout=timeout.total_seconds(),
                    rate=rate,
                )
                if forget:
                    await keys.forget(forget, actor=f"cli:{getpass.getuser()}")
                return await work(keys)

        try:
            return with_database(settings, run, any_normaliser=True)
        except KeyboardInterrupt:
            end_interrupted()


@contextmanager
def _keyring_to_change(settings: Settings, output: Path | None) -> Iterator[tuple[Keyring, Callable[[Keyring], Path]]]:
    """The keyring, and how to put another one in its place; of two operators the second waits for the first."""

    source = keyring_source(settings)
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

    with ExitStack() as ending:
        # The keyring's folder is held, so that no two commands change the keyring at once.
        if path is not None and path.resolve().parent.is_dir():
            folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
            ending.callback(os.close, folder)
            if not takes_lock(folder):
                raise StartRefusedError(f"another leadkeep keys command is changing {path}; let it end")
        yield source.load(), write


def _files_by_key(settings: Settings) -> dict[str, list[str]]:
    """The daily files of this machine by the keys that their headers name."""

    found: dict[str, list[str]] = {}
    folder = settings.files_path
    names = sorted(folder.glob("leads_*.json")) if folder.is_dir() else []
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


def _first_step(settings: Settings, output: Path | None) -> str:
    """The beginning of the operator's next instruction."""
    return f"Put {output} where {keyring_source(settings).name} comes from, " if output else "Now "


def _usable_key(keyring: Keyring, key_id: str) -> RootKey:
    """The key of this id that is not retired. Raises StartRefusedError."""
    key = keyring.find(key_id)
    if key is None:
        raise StartRefusedError(f"there is no key {key_id} in the keyring; see leadkeep keys status")
    if key.state is KeyState.RETIRED:
        raise StartRefusedError(f"the key {key_id} is retired already")
    return key
