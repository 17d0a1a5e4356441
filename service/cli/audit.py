"""`leadkeep audit list`: who was shown which leads unmasked. Whether that record is unchanged: checks.py."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated
from uuid import UUID

import typer
from leadkeep.v1 import lead_service_pb2 as pb

from service.access import Scope
from service.cli.client import connected, listed
from service.cli.command import AsJson, cell, moment, printed_rows
from service.config import load_settings

PAGE = 100
"""The largest page that the service answers."""


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
    start, end = moment(first, "--from"), moment(last, "--to", end=True)
    settings = load_settings()
    request = pb.ListAccessesRequest(
        page_size=PAGE,
        lead_id=str(lead) if lead else "",
        subject=subject,
        recorded_after=start,  # type: ignore[arg-type] # protobuf takes it; the stubs are of an earlier one
        recorded_before=end,  # type: ignore[arg-type] # likewise
    )
    with connected(settings, Scope.OPERATE) as call, printed_rows(as_json=as_json) as show:
        for access in listed(call, "ListAccesses", request, "accesses"):
            show(_as_json(access) if as_json else _as_line(access))


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
    columns = (when, access.subject, access.operation, access.lead_id, ",".join(access.fields), access.reason)
    return "\t".join(cell(column) or "-" for column in (*columns, access.request_id))
