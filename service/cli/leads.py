"""`leadkeep leads`: find leads, as the running service shows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import typer
from google.protobuf.json_format import MessageToDict
from leadkeep.v1 import lead_service_pb2 as pb

from service.access import UNMASK_SCOPES, Scope
from service.cli.client import connected, listed, showing
from service.cli.command import AsJson, ReasonToLook, Reveal, cell, customers_option, echo, moment, report
from service.config import load_settings
from service.lead import LeadStatus

LARGEST_PAGE = 100
"""The largest page that the service answers."""

COLUMNS = ("id", "created_at", "updated_at", "status", "assignee", "name", "phone", "interested_policy", "source")

Order = Literal["created-desc", "created-asc", "updated-desc", "updated-asc", "resubmitted-desc", "resubmitted-asc"]


def _moment_option(meaning: str) -> Any:
    return typer.Option(metavar="MOMENT", help=f"{meaning} this moment, or the beginning of this day (UTC).")


def list_leads(
    statuses: Annotated[list[LeadStatus] | None, typer.Option("--status", help="Of this status; repeatable.")] = None,
    assignee: Annotated[str, typer.Option(help="Assigned to exactly this person.")] = "",
    unassigned: Annotated[bool, typer.Option("--unassigned", help="Assigned to nobody.")] = False,
    policy: Annotated[str, typer.Option(help="Interested in exactly this policy.")] = "",
    source: Annotated[str, typer.Option(help="From exactly this source.")] = "",
    created_by: Annotated[str, typer.Option(help="Created by exactly this subject.")] = "",
    created_after: Annotated[str, _moment_option("Created at or after")] = "",
    created_before: Annotated[str, _moment_option("Created before")] = "",
    updated_after: Annotated[str, _moment_option("Last changed at or after")] = "",
    updated_before: Annotated[str, _moment_option("Last changed before")] = "",
    name_prefix: Annotated[str, customers_option("Whose name begins so")] = "",
    conversation_id: Annotated[str, customers_option("Linked to this conversation")] = "",
    phone: Annotated[str, customers_option("With this phone")] = "",
    nid: Annotated[str, customers_option("With this national ID")] = "",
    order: Annotated[Order, typer.Option(help="By which time, and whether the latest comes first.")] = "created-desc",
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    reveal: Reveal = "",
    reason: ReasonToLook = "",
    as_json: AsJson = False,
) -> None:
    """List leads, sensitive values masked; all filters that are given must match."""
    view, scopes = showing(unmask=False, reveal=reveal)
    scopes += [UNMASK_SCOPES[name] for name, value in (("phone", phone), ("nid", nid)) if value]
    request = pb.ListLeadsRequest(
        # One more than is shown, not a page more: each lead of a page is recorded.
        page_size=min(limit + 1, LARGEST_PAGE),
        **view,
        statuses=[f"LEAD_STATUS_{status.name}" for status in statuses or ()],
        assignee=assignee,
        unassigned=unassigned,
        interested_policy=policy,
        source=source,
        created_by=created_by,
        created_after=moment(created_after, "--created-after"),  # type: ignore[arg-type] # as in stats.py
        created_before=moment(created_before, "--created-before"),  # type: ignore[arg-type] # as in stats.py
        updated_after=moment(updated_after, "--updated-after"),  # type: ignore[arg-type] # as in stats.py
        updated_before=moment(updated_before, "--updated-before"),  # type: ignore[arg-type] # as in stats.py
        name_prefix=name_prefix,
        conversation_id=conversation_id,
        phone=phone,
        nid=nid,
        order_by=None if order == "created-desc" else f"LEAD_ORDER_{order.replace('-', '_').upper()}",
    )
    with connected(load_settings(), Scope.READ, *scopes, reason=reason) as call:
        found = listed(call, "ListLeads", request, "leads")
        leads = list(islice(found, limit))
        if next(found, None) is not None:
            echo("leadkeep: more leads match: raise --limit", err=True)
    shown = [MessageToDict(lead, preserving_proto_field_name=True) for lead in leads]
    columns = tuple(dict.fromkeys((*COLUMNS, *filter(None, reveal.split(",")))))
    report(shown, ["\t".join(columns), *(_as_line(lead, columns) for lead in leads)], as_json=as_json)


def _as_line(lead: pb.Lead, columns: Sequence[str]) -> str:
    shown = {
        "created_at": lead.created_at.ToJsonString(),
        "updated_at": lead.updated_at.ToJsonString(),
        "status": pb.LeadStatus.Name(lead.status).removeprefix("LEAD_STATUS_").lower(),
    }
    return "\t".join(cell(shown.get(name) or getattr(lead, name)) or "-" for name in columns)
