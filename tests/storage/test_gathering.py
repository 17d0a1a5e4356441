"""How long work waits for more of its kind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.database import Database
from service.storage.gathered_reads import GatheredReads
from service.storage.gathering import QUIET_TURNS, Gathering


async def arrive(waiting: list[int], turns_between: int, count: int) -> None:
    for number in range(count):
        for _ in range(turns_between):
            await asyncio.sleep(0)
        waiting.append(number)


def after_a_batch_of_two(waiting: list[int], largest: int) -> Gathering:
    """Then one more has come."""
    gathering = Gathering(waiting, largest)
    with gathering.under_way(2):
        pass
    waiting.append(-1)
    return gathering


async def test_those_who_come_one_by_one_are_all_waited_for() -> None:
    waiting: list[int] = []
    gathering = after_a_batch_of_two(waiting, 100)
    coming = asyncio.create_task(arrive(waiting, QUIET_TURNS - 2, 20))
    await gathering.wait()
    assert coming.done()
    assert len(waiting) == 21


async def test_a_full_batch_waits_no_longer() -> None:
    waiting: list[int] = []
    gathering = after_a_batch_of_two(waiting, 10)
    coming = asyncio.create_task(arrive(waiting, 1, 1000))
    await gathering.wait()
    assert len(waiting) == 10
    coming.cancel()


async def turns_of(waiting: asyncio.Task[None]) -> int:
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0)
        turns += 1
    return turns


async def test_when_nobody_comes_the_wait_is_short() -> None:
    assert await turns_of(asyncio.create_task(after_a_batch_of_two([], 10).wait())) <= QUIET_TURNS + 1


async def test_two_that_come_together_wait_for_more() -> None:
    assert await turns_of(asyncio.create_task(Gathering([1, 2], 10).wait())) >= QUIET_TURNS


async def test_behind_one_that_came_while_another_was_written_the_next_is_waited_for() -> None:
    waiting: list[int] = []
    gathering = Gathering(waiting, 10)
    with gathering.under_way(1):
        waiting.append(1)
    assert await turns_of(asyncio.create_task(gathering.wait())) >= QUIET_TURNS


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many there were each time that a reader waited for more."""
    seen: list[int] = []
    wait = Gathering.wait

    async def noting(gathering: Gathering) -> None:
        if gathering._in_company:
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
