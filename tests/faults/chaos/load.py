"""64 callers at a time, each doing what chatbots and salespeople do: submit, repeat, submit what is there already, read
what was acknowledged, and hang up. What each does is decided by the seed and its own number alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from tests.faults.chaos.client import Client
from tests.faults.chaos.history import Call, Content

CALLERS = 64
LAST_GONE = (0.06, 2.5)
"""Seconds after which the last of those who hang up is gone: in the middle of a healthy call, or of one that hangs."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of what a caller does next; the rest are new leads."""

    repeat: float = 0.08
    """An acknowledged request again: the same id must come back."""
    duplicate: float = 0.04
    """A known person in a request of its own, half of them with the national ID of another known one."""
    get: float = 0.12
    hang_up: float = 0.05
    """Of the submissions: the caller is gone too early, comes back and repeats, while its first call may go on."""
    pause: float = 0.10
    """Seconds between two steps of one caller, on average; without it the callers take the service's processor."""


class Load:
    """Callers that go on until they are stopped."""

    def __init__(self, client: Client, seed: int, *, callers: int = CALLERS, mix: Mix | None = None) -> None:
        self._client = client
        self._seed = seed
        self._callers = callers
        self._mix = mix or Mix()
        self._known: list[Call] = []
        self._stopping = False

    async def run(self) -> None:
        """Until `stop`; what was begun is repeated until it is settled."""
        async with asyncio.TaskGroup() as callers:
            for number in range(self._callers):
                callers.create_task(self._caller(number, Random(f"{self._seed}/{number}")))

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True

    async def _caller(self, number: int, rng: Random) -> None:
        await asyncio.sleep(rng.uniform(0, self._mix.pause))
        step = 0
        while not self._stopping:
            step += 1
            await self._step(rng, number * 1_000_000 + step)
            await asyncio.sleep(rng.uniform(0, 2 * self._mix.pause))

    async def _step(self, rng: Random, person: int) -> None:
        mix, roll = self._mix, rng.random()
        if not self._known or roll >= mix.repeat + mix.duplicate + mix.get:
            await self._submit(rng, f"new-{person}", Content(person, person))
        elif roll < mix.repeat:
            earlier = rng.choice(self._known)
            assert earlier.content is not None
            await self._submit(rng, earlier.request_id, earlier.content)
        elif roll < mix.repeat + mix.duplicate:
            await self._submit(rng, f"duplicate-{person}", self._known_content(rng))
        else:
            await self._client.get(rng.choice(self._known).id, rng.uniform(2, 5))

    def _known_content(self, rng: Random) -> Content:
        one, other = rng.choice(self._known).content, rng.choice(self._known).content
        assert one is not None
        assert other is not None
        return Content(one.phone, one.nid if rng.random() < 0.5 else other.nid)

    async def _submit(self, rng: Random, request_id: str, content: Content) -> None:
        hang_up_after = None
        if rng.random() < self._mix.hang_up:
            hang_up_after = rng.uniform(0, rng.choice(LAST_GONE))
        call = await self._client.submit(rng, request_id, content, hang_up_after=hang_up_after)
        if call.acknowledged:
            self._known.append(call)
