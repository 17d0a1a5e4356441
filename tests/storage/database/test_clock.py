"""What is known of the database's clock: an interval that holds the true time, whatever this machine's clock does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.storage.database.clock import DatabaseClock

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Machine:
    """A machine whose clocks a test sets; `true` is the database's time."""

    true: float = EPOCH.timestamp()
    ahead: float = 0.0
    slept: float = 0.0

    def clock(self) -> DatabaseClock:
        return DatabaseClock(lambda: self.true + self.ahead, lambda: self.true - self.slept)

    def measure(self, clock: DatabaseClock, *, took: float = 0.02, answered: float = 0.01) -> None:
        began = clock.read()
        self.true += answered
        moment = datetime.fromtimestamp(self.true, UTC)
        self.true += took - answered
        clock.measured(began, moment)

    def error(self, clock: DatabaseClock) -> timedelta:
        """How wide the interval is; fails unless it holds the true time."""
        now, offset = clock.now()
        assert offset is not None
        earliest, latest = offset.bounds(now)
        slack = timedelta(microseconds=1)
        assert earliest - slack <= datetime.fromtimestamp(self.true, UTC) <= latest + slack
        return latest - earliest


def test_a_clock_that_was_never_measured_is_unknown() -> None:
    assert Machine().clock().now()[1] is None


def test_a_wrong_clock_is_known_by_as_much_as_the_query_took() -> None:
    machine = Machine(ahead=-300)
    clock = machine.clock()
    machine.measure(clock, took=0.02)
    assert machine.error(clock) < timedelta(seconds=0.021)


def test_what_is_known_grows_older() -> None:
    machine = Machine(ahead=300)
    clock = machine.clock()
    machine.measure(clock)
    machine.true += 3600
    assert timedelta(seconds=1) < machine.error(clock) < timedelta(seconds=10)


def test_a_clock_that_was_set_after_the_measurement_leaves_both_times_open() -> None:
    machine = Machine(ahead=300)
    clock = machine.clock()
    machine.measure(clock)
    machine.ahead = 0
    assert machine.error(clock) > timedelta(seconds=299)
    machine.measure(clock)
    assert machine.error(clock) < timedelta(seconds=1)


def test_a_machine_that_slept_leaves_both_times_open() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.measure(clock)
    machine.true += 60
    machine.slept += 60
    assert machine.error(clock) > timedelta(seconds=59)


def test_a_slow_query_does_not_replace_what_a_fast_one_has_shown() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.measure(clock, took=0.02)
    machine.measure(clock, took=5, answered=4.9)
    assert machine.error(clock) < timedelta(seconds=0.1)


def test_another_server_whose_clock_differs_is_believed() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.measure(clock, took=0.02)
    machine.true += 100
    machine.ahead -= 100
    machine.slept += 100
    machine.measure(clock, took=1)
    assert machine.error(clock) < timedelta(seconds=1.1)


@given(
    ahead=st.floats(-400, 400),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.floats(0, 5000)),
            st.tuples(st.just("measure"), st.floats(0.001, 3)),
            st.tuples(st.just("set"), st.floats(-400, 400)),
            st.tuples(st.just("sleep"), st.floats(0, 1000)),
        ),
        max_size=8,
    ),
)
def test_whatever_happens_the_true_time_is_in_the_interval(ahead: float, steps: list[tuple[str, float]]) -> None:
    """Either clock may fail between two measurements, not both: a machine that sleeps keeps its wall clock."""
    machine = Machine(ahead=ahead)
    clock = machine.clock()
    machine.measure(clock)
    failed = None
    for step, value in steps:
        if step == "measure":
            machine.measure(clock, took=value, answered=value / 2)
            failed = None
        elif step == "wait":
            machine.true += value
        elif failed in (None, step):
            failed = step
            if step == "set":
                machine.ahead = value
            else:
                machine.true += value
                machine.slept += value
    machine.error(clock)
