"""When a daily file is rendered."""

from __future__ import annotations

from datetime import date

import pytest

from service.files.worker import SHORTEST_PAUSE, Schedule, pause_after

TODAY = date(2026, 11, 24)
MONDAY, TUESDAY = date(2026, 11, 2), date(2026, 11, 3)
LEAD_BYTES = 1_600


@pytest.mark.parametrize(
    ("leads", "longest"),
    [(0, SHORTEST_PAUSE), (5_000, 0.6), (20_000, 5.0), (100_000, 50.0)],
)
def test_the_pause_grows_with_the_file(leads: int, longest: float) -> None:
    assert SHORTEST_PAUSE <= pause_after(leads * LEAD_BYTES) <= longest


@pytest.mark.parametrize("size", [10**n for n in range(10)])
def test_what_is_written_in_an_hour_is_bounded(size: int) -> None:
    assert size / pause_after(size) <= 18_000_000


def test_today_comes_first() -> None:
    assert Schedule().due({MONDAY: 0.0, TODAY: 5.0}, TODAY, now=6.0) == TODAY


def test_of_other_days_the_one_that_changed_first_comes_first() -> None:
    assert Schedule().due({MONDAY: 2.0, TUESDAY: 1.0}, TODAY, now=6.0) == TUESDAY


def test_a_day_that_failed_comes_after_all_others() -> None:
    changed, failed = {TODAY: 1.0, MONDAY: 2.0, TUESDAY: 3.0}, {TODAY: 5.0, MONDAY: 4.0}
    assert Schedule().due(changed, TODAY, 6.0, failed) == TUESDAY
    assert Schedule().due(changed, TODAY, 6.0, failed | {TUESDAY: 5.5}) == MONDAY


def test_after_a_render_there_is_a_pause() -> None:
    schedule = Schedule()
    schedule.rendered(TODAY, TODAY, 12_000_000, now=10.0)
    assert schedule.due({TODAY: 10.5}, TODAY, now=10.9) is None
    assert schedule.due({TODAY: 10.5}, TODAY, now=11.0) == TODAY


def test_todays_pause_holds_up_no_other_day() -> None:
    schedule = Schedule()
    schedule.rendered(TODAY, TODAY, 160_000_000, now=10.0)
    assert schedule.due({TODAY: 10.5, MONDAY: 10.5}, TODAY, now=11.0) == MONDAY


def test_many_old_days_hold_up_today_for_one_render_at_most() -> None:
    schedule = Schedule()
    schedule.rendered(MONDAY, TODAY, 160_000_000, now=10.0)
    assert schedule.due({TUESDAY: 1.0, TODAY: 11.0}, TODAY, now=11.0) == TODAY


def test_nothing_changed_nothing_is_due() -> None:
    assert Schedule().due({}, TODAY, now=6.0) is None
