"""`leadkeep spool`: what waits for the database, and getting it there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from typing import Annotated

import typer

from service.cli.command import AsJson, ProgressLine, echo, report
from service.cli.database import database_url
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.factories import encryption_of
from service.keys.encryption import EncryptionService
from service.log import configure_logging
from service.rpc.readiness import spool_alarms
from service.storage.spool.rows import SpoolOwnedError, peek, take_back
from service.storage.spool.spool import Spool
from service.supervisor import Component, Supervisor

LOOK_SECONDS = 0.5
"""How often a drain is looked at."""

LONGEST_STANDSTILL = 30.0
"""Seconds without any progress after which `drain` gives up waiting; nothing is lost by that."""


def status(as_json: AsJson = False) -> None:
    """How much waits, since when, and whether that is an alarm."""
    settings = load_settings()
    size, _ = peek(settings.spool_path)
    alarms = spool_alarms(size, max_bytes=settings.spool_bytes, longest_wait=settings.spool_alarm_age)
    shown = {
        "waiting": size.waiting,
        "set_aside": size.damaged,
        "bytes": size.bytes,
        "limit_bytes": settings.spool_bytes,
        "oldest": size.oldest,
        "alarms": list(alarms.values()),
    }
    room = f"{size.bytes} of {settings.spool_bytes} bytes"
    lines = [f"{size.waiting} leads wait, {size.damaged} were set aside, {room}"]
    if size.oldest:
        lines.append(f"the oldest was accepted {size.oldest.isoformat()}, {size.age:.0f} seconds ago")
    report(shown, lines + [f"ALARM  {alarm}" for alarm in alarms.values()], as_json=as_json)


def list_entries(as_json: AsJson = False) -> None:
    """List what waits, oldest first: ids and times, no customer's value."""
    _, rows = peek(load_settings().spool_path)
    shown = [
        {
            "id": row.id,
            "accepted_at": row.accepted_at.isoformat(),
            "state": "set aside" if row.damage else "refused duplicate" if row.refused else "waits",
            "why": row.damage,
        }
        for row in rows
    ]
    lines = ["  ".join(str(value) for value in entry.values() if value) for entry in shown]
    report(shown, lines or ["The spool is empty."], as_json=as_json)


def drain(
    retry: Annotated[bool, typer.Option("--retry-set-aside", help="Try again what was set aside.")] = False,
) -> None:
    """Store what waits in the database. A running service does so by itself; this then waits for its end."""
    settings = load_settings()
    configure_logging("error")
    if retry:
        take_back(settings.spool_path)
    if peek(settings.spool_path)[0].waiting and not _drained_here(settings):
        echo("A service uses this spool and drains it by itself; waiting for its end.")
        asyncio.run(_follow(lambda: peek(settings.spool_path)[0].waiting))
    size, _ = peek(settings.spool_path)
    if size.waiting:
        raise StartRefusedError(f"{size.waiting} leads wait still, and nothing is lost: see leadkeep doctor")
    echo(f"The spool is empty.{f' {size.damaged} leads are set aside.' if size.damaged else ''}")


def _drained_here(settings: Settings) -> bool:
    """Drain in this process; False when another one owns the spool."""
    encryption = encryption_of(settings)
    try:
        spool = Spool(settings.spool_path, encryption, max_bytes=settings.spool_bytes)
    except SpoolOwnedError:
        return False
    with closing(spool), database_url(settings) as url:
        asyncio.run(_drain(settings, url, spool, encryption))
    return True


async def _drain(settings: Settings, url: str, spool: Spool, encryption: EncryptionService) -> None:
    # Imported here: the use cases and their libraries, which `spool status` should not pay for.
    from service.replica import ServiceParts, running_replica
    from service.rpc.metrics import Metrics

    supervisor = Supervisor(on_death=lambda: None)
    parts = ServiceParts(settings, url, spool, encryption, Metrics())
    async with running_replica(parts, supervisor, settings.shutdown_grace):
        supervisor.start([Component(name="drain", run=parts.drain.run)])
        await _follow(lambda: spool.size.waiting, failing=lambda: "drain" in supervisor.failing)


async def _follow(waiting: Callable[[], int], *, failing: Callable[[], bool] = lambda: False) -> None:
    """Wait until nothing waits, or until nothing was drained for a while. Raises StartRefusedError."""
    left, moved_at = waiting(), time.monotonic()
    with ProgressLine() as progress:
        while left and time.monotonic() - moved_at < LONGEST_STANDSTILL:
            await asyncio.sleep(LOOK_SECONDS)
            if failing():
                raise StartRefusedError("the drain fails by a fault of ours: what waits stays, report it")
            before, left = left, waiting()
            if left < before:
                moved_at = time.monotonic()
            progress.show(f"{left} leads wait")
