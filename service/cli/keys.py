"""`leadkeep keys`: the keyring, and changing its keys while the service runs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.command import FAULT_FOUND, AsJson, duration, print_json, refusals_are_told
from service.cli.key_work import (
    bring,
    files_by_key,
    keyring_to_change,
    run_keys,
    source_of,
)
from service.config import load_settings
from service.errors import LeadkeepError, StartRefusedError

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.key_service import KeyService, Reindexed
    from service.storage.database import Database

keys_app = typer.Typer(help="The keyring, without which no sealed field opens.", no_args_is_help=True)

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
    typer.Option(help="Write the keyring to this new file instead (mode 0600), to be put where it is kept."),
]


@keys_app.command()
@refusals_are_told
def init(output: Output = None) -> None:
    """Make a keyring with fresh keys. An existing one is never touched."""
    settings = load_settings()
    from service.keyring import create_keyring

    source = source_of(settings)
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
    typer.echo(
        f"Made {path} (mode 0600).{there} Without it no stored lead can be opened: "
        "keep a copy in a safe place, apart from the database's backups."
    )


@keys_app.command()
@refusals_are_told
def status(as_json: AsJson = False) -> None:
    """Show every key with its state and what is sealed with it, where a rotation stands, and what replicas have."""
    settings = load_settings()
    from service.cli.database import with_keys
    from service.keyring import Purpose

    keyring = source_of(settings).load()
    try:
        stored, fault = with_keys(settings, _stored), None
    except (StartRefusedError, LeadkeepError) as error:
        stored, fault = {}, str(error) if isinstance(error, StartRefusedError) else error.text
    counts = stored.get("sealed", {})
    keys: list[dict[str, Any]] = [
        {
            "id": key.id,
            "purpose": key.purpose.value,
            "state": key.state.value,
            "created_at": key.created_at.isoformat(),
            "sealed": counts.get(key.id, {}) if key.purpose is Purpose.ENCRYPTION and not fault else None,
        }
        for key in keyring.keys
    ]
    shown = {"keys": keys, "index": stored.get("index"), "replicas": stored.get("replicas"), "fault": fault}
    if as_json:
        print_json(shown)
        return
    for key in keys:
        sealed = ", ".join(f"{count} tokens of {holder}" for holder, count in (key["sealed"] or {}).items())
        typer.echo(f"{key['purpose']:<10}  {key['id']:<12}  {key['state']:<8}  {str(key['created_at'])[:19]}  {sealed}")
    if index := stored.get("index"):
        typer.echo(f"blind indexes: {index['state']}, key {index['key_id']}, normaliser {index['normaliser']}")
        if index["next_key_id"]:
            typer.echo(f"  being rotated to: key {index['next_key_id']}, normaliser {index['next_normaliser']}")
    for replica in stored.get("replicas", []):
        needs = f", its spool needs {' '.join(replica['spool_keys'])}" if replica["spool_keys"] else ""
        typer.echo(
            f"replica {replica['name']}: {replica['state']}, seals with {' '.join(replica['seals'])}, "
            f"heard of {replica['silent_seconds']:.0f} s ago{needs}"
        )
    if fault:
        typer.echo(f"of the database nothing is known: {fault}")


async def _stored(url: str, database: Database, encryption: EncryptionService) -> dict[str, Any]:
    from service.storage.canary import read_key_state, schemes_of
    from service.storage.rekeying import rekeying
    from service.storage.replicas import replicas

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
    shown = [
        asdict(each) | {"seen_at": each.seen_at.isoformat(), "silent_seconds": round(each.silent_seconds, 1)}
        for each in await replicas(database)
    ]
    async with rekeying(url) as tables:
        return {"sealed": await tables.sealed_counts(), "index": index, "replicas": shown}


@keys_app.command()
@refusals_are_told
def add(
    purpose: Annotated[str, typer.Option(help="encryption, index, spool or audit.")] = "encryption",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Add a fresh key that only opens yet (active). Then SIGHUP to every service, and leadkeep keys promote."""
    settings = load_settings()
    from service.keyring import Purpose

    if purpose not in tuple(Purpose):
        raise typer.BadParameter(f"must be one of: {', '.join(Purpose)}", param_hint="--purpose")
    with keyring_to_change(settings, output) as (keyring, write):
        changed, made = keyring.with_new_key(Purpose(purpose), now=datetime.now(UTC))
        where = write(changed)
    if as_json:
        shown = {"id": made.id, "purpose": made.purpose.value, "state": made.state.value, "keyring": str(where)}
        print_json(shown)
        return
    typer.echo(f"Added the {purpose} key {made.id} (active) to {where}. Keep a copy of it apart.")
    typer.echo(f"{bring(settings, output)}send SIGHUP to every service, then run: leadkeep keys promote {made.id}")


