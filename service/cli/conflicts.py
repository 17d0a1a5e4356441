"""`leadkeep conflicts`: show and decide submissions that matched a lead when they came out of the spool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal
from uuid import UUID

import typer
from google.protobuf.json_format import MessageToDict
from leadkeep.v1 import lead_service_pb2 as pb

from service.access import Scope
from service.cli.client import connected, listed, showing
from service.cli.command import AsJson, ReasonToLook, Reveal, echo, report
from service.config import load_settings


def list_conflicts(
    every: Annotated[bool, typer.Option("--all", help="Also those that were decided.")] = False,
    unmask: Annotated[bool, typer.Option("--unmask", help="Values in clear, which is recorded.")] = False,
    reveal: Reveal = "",
    reason: ReasonToLook = "",
    as_json: AsJson = False,
) -> None:
    """List what waits for a decision, oldest first, with both sides; sensitive values are masked."""
    view, scopes = showing(unmask=unmask, reveal=reveal)
    with connected(load_settings(), Scope.OPERATE, *scopes, reason=reason) as call:
        request = pb.ListConflictsRequest(include_resolved=every, **view)
        conflicts = list(listed(call, "ListConflicts", request, "conflicts"))
    shown = [MessageToDict(conflict, preserving_proto_field_name=True) for conflict in conflicts]
    lines = list(_lines(conflicts))
    none = "No conflict waits for a decision." if not every else "There was no conflict yet."
    report(shown, lines or [none], as_json=as_json)


def _lines(conflicts: Sequence[pb.Conflict]) -> Iterator[str]:
    for conflict in conflicts:
        decided = pb.ConflictResolution.Name(conflict.resolution).removeprefix("CONFLICT_RESOLUTION_").lower()
        state = "waits" if not conflict.resolution else f"{decided} by {conflict.resolved_by}"
        yield f"{conflict.id}  accepted {conflict.accepted_at.ToJsonString()}  {state}"
        yield f"  submitted: {_side(conflict.submission)}"
        if "erased" in conflict.met_fields:
            yield "  a lead that it shares something with was erased: keep-first drops it, own-lead keeps it"
        for lead in conflict.leads:
            yield f"  matched by {', '.join(conflict.met_fields)}: lead {lead.id}: {_side(lead)}"


def resolve(
    conflict_id: Annotated[UUID, typer.Argument(metavar="ID", help="The conflict, see: leadkeep conflicts list.")],
    resolution: Annotated[Literal["keep-first", "take-new", "own-lead"], typer.Argument(help="The decision.")],
    lead: Annotated[
        UUID | None, typer.Option(help="The lead that is kept or takes the values, where several match.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the conflict. No customer data.")] = "",
) -> None:
    """Decide: keep the first lead as it is, let it take the new values, or make the submission a lead of its own."""
    request = pb.ResolveConflictRequest(
        id=str(conflict_id),
        resolution=f"CONFLICT_RESOLUTION_{resolution.replace('-', '_').upper()}",
        lead_id=str(lead) if lead else "",
        reason=reason,
        view=pb.LEAD_VIEW_MASKED,
    )
    with connected(load_settings(), Scope.OPERATE) as call:
        resolved = call("ResolveConflict", request)
    if resolved.HasField("lead"):
        echo(f"Resolved: {conflict_id} leads to the lead {resolved.lead.id} now.")
    else:
        echo(f"Resolved: {conflict_id} is dropped; a tombstone stays.")


def _side(lead: pb.Lead) -> str:
    nid = f"nid {lead.nid}" if lead.nid else ""
    return ", ".join(part for part in (lead.name, f"phone {lead.phone}", nid, lead.interested_policy) if part)
