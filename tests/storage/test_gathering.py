"""How long work waits for more of its kind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Sized
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


def busy(largest: int) -> Gathering:
    gathering = Gathering(largest)
    gathering.took(2)
    return gathering


async def test_those_who_come_one_by_one_are_all_waited_for() -> None:
    waiting = [-1]
    coming = asyncio.create_task(arrive(waiting, QUIET_TURNS - 2, 20))
    await busy(100).wait(waiting)
    assert coming.done()
    assert len(waiting) == 21


async def test_a_full_batch_waits_no_longer() -> None:
    waiting = [-1]
    coming = asyncio.create_task(arrive(waiting, 1, 1000))
    await busy(10).wait(waiting)
    assert len(waiting) == 10
    coming.cancel()


async def test_when_nobody_comes_the_wait_is_short() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await busy(10).wait([1])
    counting.cancel()
    assert turns <= QUIET_TURNS


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many there were each time that a reader waited for more."""
    seen: list[int] = []
    wait = Gathering.wait

    async def noting(gathering: Gathering, waiting: Sized) -> None:
        if not gathering._came_alone:
            seen.append(len(waiting))
        await wait(gathering, waiting)

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
