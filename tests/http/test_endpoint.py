from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
from collections.abc import Mapping

import httpx
import pytest

from service.errors import StartRefusedError
from service.http.endpoint import HttpEndpoint
from service.rpc.call import Handler
from service.rpc.readiness import ReadinessReason
from tests.http.conftest import STORY, FixedReadiness, Servicer, endpoint_of, serving


async def test_health_readiness_metrics_and_document_need_no_token(client: httpx.AsyncClient) -> None:
    del client.headers["authorization"]
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert (await client.get(path)).status_code == 200


async def test_readiness_says_why_not(client: httpx.AsyncClient, readiness: FixedReadiness) -> None:
    readiness.ready, readiness.reasons = False, (ReadinessReason.DATABASE_AWAY,)
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "degraded": False, "reasons": ["database_away"]}
    assert (await client.get("/healthz")).status_code == 200


async def test_metrics_count_the_endpoints_calls(client: httpx.AsyncClient) -> None:
    await client.get("/api/leads")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'leadkeep_calls_total{code="OK",door="http",rpc="ListLeads"} 1.0' in response.text


async def test_a_port_in_use_stops_the_start(endpoint: HttpEndpoint, methods: Mapping[str, Handler]) -> None:
    with pytest.raises(StartRefusedError, match="LEADKEEP_HTTP_ADDRESS"):
        endpoint_of(methods, port=endpoint.port)


async def test_an_endpoint_holds_its_port_before_it_starts(methods: Mapping[str, Handler]) -> None:
    first = endpoint_of(methods)
    with pytest.raises(StartRefusedError):
        endpoint_of(methods, port=first.port)
    await first.stop(0)
    second = endpoint_of(methods, port=first.port)
    await second.stop(0)


async def test_an_address_of_another_machine_stops_the_start(methods: Mapping[str, Handler]) -> None:
    with pytest.raises(StartRefusedError, match=r"192\.0\.2\.1"):
        endpoint_of(methods, host="192.0.2.1")


async def test_signals_stay_with_the_process(endpoint: HttpEndpoint) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_caller_that_hangs_up_does_not_stop_the_work(endpoint: HttpEndpoint, servicer: Servicer) -> None:
    begun, finished = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(0.2)
        finished.set()

    servicer.before = work
    _, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    body = json.dumps(STORY).encode()
    head = f"POST /api/leads/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    async with asyncio.timeout(20):
        await begun.wait()
        writer.transport.abort()
        await finished.wait()


async def test_stopping_waits_for_what_runs(methods: Mapping[str, Handler], servicer: Servicer) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(0.3)

    servicer.before = work
    endpoint = endpoint_of(methods)
    await endpoint.start()
    async with httpx.AsyncClient(headers={"authorization": "Bearer admin"}) as client:
        running = asyncio.create_task(client.get(f"http://127.0.0.1:{endpoint.port}/api/leads"))
        await begun.wait()
        await endpoint.stop(5)
        assert (await running).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{endpoint.port}/healthz")


async def test_what_outlasts_the_grace_is_answered_as_unknown_and_goes_on(
    methods: Mapping[str, Handler], servicer: Servicer, caplog: pytest.LogCaptureFixture
) -> None:
    begun, goes_on, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await goes_on.wait()
        finished.set()

    servicer.before = work
    caplog.set_level(logging.DEBUG)
    endpoint = endpoint_of(methods)
    await endpoint.start()
    async with httpx.AsyncClient(headers={"authorization": "Bearer admin"}) as client:
        running = asyncio.create_task(client.get(f"http://127.0.0.1:{endpoint.port}/api/leads"))
        await begun.wait()
        await endpoint.stop(0)
        assert (await running).json()["reason"] == "DEADLINE_TOO_SHORT"
    goes_on.set()
    async with asyncio.timeout(20):
        await finished.wait()
    # asyncio reports then what nobody has asked a task for.
    gc.collect()
    assert "Traceback" not in caplog.text
    assert "never retrieved" not in caplog.text


async def test_an_unforeseen_error_of_the_endpoint_is_an_incident(
    methods: Mapping[str, Handler], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(_call: object, _request: object) -> object:
        raise RuntimeError("+8801712345678")

    caplog.set_level(logging.DEBUG)
    given = {**methods, "ListLeads": broken}
    async with serving(given) as endpoint, httpx.AsyncClient() as client:  # type: ignore[arg-type] # that is broken
        response = await client.get(f"http://127.0.0.1:{endpoint.port}/api/leads")
    assert (response.status_code, response.json()["reason"]) == (500, "INTERNAL")
    printed = capsys.readouterr()
    logged = printed.out + printed.err + caplog.text
    assert response.json()["metadata"]["incident_id"] in logged
    assert "8801712345678" not in logged + response.text


async def test_uvicorn_prints_no_exception(
    methods: Mapping[str, Handler], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With its parameters: uvicorn calls what takes none when it starts, for it may be a factory.
    async def broken(_self: object, _scope: object, _receive: object, _send: object) -> None:
        raise RuntimeError("+8801712345678")

    # Nothing is known that gets past the endpoint: so a part is broken that stands outside of what it catches.
    monkeypatch.setattr("service.http.calls.Paths.__call__", broken)
    caplog.set_level(logging.DEBUG)
    async with serving(methods) as endpoint, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{endpoint.port}/healthz")).status_code == 500
    assert "8801712345678" not in caplog.text
