"""The callers of one service, as scenarios give them work: from the main thread, while they run in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from random import Random
from typing import TypeVar

from tests.faults.chaos.background import Background
from tests.faults.chaos.client import PATIENCE, Client
from tests.faults.chaos.history import Call, Content, History
from tests.faults.chaos.load import CALLERS, Load, Mix

A = TypeVar("A")
B = TypeVar("B")

AGAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
"""What a caller repeats who only reads."""


def _content(number: int) -> Content:
    """What is sent as `lead-NUMBER`, whoever sends it: with other fields a repeat is refused."""
    return Content(number, number, converses=True)


class Callers:
    """64 of them at most. To be closed."""

    def __init__(
        self, background: Background, address: str, token: list[tuple[str, str]], history: History, seed: int
    ) -> None:
        self._background = background
        self._history = history
        self._seed = seed

        async def connect() -> Client:
            return Client(address, token, history)

        self._client = background.run(connect())

    @contextmanager
    def at_work(self, mix: Mix | None = None) -> Iterator[Future[None]]:
        """Load while the block runs; it is done early only when something broke. At the end, every request that was
        begun is settled."""
        load = Load(self._client, self._seed, mix=mix)
        running = self._background.begin(load.run())
        try:
            yield running
        finally:
            load.stop()
            running.result(PATIENCE + 30)

    def submit(self, numbers: Sequence[int]) -> list[Call]:
        """One lead a number, each request repeated until it is settled; the last call of each."""

        async def one(number: int) -> Call:
            return await self._client.submit(self._random(number), f"lead-{number}", _content(number))

        return self._each(one, numbers)

    def submit_once(self, numbers: Sequence[int]) -> list[Call]:
        """One lead a number; a call that fails is not repeated."""

        async def one(number: int) -> Call:
            return await self._client.create(f"lead-{number}", _content(number), 5)

        return self._each(one, numbers)

    def hang_up(self, numbers: Sequence[int], longest_wait: float) -> list[Call]:
        """One lead a number; each caller is gone after a random time."""

        async def one(number: int) -> Call:
            after = self._random(number).uniform(0, longest_wait)
            return await self._client.create(f"lead-{number}", _content(number), 5, hang_up_after=after)

        return self._each(one, numbers)

    def read(self, ids: Sequence[str]) -> list[Call]:
        """GetLead of each id."""

        async def one(lead_id: str) -> Call:
            return (await self._client.get(lead_id, 5))[0]

        return self._each(one, ids)

    def differences(self, number: int) -> list[str]:
        """Read so many acknowledged leads back; how they differ from what was sent."""
        acknowledged = list(self._history.acknowledged())

        async def one(sent: Call) -> str:
            for _ in range(10):
                call, lead = await self._client.get(sent.id, 5)
                if call.code not in AGAIN:
                    break
            assert sent.content is not None
            if lead is None:
                # A person decides about it; what was sent lies in `lead_conflict`.
                return "" if call.reason == "LEAD_IN_CONFLICT" else f"{sent.id} is not shown: {call.code} {call.reason}"
            sent_fields = sent.content.lead().ListFields()
            differ = [field.name for field, value in sent_fields if getattr(lead, field.name) != value]
            return f"{sent.id} came back with another {', '.join(differ)}" if differ else ""

        chosen = Random(self._seed).sample(acknowledged, min(number, len(acknowledged)))
        return [difference for difference in self._each(one, chosen) if difference]

    def close(self) -> None:
        """Hang up."""
        self._background.run(self._client.close())

    def _random(self, number: int) -> Random:
        return Random(f"{self._seed}/{number}")

    def _each(self, work: Callable[[A], Awaitable[B]], items: Sequence[A]) -> list[B]:
        async def all_of_them() -> list[B]:
            free = asyncio.Semaphore(CALLERS)

            async def one(item: A) -> B:
                async with free:
                    return await work(item)

            return await asyncio.gather(*(one(item) for item in items))

        return self._background.run(all_of_them(), within=600)
