"""Shapes of HTTP/1.1 that servers and proxies read differently (RFC 9112), on one connection each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import tracemalloc
from collections.abc import Mapping

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.http.endpoint import HttpEndpoint
from service.rpc.call import Handler
from service.rpc.limits import Limits
from tests.http.conftest import STORY, Servicer, connected
from tests.http.test_held_connections import Running, running

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
LIST = b"POST /leadkeep.v1.LeadService/ListLeads HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
ADMIN = b"authorization: Bearer admin\r\n"
CALL = LIST + ADMIN
CHUNKED = b"transfer-encoding: chunked\r\n"

REFUSED = {
    "two hosts": b"GET /healthz HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two lengths": CALL + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "other lengths": CALL + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
    "a list of lengths": CALL + b"content-length: 2, 2\r\n\r\n{}",
    "a signed length": CALL + b"content-length: +2\r\n\r\n{}",
    "a negative length": CALL + b"content-length: -2\r\n\r\n{}",
    "a length in hex": CALL + b"content-length: 0x2\r\n\r\n{}",
    "an underscore": CALL + b"content-length: 0_2\r\n\r\n{}",
    "no number": CALL + b"content-length: \r\n\r\n{}",
    "a huge length": CALL + b"content-length: 99999999999999999999999\r\n\r\n{}",
    "length and chunks": CALL + b"content-length: 2\r\n" + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks and length": CALL + CHUNKED + b"content-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "another coding": CALL + b"transfer-encoding: gzip\r\n\r\n{}",
    "two codings": CALL + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked twice": CALL + CHUNKED * 2 + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "identity": CALL + b"transfer-encoding: identity\r\ncontent-length: 2\r\n\r\n{}",
    "a coding like chunked": CALL + b"transfer-encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks in 1.0": CALL.replace(b"/1.1", b"/1.0") + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "a blank before the colon": CALL + b"content-length : 2\r\n\r\n{}",
    "a folded header": CALL + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
    "a header without a colon": CALL + b"content-length\r\n\r\n",
    "a nameless header": CALL + b": 2\r\n\r\n",
    "NUL in a header": CALL + b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "a bare CR": CALL + b"x: a\rcontent-length: 2\r\n\r\n{}",
    "HTTP/0.9": b"GET /healthz HTTP/0.9\r\nhost: x\r\n\r\n",
    "HTTP/2.0": b"GET /healthz HTTP/2.0\r\nhost: x\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\nhost: x\r\n\r\n",
    "lower case": b"GET /healthz http/1.1\r\nhost: x\r\n\r\n",
    "bare LFs": b"GET /healthz HTTP/1.1\nhost: x\n\n",
    "a bare LF behind a header": CALL + b"x: a\ncontent-length: 2\r\n\r\n{}",
    "bare LFs in chunks": CALL + CHUNKED + b"\r\n2\n{}\n0\n\n",
    "a target that is not ASCII": b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    "a chunk without a size": CALL + CHUNKED + b"\r\n\r\n{}\r\n0\r\n\r\n",
    "a chunk with a sign": CALL + CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a chunk in 0x": CALL + CHUNKED + b"\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer": CALL + CHUNKED + b"\r\n2\r\n{} \r\n0\r\n\r\n",
    "a huge chunk": CALL + CHUNKED + b"\r\nffffffffffffffff1\r\n{}\r\n0\r\n\r\n",
}  # fmt: skip

ENDLESS = {
    "a target": b"GET /" + b"x" * 1_000_000,
    "a header's name": CALL + b"x" * 1_000_000,
    "a header's value": CALL + b"x: " + b"x" * 1_000_000,
    "headers": CALL + b"x: y\r\n" * 200_000,
    "blank lines": b"\r\n" * 500_000,
    "a chunk's extension": CALL + CHUNKED + b"\r\n2;" + b"x" * 1_000_000,
    "a chunk's size": CALL + CHUNKED + b"\r\n" + b"0" * 1_000_000,
    "a trailer": CALL + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nx: " + b"x" * 1_000_000,
    "trailers": CALL + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 200_000,
}


async def whole_answer(endpoint: HttpEndpoint | Running, sent: bytes) -> bytes:
    """Everything until the service closes the connection."""
    async with connected(endpoint.port) as (reader, writer):
        writer.write(sent)
        return await reader.read()


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", answer)]


async def test_what_others_may_read_differently_is_refused_and_ends_the_connection(
    endpoint: HttpEndpoint, servicer: Servicer
) -> None:
    for name, sent in REFUSED.items():
        # Behind it stands what another reader would take for a request.
        answer = await whole_answer(endpoint, sent + GET)
        assert statuses(answer) == [400], (name, answer)
    assert servicer.calls == []


async def test_what_never_ends_is_cut_off(methods: Mapping[str, Handler], servicer: Servicer) -> None:
    # Nothing is late here, so that it is the length that ends them.
    async with running(methods, Limits(arrival_seconds=100)) as run:
        for name, sent in ENDLESS.items():
            answer = await whole_answer(run, sent)
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")) or not answer, (name, answer)
    assert servicer.calls == []


async def test_a_trailer_is_no_header(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    sent = LIST + CHUNKED + b"connection: close\r\n\r\n2\r\n{}\r\n0\r\n" + ADMIN + b"\r\n"
    assert (await whole_answer(endpoint, sent)).startswith(b"HTTP/1.1 401 ")
    assert servicer.calls == []


@pytest.mark.parametrize(("version", "first"), [("1.0", b"HTTP/1.1 201 "), ("1.1", b"HTTP/1.1 100 ")])
async def test_only_who_knows_what_it_is_is_told_to_send_the_body(
    endpoint: HttpEndpoint, version: str, first: bytes
) -> None:
    body = json.dumps(STORY).encode()
    head = f"POST /api/leads/ HTTP/{version}\r\nhost: x\r\nauthorization: Bearer admin\r\nexpect: 100-continue\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    async with connected(endpoint.port) as (reader, writer):
        writer.write(head.encode())
        await asyncio.sleep(0.1)
        writer.write(body)
        assert (await reader.readline()).startswith(first)


async def test_another_protocol_is_not_taken_up_and_each_call_is_answered(
    endpoint: HttpEndpoint, servicer: Servicer
) -> None:
    for offer in (b"h2c", b"websocket", b"x"):
        upgrade = b"connection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABk\r\nupgrade: " + offer + b"\r\n"
        call = CALL + upgrade + b"content-length: 16\r\n\r\n" + b'{"page_size": 7}'
        last = GET[:-2] + b"connection: close\r\n" + upgrade + b"\r\n"
        answer = await whole_answer(endpoint, call + GET[:-2] + upgrade + b"\r\n" + call + last)
        assert statuses(answer) == [200] * 4
    assert servicer.requests == [pb.ListLeadsRequest(page_size=7)] * 6


async def test_requests_behind_each_other_are_answered_in_turn(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    last = b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await whole_answer(endpoint, (CALL + b"content-length: 2\r\n\r\n{}" + GET) * 300 + last)
    assert statuses(answer) == [200] * 600 + [404]
    assert len(servicer.calls) == 300


async def test_what_is_no_http_behind_a_request_does_not_take_its_answer(
    endpoint: HttpEndpoint, servicer: Servicer
) -> None:
    async def hold() -> None:
        await asyncio.sleep(0.1)

    servicer.before = hold
    whole = CALL + b"content-length: 2\r\n\r\n{}"
    for behind in (b"rubbish\r\n\r\n", b"x" * 100_000, CALL + CHUNKED + b"\r\nzz\r\n", REFUSED["two hosts"]):
        servicer.calls.clear()
        assert statuses(await whole_answer(endpoint, whole + behind + GET)) == [200, 400], behind[:80]
        assert len(servicer.calls) == 1


async def test_what_breaks_off_behind_an_answer_gets_no_second_one(endpoint: HttpEndpoint) -> None:
    too_much = CALL + CHUNKED + b"\r\n50000\r\n" + b"x" * 0x50000
    async with connected(endpoint.port) as (reader, writer):
        writer.write(too_much)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\r\nzz\r\n")
        rest = await reader.read()
    assert statuses(head + rest) == [429]


async def test_what_waits_for_an_answer_is_not_read_without_end(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        begun.set()
        await go_on.wait()

    servicer.before = hold
    piece = GET * 2000
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", endpoint.port)) as sender:
        sender.setblocking(False)
        tracemalloc.start()
        try:
            await loop.sock_sendall(sender, CALL + b"content-length: 2\r\n\r\n{}" + GET)
            await begun.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    for _ in range(600):
                        await loop.sock_sendall(sender, piece)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        go_on.set()
    assert peak < 3_000_000


async def test_a_body_that_waits_for_an_answer_is_not_late(methods: Mapping[str, Handler], servicer: Servicer) -> None:
    async def hold() -> None:
        await asyncio.sleep(0.5)

    servicer.before = hold
    async with running(methods, Limits(arrival_seconds=0.1)) as run:
        long = CALL + b"content-length: 4000\r\n"
        sent = long + b"\r\n" + b"{}".ljust(4000) + long + b"connection: close\r\n\r\n" + b"{}".ljust(4000)
        assert statuses(await whole_answer(run, sent)) == [200, 200]
        assert not run.refused


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_request_in_pieces_is_one_request(endpoint: HttpEndpoint, servicer: Servicer, size: int) -> None:
    sent = CALL + CHUNKED + b"connection: close\r\n\r\n1;x=y\r\n{\r\n01\r\n}\r\n0\r\nx: y\r\n\r\n"
    async with connected(endpoint.port) as (reader, writer):
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    assert len(servicer.calls) == 1
