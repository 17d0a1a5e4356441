"""Which connections are closed at a limit, how peers are counted, and what is logged of it."""

from __future__ import annotations

import resource
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.errors import StartRefusedError
from service.rpc.limits import Held, Limits, Refusals, limits_within, peer_of, to_evict

HELD = st.lists(
    st.builds(
        Held,
        item=st.integers(),
        peer=st.sampled_from("abc"),
        is_proven=st.booleans(),
        since=st.floats(0, 100, allow_nan=False),
    ),
    max_size=60,
)


@given(HELD, st.integers(1, 40), st.integers(1, 40))
def test_afterwards_both_limits_are_kept(held: list[Held[int]], in_all: int, of_one_peer: int) -> None:
    evicted = [id(each) for each, _ in to_evict(held, in_all, of_one_peer)]
    left = [each for each in held if id(each) not in evicted]
    assert len(left) <= in_all
    assert max(Counter(each.peer for each in left).values(), default=0) <= of_one_peer
    assert len(set(evicted)) == len(evicted)


@given(HELD, st.integers(1, 40))
def test_nothing_that_has_a_token_is_closed_while_strangers_are_left(held: list[Held[int]], in_all: int) -> None:
    evicted = [each for each, _ in to_evict(held, in_all, len(held) + 1)]
    strangers = sum(not each.is_proven for each in held)
    assert sum(each.is_proven for each in evicted) <= max(0, len(evicted) - strangers)


@given(HELD)
def test_nothing_is_closed_below_the_limits(held: list[Held[int]]) -> None:
    assert to_evict(held, len(held), len(held)) == []


def test_the_peer_that_holds_most_loses_first_and_its_oldest_first() -> None:
    many = [Held(number, "many", is_proven=False, since=number) for number in range(10)]
    few = [Held(number, "few", is_proven=False, since=-1) for number in range(3)]
    evicted = to_evict(few + many[::-1], 10, 100)
    assert [(each.peer, each.item) for each, _ in evicted] == [("many", 0), ("many", 1), ("many", 2)]


def test_what_is_at_work_counts_and_stays() -> None:
    held = [Held(number, "a", is_proven=False, since=number) for number in range(5)]
    assert len(to_evict(held, 10, 10, busy=8)) == 3


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_an_ipv6_peer_is_its_network(host: str, peer: str) -> None:
    assert peer_of(host) == peer


def test_each_refusal_is_counted_and_one_line_says_so() -> None:
    counted: Counter[tuple[str, str]] = Counter()
    refusals = Refusals(lambda door, reason: counted.update([(door, reason)]))
    with capture_logs() as lines:
        for _ in range(500):
            refusals.add("grpc", "streams", "192.0.2.7")
        refusals.add("grpc", "streams", "192.0.2.8")
    assert counted == {("grpc", "streams"): 501}
    assert [(line["reason"], line["peer"], line["times"]) for line in lines] == [
        ("streams", "192.0.2.7", 1),
        ("streams", "192.0.2.8", 1),
    ]


def test_many_peers_fill_neither_the_log_nor_the_memory() -> None:
    refusals = Refusals()
    with capture_logs() as lines:
        for number in range(5000):
            refusals.add("http", "connections", f"192.0.{number // 250}.{number % 250}")
    assert len(lines) == 1000


def test_open_files_bound_the_connections_with_a_warning() -> None:
    limits = Limits(connections=1000, connections_of_peer=800)
    with capture_logs() as lines:
        assert limits_within(limits, 20_000) == limits
        assert limits_within(limits, resource.RLIM_INFINITY) == limits
    assert lines == []
    with capture_logs() as lines:
        lowered = limits_within(limits, 1024)
    assert (lowered.connections, lowered.connections_of_peer) == (337, 337)
    assert (lines[0]["open_files"], lines[0]["connections"]) == (1024, 337)


def test_too_few_open_files_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(StartRefusedError, match=r"256 files.*to 409 or more"):
        limits_within(Limits(), 256)
    assert limits_within(Limits(), 409).connections == 64
