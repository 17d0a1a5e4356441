"""`leadkeep retention`: erase what is older than a policy."""

from __future__ import annotations

import asyncio
import getpass
import json
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.durations import duration
from service.cli.interrupts import INTERRUPTED
from service.cli.refusals import refusals_are_told
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.lead import LeadStatus

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.storage.database import Database
    from service.storage.requests import Position
    from service.storage.retention import Rule


BATCH = 50
"""Leads a transaction: about 50 ms, which a call that waits for one of them hardly notices."""

SHARE = 0.5
"""Of the time at most, for the erasures; callers have the rest of the database."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    rules: list[Rule]
    reason: str
    dry_run: bool


@refusals_are_told
def retention(
    status: Annotated[
        list[str] | None, typer.Option(help=f"Only leads of this status ({', '.join(LeadStatus)}); may be repeated.")
    ] = None,
    older_than: Annotated[str, typer.Option(help="For how long they were not changed: 90d.")] = "",
    reason: Annotated[str, typer.Option(help="Why; kept with the tombstones. No customer data.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be erased, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Erase leads that are older than a policy: LEADKEEP_RETENTION, or --status and --older-than.

    What counts is the last change, or the last time that the person came back. Interrupted, it ends with exit code 130;
    the same command again goes on.
    """
    settings = load_settings()
    policy = _policy(settings, status or [], older_than)
    from service import factories
    from service.cli.database import with_database
    from service.storage.retention import Rule

    why = factories.validation_of(settings).reason(reason) or ""
    now = datetime.now(UTC)
    wanted = _Wanted([Rule(each, now - age) for each, age in policy.items()], why, dry_run)

    async def work(database: Database, _encryption: EncryptionService) -> tuple[list[dict[str, Any]], bool]:
        return await _apply(database, wanted)

    done, interrupted = with_database(settings, work)
    if as_json:
        typer.echo(json.dumps(done, indent=2))
    else:
        for each in done:
            would = f"{each['due']} leads would be" if dry_run else f"{each['erased']} leads were"
            typer.echo(f"{each['status']}: {would} erased that were last changed before {each['before']}")
    if interrupted:
        typer.echo("leadkeep: interrupted; what was told is done: run the same command again to go on", err=True)
        raise typer.Exit(INTERRUPTED)


def _policy(settings: Settings, statuses: list[str], older_than: str) -> dict[LeadStatus, timedelta]:
    if bool(statuses) != bool(older_than):
        raise typer.BadParameter("go together", param_hint="--status and --older-than")
    if not statuses:
        if not settings.retention_policy:
            raise StartRefusedError("there is no policy: set LEADKEEP_RETENTION, or give --status and --older-than")
        return settings.retention_policy
    try:
        age = duration(older_than)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from None
    try:
        return {LeadStatus(each): age for each in statuses}
    except ValueError:
        raise typer.BadParameter(f"must be one of: {', '.join(LeadStatus)}", param_hint="--status") from None


async def _apply(database: Database, wanted: _Wanted) -> tuple[list[dict[str, Any]], bool]:
    from service.storage.retention import Retention

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    old = Retention(database)
    done = []
    for rule in wanted.rules:
        due = await old.count(rule)
        told = {"status": rule.status.value, "before": rule.before.isoformat(timespec="seconds"), "due": due}
        erased = 0 if wanted.dry_run else await _erase(old, rule, wanted, due, stopped)
        done.append({**told, "erased": erased, "dry_run": wanted.dry_run})
    return done, stopped.is_set()


async def _erase(old: Any, rule: Rule, wanted: _Wanted, due: int, stopped: asyncio.Event) -> int:
    actor = f"cli:{getpass.getuser()}"
    reason = wanted.reason or f"retention: {rule.status.value} since before {rule.before.date()}"
    erased = 0
    after: Position | None = None
    while not stopped.is_set() and (batch := await old.next(rule, after, BATCH)):
        after, began = batch[-1], time.monotonic()
        erased += await old.erase(rule, [each.id for each in batch], actor=actor, reason=reason)
        if sys.stderr.isatty():
            typer.echo(f"\r{rule.status.value}: {erased} of {due} ", err=True, nl=False)
        await asyncio.sleep((time.monotonic() - began) * (1 / SHARE - 1))
    if sys.stderr.isatty() and after is not None:
        typer.echo("\r\033[K", err=True, nl=False)
    return erased
