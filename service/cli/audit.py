"""`leadkeep audit`: who was shown which leads unmasked, and whether that record is as it was written.

Exit codes of `audit verify`: 0 unchanged; 1 it could not be checked; 3 it was changed, cut, or a part is missing.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from service.access import Scope
from service.cli.command import FAULT_FOUND, AsJson, print_json, printed_rows, refusals_are_told
from service.config import load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadkeep.v1 import lead_service_pb2 as pb

    from service.storage.access_check import Findings

PAGE = 100
"""The largest page that the service answers."""

audit_app = typer.Typer(help="The record of who was shown which leads unmasked.", no_args_is_help=True)


@audit_app.command("list")
@refusals_are_told
def list_accesses(
    lead: Annotated[UUID | None, typer.Option(help="Only looks at the lead with this id.")] = None,
    subject: Annotated[str, typer.Option(help="Only looks of this subject (a token's sub).")] = "",
    first: Annotated[
        str, typer.Option("--from", help="From this day (UTC), or this moment: 2026-01-31T09:00:00+06:00.")
    ] = "",
    last: Annotated[str, typer.Option("--to", help="To the end of this day (UTC), or to before this moment.")] = "",
    as_json: AsJson = False,
) -> None:
    """List looks at values in clear, newest first."""
    start, end = _moment(first, "--from", end=False), _moment(last, "--to", end=True)
    settings = load_settings()
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.cli.client import connected, pages

    request = pb.ListAccessesRequest(
        page_size=PAGE,
        lead_id=str(lead) if lead else "",
        subject=subject,
        recorded_after=start,
        recorded_before=end,
    )
    with connected(settings, Scope.OPERATE) as call, printed_rows(as_json=as_json) as show:
        for page in pages(call, "ListAccesses", request):
            for access in page.accesses:
                show(_as_json(access) if as_json else _as_line(access))


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
    from service.storage.access_chain import logged_heads
    from service.storage.access_check import check
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
        print_json({"unchanged": findings.unchanged, **asdict(findings)})
    else:
        _tell(findings, with_heads=heads is not None)
    if not findings.unchanged:
        raise typer.Exit(FAULT_FOUND)


def _as_json(access: pb.Access) -> dict[str, object]:
    return {
        "recorded_at": access.recorded_at.ToDatetime(UTC).isoformat(),
        "subject": access.subject,
        "operation": access.operation,
        "lead_id": access.lead_id or None,
        "fields": list(access.fields),
        "reason": access.reason or None,
        "request_id": access.request_id or None,
        "chain_id": access.chain_id or None,
        "number": access.number or None,
    }


def _as_line(access: pb.Access) -> str:
    when = access.recorded_at.ToDatetime(UTC).isoformat(timespec="seconds")
    columns = (when, access.subject, access.operation, access.lead_id or "-", ",".join(access.fields))
    # A reason may have lines, and a column may not.
    return "\t".join((*columns, " ".join(access.reason.split()) or "-", access.request_id or "-"))


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
