"""Batches: who shares one, who waits for whom, and who is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from service.errors import StorageUnavailableError
from service.storage.database import batcher as batcher_module
from service.storage.database.batcher import Batcher, Entry, OnDemandBatcher

LARGEST = 10


class Store:
    """Answers each item with its double; its batches wait until `go` is set, and fail with `fault` if there is one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.fault: BaseException | None = None
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def handle(self, batch: list[Entry[int, int]]) -> None:
        self.batches.append([entry.item for entry in batch])
        self.begun.set()
        await self.go.wait()
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        for entry in batch:
            entry.resolve(2 * entry.item)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def running(store: Store) -> AsyncIterator[Batcher[int, int]]:
    """A batcher with a background task."""
    batcher = Batcher(store.handle, largest=LARGEST)
    task = asyncio.create_task(batcher.run())
    yield batcher
    task.cancel()
    await asyncio.wait({task})


@pytest.fixture(params=["running", "on demand"])
def batcher(request: pytest.FixtureRequest, store: Store, running: Batcher[int, int]) -> Batcher[int, int]:
    return running if request.param == "running" else OnDemandBatcher(store.handle, largest=LARGEST)


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A window that ends only when as many have arrived as there were recently."""
    monkeypatch.setattr(batcher_module, "LONGEST_WINDOW", 3600.0)
    monkeypatch.setattr(batcher_module, "WINDOW_EACH", 3600.0)
    return monkeypatch


async def behind_a_batch(batcher: Batcher[int, int], store: Store, items: Sequence[int]) -> list[asyncio.Task[int]]:
    """Callers of these items, who arrive while a batch of one item is in flight until `go` is set."""
    store.go.clear()
    first = asyncio.create_task(batcher.submit(0))
    await store.begun.wait()
    tasks = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0.01)  # each has submitted its item
    assert not first.done()
    return tasks


async def test_a_lone_caller_never_waits(batcher: Batcher[int, int], store: Store, window: object) -> None:
    async with asyncio.timeout(10):
        assert [await batcher.submit(item) for item in (1, 2, 3)] == [2, 4, 6]
    assert store.batches == [[1], [2], [3]]


async def test_items_that_arrive_while_a_batch_is_in_flight_share_the_next_one(
    batcher: Batcher[int, int], store: Store
) -> None:
    tasks = await behind_a_batch(batcher, store, [1, 2, 3])
    store.go.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6]
    assert store.batches == [[0], [1, 2, 3]]


async def test_one_batch_is_in_flight_at_a_time_and_no_item_joins_it(batcher: Batcher[int, int], store: Store) -> None:
    tasks = await behind_a_batch(batcher, store, [1])
    await asyncio.sleep(0.05)  # longer than any window
    assert store.batches == [[0]]
    store.go.set()
    await asyncio.gather(*tasks)


async def test_no_batch_is_larger_than_the_largest(batcher: Batcher[int, int], store: Store) -> None:
    tasks = await behind_a_batch(batcher, store, range(1, 2 * LARGEST + 2))
    store.go.set()
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in store.batches] == [1, LARGEST, LARGEST, 1]


async def test_a_batch_is_full_by_the_sizes_of_its_items(store: Store) -> None:
    batcher = OnDemandBatcher(store.handle, largest=LARGEST, size=lambda item: item)
    tasks = await behind_a_batch(batcher, store, [4, 4, 4, 4])
    store.go.set()
    await asyncio.gather(*tasks)
    assert store.batches == [[0], [4, 4, 4], [4]]


async def test_the_item_of_a_cancelled_caller_is_left_out(batcher: Batcher[int, int], store: Store) -> None:
    gone, patient = await behind_a_batch(batcher, store, [1, 2])
    gone.cancel()
    await asyncio.wait({gone})
    store.go.set()
    assert await patient == 4
    assert store.batches == [[0], [2]]


async def test_a_batch_whose_callers_are_all_cancelled_is_not_handled(batcher: Batcher[int, int], store: Store) -> None:
    tasks = await behind_a_batch(batcher, store, [1, 2])
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    store.go.set()
    assert await batcher.submit(3) == 6
    assert store.batches == [[0], [3]]


async def test_a_caller_who_is_cancelled_in_flight_costs_the_others_nothing(
    batcher: Batcher[int, int], store: Store
) -> None:
    await asyncio.gather(*(batcher.submit(item) for item in (1, 2)))
    store.go.clear()
    store.begun.clear()
    gone, patient = (asyncio.create_task(batcher.submit(item)) for item in (3, 4))
    await store.begun.wait()
    gone.cancel()
    store.go.set()
    assert await patient == 8


async def test_behind_several_callers_a_batch_waits_until_as_many_have_arrived(
    batcher: Batcher[int, int], store: Store, window: object
) -> None:
    await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3)))
    early = [asyncio.create_task(batcher.submit(item)) for item in (4, 5)]
    await asyncio.sleep(0.05)
    assert await batcher.submit(6) == 12
    assert await asyncio.gather(*early) == [8, 10]
    assert store.batches == [[1, 2, 3], [4, 5, 6]]


async def test_those_who_arrive_while_a_batch_is_in_flight_count_as_recent(
    batcher: Batcher[int, int], store: Store, window: object
) -> None:
    (second,) = await behind_a_batch(batcher, store, [1])
    store.go.set()
    await asyncio.sleep(0.05)  # there were two: the second waits for one more
    assert await batcher.submit(2) == 4
    assert await second == 2
    assert store.batches == [[0], [1, 2]]


async def test_nobody_waits_longer_than_the_window(
    batcher: Batcher[int, int], store: Store, window: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3)))
    window.setattr(batcher_module, "LONGEST_WINDOW", 0.001)
    async with asyncio.timeout(10):
        assert await batcher.submit(4) == 8
    assert store.batches == [[1, 2, 3], [4]]


async def test_a_full_batch_waits_for_nobody(batcher: Batcher[int, int], store: Store, window: object) -> None:
    tasks = await behind_a_batch(batcher, store, range(1, LARGEST + 1))
    store.go.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert [len(batch) for batch in store.batches] == [1, LARGEST]


async def test_entries_that_are_put_back_come_first(store: Store) -> None:
    async def handle_once(batch: list[Entry[int, int]]) -> None:
        again.append([entry.item for entry in batch])
        await store.go.wait()
        if len(again) == 1:
            batcher.put_back(batch)
        else:
            for entry in batch:
                entry.resolve(entry.item)

    again: list[list[int]] = []
    store.go.clear()
    batcher = OnDemandBatcher(handle_once, largest=LARGEST)
    failed = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
    await asyncio.sleep(0.01)
    later = asyncio.create_task(batcher.submit(3))
    await asyncio.sleep(0.05)
    store.go.set()
    await asyncio.gather(*failed, later)
    assert [item for batch in again[1:] for item in batch] == [1, 2, 3]


async def test_when_it_finishes_those_who_wait_are_answered_and_new_ones_refused(store: Store) -> None:
    batcher = Batcher(store.handle, largest=LARGEST)
    task = asyncio.create_task(batcher.run())
    waiting = await behind_a_batch(batcher, store, [1, 2])
    batcher.finish()
    with pytest.raises(StorageUnavailableError):
        await batcher.submit(3)
    store.go.set()
    await task
    assert [each.result() for each in waiting] == [2, 4]


async def test_an_idle_batcher_that_finishes_ends(store: Store) -> None:
    batcher = Batcher(store.handle, largest=LARGEST)
    task = asyncio.create_task(batcher.run())
    await asyncio.sleep(0.01)
    batcher.finish()
    async with asyncio.timeout(10):
        await task


async def test_a_fault_ends_its_background_task_and_what_has_no_answer_can_be_refused(store: Store) -> None:
    batcher = Batcher(store.handle, largest=LARGEST)
    task = asyncio.create_task(batcher.run())
    (waiting,) = await behind_a_batch(batcher, store, [1])
    store.fault = KeyError("a fault of ours")
    store.go.set()
    with pytest.raises(KeyError):
        await task
    assert not waiting.done()
    batcher.fail_all()
    with pytest.raises(StorageUnavailableError):
        await waiting


@pytest.mark.parametrize("fault", [KeyError("a fault of ours"), asyncio.CancelledError()])
async def test_without_a_background_task_a_fault_hangs_nobody_and_later_items_are_answered(
    store: Store, fault: BaseException
) -> None:
    batcher = OnDemandBatcher(store.handle, largest=LARGEST)
    tasks = await behind_a_batch(batcher, store, [1, 2, 3])
    store.fault = fault
    store.go.set()
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StorageUnavailableError}
        assert await batcher.submit(4) == 8
