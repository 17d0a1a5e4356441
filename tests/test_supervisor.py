"""The supervisor: what becomes of a task that fails, and how tasks are stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog

from service.supervisor import LONGEST_WAIT, Component, Supervisor, jittered_wait, longest_wait
from tests.harness.processes import until

VALUE = "+8801711000028"
"""What must never stand in a log."""

HEALTHY_AFTER = 0.2
"""Seconds."""


class World:
    """A supervisor whose tasks are restarted after a few milliseconds, and what it reported."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.deaths = 0
        self.supervisor = Supervisor(
            on_death=self._on_death, on_failure=self.failures.append, first_wait=0.01, healthy_after=HEALTHY_AFTER
        )

    def _on_death(self) -> None:
        self.deaths += 1

    def start(self, *runs: Callable[[], Awaitable[None]], vital: bool = False) -> None:
        self.supervisor.start([Component(name=f"task {at}", run=run, vital=vital) for at, run in enumerate(runs)])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.supervisor.stop(1)


class Task:
    """Fails so many times, then runs until it is asked to finish."""

    def __init__(self, failures: int = 0, error: type[BaseException] = KeyError) -> None:
        self.runs, self.failures, self.error = 0, failures, error
        self.finishing = asyncio.Event()
        self.finished = self.stopped = self.wrote = False

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self.failures:
            raise self.error(VALUE)
        await self.finishing.wait()
        self.finished = True

    async def stop(self) -> None:
        self.stopped = True

    async def on_clean_stop(self) -> None:
        assert self.stopped
        self.wrote = True


async def test_a_task_that_fails_is_restarted_counted_and_failing_until_it_has_run_for_a_while(world: World) -> None:
    task = Task(failures=3)
    began: list[float] = []
    failing_at_start: list[tuple[str, ...]] = []

    async def run() -> None:
        began.append(time.monotonic())
        failing_at_start.append(world.supervisor.failing)
        await task.run()

    world.start(run)
    await until(lambda: task.runs == 4 and world.supervisor.failing == ())
    assert time.monotonic() - began[-1] > HEALTHY_AFTER / 2
    assert world.failures == ["task 0"] * 3
    assert failing_at_start == [(), *[("task 0",)] * 3]
    assert task.runs == 4


async def test_a_task_is_failing_while_it_waits_for_its_restart(world: World) -> None:
    world.start(Task(failures=1_000_000).run)
    await until(lambda: len(world.failures) > 5)
    assert world.supervisor.failing == ("task 0",)


async def test_a_failure_is_logged_by_the_type_of_its_error_alone(world: World) -> None:
    with structlog.testing.capture_logs() as lines:
        world.start(Task(failures=1).run)
        await until(lambda: bool(lines))
    assert [(line["log_level"], line["task"], line["error"]) for line in lines] == [("error", "task 0", "KeyError")]
    assert VALUE not in str(lines)


