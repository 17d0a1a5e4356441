"""How long a stop holds calls back before it closes the endpoints: until no caller calls any more, and no longer."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import ServiceStoppingError
from service.rpc.call import QUIET_SECONDS, Work

FOREVER = 30
"""Seconds: only a wait without end takes so long."""


async def called(work: Work) -> asyncio.Task[None]:
    """A call that came while the service stops."""
    held = asyncio.create_task(work.refuse())
    await asyncio.sleep(0)
    return held


async def test_a_stop_waits_for_nothing_when_nobody_calls() -> None:
    async with asyncio.timeout(FOREVER):
        await Work().drain(2 * FOREVER)


async def test_a_stop_waits_until_callers_have_been_quiet() -> None:
    work = Work()
    arrived = time.monotonic()
    held = await called(work)
    async with asyncio.timeout(FOREVER):
        await work.drain(2 * FOREVER)
    assert time.monotonic() - arrived >= QUIET_SECONDS
    assert not held.done()
    work.release()
    with pytest.raises(ServiceStoppingError):
        await held


async def test_callers_who_never_stop_calling_do_not_hold_a_stop_up() -> None:
    work = Work()
    held = [await called(work)]
    draining = asyncio.create_task(work.drain(2 * QUIET_SECONDS))
    async with asyncio.timeout(FOREVER):
        while not draining.done():
            held.append(await called(work))
            await asyncio.sleep(QUIET_SECONDS / 20)
    work.release()
    refused = await asyncio.gather(*held, return_exceptions=True)
    assert {type(each) for each in refused} == {ServiceStoppingError}
