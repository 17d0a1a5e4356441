"""`leadkeep erase` and `leadkeep retention`: erase leads, and list the tombstones, to be kept with the backups."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from leadkeep.v1 import lead_service_pb2 as pb

from service import factories
from service.cli.client import connected, kept_lines
from service.cli.command import (
    AsJson,
    DryRun,
    ProgressLine,
    cell,
    duration,
    echo,
    end_interrupted,
    printed_rows,
    report,
    stop_requested,
)
from service.cli.database import with_database
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.importing.own_files import read_tombstones
from service.keys.encryption import EncryptionService
from service.lead import LeadStatus
from service.lead_sealer import LeadSealer
from service.scopes import Scope
from service.storage.database.database import Database
from service.storage.leads.erasing import Tombstone
from service.storage.leads.erasures import Erasures, RetentionRule, count_due, erase_due, next_due

AT_ONCE = 100
"""Tombstones a transaction: each may keep the writers of leads waiting for about a millisecond."""

BATCH = 50
"""Leads a transaction: about 50 ms, which a call that waits for one of them hardly notices."""

SHARE = 0.5
"""Of the time at most, for the erasures; callers have the rest of the database."""


def erase(
    lead_id: Annotated[UUID | None, typer.Argument(metavar="[ID]", help="The lead, or an id that leads to it.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the tombstone. No customer data.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="List the tombstones, oldest first.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="Erase again what a file of --list --json names.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Erase a lead and all that belongs to it; only a tombstone stays. Cannot be undone. Safe to repeat."""
    if sum((lead_id is not None, listed, source is not None)) != 1:
        raise typer.BadParameter("give one of: an ID, --list, --from FILE", param_hint="ID")
    settings = load_settings()
    if lead_id is not None:
        _erase(settings, lead_id, reason, as_json=as_json)
    elif source is not None:
        _erase_again(settings, read_tombstones(source), as_json=as_json)
    else:
        _list(settings, as_json=as_json)


def _erase(settings: Settings, lead_id: UUID, reason: str, *, as_json: bool) -> None:
    with connected(settings, Scope.ERASE) as call:
        kept = call("EraseLead", pb.EraseLeadRequest(id=str(lead_id), reason=reason)).kept_ids
    lines = [f"Erased: {lead_id}. A tombstone stays; the daily file of its day follows."]
    lines += kept_lines(kept)
    report({"id": str(lead_id), "erased": True, "kept_ids": list(kept)}, lines, as_json=as_json)


def _list(settings: Settings, *, as_json: bool) -> None:
    async def work(_url: str, database: Database, encryption: EncryptionService) -> None:
        erasures, after = _erasures(settings, database, encryption), None
        with printed_rows(as_json=as_json) as show:
            while page := await erasures.page(after):
                after = page[-1]
                for each in page:
                    show(asdict(each) if as_json else _as_line(each))
        if after is None and not as_json:
            echo("Nothing was erased yet.")

    with_database(settings, work)


def _erase_again(settings: Settings, tombstones: Sequence[Tombstone], *, as_json: bool) -> None:
    async def work(_url: str, database: Database, encryption: EncryptionService) -> None:
        erasures = _erasures(settings, database, encryption)
        for start in range(0, len(tombstones), AT_ONCE):
            await erasures.erase_again(tombstones[start : start + AT_ONCE])

    with_database(settings, work)
    done = f"{len(tombstones)} tombstones are in place; what had come back of their leads was erased."
    report({"tombstones": len(tombstones)}, [done], as_json=as_json)


def _erasures(settings: Settings, database: Database, encryption: EncryptionService) -> Erasures:
    sealer = LeadSealer(encryption, factories.validation_of(settings), transcript_url=None)
    return Erasures(database, sealer.resealed_and_reindexed)


def _as_line(tombstone: Tombstone) -> str:
    unseen = "" if tombstone.created_at else "(no such lead was seen here)"
    columns = (str(tombstone.id), tombstone.erased_at.isoformat(), tombstone.erased_by, tombstone.reason, unseen)
    return "  ".join(filter(None, map(cell, columns)))


def retention(
    status: Annotated[list[LeadStatus] | None, typer.Option(help="Only leads of this status; may be repeated.")] = None,
    older_than: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="TIME", help="Only leads without a change for so long: 90d."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the tombstones. No customer data.")] = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Erase leads that are older than a policy: LEADKEEP_RETENTION, or --status and --older-than.

    A lead's age counts from its last change or resubmission. Interrupted, the command ends with exit code 130; the same
    command again goes on.
    """
    settings = load_settings()
    policy = _policy(settings, status or [], older_than)
    why = factories.validation_of(settings).text("reason", reason) or ""
    now = datetime.now(UTC)
    rules = [RetentionRule(each, now - age) for each, age in policy.items()]

    async def work(_url: str, database: Database, _encryption: EncryptionService) -> tuple[list[dict[str, Any]], bool]:
        stopped, done = stop_requested(), []
        for rule in rules:
            due = await count_due(database, rule)
            erased = 0 if dry_run else await _erase_old(database, rule, why, due, stopped)
            before = rule.before.isoformat(timespec="seconds")
            done.append(
                {"status": rule.status.value, "before": before, "due": due, "erased": erased, "dry_run": dry_run}
            )
        return done, stopped.is_set()

    done, interrupted = with_database(settings, work)
    count, were = ("due", "would be") if dry_run else ("erased", "were")
    lines = [
        f"{each['status']}: {each[count]} leads {were} erased that were last changed before {each['before']}"
        for each in done
    ]
    report(done, lines, as_json=as_json)
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


async def _erase_old(database: Database, rule: RetentionRule, why: str, due: int, stopped: asyncio.Event) -> int:
    actor = f"cli:{getpass.getuser()}"
    reason = why or f"retention: {rule.status.value} since before {rule.before.date()}"
    erased = 0
    after: tuple[datetime, UUID] | None = None
    with ProgressLine() as progress:
        while not stopped.is_set() and (batch := await next_due(database, rule, after, BATCH)):
            after, began = batch[-1], time.monotonic()
            erased += await erase_due(database, rule, [lead_id for _, lead_id in batch], actor=actor, reason=reason)
            progress.show(f"{rule.status.value}: {erased} of {due}")
            await asyncio.sleep((time.monotonic() - began) * (1 / SHARE - 1))
    return erased
