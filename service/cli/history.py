"""`leadkeep leads history`: everything that happened to a lead."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated
from uuid import UUID

import typer
from google.protobuf.json_format import MessageToDict
from leadkeep.v1 import lead_service_pb2 as pb

from service.access import Scope
from service.cli.client import connected, listed
from service.cli.command import AsJson, aligned, report
from service.config import load_settings

PAGE = 100
"""The largest page that the service answers."""

HEADINGS = ("when", "version", "what", "who", "details", "reason")


def show(
    lead_id: Annotated[UUID, typer.Argument(metavar="ID", help="The lead's id, or one that leads to it.")],
    accesses: Annotated[bool, typer.Option("--accesses", help="Also looks at values in clear.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened to a lead, oldest first."""
    request = pb.ListLeadEventsRequest(lead_id=str(lead_id), page_size=PAGE, include_accesses=accesses)
    scopes = (Scope.READ, Scope.OPERATE) if accesses else (Scope.READ,)
    with connected(load_settings(), *scopes) as call:
        events = list(listed(call, "ListLeadEvents", request, "events"))
    shown = [MessageToDict(event, preserving_proto_field_name=True) for event in events]
    report(shown, aligned([HEADINGS, *map(_row, events)]), as_json=as_json)


def _row(event: pb.LeadEvent) -> tuple[str, ...]:
    when = event.at.ToDatetime(UTC).isoformat(timespec="seconds")
    what = pb.LeadEventType.Name(event.type).removeprefix("LEAD_EVENT_TYPE_").lower().replace("_", " ")
    return when, str(event.version or "-"), what, event.actor, _details(event) or "-", event.reason or "-"


def _details(event: pb.LeadEvent) -> str:
    match event.type:
        case pb.LEAD_EVENT_TYPE_STATUS_CHANGED:
            statuses = (event.from_status, event.to_status)
            return " → ".join(pb.LeadStatus.Name(each).removeprefix("LEAD_STATUS_").lower() for each in statuses)
        case pb.LEAD_EVENT_TYPE_ASSIGNED:
            return f"{event.from_assignee or 'nobody'} → {event.to_assignee or 'nobody'}"
        case _:
            return ", ".join(event.fields)
