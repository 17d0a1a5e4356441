"""Which day a moment belongs to."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage.daily.daily_leads import Days


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "day", "start", "end"),
    [
        ("UTC", "2026-11-24", "2026-11-24T00:00Z", "2026-11-25T00:00Z"),
        ("Asia/Dhaka", "2026-11-24", "2026-11-23T18:00Z", "2026-11-24T18:00Z"),
        # the clocks go forward: 23 hours; back: 25
        ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ("Europe/Berlin", "2026-10-25", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        # there is no midnight on this day
        ("America/Santiago", "2026-09-06", "2026-09-06T04:00Z", "2026-09-07T03:00Z"),
        # there is no such day
        ("Pacific/Apia", "2011-12-30", "2011-12-30T10:00Z", "2011-12-30T10:00Z"),
    ],
)
def test_a_day_begins_and_ends_with_its_zone(zone: str, day: str, start: str, end: str) -> None:
    assert Days(zone).bounds(date.fromisoformat(day)) == (at(start), at(end))


@pytest.mark.parametrize(
    ("zone", "moment", "day"),
    [
        ("UTC", "2026-11-24T00:00:00Z", "2026-11-24"),
        ("UTC", "2026-11-23T23:59:59.999999Z", "2026-11-23"),
        ("Asia/Dhaka", "2026-11-23T18:00:00Z", "2026-11-24"),
        ("Asia/Dhaka", "2026-11-23T17:59:59.999999Z", "2026-11-23"),
        ("Asia/Kathmandu", "2026-11-23T18:15:00Z", "2026-11-24"),
    ],
)
def test_a_day_is_half_open(zone: str, moment: str, day: str) -> None:
    assert Days(zone).day_of(at(moment)) == date.fromisoformat(day)


ZONES = sorted(zone for zone in available_timezones() if zone not in ("localtime",))


@given(
    st.sampled_from(ZONES),
    st.datetimes(datetime(1990, 1, 1), datetime(2037, 12, 31)),  # noqa: DTZ001 # hypothesis adds the zone
)
def test_every_moment_lies_within_its_day(zone: str, moment: datetime) -> None:
    days, moment = Days(zone), moment.replace(tzinfo=UTC)
    start, end = days.bounds(days.day_of(moment))
    assert start <= moment < end


@given(st.sampled_from(ZONES), st.dates(date(2000, 1, 1), date(2037, 12, 31)))
def test_a_quarter_of_an_hour_belongs_to_one_day(zone: str, day: date) -> None:
    start, _ = Days(zone).bounds(day)
    assert (start - datetime(2000, 1, 1, tzinfo=UTC)) % timedelta(minutes=15) == timedelta(0)


def test_the_days_of_a_zone_follow_each_other() -> None:
    days = Days("Europe/Berlin")
    day = date(2026, 1, 1)
    while day < date(2027, 1, 1):
        assert days.bounds(day)[1] == days.bounds(day + timedelta(days=1))[0]
        assert days.day_of(datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo("Europe/Berlin"))) == day
        day += timedelta(days=1)


def test_another_name_is_refused() -> None:
    with pytest.raises(ZoneInfoNotFoundError):
        Days("Mars/Olympus")