@keys_app.command()
@refusals_are_told
def promote(key_id: KeyId, timeout: Timeout = PATIENCE, forget: Forget = None, output: Output = None) -> None:
    """Let a key be the one that seals, once every running replica can open with it; the one before stays active."""
    settings = load_settings()
    from service.key_service import usable_key
    from service.keyring import KeyState, Purpose

    with keyring_to_change(settings, output) as (keyring, write):
        key = usable_key(keyring, key_id)

        async def prepare(keys: KeyService) -> None:
            await keys.forget(forget or [])
            await keys.prepare_promotion(key)

        run_keys(settings, prepare, timeout=timeout)
        if key.state is KeyState.PRIMARY:
            typer.echo(f"The {key.purpose} key {key.id} is the primary one already.")
            return
        where = write(keyring.with_primary(key.id))
    typer.echo(f"The {key.purpose} key {key.id} is the primary one now, in {where}.")
    then = {
        Purpose.ENCRYPTION: ", then run: leadkeep keys reseal",
        Purpose.INDEX: ", then run: leadkeep keys reindex",
        Purpose.SPOOL: "; the key before may be retired when no spool needs it",
        Purpose.AUDIT: "; leave the key before in the keyring: it verifies what it signed, active or retired",
    }[key.purpose]
    typer.echo(f"{bring(settings, output)}send SIGHUP to every service{then}")


@keys_app.command()
@refusals_are_told
def reseal(
    rate: Annotated[int, typer.Option(help="Rows a second at most; 0: as fast as it goes.", min=0)] = PACE,
    timeout: Timeout = PATIENCE,
    as_json: AsJson = False,
) -> None:
    """Seal everything in the database with the primary encryption key. May be stopped and run again."""
    settings = load_settings()

    done = run_keys(settings, lambda keys: keys.reseal(), timeout=timeout, rate=rate)
    if as_json:
        print_json(asdict(done))
    else:
        told = ", ".join(f"{count} {kind}" for kind, count in done.sealed_anew.items())
        typer.echo(f"Sealed anew with {done.key_id}: {told}, in {done.seconds:.1f} s.")
    if done.unreadable:
        named = ", ".join(done.unreadable[:10])
        typer.echo(f"leadkeep: {len(done.unreadable)} rows do not open and stay as they are: {named}", err=True)
    if (others := done.left - len(done.unreadable)) > 0:
        typer.echo(
            f"leadkeep: {others} rows are still sealed with another key: send SIGHUP to every service and run it again",
            err=True,
        )
    if done.left:
        raise typer.Exit(1)


@keys_app.command()
@refusals_are_told
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
    from service import factories

    normaliser = factories.validation_of(settings).normaliser_identity

    async def work(keys: KeyService) -> Reindexed:
        await keys.forget(forget or [])
        return await keys.reindex(normaliser)

    done = run_keys(settings, work, timeout=timeout, rate=rate)
    if as_json:
        print_json(asdict(done))
        return
    if not done.needed:
        typer.echo("The blind indexes are those of the primary index key and of these settings already.")
        return
    typer.echo(f"Indexed {done.leads} leads anew, in {done.seconds:.1f} s.")
    for each in done.beside:
        typer.echo(f"  lead {each['lead']} stands beside {each['beside']}: the same {each['field']}")


@keys_app.command()
@refusals_are_told
def retire(key_id: KeyId, timeout: Timeout = PATIENCE, forget: Forget = None, output: Output = None) -> None:
    """Take a key out of use; refused while anything needs it: rows, conflicts, spools, daily files."""
    settings = load_settings()
    from service.key_service import usable_key
    from service.keyring import KeyState

    with keyring_to_change(settings, output) as (keyring, write):
        key = usable_key(keyring, key_id)
        if key.state is KeyState.PRIMARY:
            raise StartRefusedError(
                f"{key.id} is the primary {key.purpose} key: add another one and promote that first"
            )

        async def check(keys: KeyService) -> None:
            await keys.forget(forget or [])
            await keys.retire(key, files=lambda: files_by_key(settings))

        run_keys(settings, check, timeout=timeout)
        where = write(keyring.with_retired(key.id))
    typer.echo(f"The {key.purpose} key {key.id} is retired, in {where}. Copies of the keyring from before are now old.")
    typer.echo(f"{bring(settings, output)}send SIGHUP to every service.")


@keys_app.command()
@refusals_are_told
def verify(as_json: AsJson = False) -> None:
    """Open everything that is stored and compare every blind index; exit code 3 if something is wrong."""
    settings = load_settings()

    found = run_keys(settings, lambda keys: keys.verify())
    if as_json:
        print_json({"sound": not found.faults, **asdict(found)})
    else:
        told = ", ".join(f"{count} {kind}" for kind, count in found.rows.items())
        typer.echo(f"Looked at {told}: {len(found.faults) or 'no'} faults.")
        for fault in found.faults:
            typer.echo(f"FAIL  {fault}")
    if found.faults:
        raise typer.Exit(FAULT_FOUND)
