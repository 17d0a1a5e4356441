"""`leadkeep spool`: what waits for the database, and getting it there."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.command import AsJson, print_json, refusals_are_told
from service.config import Settings, load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.storage.spool import Spool

spool_app = typer.Typer(help="Leads that wait on this machine's disk for the database.", no_args_is_help=True)

LOOK_SECONDS = 0.5
"""How often a drain is looked at."""

LONGEST_STANDSTILL = 30.0
"""Seconds without any progress after which `drain` gives up waiting; nothing is lost by that."""


@spool_app.command()
@refusals_are_told
def status(as_json: AsJson = False) -> None:
    """How much waits, since when, and whether that is an alarm."""
    settings = load_settings()
    from service.storage.condition import age_of, spool_alarms
    from service.storage.spool_rows import peek

    size, _ = peek(settings.spool_path)
    alarms = spool_alarms(size, max_bytes=settings.spool_bytes, longest_wait=settings.spool_alarm_age)
    if as_json:
        shown = {
            "waiting": size.waiting,
            "set_aside": size.damaged,
            "bytes": size.bytes,
            "limit_bytes": settings.spool_bytes,
            "oldest": size.oldest.isoformat() if size.oldest else None,
            "alarms": list(alarms.values()),
        }
        print_json(shown)
        return
    room = f"{size.bytes} of {settings.spool_bytes} bytes"
    typer.echo(f"{size.waiting} leads wait, {size.damaged} were set aside, {room}")
    if size.oldest:
        typer.echo(f"the oldest was accepted {size.oldest.isoformat()}, {age_of(size):.0f} seconds ago")
    for alarm in alarms.values():
        typer.echo(f"ALARM  {alarm}")


@spool_app.command("list")
@refusals_are_told
def list_entries(as_json: AsJson = False) -> None:
    """List what waits, oldest first: ids and times, no customer's value."""
    settings = load_settings()
    from service.storage.spool_rows import peek

    _, rows = peek(settings.spool_path)
    shown = [
        {
            "id": str(row.id),
            "accepted_at": row.accepted_at.isoformat(),
            "state": "set aside" if row.damage else "refused duplicate" if row.refused else "waits",
            "why": row.damage,
        }
        for row in rows
    ]
    if as_json:
        print_json(shown)
        return
    for entry in shown:
        typer.echo("  ".join(str(value) for value in entry.values() if value))
    if not shown:
        typer.echo("The spool is empty.")


@spool_app.command()
@refusals_are_told
def drain(
    retry: Annotated[bool, typer.Option("--retry-set-aside", help="Try again what was set aside.")] = False,
) -> None:
    """Bring what waits into the database. A running service does so by itself; this then waits for its end."""
    settings = load_settings()
    from service.log import configure_logging
    from service.storage.spool_rows import peek, take_back

    configure_logging("error")
    if retry:
        take_back(settings.spool_path)
    if peek(settings.spool_path)[0].waiting and not _drained_here(settings):
        typer.echo("A service uses this spool and drains it by itself; waiting for its end.")
        asyncio.run(_follow(lambda: peek(settings.spool_path)[0].waiting))
    size, _ = peek(settings.spool_path)
    if size.waiting:
        raise StartRefusedError(f"{size.waiting} leads wait still, and nothing is lost: see leadkeep doctor")
    typer.echo(f"The spool is empty.{f' {size.damaged} leads are set aside.' if size.damaged else ''}")


def _drained_here(settings: Settings) -> bool:
    """Drain in this process; False when another one owns the spool."""
    from service.cli.database import operators_database_url
    from service.factories import encryption_of
    from service.storage.spool import Spool
    from service.storage.spool_rows import SpoolOwnedError

    encryption = encryption_of(settings)
    try:
        spool = Spool(settings.spool_path, encryption, max_bytes=settings.spool_bytes)
    except SpoolOwnedError:
        return False
    with closing(spool), operators_database_url(settings) as url:
        asyncio.run(_drain(settings, url, spool, encryption))
    return True


async def _drain(settings: Settings, url: str, spool: Spool, encryption: EncryptionService) -> None:
    from prometheus_client import CollectorRegistry

    from service.replica import ServiceParts, running_replica
    from service.rpc.metrics import Metrics
    from service.supervisor import Component, Supervisor

    supervisor = Supervisor(on_death=lambda: None)
    parts = ServiceParts(settings, url, spool, encryption, Metrics(CollectorRegistry()))
    async with running_replica(parts, supervisor, settings.shutdown_grace):
        supervisor.start([Component(name="drain", run=parts.drain.run)])
        await _follow(lambda: spool.size.waiting, failing=lambda: "drain" in supervisor.failing)


async def _follow(waiting: Callable[[], int], *, failing: Callable[[], bool] = lambda: False) -> None:
    """Wait until nothing waits, or until nothing was drained for a while. Raises StartRefusedError."""
    left, moved_at = waiting(), time.monotonic()
    while left and time.monotonic() - moved_at < LONGEST_STANDSTILL:
        await asyncio.sleep(LOOK_SECONDS)
        if failing():
            raise StartRefusedError("the drain fails by a fault of ours: what waits stays, report it")
        now = waiting()
        if now < left:
            moved_at = time.monotonic()
        left = now
        _tell(left)


def _tell(waiting: int) -> None:
    if sys.stdout.isatty():
        typer.echo(f"\r{waiting} leads wait ", nl=waiting == 0)
