"""Which pages of other origins a browser lets call the endpoint."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest_asyncio

from service.errors import QueueFullError
from service.rpc.call import Handler
from tests.http.conftest import Servicer, created, serving

LISTED = "https://sales.example"
PATHS = ("/leadkeep.v1.LeadService/GetLead", "/api/leads", "/nothing")
UNLISTED = [
    *("null", "https://sales.example.evil.example", "https://evil.example", "http://sales.example", "*", ""),
    *("https://sales.example:8443", "https://Sales.example", "https://sales.example/", f"{LISTED}, {LISTED}"),
]


@pytest_asyncio.fixture
async def page(methods: Mapping[str, Handler]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an endpoint with listed origins."""
    async with (
        serving(methods, allowed_origins=(LISTED, "http://localhost:3000")) as endpoint,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{endpoint.port}", timeout=20) as client,
    ):
        yield client


def cors(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


async def preflight(page: httpx.AsyncClient, path: str, origin: str) -> httpx.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,connect-protocol-version,content-type",
    }
    return await page.options(path, headers=asked)


async def test_a_listed_page_may_send_a_request(page: httpx.AsyncClient) -> None:
    for path in PATHS[:2]:
        response = await preflight(page, path, LISTED)
        assert response.status_code == 204
        assert response.headers["access-control-allow-origin"] == LISTED
        assert "POST" in response.headers["access-control-allow-methods"]
        allowed = response.headers["access-control-allow-headers"].split(", ")
        assert {"authorization", "content-type", "connect-protocol-version", "x-grpc-web", "leadkeep-reason"} <= {
            *allowed
        }
        assert response.headers["access-control-max-age"] == "7200"


async def test_a_listed_page_reads_answers_errors_included(page: httpx.AsyncClient) -> None:
    for path in PATHS:
        response = await page.post(path, json={}, headers={"origin": "http://localhost:3000"})
        assert response.status_code in (401, 404)
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert {"grpc-status", "grpc-message", "trailer-x-request-id", "x-request-id", "retry-after"} <= {*exposed}


async def test_any_other_origin_gets_nothing(page: httpx.AsyncClient) -> None:
    for path, origin in itertools.product(PATHS, UNLISTED):
        assert cors(await preflight(page, path, origin)) == set()
        response = await page.post(path, json={}, headers={"origin": origin})
        assert cors(response) == set()
        assert response.headers["vary"] == "Origin"


async def test_two_origins_are_none(page: httpx.AsyncClient) -> None:
    response = await page.post(PATHS[0], json={}, headers=[("origin", LISTED), ("origin", "https://evil.example")])
    assert cors(response) == set()


async def test_credentials_are_never_allowed(page: httpx.AsyncClient) -> None:
    for response in (await preflight(page, PATHS[0], LISTED), await page.post(PATHS[0], headers={"origin": LISTED})):
        assert "access-control-allow-credentials" not in response.headers


async def test_each_listed_origin_is_answered_with_its_own_name(page: httpx.AsyncClient) -> None:
    for origin in (LISTED, "http://localhost:3000"):
        response = await preflight(page, PATHS[0], origin)
        assert (response.headers["access-control-allow-origin"], response.headers["vary"]) == (origin, "Origin")


async def test_private_networks_are_left_to_the_browser(page: httpx.AsyncClient) -> None:
    """Chromium asked for them in a preflight and now asks its user, whatever a service answers."""
    asked = {
        "origin": LISTED,
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    response = await page.options(PATHS[0], headers=asked)
    assert response.headers["access-control-allow-origin"] == LISTED
    assert not {name for name in response.headers if "private-network" in name or "local-network" in name}


async def test_without_listed_origins_nothing_is_said(client: httpx.AsyncClient) -> None:
    for response in (await preflight(client, PATHS[0], LISTED), await client.get("/api/leads")):
        assert cors(response) == set()
        assert "vary" not in response.headers


async def test_every_header_that_an_answer_may_have_is_exposed(page: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers |= {"CreateLead": created(), "ListLeads": QueueFullError()}
    # A page may read the first three in any case.
    plain = {"cache-control", "content-type", "content-length", "date", "vary", "x-content-type-options"}
    seen = set()
    for path, token in itertools.product(("/api/leads", "/leadkeep.v1.LeadService/ListLeads"), ("admin", "x")):
        for method in ("POST", "GET") if path == "/api/leads" else ("POST",):
            headers = {"origin": LISTED, "authorization": f"Bearer {token}"}
            response = await page.request(method, path, json={}, headers=headers)
            exposed = set(response.headers["access-control-expose-headers"].split(", "))
            seen |= (sent := set(response.headers) - plain - cors(response))
            assert sent <= exposed
    assert {"location", "retry-after", "www-authenticate", "trailer-grpc-retry-pushback-ms"} <= seen
