"""Commands that list what the running service shows: `leadkeep leads`, `stats`, `conflicts` and `audit list`.

Whether the record that `audit list` shows is unchanged: checks.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import typer
from leadkeep.v1 import lead_service_pb2 as pb

from service.cli.client import LARGEST_PAGE, Call, as_object, connected, listed, showing, word
from service.cli.command import (
    AsJson,
    ReasonToLook,
    Reveal,
    aligned,
    cell,
    customers_option,
    echo,
    moment,
    padded,
    printed_rows,
    report,
)
from service.config import load_settings
from service.config_values import time_zone
from service.lead import LeadStatus
from service.scopes import UNMASK_SCOPES, Scope

COLUMNS = ("id", "created_at", "updated_at", "status", "assignee", "name", "phone", "interested_policy", "source")

Order = Literal["created-desc", "created-asc", "updated-desc", "updated-asc", "resubmitted-desc", "resubmitted-asc"]

DEFAULT_DAYS = timedelta(days=31)

LONGEST_BAR = 40
WIDEST_KEY = 40
"""Columns of the terminal: with the counts, a line of `stats` has less than 100."""

_EIGHTHS = " ▏▎▍▌▋▊▉"


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
    email: Annotated[str, customers_option("With this e-mail address")] = "",
    reference: Annotated[str, typer.Option(help="With the reference of this confirmation, LK-XXXX-XXXX.")] = "",
    order: Annotated[Order, typer.Option(help="By which time, and whether the latest comes first.")] = "created-desc",
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    reveal: Reveal = "",
    reason: ReasonToLook = "",
    as_json: AsJson = False,
) -> None:
    """List leads, sensitive values masked; all filters that are given must match."""
    view, scopes = showing(unmask=False, reveal=reveal)
    by_value = (("phone", phone), ("nid", nid), ("email", email))
    scopes += [UNMASK_SCOPES[name] for name, value in by_value if value]
    request = pb.ListLeadsRequest(
        **view,
        statuses=[f"LEAD_STATUS_{status.name}" for status in statuses or ()],
        assignee=assignee,
        unassigned=unassigned,
        interested_policy=policy,
        source=source,
        created_by=created_by,
        created_after=moment(created_after, "--created-after"),  # type: ignore[arg-type] # the stubs are of an earlier one
        created_before=moment(created_before, "--created-before"),  # type: ignore[arg-type] # likewise
        updated_after=moment(updated_after, "--updated-after"),  # type: ignore[arg-type] # likewise
        updated_before=moment(updated_before, "--updated-before"),  # type: ignore[arg-type] # likewise
        name_prefix=name_prefix,
        conversation_id=conversation_id,
        phone=phone,
        nid=nid,
        email=email,
        reference=reference,
        order_by=None if order == "created-desc" else f"LEAD_ORDER_{order.replace('-', '_').upper()}",
    )
    with connected(load_settings(), Scope.READ, *scopes, reason=reason) as call:
        leads = _first(call, request, limit)
    if request.page_token:
        echo("leadkeep: more leads match: raise --limit", err=True)
    columns = tuple(dict.fromkeys((*COLUMNS, *filter(None, reveal.split(",")))))
    lines = ["\t".join(columns), *(_lead_line(lead, columns) for lead in leads)]
    report([as_object(lead) for lead in leads], lines, as_json=as_json)


def _first(call: Call, request: pb.ListLeadsRequest, limit: int) -> list[pb.Lead]:
    """The first leads of a list, `limit` at most; if there are more, the request has the token of their page then.

    No lead is asked for that is not shown: each one of a page is recorded.
    """
    leads: list[pb.Lead] = []
    while len(leads) < limit:
        request.page_size = min(limit - len(leads), LARGEST_PAGE)
        page = call("ListLeads", request)
        leads += page.leads
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return leads


def _lead_line(lead: pb.Lead, columns: Sequence[str]) -> str:
    shown = {
        "created_at": lead.created_at.ToJsonString(),
        "updated_at": lead.updated_at.ToJsonString(),
        "status": word(pb.LeadStatus, lead.status),
    }
    return "\t".join(cell(shown.get(name) or getattr(lead, name)) or "-" for name in columns)


def show_history(
    lead_id: Annotated[UUID, typer.Argument(metavar="ID", help="The lead's id, or one that leads to it.")],
    accesses: Annotated[bool, typer.Option("--accesses", help="Also looks at values in clear.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened to a lead, oldest first."""
    request = pb.ListLeadEventsRequest(lead_id=str(lead_id), page_size=LARGEST_PAGE, include_accesses=accesses)
    scopes = (Scope.READ, Scope.OPERATE) if accesses else (Scope.READ,)
    with connected(load_settings(), *scopes) as call:
        events = list(listed(call, "ListLeadEvents", request, "events"))
    headings = ("when", "version", "what", "who", "details", "reason")
    report([as_object(event) for event in events], aligned([headings, *map(_event_row, events)]), as_json=as_json)


def _event_row(event: pb.LeadEvent) -> tuple[str, ...]:
    when = event.at.ToDatetime(UTC).isoformat(timespec="seconds")
    what = word(pb.LeadEventType, event.type).replace("_", " ")
    return when, str(event.version or "-"), what, event.actor, _details(event) or "-", event.reason or "-"


