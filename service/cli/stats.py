"""`leadkeep stats`: how many leads came in, as a table with bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import typer
from leadkeep.v1 import lead_service_pb2 as pb
from rich.cells import cell_len, set_cell_size

from service.access import Scope
from service.cli.client import connected
from service.cli.command import AsJson, cell, moment, report
from service.config import load_settings
from service.config_values import time_zone

DEFAULT_DAYS = timedelta(days=31)

LONGEST_BAR = 40
WIDEST_KEY = 40
"""Columns of the terminal: with the counts, a line has less than 100."""

_EIGHTHS = " ▏▎▍▌▋▊▉"


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
        created_after=start,  # type: ignore[arg-type] # protobuf takes it; the stubs are of an earlier one
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
    report(shown, _lines(by, summary.groups, summary.total), as_json=as_json)


def _default_start(end: datetime, zone: ZoneInfo) -> datetime:
    """The start of the first of the days that end with `end`."""
    last = (end - timedelta.resolution).astimezone(zone).date()
    first = last - DEFAULT_DAYS + timedelta(days=1)
    return datetime(first.year, first.month, first.day, tzinfo=zone)


def _lines(by: str, groups: Sequence[pb.LeadCount], total: int) -> Iterator[str]:
    names = [_name(by, each) for each in groups]
    wide = min(WIDEST_KEY, max(map(cell_len, [by, *names])))
    figures = max(len("leads"), len(f"{total:,}"))
    largest = max((each.count for each in groups), default=0)
    yield f"{set_cell_size(by, wide)}  {'leads':>{figures}}"
    for name, each in zip(names, groups, strict=True):
        short = name if cell_len(name) <= wide else f"{set_cell_size(name, wide - 1)}…"
        yield f"{set_cell_size(short, wide)}  {each.count:>{figures},}  {_bar(each.count, largest)}".rstrip()
    yield f"{set_cell_size('total', wide)}  {total:>{figures},}"


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
    return bar if _prints(bar) else "#" * -(-eighths // 8)


def _prints(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
