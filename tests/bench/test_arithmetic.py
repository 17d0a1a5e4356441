from __future__ import annotations

import math

import pytest

from bench.arithmetic import Spread, pair_ratios, quantile
from bench.goals import Goal
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


def test_a_goal_is_judged_by_its_median() -> None:
    assert Goal("least", Spread(4.1, 3.0, 5.0), 4.0, at_least=True).met
    assert not Goal("most", Spread(2.1, 1.0, 2.2), 2.0).met


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
