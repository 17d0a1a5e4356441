"""How long work waits for more of its kind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.database import Database
from service.storage.gathered_reads import GatheredReads
from service.storage.gathering import QUIET_TURNS, QUIET_TURNS_EACH, Gathering


async def arrive(waiting: list[int], turns_between: int, count: int) -> None:
    for number in range(count):
        for _ in range(turns_between):
            await asyncio.sleep(0)
        waiting.append(number)


def after_a_batch(count: int, waiting: list[int], largest: int = 100) -> Gathering:
    """Then one more has come."""
    gathering = Gathering(waiting, largest)
    with gathering.under_way(count):
        pass
    waiting.append(-1)
    return gathering


async def test_those_who_come_one_by_one_are_all_waited_for() -> None:
    waiting: list[int] = []
    gathering = after_a_batch(20, waiting)
    coming = asyncio.create_task(arrive(waiting, QUIET_TURNS - 2, 20))
    await gathering.wait()
    assert coming.done()
    assert len(waiting) == 21


async def test_a_full_batch_waits_no_longer() -> None:
    waiting: list[int] = []
    gathering = after_a_batch(20, waiting, largest=10)
    coming = asyncio.create_task(arrive(waiting, 1, 1000))
    await gathering.wait()
    assert len(waiting) == 10
    coming.cancel()


async def test_who_always_comes_does_not_hold_a_batch_up_for_ever() -> None:
    waiting: list[int] = []
    gathering = after_a_batch(20, waiting, largest=10_000_000)
    coming = asyncio.create_task(arrive(waiting, 1, 10_000_000))
    async with asyncio.timeout(2):
        await gathering.wait()
    assert not coming.done()
    coming.cancel()


async def turns_of(waiting: asyncio.Task[None]) -> int:
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0)
        turns += 1
    return turns


@pytest.mark.parametrize(("before", "turns"), [(2, 2 * QUIET_TURNS_EACH), (50, QUIET_TURNS)])
async def test_how_long_is_waited_for_nobody_depends_on_how_many_there_were(before: int, turns: int) -> None:
    waited = await turns_of(asyncio.create_task(after_a_batch(before, []).wait()))
    assert turns <= waited <= turns + 1


async def test_two_that_come_together_wait_for_more() -> None:
    assert await turns_of(asyncio.create_task(Gathering([1, 2], 10).wait())) >= 2 * QUIET_TURNS_EACH


async def test_behind_one_that_came_while_another_was_written_the_next_is_waited_for() -> None:
    waiting: list[int] = []
    gathering = Gathering(waiting, 10)
    with gathering.under_way(1):
        waiting.append(1)
    assert await turns_of(asyncio.create_task(gathering.wait())) >= 2 * QUIET_TURNS_EACH


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many there were each time that a reader waited for more."""
    seen: list[int] = []
    wait = Gathering.wait

    async def noting(gathering: Gathering) -> None:
        if gathering._company > 1:
            seen.append(len(gathering._waiting))
        await wait(gathering)

    monkeypatch.setattr(Gathering, "wait", noting)
    return seen


async def read(ids: Sequence[UUID], _connection: AsyncConnection) -> Mapping[UUID, str]:
    return {wanted: str(wanted) for wanted in ids}


async def test_reads_that_come_alone_do_not_wait(connected: Database, waits: list[int]) -> None:
    reads = GatheredReads(connected, read)
    for _ in range(10):
        await reads.get(uuid4())
    assert waits == []


async def test_after_a_busy_moment_a_read_that_comes_alone_waits_once(connected: Database, waits: list[int]) -> None:
    reads = GatheredReads(connected, read)
    await asyncio.gather(*(reads.get(uuid4()) for _ in range(50)))
    waits.clear()
    for _ in range(10):
        await reads.get(uuid4())
    assert len(waits) <= 1
