from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import sys
import tracemalloc
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest

from service.http.endpoint import HttpEndpoint
from service.rpc.call import Handler
from service.rpc.limits import Limits
from tests.http.conftest import STORY, Servicer, connected, serving

CANARY = "+8801712345678"

CHUNKED = b"POST /api/leads/ HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"

BODIES: list[tuple[str, bytes, list[str]]] = [
    ("nothing", b"", ["body"]),
    ("no JSON", b"name=" + CANARY.encode(), ["body"]),
    ("half a JSON", b'{"phone": "' + CANARY.encode(), ["body"]),
    ("an array", b'["' + CANARY.encode() + b'"]', ["body"]),
    ("a string", b'"' + CANARY.encode() + b'"', ["body"]),
    ("not UTF-8", b'{"name": "\xff\xfe"}', ["body"]),
    ("UTF-16", json.dumps(STORY).encode("utf-16"), ["body"]),
    ("a name twice", b'{"phone": "1", "phone": "' + CANARY.encode() + b'"}', ["body"]),
    ("a name twice inside", b'{"id": {"a": 1, "a": 2}}', ["body"]),
    ("NaN", b'{"phone": NaN}', ["body"]),
    ("Infinity", b'{"phone": -Infinity}', ["body"]),
    ("deep arrays", b"[" * 100_000, ["body"]),
    ("deep objects", b'{"a":' * 40_000, ["body"]),
    ("deep in an ignored field", b'{"id": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", ["body"]),
    ("a number of 100,000 digits", b'{"phone": ' + b"9" * 100_000 + b"}", ["body"]),
    ("numbers", b'{"phone": 8801712345678, "nid": 1.5}', ["lead.phone", "lead.nid"]),
    ("lists and truths", b'{"phone": ["8801712345678"], "name": true}', ["lead.phone", "lead.name"]),
    ("objects", b'{"address": {"street": "' + CANARY.encode() + b'"}}', ["lead.address"]),
    ("lone surrogates", b'{"name": "\\ud800", "notes": "a\\udfffb"}', ["lead.name", "lead.notes"]),
    ("both spellings", b'{"interested_policy": "a", "interestedPolicy": "b"}', ["lead.interested_policy"]),
    ("an unknown field", b'{"colour": "' + CANARY.encode() + b'"}', ["lead.colour"]),
    ("a nid as name", b'{"AB1234567": "nid"}', ["body"]),
    ("a value as name", b'{"' + CANARY.encode() + b'": "phone"}', ["body"]),
    ("a long name", b'{"' + b"a" * 41 + b'": 1}', ["body"]),
    ("a lone surrogate as name", b'{"\\ud800": 1}', ["body"]),
    ("the request's own message", b'{"lead": {"phone": "' + CANARY.encode() + b'"}}', ["lead.lead"]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "fields"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
async def test_a_hostile_body_is_refused_without_an_echo(
    client: httpx.AsyncClient, servicer: Servicer, body: bytes, fields: list[str]
) -> None:
    response = await client.post("/api/leads/", content=body, headers={"content-type": "application/json"})
    problem = response.json()
    assert (response.status_code, problem["reason"]) == (400, "LEAD_INVALID")
    assert [violation["field"] for violation in problem["violations"]] == fields
    assert CANARY.removeprefix("+") not in response.text
    assert servicer.calls == []


async def test_thousands_of_unknown_fields_get_a_short_answer(client: httpx.AsyncClient) -> None:
    names = ["field_" + "".join(letters) for letters in itertools.product("abcdefghij", repeat=4)]
    response = await client.post("/api/leads/", json=dict.fromkeys(names, 1))
    assert len(response.json()["violations"]) == 21


async def test_a_byte_order_mark_is_passed_over(client: httpx.AsyncClient, servicer: Servicer) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(STORY).encode()
    await client.post("/api/leads/", content=body, headers={"content-type": "application/json; charset=UTF-8"})
    assert len(servicer.calls) == 1


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "json", ";"],
)
async def test_only_json_is_taken(client: httpx.AsyncClient, servicer: Servicer, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await client.post("/api/leads/", content=json.dumps(STORY).encode(), headers=headers)
    assert (response.status_code, response.json()["status"]) == (415, 415)
    assert servicer.calls == []


async def test_ten_megabytes_are_refused_and_not_kept(client: httpx.AsyncClient, servicer: Servicer) -> None:
    piece = b"x" * 65_536

    async def body() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield piece

    tracemalloc.start()
    try:
        response = await client.post("/api/leads/", content=body(), headers={"content-type": "application/json"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (response.status_code, response.json()["status"]) == (413, 413)
    assert peak < 3_000_000
    assert servicer.calls == []


async def test_a_body_that_is_too_long_leaves_nothing_to_the_collector(endpoint: HttpEndpoint) -> None:
    """What it finds of a generator in use is closed in a task, which the end of the loop may come before."""
    hooks, left = sys.get_asyncgen_hooks(), list[object]()
    sys.set_asyncgen_hooks(hooks.firstiter, left.append)
    try:
        answer = await _exchange(endpoint, CHUNKED + b"50000\r\n" + b"x" * 0x50000 + b"\r\n")
        gc.collect()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert left == []


async def test_an_announced_ten_megabytes_are_refused_before_they_come(endpoint: HttpEndpoint) -> None:
    head = b"POST /api/leads/ HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\nexpect: 100-continue\r\n\r\n"
    answer = await _exchange(endpoint, head)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_the_longest_body_is_taken(client: httpx.AsyncClient, servicer: Servicer) -> None:
    body = json.dumps(STORY).encode()
    body += b" " * (256 * 1024 - len(body))
    await client.post("/api/leads/", content=body, headers={"content-type": "application/json"})
    assert len(servicer.calls) == 1


async def test_a_long_head_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/leads", headers={"x-filler": "x" * 16_384})
    assert response.status_code == 431
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /" + CANARY.encode() + b"\r\n\r\n",
        b"POST /api/leads/ HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /api/leads/ HTTP/1.1\r\nhost: x\r\n" + CANARY.encode() + b"\r\n\r\n",
        CHUNKED + CANARY.encode() + b"\r\n",
        b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n" + CANARY.encode() + b"\r\n\r\n",
        CHUNKED + b"50000\r\n" + b"x" * 0x50000 + b"\r\n" + CANARY.encode() + b"\r\n",
    ],
    ids=["TLS", "no version", "length", "header", "chunk", "pipelined", "chunk after too much"],
)  # fmt: skip
async def test_what_is_no_http_is_refused_and_not_logged(
    endpoint: HttpEndpoint, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], sent: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await _exchange(endpoint, sent)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.1 413 "))
    assert b"application/problem+json" in answer
    assert CANARY.encode() not in answer
    assert CANARY not in caplog.text
    assert "unexpected error" not in capsys.readouterr().out


async def test_what_is_no_http_after_the_answer_is_not_logged(
    endpoint: HttpEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with connected(endpoint.port) as (reader, writer):
        writer.write(CHUNKED + b"50000\r\n" + b"x" * 0x50000 + b"\r\n")
        assert b" 413 " in await reader.readline()
        writer.write(CANARY.encode() + b"\r\n")
        await reader.read()
    assert "Traceback" not in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTT", CHUNKED, CHUNKED + b"1\r\n{\r\n"])
async def test_a_request_that_never_arrives_is_given_up(methods: Mapping[str, Handler], sent: bytes) -> None:
    async with (
        serving(methods, limits=Limits(arrival_seconds=0.1)) as endpoint,
        connected(endpoint.port) as (reader, writer),
    ):
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def _exchange(endpoint: HttpEndpoint, sent: bytes) -> bytes:
    answer = bytearray()
    # A connection that stays open for the next request is as good as one that is closed.
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with connected(endpoint.port) as (reader, writer), asyncio.timeout(2):
            writer.write(sent)
            while piece := await reader.read(65_536):
                answer += piece
    return bytes(answer)
