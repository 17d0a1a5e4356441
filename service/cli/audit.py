"""`leadkeep audit`: who was shown which leads unmasked, and whether that record is as it was written.

Exit codes of `audit verify`: 0 unchanged; 1 it could not be checked; 3 it was changed, cut, or a part is missing.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from service.cli.ids import lead_id_of
from service.cli.refusals import refusals_are_told
from service.config import load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.encryption import EncryptionService
    from service.storage.access_check import Findings
    from service.storage.access_records import AccessFilter, RecordedAccess
    from service.storage.database import Database

TAMPERED = 3
PAGE = 1000

audit_app = typer.Typer(help="The record of who was shown which leads unmasked.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@audit_app.command("list")
@refusals_are_told
def list_accesses(
    lead: Annotated[str, typer.Option(help="Only looks at the lead with this id.")] = "",
    subject: Annotated[str, typer.Option(help="Only looks of this subject (a token's sub).")] = "",
    first: Annotated[
        str, typer.Option("--from", help="From this day (UTC), or this moment: 2026-01-31T09:00:00+06:00.")
    ] = "",
    last: Annotated[str, typer.Option("--to", help="To the end of this day (UTC), or to before this moment.")] = "",
    as_json: AsJson = False,
) -> None:
    """List looks at values in clear, newest first."""
    start, end = _moment(first, "--from", end=False), _moment(last, "--to", end=True)
    lead_id = lead_id_of(lead, "--lead") if lead else None
    settings = load_settings()
    from service.cli.database import with_database
    from service.storage.access_records import AccessFilter

    wanted = AccessFilter(lead_id=lead_id, subject=subject or None, recorded_after=start, recorded_before=end)

    async def show(database: Database, encryption: EncryptionService) -> None:
        await _show(database, encryption, wanted, as_json=as_json)

    with_database(settings, show)


@audit_app.command()
@refusals_are_told
def verify(
    heads: Annotated[
        Path | None, typer.Option(help="A file with lines of the service's log, such as it was shipped elsewhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find entries that were changed, added or removed. Exit code 3 if there are any.

    With --heads, also find what was removed together with all that tells of it in the database.
    """
    settings = load_settings()
    from service import factories
    from service.cli.database import confirmed_database_url
    from service.storage.access_check import check, logged_heads
    from service.storage.failures import StorageFaultError

    try:
        with _log(heads) as lines:
            encryption = factories.encryption_of(settings)
            with confirmed_database_url(settings) as url:
                # Read before the database is: a service that runs goes on writing to both.
                logged = list(dict.fromkeys(logged_heads(lines)))
                findings = check(url, encryption, logged)
    except StorageFaultError as fault:
        raise StartRefusedError(f"the access record cannot be read: {fault}") from None
    except ValueError as error:
        raise StartRefusedError(f"{heads} cannot be used: {error}") from None
    if heads is not None and not findings.heads:
        raise StartRefusedError(f"{heads} holds no head of a chain: it proves nothing")
    if as_json:
        typer.echo(json.dumps(_report(findings), indent=2))
    else:
        _tell(findings, with_heads=heads is not None)
    if not findings.unchanged:
        raise typer.Exit(TAMPERED)


async def _show(database: Database, encryption: EncryptionService, wanted: AccessFilter, *, as_json: bool) -> None:
    from service.storage.access_records import AccessRecords

    records = AccessRecords(database, encryption)
    after, separator = None, "[\n"
    while True:
        found = await records.find(wanted, after=after, limit=PAGE)
        for access in found:
            if as_json:
                typer.echo(separator + json.dumps(_as_json(access), ensure_ascii=False), nl=False)
                separator = ",\n"
            else:
                typer.echo(_as_line(access))
        if len(found) < PAGE:
            break
        after = found[-1].entry.recorded_at, found[-1].id
    if as_json:
        typer.echo("[]" if separator == "[\n" else "\n]")


def _as_json(access: RecordedAccess) -> dict[str, object]:
    entry = access.entry
    return {
        "recorded_at": entry.recorded_at.astimezone(UTC).isoformat(),
        "subject": entry.subject,
        "operation": entry.operation,
        "lead_id": str(entry.lead_id) if entry.lead_id else None,
        "fields": list(entry.fields),
        "reason": entry.reason,
        "request_id": entry.request_id,
        "chain_id": str(access.chain_id) if access.chain_id else None,
        "number": access.number,
    }


def _as_line(access: RecordedAccess) -> str:
    entry = access.entry
    when = entry.recorded_at.astimezone(UTC).isoformat(timespec="seconds")
    columns = (when, entry.subject, entry.operation, str(entry.lead_id or "-"), ",".join(entry.fields))
    # A reason may have lines, and a column may not.
    return "\t".join((*columns, " ".join((entry.reason or "-").split()), entry.request_id or "-"))


def _report(findings: Findings) -> dict[str, object]:
    return {"unchanged": findings.unchanged, **asdict(findings)}


def _tell(findings: Findings, *, with_heads: bool) -> None:
    for fault in findings.faults:
        where = f" (chain {fault.chain})" if fault.chain else ""
        typer.echo(f"{fault.kind}: {fault.what}{where}")
    if findings.fault_count > len(findings.faults):
        typer.echo(f"and {findings.fault_count - len(findings.faults)} more")
    typer.echo(
        f"{findings.entries} entries in {findings.chains} chains: {findings.ended} have ended, "
        f"{findings.chains - findings.ended} are being written or were left by a writer that was killed."
    )
    if findings.earlier_entries:
        sealed = "sealed by the first chain" if findings.earlier_sealed else "to be sealed with the first unmasked read"
        typer.echo(f"{findings.earlier_entries} entries from before there were chains, {sealed}.")
    if with_heads:
        typer.echo(f"Compared with {findings.heads} heads.")
    elif findings.chains:
        typer.echo("Not compared with heads of the log (--heads): who cuts all tables alike is not noticed.")
    typer.echo("Unchanged." if findings.unchanged else f"NOT as it was written: {findings.fault_count} faults.")


@contextmanager
def _log(path: Path | None) -> Iterator[Iterator[str]]:
    if path is None:
        yield iter(())
        return
    try:
        file: IO[str] = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        yield iter(file)


def _moment(text: str, option: str, *, end: bool) -> datetime | None:
    if not text:
        return None
    try:
        if len(text) == len("2026-01-31"):
            return datetime.combine(date.fromisoformat(text) + timedelta(days=int(end)), time(), UTC)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        wanted = "must be a day or a moment, as 2026-01-31 or 2026-01-31T09:00:00Z"
        raise typer.BadParameter(wanted, param_hint=option) from None
    return moment
