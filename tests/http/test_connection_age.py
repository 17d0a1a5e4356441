"""A connection that has reached its age gets one more answer, which announces its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from service.rpc.call import Handler
from service.rpc.limits import Limits
from tests.http.test_held_connections import running


@asynccontextmanager
async def client(methods: Mapping[str, Handler], limits: Limits) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running(methods, limits) as run,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{run.port}", timeout=20) as caller,
    ):
        yield caller


async def test_an_old_connection_is_closed_after_an_answer_that_says_so(methods: Mapping[str, Handler]) -> None:
    async with client(methods, Limits(connection_seconds=1)) as caller:
        first = await caller.get("/healthz")
        await asyncio.sleep(1.1)
        last, next_one = await caller.get("/healthz"), await caller.get("/healthz")
    assert [answer.status_code for answer in (first, last, next_one)] == [200, 200, 200]
    assert last.headers["connection"] == "close"
    # httpx has connected again.
    assert "connection" not in next_one.headers


async def test_a_young_connection_stays(methods: Mapping[str, Handler]) -> None:
    async with client(methods, Limits()) as caller:
        answers = [await caller.get("/healthz") for _ in range(3)]
    assert all("connection" not in answer.headers for answer in answers)
