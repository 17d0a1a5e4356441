from __future__ import annotations

import math

import pytest

from bench.arithmetic import Spread, median_interval, pair_ratios, quantile
from bench.goals import Goal, Verdict
from bench.load.plan import Requests
from bench.plot import lines


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([7.0], 0.99) == 7.0
    assert math.isnan(quantile([], 0.5))


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was twice as slow in the second round, for both: nothing changed between them.
    assert pair_ratios([100.0, 50.0, 90.0], [50.0, 25.0, 45.0]) == Spread(2.0, 2.0, 2.0)


def test_rounds_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        pair_ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("low", "high", "at_least", "verdict"),
    [
        (1.0, 2.0, False, Verdict.MET),
        (1.0, 2.1, False, Verdict.NOT_SHOWN),
        (2.1, 3.0, False, Verdict.MISSED),
        (2.0, 3.0, True, Verdict.MET),
        (1.9, 3.0, True, Verdict.NOT_SHOWN),
        (1.0, 1.9, True, Verdict.MISSED),
    ],
)
def test_a_goal_is_judged_by_its_whole_interval(low: float, high: float, at_least: bool, verdict: Verdict) -> None:
    assert Goal("", Spread((low + high) / 2, low, high), 2.0, at_least=at_least).verdict is verdict


def test_the_interval_of_a_median_ends_at_order_statistics() -> None:
    # Of 20 values the 6th and the 15th: the binomial of 20 halves is below 6 or above 14 in 4.1 % of all cases.
    assert median_interval(range(1, 21)) == Spread(10.5, 6, 15)
    assert median_interval(range(1, 7)) == Spread(3.5, 1, 6)
    assert median_interval([2.0, 1.0, 3.0]) == Spread(2.0, 1.0, 3.0)


def test_every_request_of_new_people_is_another_one() -> None:
    requests = Requests(templates=(b"a##########b",))
    assert [requests.at(number) for number in (0, 12)] == [b"a0000000000b", b"a0000000012b"]


def test_each_round_through_the_values_takes_the_next_template() -> None:
    requests = Requests(templates=(b"first #", b"second #"), values=(b"1", b"2"), place=b"#")
    assert [requests.at(number) for number in range(5)] == [
        b"first 1",
        b"first 2",
        b"second 1",
        b"second 2",
        b"first 1",
    ]


def test_a_plot_holds_a_line_for_each_contender() -> None:
    drawn = lines("Latency", "ms", {"a": {1: Spread(1, 1, 1)}, "b": {1: Spread(2, 1, 3), 64: Spread(4, 4, 4)}}, (1, 64))
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 3