async def test_a_task_that_fails_for_ever_is_restarted_ever_more_seldom_within_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def instantly(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("service.supervisor.asyncio.sleep", instantly)
    world.start(Task(failures=3_000).run)
    await until(lambda: len(waits) >= 3_000)
    assert waits[0] <= 0.01
    assert LONGEST_WAIT / 2 < max(waits[-100:]) <= LONGEST_WAIT
    assert len(set(waits[-100:])) > 1, "without jitter all replicas restart at once"


async def test_a_task_whose_own_wait_was_cancelled_is_restarted(world: World) -> None:
    task = Task(failures=1, error=asyncio.CancelledError)
    world.start(task.run)
    await until(lambda: task.runs == 2)


async def test_a_task_that_has_done_its_work_is_not_restarted(world: World) -> None:
    task = Task()
    task.finishing.set()
    world.start(task.run)
    await until(lambda: task.finished)
    await asyncio.sleep(0.05)
    assert (task.runs, world.failures) == (1, [])


@pytest.mark.parametrize("failures", [0, 1], ids=["returned", "failed"])
async def test_the_end_of_a_vital_task_is_the_end_of_the_process(world: World, failures: int) -> None:
    task = Task(failures)
    task.finishing.set()
    world.start(task.run, vital=True)
    await until(lambda: world.deaths == 1)
    assert (world.supervisor.died, task.runs) == ("task 0", 1)


async def test_a_stop_is_no_death(world: World) -> None:
    task = Task()
    world.supervisor.start([Component(name="vital", run=task.run, finish=task.finishing.set, vital=True)])
    await until(lambda: task.runs == 1)
    await world.supervisor.stop(20)
    assert (world.deaths, world.supervisor.died, task.finished) == (0, None, True)


async def test_tasks_are_stopped_in_the_reverse_order_of_their_start(world: World) -> None:
    stopped: list[str] = []

    def component(name: str) -> Component:
        async def stop() -> None:
            stopped.append(name)

        return Component(name=name, run=Task().run, stop=stop)

    world.supervisor.start([component("first"), component("second")])
    world.supervisor.start([component("third")])
    await world.supervisor.stop(1)
    assert stopped == ["third", "second", "first"]


async def test_what_must_be_done_at_a_stop_is_done_for_a_task_that_died(world: World) -> None:
    task = Task(failures=1)
    world.supervisor.start([Component(name="vital", run=task.run, stop=task.stop, vital=True)])
    await until(lambda: world.deaths == 1)
    await world.supervisor.stop(1, vital_only=True)
    assert task.stopped


async def test_a_stop_of_the_vital_ones_leaves_the_others_running(world: World) -> None:
    vital, other = Task(), Task()
    world.supervisor.start([Component(name="vital", run=vital.run, stop=vital.stop, vital=True)])
    world.supervisor.start([Component(name="other", run=other.run, stop=other.stop)])
    await world.supervisor.stop(1, vital_only=True)
    assert (vital.stopped, other.stopped) == (True, False)


async def test_in_order_a_task_finishes_stops_and_then_writes_its_on_clean_stop(world: World) -> None:
    task = Task()
    world.supervisor.start(
        [
            Component(
                name="task", run=task.run, finish=task.finishing.set, stop=task.stop, on_clean_stop=task.on_clean_stop
            )
        ]
    )
    await until(lambda: task.runs == 1)
    await world.supervisor.stop(20)
    assert (task.finished, task.stopped, task.wrote) == (True, True, True)


async def test_without_order_nobody_is_waited_for_and_everything_that_must_be_done_is_done(world: World) -> None:
    task = Task()

    def never() -> None:
        pass

    world.supervisor.start(
        [Component(name="stubborn", run=task.run, finish=never, stop=task.stop, on_clean_stop=task.on_clean_stop)]
    )
    began = time.monotonic()
    await world.supervisor.stop(60, in_order=False)
    assert time.monotonic() - began < 10
    assert (task.finished, task.stopped, task.wrote) == (False, True, False)


async def test_a_task_that_never_ends_leaves_the_others_half_of_the_time(world: World) -> None:
    async def never_ends() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if over.is_set():
                    raise

    async def hangs() -> None:
        await asyncio.sleep(3600)

    async def finishes_slowly() -> None:
        await task.finishing.wait()
        await asyncio.sleep(0.05)
        finished.set()

    over, task, finished = asyncio.Event(), Task(), asyncio.Event()
    world.supervisor.start(
        [
            Component(name="last", run=finishes_slowly, finish=task.finishing.set),
            Component(name="hangs", run=Task().run, stop=hangs),
            Component(name="never ends", run=never_ends),
        ]
    )
    await asyncio.sleep(0.05)
    await world.supervisor.stop(6)
    over.set()
    assert finished.is_set()
    for left in asyncio.all_tasks() - {asyncio.current_task()}:
        left.cancel()


async def test_a_stop_that_fails_is_logged_and_keeps_the_others_from_nothing(world: World) -> None:
    async def fail() -> None:
        raise KeyError(VALUE)

    task = Task()
    world.supervisor.start([Component(name="first", run=task.run, stop=task.stop)])
    world.supervisor.start([Component(name="second", run=Task().run, stop=fail)])
    with structlog.testing.capture_logs() as lines:
        await world.supervisor.stop(1)
    assert task.stopped
    assert [(line["task"], line["error"]) for line in lines] == [("second", "KeyError")]


async def test_a_task_that_waits_for_its_restart_holds_up_no_stop() -> None:
    supervisor = Supervisor(on_death=lambda: None, first_wait=30)
    task = Task(failures=1)
    supervisor.start([Component(name="failing", run=task.run, finish=task.finishing.set)])
    await until(lambda: supervisor.failing != ())
    began = time.monotonic()
    await supervisor.stop(60)
    assert time.monotonic() - began < 10


def test_a_wait_doubles_up_to_its_bound_however_many_failures_went_before() -> None:
    assert [longest_wait(failures, first=0.5, longest=30.0) for failures in (0, 1, 2)] == [0.5, 1.0, 2.0]
    assert longest_wait(100_000, first=0.5, longest=30.0) == 30.0


def test_a_jittered_wait_is_spread_from_nothing_to_its_bound() -> None:
    waits = [jittered_wait(3, first=0.5, longest=30.0) for _ in range(200)]
    assert 0 <= min(waits) < 1 < 3 < max(waits) <= 4
