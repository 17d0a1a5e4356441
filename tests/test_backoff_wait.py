from __future__ import annotations

from service.backoff_wait import jittered_wait, longest_wait


def test_a_wait_doubles_up_to_its_bound_however_many_failures_went_before() -> None:
    assert [longest_wait(failures, first=0.5, longest=30.0) for failures in (0, 1, 2)] == [0.5, 1.0, 2.0]
    assert longest_wait(100_000, first=0.5, longest=30.0) == 30.0


def test_a_jittered_wait_is_spread_from_nothing_to_its_bound() -> None:
    waits = [jittered_wait(3, first=0.5, longest=30.0) for _ in range(200)]
    assert 0 <= min(waits) < 1 < 3 < max(waits) <= 4
