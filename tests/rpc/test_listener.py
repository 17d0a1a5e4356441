"""gRPC's listener, which gives up for good at some errors of accept(): that nothing is accepted any more is noticed."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from service.rpc import connections
from service.rpc.connections import GrpcConnections, ListenerEndedError
from service.rpc.limits import Limits, Refusals
from tests.harness.processes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what waits to be accepted")


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listening socket of this process, which is looked at often."""
    monkeypatch.setattr(connections, "LISTENER_SECONDS", 0.02)
    monkeypatch.setattr(connections, "SCAN_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(10)
        yield made


@asynccontextmanager
async def watched(listening: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """The watch of the listening socket, once it has found that."""
    watch = GrpcConnections(listening.getsockname()[1], Limits(), Refusals())
    tasks = [asyncio.create_task(watch.watch_listeners()), asyncio.create_task(watch.run())]
    try:
        with caller(listening), listening.accept()[0]:
            await until(lambda: watch.open)
        yield tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def caller(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname())


async def test_a_listener_that_accepts_nothing_is_noticed(listening: socket.socket) -> None:
    async with watched(listening) as watch:
        with caller(listening), caller(listening):
            await asyncio.wait({watch}, timeout=10)
        assert isinstance(watch.exception(), ListenerEndedError)


async def test_who_has_hung_up_waits_too(listening: socket.socket) -> None:
    async with watched(listening) as watch:
        caller(listening).close()
        await asyncio.wait({watch}, timeout=10)
        assert isinstance(watch.exception(), ListenerEndedError)


async def test_a_listener_that_is_closed_is_noticed(listening: socket.socket) -> None:
    async with watched(listening) as watch:
        await asyncio.sleep(0.1)
        assert not watch.done()
        listening.close()
        await asyncio.wait({watch}, timeout=10)
        assert isinstance(watch.exception(), ListenerEndedError)


async def test_a_listener_where_nobody_waits_lives(listening: socket.socket) -> None:
    async with watched(listening) as watch:
        with caller(listening), listening.accept()[0]:
            await asyncio.sleep(0.5)
        assert not watch.done()


async def test_a_listener_that_accepts_more_slowly_than_callers_come_lives(listening: socket.socket) -> None:
    async with watched(listening) as watch:
        callers, accepted = [caller(listening)], []
        for _ in range(20):
            callers += [caller(listening), caller(listening)]
            accepted.append(listening.accept()[0])
            await asyncio.sleep(0.05)
        assert not watch.done()
        for each in callers + accepted:
            each.close()