def _details(event: pb.LeadEvent) -> str:
    match event.type:
        case pb.LEAD_EVENT_TYPE_STATUS_CHANGED:
            return " → ".join(word(pb.LeadStatus, each) for each in (event.from_status, event.to_status))
        case pb.LEAD_EVENT_TYPE_ASSIGNED:
            return f"{event.from_assignee or 'nobody'} → {event.to_assignee or 'nobody'}"
        case _:
            return ", ".join(event.fields)


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
    request = pb.ListAccessesRequest(
        page_size=LARGEST_PAGE,
        lead_id=str(lead) if lead else "",
        subject=subject,
        recorded_after=start,  # type: ignore[arg-type] # the stubs are of an earlier one
        recorded_before=end,  # type: ignore[arg-type] # likewise
    )
    with connected(load_settings(), Scope.OPERATE) as call, printed_rows(as_json=as_json) as show:
        for access in listed(call, "ListAccesses", request, "accesses"):
            show(_access_object(access) if as_json else _access_line(access))


def _access_object(access: pb.Access) -> dict[str, object]:
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


def _access_line(access: pb.Access) -> str:
    when = access.recorded_at.ToDatetime(UTC).isoformat(timespec="seconds")
    columns = (when, access.subject, access.operation, access.lead_id, ",".join(access.fields), access.reason)
    return "\t".join(cell(column) or "-" for column in (*columns, access.request_id))


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
    none = "No conflict waits for a decision." if not every else "There was no conflict yet."
    lines = list(_conflict_lines(conflicts)) or [none]
    report([as_object(conflict) for conflict in conflicts], lines, as_json=as_json)


def _conflict_lines(conflicts: Sequence[pb.Conflict]) -> Iterator[str]:
    for conflict in conflicts:
        decided = word(pb.ConflictResolution, conflict.resolution)
        state = "waits" if not conflict.resolution else f"{decided} by {conflict.resolved_by}"
        yield f"{conflict.id}  accepted {conflict.accepted_at.ToJsonString()}  {state}"
        yield f"  submitted: {_side(conflict.submission)}"
        if "erased" in conflict.met_fields:
            yield "  a lead that it shares something with was erased: keep-first drops it, own-lead keeps it"
        for lead in conflict.leads:
            yield f"  matched by {', '.join(conflict.met_fields)}: lead {lead.id}: {_side(lead)}"


def resolve_conflict(
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


def stats(
    by: Annotated[
        Literal["status", "policy", "source", "assignee", "day"], typer.Option("--by", help="What to count by.")
    ] = "status",
    first: Annotated[
        str,
        typer.Option("--from", help="From this day, or this moment: 2026-01-31T09:00:00+06:00. Else the last 31 days."),
    ] = "",
    last: Annotated[str, typer.Option("--to", help="To the end of this day, or to before this moment; else now.")] = "",
    zone: Annotated[
        str, typer.Option(help="Time zone of the days, such as Asia/Dhaka; else LEADKEEP_FILES_TIMEZONE.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Count the leads of a span of at most 400 days, by status, policy, source, assignee or day."""
    settings = load_settings()
    try:
        days = ZoneInfo(time_zone(zone or settings.files_timezone))
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong), param_hint="--zone") from None
    end = moment(last, "--to", days, end=True) or datetime.now(UTC)
    try:
        start = moment(first, "--from", days) or _default_start(end, days)
    except OverflowError:
        raise typer.BadParameter("is in the year 1", param_hint="--to") from None
    request = pb.SummarizeLeadsRequest(
        created_after=start,  # type: ignore[arg-type] # the stubs are of an earlier one
        created_before=end,  # type: ignore[arg-type] # likewise
        group_by=f"LEAD_GROUP_{by.upper()}",
        time_zone=days.key,
    )
    with connected(settings, Scope.READ) as call:
        summary = call("SummarizeLeads", request)
    shown = {
        "by": by,
        "from": start.astimezone(days).isoformat(),
        "to": end.astimezone(days).isoformat(),
        "time_zone": days.key,
        "groups": [{"key": each.key, "count": each.count, "is_other": each.is_other} for each in summary.groups],
        "total": summary.total,
    }
    report(shown, _count_lines(by, summary.groups, summary.total), as_json=as_json)


def _default_start(end: datetime, zone: ZoneInfo) -> datetime:
    """The start of the first of the days that end with `end`."""
    last = (end - timedelta.resolution).astimezone(zone).date()
    first = last - DEFAULT_DAYS + timedelta(days=1)
    return datetime(first.year, first.month, first.day, tzinfo=zone)


def _count_lines(by: str, groups: Sequence[pb.LeadCount], total: int) -> Iterator[str]:
    from rich.cells import cell_len, set_cell_size  # loading it takes longer than the other lists

    largest = max((each.count for each in groups), default=0)
    counted = [(_name(by, each), each.count, _bar(each.count, largest)) for each in groups]
    figures = max(len("leads"), len(f"{total:,}"))
    rows = [(by, f"{'leads':>{figures}}", "")]
    for name, count, bar in (*counted, ("total", total, "")):
        short = name if cell_len(name) <= WIDEST_KEY else f"{set_cell_size(name, WIDEST_KEY - 1)}…"
        rows.append((short, f"{count:>{figures},}", bar))
    return padded(rows)


def _name(by: str, group: pb.LeadCount) -> str:
    if group.is_other:
        return "(all others)"
    if not group.key:
        return "(none)"
    return cell(group.key.removeprefix("LEAD_STATUS_").lower() if by == "status" else group.key)


def _bar(count: int, largest: int) -> str:
    """A bar as long as the group is large; any lead at all shows."""
    eighths = max(1, round(count / largest * LONGEST_BAR * 8)) if count else 0
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    try:
        bar.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * -(-eighths // 8)
    return bar
