"""What callers hold at the gRPC endpoint is bounded in number, bytes and time; nobody else pays for it."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.rpc import connections
from service.rpc.call import SERVICE, Call
from service.rpc.connections import STATUS_DETAILS
from service.rpc.limits import Limits, Refusals
from service.rpc.server import GrpcServer
from service.scopes import ROLES, Caller
from tests.harness.processes import until
from tests.harness.strangers import LIST_LEADS, WATCH, call_headers, frame, preface

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
CREATE = "/leadkeep.v1.LeadService/CreateLead"
EMPTY_MESSAGE = bytes(5)


@dataclass
class Endpoint:
    """A running endpoint that accepts every call, what it refused, and how many calls it answered."""

    port: int
    refused: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=OWN_CONNECTION)


@asynccontextmanager
async def endpoint(limits: Limits, *, answer: Message | None = None) -> AsyncIterator[Endpoint]:
    async def handle(call: Call, _request: Message) -> Message:
        running.calls += 1
        # A call with a token is proven, like behind the chain.
        if "authorization" in call.metadata:
            call.caller = Caller("somebody", ROLES["admin"])
        return answer if answer is not None else pb.CreateLeadResponse()

    running = Endpoint(0)
    server = GrpcServer(
        {method.name: handle for method in SERVICE.methods},
        address="127.0.0.1:0",
        tls=None,
        limits=limits,
        refusals=Refusals(lambda _door, reason: running.refused.update([reason])),
    )
    running.port = server.port
    await server.start()
    keeping = asyncio.create_task(server.run())
    try:
        yield running
    finally:
        keeping.cancel()
        await server.stop(0)


def _reason(error: grpc.aio.AioRpcError) -> bytes:
    return next(value for key, value in error.trailing_metadata() if key == STATUS_DETAILS and isinstance(value, bytes))


def _method(channel: grpc.aio.Channel, path: str = CREATE) -> Any:
    """A method in bytes, called as a stream of messages, so that the test decides when one is sent."""
    return channel.stream_unary(path)


def _health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def _create(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(CREATE)


async def test_a_message_that_stays_away_is_not_protected_by_the_token_that_proved_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy lends a proven connection to whoever calls next: strangers could keep all places by that."""
    monkeypatch.setattr(connections, "PROOF_SECONDS", 0.1)
    async with (
        endpoint(Limits(messages_arriving=3)) as running,
        running.channel() as lent,
        running.channel() as another,
    ):
        await _create(lent)(EMPTY_MESSAGE, metadata=(("authorization", "Bearer x"),))
        waiting = [_method(lent)() for _ in range(3)]
        for call in waiting:
            await call.wait_for_connection()
        await asyncio.sleep(0.2)
        newcomer = _method(another)()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await waiting[0]
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        await newcomer.write(b"")
        await newcomer.done_writing()
        await newcomer
        assert running.refused == {"messages_arriving": 1}


