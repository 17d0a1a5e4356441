"""`leadkeep retention`: erase what is older than a policy."""

from __future__ import annotations

import asyncio
import getpass
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.command import (
    AsJson,
    DryRun,
    ProgressLine,
    duration,
    end_interrupted,
    print_json,
    refusals_are_told,
    stop_requested,
)
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.lead import LeadStatus

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.storage.database import Database
    from service.storage.erasures import RetentionRule
    from service.storage.requests import Position


BATCH = 50
"""Leads a transaction: about 50 ms, which a call that waits for one of them hardly notices."""

SHARE = 0.5
"""Of the time at most, for the erasures; callers have the rest of the database."""


@refusals_are_told
def retention(
    status: Annotated[list[LeadStatus] | None, typer.Option(help="Only leads of this status; may be repeated.")] = None,
    older_than: Annotated[
        timedelta | None, typer.Option(parser=duration, metavar="TIME", help="For how long they were not changed: 90d.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the tombstones. No customer data.")] = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Erase leads that are older than a policy: LEADKEEP_RETENTION, or --status and --older-than.

    What counts is the last change, or the last time that the person came back. Interrupted, it ends with exit code 130;
    the same command again goes on.
    """
    settings = load_settings()
    policy = _policy(settings, status or [], older_than)
    from service import factories
    from service.cli.database import with_database
    from service.storage.erasures import RetentionRule, count_due

    why = factories.validation_of(settings).reason(reason) or ""
    now = datetime.now(UTC)
    rules = [RetentionRule(each, now - age) for each, age in policy.items()]

    async def work(database: Database, _encryption: EncryptionService) -> tuple[list[dict[str, Any]], bool]:
        stopped, done = stop_requested(), []
        for rule in rules:
            due = await count_due(database, rule)
            erased = 0 if dry_run else await _erase(database, rule, why, due, stopped)
            before = rule.before.isoformat(timespec="seconds")
            done.append(
                {"status": rule.status.value, "before": before, "due": due, "erased": erased, "dry_run": dry_run}
            )
        return done, stopped.is_set()

    done, interrupted = with_database(settings, work)
    if as_json:
        print_json(done)
    else:
        for each in done:
            would = f"{each['due']} leads would be" if dry_run else f"{each['erased']} leads were"
            typer.echo(f"{each['status']}: {would} erased that were last changed before {each['before']}")
    if interrupted:
        end_interrupted()


def _policy(
    settings: Settings, statuses: list[LeadStatus], older_than: timedelta | None
) -> dict[LeadStatus, timedelta]:
    if not statuses and older_than is None:
        if not settings.retention_policy:
            raise StartRefusedError("there is no policy: set LEADKEEP_RETENTION, or give --status and --older-than")
        return settings.retention_policy
    if not statuses or older_than is None:
        raise typer.BadParameter("go together", param_hint="--status and --older-than")
    return dict.fromkeys(statuses, older_than)


async def _erase(database: Database, rule: RetentionRule, why: str | None, due: int, stopped: asyncio.Event) -> int:
    from service.storage.erasures import erase_due, next_due

    actor = f"cli:{getpass.getuser()}"
    reason = why or f"retention: {rule.status.value} since before {rule.before.date()}"
    erased, progress = 0, ProgressLine()
    after: Position | None = None
    while not stopped.is_set() and (batch := await next_due(database, rule, after, BATCH)):
        after, began = batch[-1], time.monotonic()
        erased += await erase_due(database, rule, [each.id for each in batch], actor=actor, reason=reason)
        progress.show(f"{rule.status.value}: {erased} of {due}")
        await asyncio.sleep((time.monotonic() - began) * (1 / SHARE - 1))
    progress.end()
    return erased
