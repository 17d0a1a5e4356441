"""What callers hold at the HTTP endpoint is bounded in number, bytes and time; a newcomer gets in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import httpx
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.rpc.call import Handler
from service.rpc.limits import Limits, Refusals
from tests.harness.processes import until
from tests.http.conftest import Servicer, lead, serving

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

HALF_A_BODY = (
    b"POST /api/leads HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n{"
)
REFUSED_BY_ITS_HEAD = {
    "too long": b"POST /api/leads HTTP/1.1\r\nhost: x\r\n",
    "no such path": b"POST /nothing HTTP/1.1\r\nhost: x\r\n",
    "no HTTP": b"POST /api/leads HTTP/1.1\r\nhost: x\r\nhost: x\r\n",
}
BODY = bytes(600_000)
BODY_FOLLOWS = b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY)
PIPELINE = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 200


@dataclass
class Running:
    """An endpoint with small limits, and what it refused."""

    port: int
    refused: Counter[str] = field(default_factory=Counter)

    async def connect(self, sent: bytes = b"") -> Connection:
        """A connection on which this was sent. It reads no more than it must."""
        connection = socket.socket()
        # Else the kernel takes megabytes in the caller's place.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
        writer.write(sent)
        await asyncio.sleep(0)
        return reader, writer

    async def status(self, path: str = "/healthz") -> int:
        """What a newcomer is answered."""
        async with httpx.AsyncClient(headers={"authorization": "Bearer admin"}, timeout=10) as client:
            return (await client.get(f"http://127.0.0.1:{self.port}{path}")).status_code


@contextlib.asynccontextmanager
async def running(methods: Mapping[str, Handler] | None, limits: Limits) -> AsyncIterator[Running]:
    run = Running(0)
    refusals = Refusals(lambda _door, reason: run.refused.update([reason]))
    async with serving(methods, limits=limits, refusals=refusals) as endpoint:
        run.port = endpoint.port
        yield run


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTT", HALF_A_BODY], ids=["idle", "half a head", "half a body"])
async def test_a_newcomer_gets_in_when_all_connections_are_taken(methods: Mapping[str, Handler], sent: bytes) -> None:
    async with running(methods, Limits(connections=20, connections_of_peer=20)) as run:
        held = [await run.connect(sent) for _ in range(20)]
        for _ in range(3):
            assert await run.status() == 200
        assert run.refused["connections_of_peer"] + run.refused["connections"] >= 2
        # The oldest made room.
        assert await _ends(held[0][0])
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("head", REFUSED_BY_ITS_HEAD.values(), ids=REFUSED_BY_ITS_HEAD)
async def test_an_answer_arrives_though_its_request_is_still_being_sent(
    methods: Mapping[str, Handler], head: bytes
) -> None:
    async with running(methods, Limits()) as run:
        reader, writer = await run.connect(head + BODY_FOLLOWS)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 4")
        writer.write(BODY)
        async with asyncio.timeout(20):
            # Raises where the connection was reset.
            assert b"about:blank" in await reader.read()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(("seconds", "piece"), [(0.1, b"x"), (100, bytes(200_000))], ids=["in time", "in bytes"])
async def test_what_is_sent_behind_the_last_answer_is_bounded(
    methods: Mapping[str, Handler], monkeypatch: pytest.MonkeyPatch, seconds: float, piece: bytes
) -> None:
    monkeypatch.setattr("service.http.connections.LINGER_SECONDS", seconds)
    async with running(methods, Limits()) as run:
        reader, writer = await run.connect(REFUSED_BY_ITS_HEAD["too long"] + BODY_FOLLOWS)
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")

        async def send_without_end() -> None:
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_without_end(), 20)
        writer.close()
        assert not run.refused


async def test_a_connection_that_got_its_last_answer_keeps_nobody_out(methods: Mapping[str, Handler]) -> None:
    async with running(methods, Limits(connections=5, connections_of_peer=5)) as run:
        held = [await run.connect(REFUSED_BY_ITS_HEAD["too long"] + BODY_FOLLOWS) for _ in range(5)]
        for reader, _ in held:
            assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
        assert [await run.status() for _ in range(3)] == [200] * 3
        for _, writer in held:
            writer.close()


async def test_pipelines_that_nobody_reads_keep_nobody_out(methods: Mapping[str, Handler]) -> None:
    async with running(methods, Limits(connections=10, connections_of_peer=10)) as run:
        held = [await run.connect(PIPELINE) for _ in range(10)]
        for _ in range(5):
            assert await run.status() == 200
        for _, writer in held:
            writer.close()


async def test_a_connection_with_a_token_and_a_request_at_work_stays(
    methods: Mapping[str, Handler], servicer: Servicer
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        begun.set()
        await go_on.wait()

    servicer.before = hold
    servicer.answers["GetLead"] = lead()
    async with running(methods, Limits(connections=5, connections_of_peer=5)) as run:
        async with httpx.AsyncClient(headers={"authorization": "Bearer admin"}, timeout=10) as client:
            path = f"http://127.0.0.1:{run.port}/api/leads/01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f"
            go_on.set()
            assert (await client.get(path)).status_code == 200
            go_on.clear()
            begun.clear()
            at_work = asyncio.create_task(client.get(path))
            await begun.wait()
            held = [await run.connect() for _ in range(30)]
            await until(lambda: sum(run.refused.values()) >= 26)
            go_on.set()
            assert (await at_work).status_code == 200
        for _, writer in held:
            writer.close()


async def test_bodies_that_are_half_received_are_bounded(methods: Mapping[str, Handler]) -> None:
    async with running(methods, Limits(messages_arriving=3)) as run:
        held = [await run.connect(HALF_A_BODY) for _ in range(5)]
        await until(lambda: run.refused["messages_arriving"] == 2)
        assert await _ends(held[0][0])
        for _, writer in held:
            writer.close()


async def test_answers_that_are_not_taken_are_bounded_in_bytes(
    methods: Mapping[str, Handler], servicer: Servicer
) -> None:
    servicer.answers["ListLeads"] = pb.ListLeadsResponse(leads=[lead(notes="x" * 4000)] * 1000)
    async with running(methods, Limits(untaken_bytes=8_000_000)) as run:
        listing = b"GET /api/leads HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\n\r\n"
        held = [await run.connect(listing) for _ in range(6)]
        await until(lambda: run.refused["answers_not_taken"] >= 1)
        assert await run.status() == 200
        for _, writer in held:
            writer.close()


async def test_without_a_token_a_connection_is_closed_behind_the_first_of_many_requests(
    methods: Mapping[str, Handler],
) -> None:
    async with running(methods, Limits()) as run:
        reader, writer = await run.connect(PIPELINE)
        async with asyncio.timeout(10):
            assert (await reader.read()).count(b"HTTP/1.1 200") == 1
        writer.close()


async def test_one_request_behind_the_other_is_answered_without_a_token(methods: Mapping[str, Handler]) -> None:
    async with running(methods, Limits()) as run:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:
            for _ in range(5):
                assert (await client.get(f"http://127.0.0.1:{run.port}/healthz")).status_code == 200
                assert (await client.get(f"http://127.0.0.1:{run.port}/api/leads")).status_code == 401
        assert not run.refused


async def test_requests_behind_one_with_a_token_are_answered_in_order(
    methods: Mapping[str, Handler], servicer: Servicer
) -> None:
    servicer.answers["ListLeads"] = pb.ListLeadsResponse()
    async with running(methods, Limits()) as run:
        listing = b"GET /api/leads HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\n\r\n"
        last = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        reader, writer = await run.connect(listing * 3 + last)
        async with asyncio.timeout(10):
            assert (await reader.read()).count(b"HTTP/1.1 200") == 4
        writer.close()


async def test_an_answer_that_is_not_taken_in_time_ends_the_connection(
    methods: Mapping[str, Handler], servicer: Servicer
) -> None:
    servicer.answers["ListLeads"] = pb.ListLeadsResponse(leads=[lead(notes="x" * 4000)] * 1000)
    async with running(methods, Limits(answer_seconds=0.2, arrival_seconds=0.1)) as run:
        _, writer = await run.connect(b"GET /api/leads HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\n\r\n")
        await until(lambda: run.refused["answer_late"] == 1)
        writer.close()


async def test_the_operators_endpoint_has_health_and_metrics_and_nothing_else() -> None:
    async with running(None, Limits()) as run:
        paths = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/api/leads")
        assert [await run.status(path) for path in paths] == [200, 200, 200, 404, 404]


async def _ends(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            while await reader.read(65_536):
                pass
    return True
