"""The use case of summaries: how many leads were created within a span, by status, policy, source, assignee or day.

Days are those of the daily files: both are bounded here, by Python's time zones, and never by the database's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from service.errors import invalid
from service.lead import LeadGroup, LeadStatus
from service.scopes import Caller
from service.storage.daily.daily_leads import ONE_DAY, Days
from service.storage.leads.summaries import MOST_GROUPS, Counted, LeadSummaries

LONGEST_SPAN = timedelta(days=400)
"""A year, and the month before it to compare with."""

OTHER = "other"


@dataclass(frozen=True, slots=True)
class LeadCount:
    """A group and how many leads are in it."""

    key: str
    """The value; empty for leads without one."""
    count: int
    is_other: bool = False
    """Whether it holds the leads of all further groups. A value may be called `other`, too."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The groups of a span, and how many leads they hold together."""

    groups: list[LeadCount]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryService:
    """Counts leads. `zone` is the time zone of callers who name none; `now` the time."""

    summaries: LeadSummaries
    zone: str
    now: Callable[[], datetime]

    async def summarize(
        self,
        caller: Caller,
        group: LeadGroup,
        *,
        created_after: datetime | None,
        created_before: datetime | None,
        time_zone: str,
    ) -> Summary:
        """Count the leads of a span that the caller may read; without `created_before` it ends now.

        Raises LeadValidationError, QueueFullError, QueryTimeoutError.
        """
        days, before = _days_of(time_zone or self.zone), created_before or self.now()
        try:
            after = _start(created_after, before, days)
            starts = _starts(after, before, days)
        except OverflowError:
            raise invalid("created_after", "must be some days away from the years 1 and 9999") from None
        if group is LeadGroup.DAY:
            counts = await self.summaries.by_day(list(starts.values()), before, caller.own_only)
            return Summary(list(map(LeadCount, starts, counts)), sum(counts))
        counted = await self.summaries.by_value(group, after, before, caller.own_only)
        if group is LeadGroup.STATUS:
            return Summary([LeadCount(status, counted.groups.get(status, 0)) for status in LeadStatus], counted.total)
        return Summary(_largest(counted), counted.total)


def _days_of(zone: str) -> Days:
    try:
        return Days(zone)
    # ZoneInfoNotFoundError is a KeyError; a name such as .. is a ValueError, a folder's an OSError.
    except (KeyError, ValueError, OSError):
        wanted = "must be the name of a time zone in the IANA database, such as Asia/Dhaka"
        raise invalid("time_zone", wanted) from None


def _start(after: datetime | None, before: datetime, days: Days) -> datetime:
    """The start of a span. Raises LeadValidationError, OverflowError."""
    if after is None:
        raise invalid("created_after", f"is required: a summary covers {LONGEST_SPAN.days} days at most", "REQUIRED")
    if after >= before:
        raise invalid("created_after", "must be before created_before, or before now where that is not set")
    # By the hour, or by the calendar: when the clocks change, 400 days are an hour longer or shorter.
    if before > max(after + LONGEST_SPAN, after.astimezone(ZoneInfo(days.zone)) + LONGEST_SPAN):
        raise invalid("created_after", f"must be at most {LONGEST_SPAN.days} days before created_before")
    return after


def _starts(after: datetime, before: datetime, days: Days) -> dict[str, datetime]:
    """Each day of a span, with the moment at which it, or the span, begins. Raises OverflowError."""
    day, last = days.day_of(after), days.day_of(before - timedelta.resolution)
    starts = {day.isoformat(): after}
    while day < last:
        day += ONE_DAY
        start, end = days.bounds(day)
        if start < end:  # a zone that changed the side of the date line has left a day out
            starts[day.isoformat()] = start
    return starts


def _largest(counted: Counted) -> list[LeadCount]:
    """The largest groups, that of the leads without a value among them, and one for all others."""
    groups = [LeadCount(key, count) for key, count in counted.groups.items()]
    if without := counted.total - counted.with_value:
        groups = sorted([LeadCount("", without), *groups], key=lambda each: -each.count)
    groups = groups[:MOST_GROUPS]
    if others := counted.total - sum(each.count for each in groups):
        groups.append(LeadCount(OTHER, others, is_other=True))
    return groups
