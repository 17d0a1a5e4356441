"""Requests as proxies and probes write them (RFC 9112, 3.2): forms of the target, slashes, methods, encoded bodies."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Mapping

import httpx
import pytest
import pytest_asyncio
from leadkeep.v1 import lead_service_pb2 as pb

from service.http.endpoint import HttpEndpoint
from service.rpc.call import Handler
from service.rpc.metrics import Metrics
from tests.http.conftest import LEAD_ID, STORY, Servicer, connected, serving


@pytest_asyncio.fixture(params=["LEADKEEP_HTTP_ADDRESS", "LEADKEEP_OPS_ADDRESS"])
async def any_endpoint(
    request: pytest.FixtureRequest, methods: Mapping[str, Handler], metrics: Metrics
) -> AsyncIterator[HttpEndpoint]:
    """The endpoint of each setting that has the paths of operators."""
    given = methods if request.param == "LEADKEEP_HTTP_ADDRESS" else None
    async with serving(given, registry=metrics.registry) as endpoint:
        yield endpoint


async def ask(
    endpoint: HttpEndpoint, target: str, *, method: str = "GET", host: str = "host: x\r\n", version: str = "1.1"
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request line, sent as it stands."""
    sent = f"{method} {target} HTTP/{version}\r\n{host}authorization: Bearer admin\r\nconnection: close\r\n\r\n"
    async with connected(endpoint.port) as (reader, writer):
        writer.write(sent.encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return int(line.split()[1]), {name: value for name, _, value in (field.partition(": ") for field in fields)}, body


async def statuses(endpoint: HttpEndpoint, targets: Iterable[str], *, method: str = "GET") -> dict[str, int]:
    """The status of the answer to each target: one endpoint for all, because its start and stop take longest."""
    return {target: (await ask(endpoint, target, method=method))[0] for target in targets}


async def test_operators_paths_answer_in_both_forms_with_a_slash_and_a_query(any_endpoint: HttpEndpoint) -> None:
    targets = itertools.product(
        ("", "http://leads.example", "HTTPS://leads.example:443", "http://[::1]:8080"),
        ("/healthz", "/readyz", "/metrics"),
        ("", "/", "?", "?probe=1", "/?probe=1&x=%ff"),
    )
    assert set((await statuses(any_endpoint, map("".join, targets))).values()) == {200}


async def test_the_document_answers_in_both_forms(endpoint: HttpEndpoint) -> None:
    targets = ("/openapi.json", "/openapi.json/", "http://leads.example/openapi.json/")
    assert await statuses(endpoint, targets) == dict.fromkeys(targets, 200)


@pytest.mark.parametrize("ending", ["", "/"])
async def test_a_call_in_absolute_form_is_the_same_call(
    endpoint: HttpEndpoint, servicer: Servicer, ending: str
) -> None:
    status, _, _ = await ask(endpoint, f"http://leads.example/api/leads{ending}?phone=+8801712345678&page_size=2")
    assert status == 200
    assert servicer.requests == [pb.ListLeadsRequest(phone="+8801712345678", page_size=2)]


async def test_the_host_header_does_not_count_with_an_absolute_form(any_endpoint: HttpEndpoint) -> None:
    for host in ("host: other.example\r\n", "host: \r\n", "host: a b\r\n"):
        assert (await ask(any_endpoint, "http://leads.example/healthz", host=host))[0] == 200


async def test_a_host_header_is_required_once_in_each_form(any_endpoint: HttpEndpoint) -> None:
    for target in ("/healthz", "http://leads.example/healthz"):
        assert (await ask(any_endpoint, target, host=""))[0] == 400
        assert (await ask(any_endpoint, target, host="host: a\r\nhost: b\r\n"))[0] == 400
        assert (await ask(any_endpoint, target, host="", version="1.0"))[0] == 200


NO_TARGETS = (
    "healthz",
    "leads.example:80",
    "http:/healthz",
    "http:///healthz",
    "http://:80/healthz",
    "http://user:secret@leads.example/healthz",
    "http://leads.example:port/healthz",
    "ftp://leads.example/healthz",
    "*",
    "/%ff",
    "/api/conversations/%c3%28/lead",
    "http://leads.example/%ff",
)


async def test_a_target_that_is_none_is_refused(any_endpoint: HttpEndpoint, servicer: Servicer) -> None:
    assert await statuses(any_endpoint, NO_TARGETS) == dict.fromkeys(NO_TARGETS, 400)
    assert servicer.calls == []


async def test_the_refusal_of_a_target_does_not_repeat_it(any_endpoint: HttpEndpoint) -> None:
    _, headers, body = await ask(any_endpoint, "http://user:secret@leads.example/healthz")
    assert (json.loads(body)["status"], headers["content-type"]) == (400, "application/problem+json")
    assert b"secret" not in body


OTHER_PATHS = (
    "/",
    "//",
    "//healthz",
    "/healthz//",
    "/./healthz",
    "/api/../healthz",
    "/Healthz",
    "/healthz;a=b",
    "/%2Fhealthz",
    "/healthz%2F",
    "/healthz%00",
    "http://leads.example",
    "http://leads.example?x=1",
    "http://leads.example//healthz",
)


async def test_another_path_is_not_taken_for_one_that_looks_like_it(any_endpoint: HttpEndpoint) -> None:
    assert await statuses(any_endpoint, OTHER_PATHS) == dict.fromkeys(OTHER_PATHS, 404)


async def test_percent_encoding_does_not_change_a_path(any_endpoint: HttpEndpoint) -> None:
    targets = ("/health%7A", "/health%7a/", "/%68%65althz")
    assert await statuses(any_endpoint, targets) == dict.fromkeys(targets, 200)


CONVERSATIONS = {
    "/api/conversations/chat-1/lead": "chat-1",
    "/api/conversations/chat-1/lead/": "chat-1",
    "/api/conversations/a%2Fb/lead": "a/b",
    "/api/conversations/a%2Fb%2F/lead": "a/b/",
    "/api/conversations/%C3%A9%3F%23/lead": "é?#",
    # Some proxies decode what they pass on.
    "/api/conversations/a/b/lead": "a/b",
    "/api/conversations/a//b/lead": "a//b",
    "/api/conversations/lead/lead/lead": "lead/lead",
    "/api/conversations/x%2Flead/lead": "x/lead",
    "/api/conversations/whatsapp:+8801712345678/lead": "whatsapp:+8801712345678",
    "/api/conversations/a%252Fb/lead": "a%2Fb",
    "/api/conversations/%E0%A6%B0/lead": "র",
}


async def test_a_conversation_is_named_in_the_path(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    assert await statuses(endpoint, CONVERSATIONS) == dict.fromkeys(CONVERSATIONS, 200)
    named = [
        request.conversation_id for request in servicer.requests if isinstance(request, pb.GetLeadByConversationRequest)
    ]
    assert dict(zip(CONVERSATIONS, named, strict=True)) == CONVERSATIONS


NO_CALLS = (
    "/api%2Fleads",
    "/api/leads//",
    "/api/leads//status",
    f"/api/leads/{LEAD_ID}/x",
    f"/api/leads/{LEAD_ID}/status/x",
    "/api/conversations//lead",
    "/api/conversations/lead",
    "/api/conversations/x%2Flead",
)


async def test_a_call_is_not_guessed_from_a_path(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    assert await statuses(endpoint, NO_CALLS) == dict.fromkeys(NO_CALLS, 404)
    assert servicer.calls == []


async def test_an_id_with_a_slash_is_the_calls_to_refuse(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    await ask(endpoint, "/api/leads/a%2Fstatus")
    assert servicer.requests == [pb.GetLeadRequest(id="a/status")]


GOOD = ("/healthz", "/readyz/", "/metrics", "http://leads.example/healthz")


async def test_head_answers_as_get_without_the_body(any_endpoint: HttpEndpoint) -> None:
    for target in GOOD:
        status, headers, body = await ask(any_endpoint, target, method="HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["content-length"]) > 0


async def test_options_names_the_methods_of_a_path(any_endpoint: HttpEndpoint) -> None:
    for target in GOOD:
        status, headers, body = await ask(any_endpoint, target, method="OPTIONS")
        assert (status, headers["allow"], body) == (204, "GET, HEAD, OPTIONS", b"")
        assert not [name for name in headers if name.startswith("access-control-")]


async def test_options_names_the_methods_of_the_endpoint(any_endpoint: HttpEndpoint) -> None:
    for target in ("*", "http://leads.example"):
        status, headers, body = await ask(any_endpoint, target, method="OPTIONS")
        assert (status, body) == (204, b"")
        assert set(headers["allow"].split(", ")) - {"POST", "DELETE"} == {"GET", "HEAD", "OPTIONS"}


async def test_options_begins_no_call(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    status, headers, _ = await ask(endpoint, f"/api/leads/{LEAD_ID}", method="OPTIONS")
    assert (status, headers["allow"]) == (204, "GET, DELETE, HEAD, OPTIONS")
    assert servicer.calls == []


async def test_another_method_is_refused_with_those_of_the_path(any_endpoint: HttpEndpoint) -> None:
    for method in ("POST", "PUT", "TRACE", "PROPFIND"):
        status, headers, _ = await ask(any_endpoint, "/healthz", method=method)
        assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_a_method_that_http_does_not_have_is_refused(any_endpoint: HttpEndpoint) -> None:
    for method in ("connect", "get", "BREW2", "GET,"):
        assert (await ask(any_endpoint, "/healthz", method=method))[0] == 400


async def test_no_tunnel_is_opened(any_endpoint: HttpEndpoint) -> None:
    targets = ("leads.example:443", "/healthz", "http://leads.example/healthz", "*")
    assert await statuses(any_endpoint, targets, method="CONNECT") == dict.fromkeys(targets, 501)


async def test_an_encoded_body_is_refused_with_the_coding_that_is_taken(
    client: httpx.AsyncClient, servicer: Servicer
) -> None:
    calls = (("POST", "/api/leads/"), ("POST", f"/api/leads/{LEAD_ID}/status"), ("DELETE", f"/api/leads/{LEAD_ID}"))
    body = gzip.compress(json.dumps(STORY).encode())
    for method, path in calls:
        for coding in ("gzip", "x-gzip", "br", "deflate", "GZIP", "identity, gzip", "nonsense"):
            headers = {"content-encoding": coding, "content-type": "application/json"}
            response = await client.request(method, path, content=body, headers=headers)
            assert (response.status_code, response.json()["status"]) == (415, 415)
            assert response.headers["accept-encoding"] == "identity"
    assert servicer.calls == []


async def test_a_body_that_says_it_is_not_encoded_is_taken(client: httpx.AsyncClient, servicer: Servicer) -> None:
    codings = ("", "identity", "Identity", "identity, identity", ",")
    for coding in codings:
        assert (await client.post("/api/leads/", json=STORY, headers={"content-encoding": coding})).is_success
    assert len(servicer.calls) == len(codings)


async def test_a_large_encoded_body_is_refused_before_it_is_sent(endpoint: HttpEndpoint) -> None:
    head = "host: x\r\ncontent-encoding: gzip\r\ncontent-length: 200000\r\nexpect: 100-continue\r\n"
    status, headers, _ = await ask(endpoint, "/api/leads/", method="POST", host=head)
    assert (status, headers["accept-encoding"]) == (415, "identity")


async def test_a_media_type_that_is_refused_comes_with_the_one_that_is_taken(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/leads/", content=b"a=b", headers={"content-type": "text/plain"})
    assert (response.status_code, response.headers["accept"]) == (415, "application/json")
    assert "accept-encoding" not in response.headers