async def test_half_sent_messages_are_bounded_and_the_oldest_makes_room() -> None:
    async with endpoint(Limits(messages_arriving=3)) as running, running.channel() as channel:
        method = _method(channel)
        waiting = []
        for _ in range(5):
            waiting.append(method())
            await waiting[-1].wait_for_connection()
        for call in waiting[:2]:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
            assert b"QUEUE_FULL" in _reason(refused.value)
            assert int(dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        assert running.refused == {"messages_arriving": 2}
        # The others are served as soon as their message is there.
        for call in waiting[2:]:
            await call.write(b"")
            await call.done_writing()
            await call


async def test_a_message_that_does_not_arrive_in_time_is_given_up() -> None:
    async with endpoint(Limits(arrival_seconds=0.2)) as running, running.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await _method(channel)()
        assert late.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert b"DEADLINE_TOO_SHORT" in _reason(late.value)
        assert running.refused == {"message_late": 1}


@pytest.mark.parametrize("method", [CREATE, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"])
async def test_a_call_without_a_message_is_answered_at_once(method: str) -> None:
    async with endpoint(Limits()) as running, running.channel() as channel:
        call = _method(channel, method)()
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(call, 5)
        assert refused.value.code() is StatusCode.INVALID_ARGUMENT
        assert running.refused == {"message_missing": 1}


async def test_watches_are_bounded_and_a_new_one_gets_in() -> None:
    async with endpoint(Limits(streams=3)) as running, running.channel() as channel:
        stub = _health(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(5)]
        for watch in watches:
            with suppress(grpc.aio.AioRpcError):
                await watch.read()
        newest = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await newest.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await until(lambda: sum(watch.done() for watch in watches) == 3)
        codes = {await watch.code() for watch in watches if watch.done()}
        assert codes == {StatusCode.RESOURCE_EXHAUSTED}
        assert running.refused["streams"] == 3


async def test_a_watch_that_is_ended_while_its_first_status_is_sent_is_told_so() -> None:
    async with endpoint(Limits(streams=1)) as running, running.channel() as channel:
        stub = _health(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(60)]
        ends = islice(asyncio.as_completed([_end_of(watch) for watch in watches], timeout=30), len(watches) - 1)
        assert {await each for each in ends} == {StatusCode.RESOURCE_EXHAUSTED}


async def _end_of(watch: Any) -> StatusCode:
    with suppress(grpc.aio.AioRpcError):
        while await watch.read() is not grpc.aio.EOF:
            pass
    return cast(StatusCode, await watch.code())


async def test_reflection_streams_are_bounded() -> None:
    async with endpoint(Limits(streams=2)) as running, running.channel() as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(grpc.Channel, channel))
        streams = []
        for _ in range(3):
            streams.append(stub.ServerReflectionInfo())
            await streams[-1].write(reflection_pb2.ServerReflectionRequest(list_services=""))
            assert (await streams[-1].read()).HasField("list_services_response")
        assert await streams[0].code() is StatusCode.RESOURCE_EXHAUSTED
        assert not streams[1].done()
        assert running.refused == {"streams": 1}


async def test_calls_of_a_connection_are_bounded() -> None:
    async with endpoint(Limits()) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(preface())
        head = await reader.readexactly(9)
        body = await reader.readexactly(int.from_bytes(head[:3], "big"))
        settings = dict(struct.unpack_from(">HL", body, at) for at in range(0, len(body), 6))
        assert settings[3] == 100
        # Nothing of a message beyond it is taken before somebody reads it.
        assert settings[4] == 32 * 1024
        writer.close()


async def _unread(running: Endpoint, path: bytes, calls: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Calls whose answers are not taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(preface(window=0))
    for stream in range(1, calls * 2, 2):
        writer.write(frame(1, 0x4, stream, call_headers(path, "x")) + frame(0, 0x1, stream, EMPTY_MESSAGE))
    with suppress(ConnectionError):  # it may have been ended for that already
        await writer.drain()
    return reader, writer


async def test_answers_that_are_not_taken_are_bounded_in_bytes() -> None:
    big = pb.CreateLeadResponse(message="x" * 100_000)
    async with endpoint(Limits(untaken_bytes=1_000_000), answer=big) as running:
        reader, writer = await _unread(running, LIST_LEADS, 15)
        async with asyncio.timeout(10):
            while await reader.read(65_536):
                pass
        assert running.refused["answers_not_taken"] == 1
        writer.close()
        async with running.channel() as channel:
            assert await _create(channel)(b"")


async def test_a_connection_that_takes_no_answers_gets_no_more_of_them() -> None:
    answer = pb.CreateLeadResponse(message="x")
    async with endpoint(Limits(untaken_answers=3), answer=answer) as running, running.channel() as honest:
        _, writer = await _unread(running, LIST_LEADS, 3)
        stream = 5

        async def call_again() -> None:
            nonlocal stream
            stream += 2
            headers = frame(1, 0x4, stream, call_headers(LIST_LEADS, "x"))
            writer.write(headers + frame(0, 0x1, stream, EMPTY_MESSAGE))
            await asyncio.sleep(0.2)

        async with asyncio.timeout(30):
            while not running.refused["answers_not_taken"]:
                await call_again()
            answered = running.calls
            for _ in range(5):
                await call_again()
            await until(lambda: running.refused["answers_not_taken"] >= 6)
        assert running.calls == answered
        # Another connection does not pay for it.
        assert await _create(honest)(b"")
        writer.close()


async def test_an_answer_that_is_not_taken_in_time_ends_its_connection() -> None:
    async with endpoint(Limits(answer_seconds=0.2), answer=pb.CreateLeadResponse(message="x")) as running:
        reader, writer = await _unread(running, LIST_LEADS, 1)
        async with asyncio.timeout(10):
            while await reader.read(65_536):
                pass
        assert running.refused["answer_late"] == 1
        writer.close()


async def test_ended_calls_that_cannot_be_closed_end_their_connection() -> None:
    async with endpoint(Limits(streams=1, unclosed_calls=3)) as running, running.channel() as honest:
        stub = _health(honest)
        await stub.Check(health_pb2.HealthCheckRequest())
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(preface(window=0))
        async with asyncio.timeout(30):
            # Each ends the one before, whose end waits behind a status that nobody reads. One that is ended before
            # its status was written would be closed at once.
            for stream in range(1, 16, 2):
                writer.write(frame(1, 0x4, stream, call_headers(WATCH, "x")) + frame(0, 0x1, stream, EMPTY_MESSAGE))
                while await _answered_stream(reader) != stream:
                    pass
                await stub.Check(health_pb2.HealthCheckRequest())  # by its end the status is written behind the headers
            while await reader.read(65_536):
                pass
        await until(lambda: running.refused["answers_not_taken"] == 1)
        await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=False)
        writer.close()


async def _answered_stream(reader: asyncio.StreamReader) -> int:
    """The stream whose headers come next; other frames are passed over."""
    while True:
        head = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(head[:3]))
        if head[3] == 1:
            return int.from_bytes(head[5:])


@pytest.mark.parametrize("limits", [Limits(), Limits(messages_arriving=2), Limits(streams=2), Limits(untaken_bytes=1)])
async def test_connections_that_end_while_their_calls_are_looked_at_harm_nobody(
    limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0)
    monkeypatch.setattr(connections, "TAKING_SECONDS", 0)
    paths = (LIST_LEADS, WATCH)
    async with endpoint(limits, answer=pb.CreateLeadResponse(message="x" * 100)) as running:
        # Together fewer calls than MOST_PENDING, beyond which gRPC resets calls: on a busy machine all may wait.
        for turn in range(18):
            async with running.channel() as leaving:
                opened = [await _unread(running, paths[turn % len(paths)], 20) for _ in range(10)]
                for _ in range(10):
                    _method(leaving)()
                await asyncio.sleep(0.02)
                for _, writer in opened:
                    writer.transport.abort()
        async with running.channel() as honest:
            assert await _create(honest)(b"")


async def test_an_answer_that_is_taken_slowly_is_not_cut() -> None:
    big = pb.CreateLeadResponse(message="x" * 3_000_000)
    async with endpoint(Limits(), answer=big) as running, running.channel() as channel:
        for _ in range(20):
            assert len(await _create(channel)(b"")) > 3_000_000
        assert not running.refused


async def test_connections_are_bounded_and_what_had_a_token_accepted_stays() -> None:
    async with endpoint(Limits(connections=20, connections_of_peer=20)) as running, running.channel() as honest:
        call = _create(honest)
        await call(b"", metadata=(("authorization", "Bearer x"),))
        strangers = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(24)]
        await until(lambda: running.refused["connections_of_peer"] + running.refused["connections"] >= 5)
        closed = await asyncio.gather(*(_is_closed(reader) for reader, _ in strangers))
        assert closed[:4] == [True] * 4
        assert sum(closed) >= 5
        # Neither the honest connection nor a new one pays for it.
        await call(b"", timeout=20)
        async with running.channel() as another:
            await _create(another)(b"", timeout=20)
        for _, writer in strangers:
            writer.close()


async def test_a_stub_of_the_contract_notices_no_difference() -> None:
    async with endpoint(Limits()) as running, running.channel() as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        calls = (stub.CreateLead(pb.CreateLeadRequest(), timeout=20) for _ in range(300))
        assert len(await asyncio.gather(*calls)) == 300
        assert not running.refused


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(3):
            while await reader.read(65_536):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True
