"""A connection that has reached its age takes no new calls; its calls end, and its client connects again by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.rpc.call import SERVICE, Call
from service.rpc.limits import DEFAULT, Limits
from service.rpc.server import GrpcServer
from tests.harness.processes import until

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
SOON = Limits(connection_seconds=0.5, connection_grace_seconds=30)

Answer = Callable[[Call], Awaitable[Message]]


async def at_once(_call: Call) -> Message:
    return pb.GetLeadResponse()


@asynccontextmanager
async def server(limits: Limits, answer: Answer = at_once) -> AsyncIterator[str]:
    """The address of a running endpoint."""

    async def handle(call: Call, _request: Message) -> Message:
        return await answer(call)

    made = GrpcServer(
        {method.name: handle for method in SERVICE.methods}, address="127.0.0.1:0", tls=None, limits=limits
    )
    await made.start()
    await made.set_serving(True)
    keeping = asyncio.create_task(made.run())
    try:
        yield f"127.0.0.1:{made.port}"
    finally:
        keeping.cancel()
        await made.stop(0)


def test_a_connection_serves_ten_minutes_and_its_calls_have_half_a_minute_to_end() -> None:
    assert (DEFAULT.connection_seconds, DEFAULT.connection_grace_seconds) == (600, 30)


async def test_calls_notice_nothing_and_come_over_other_connections() -> None:
    peers: list[str] = []

    async def note(call: Call) -> Message:
        peers.append(call.peer)
        return pb.GetLeadResponse()

    async with server(SOON, note) as address, grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        until_then = time.monotonic() + 60
        while len(set(peers)) < 4 and time.monotonic() < until_then:
            await stub.GetLead(pb.GetLeadRequest(), timeout=10)
    assert len(set(peers)) == 4


async def test_a_call_in_flight_at_that_age_is_answered() -> None:
    first, go_on = asyncio.Event(), asyncio.Event()
    peers: list[str] = []

    async def slowly(call: Call) -> Message:
        peers.append(call.peer)
        if not first.is_set():
            first.set()
            await go_on.wait()
        return pb.GetLeadResponse()

    async with server(SOON, slowly) as address, grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        in_flight = stub.GetLead(pb.GetLeadRequest(), timeout=60)
        await first.wait()

        async def others_come_over_another_connection() -> bool:
            await stub.GetLead(pb.GetLeadRequest(), timeout=10)
            return len(set(peers)) > 1

        while not await others_come_over_another_connection():
            pass
        go_on.set()
        assert await in_flight == pb.GetLeadResponse()


async def test_a_watch_ends_after_the_grace_and_can_be_opened_again() -> None:
    limits = Limits(connection_seconds=0.5, connection_grace_seconds=0.5)
    async with server(limits) as address, grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for _ in range(2):
            watch = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            with suppress(grpc.aio.AioRpcError):
                await watch.read()
            await until(watch.done)
            assert await watch.code() is StatusCode.UNAVAILABLE


async def test_a_call_that_outlasts_the_grace_is_cut_with_a_code_that_policies_repeat() -> None:
    limits = Limits(connection_seconds=0.3, connection_grace_seconds=0.3)
    never = asyncio.Event()

    async def hang(_call: Call) -> Message:
        await never.wait()
        return pb.GetLeadResponse()

    async with server(limits, hang) as address, grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await stub.GetLead(pb.GetLeadRequest(), timeout=60)
        assert cut.value.code() is StatusCode.UNAVAILABLE
