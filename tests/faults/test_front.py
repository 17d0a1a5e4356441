"""What deploy/nginx.conf refuses in front of the service: with the words of the service itself, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1.lead_service_pb2_grpc import LeadServiceStub

from service.errors import QueueFullError
from service.http.endpoint import KEEP_ALIVE
from service.http.problems import failure_response
from service.rpc.status import pushback, status_of
from tests.conftest import StartService
from tests.harness.answers import fails
from tests.harness.failures import reason_of
from tests.harness.faults import SLOW, closed_gate, gated_inserts, waits_at_gate
from tests.harness.leads import somebody
from tests.harness.nginx import CONFIGURATION, INSTALLED, Nginx
from tests.harness.policy import RETRY_POLICY
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.harness.strangers import LIST_LEADS, Calls, besiege

BURST = 1000
ORIGIN = "https://sales.example"
"""Whose pages may call."""

PAGES = 32
"""That an address may have in flight."""

CONNECTIONS = 16
ALONE = [("grpc.use_local_subchannel_pool", 1)]


def rows(text: str, name: str) -> list[tuple[str, str]]:
    """The rows of a block: what stands first, and what it becomes."""
    block = re.search(rf"{re.escape(name)} \{{(.*?)\}}", text, re.DOTALL)
    assert block is not None
    return re.findall(r"^\s*(\S+)\s+(\S+);$", block[1], re.MULTILINE)


def test_every_wait_is_one_that_the_service_asks_for() -> None:
    text = CONFIGURATION.read_text()
    waits = [wait for _, wait in rows(text, "split_clients $request_id $busy_milliseconds")]
    assert len(set(waits)) > 1, "all would come back at once"
    assert all(500 <= int(wait) <= 1500 for wait in waits)
    statuses = rows(text, "map $busy_milliseconds $busy_status")
    assert [wait for wait, _ in statuses] == waits
    for wait, status in statuses:
        sent = status_pb2.Status.FromString(base64.b64decode(status + "=" * (-len(status) % 4)))
        assert sent == status_of(QueueFullError(int(wait) / 1000))


def test_a_quiet_connection_is_ended_before_the_service_ends_it() -> None:
    # At the moment at which the service ends it a request gets 502: of 1,712 about then 24 did.
    [upstream] = re.findall(r"upstream leadkeep_http \{(.*?)\}", CONFIGURATION.read_text(), re.DOTALL)
    [seconds] = re.findall(r"^ *keepalive_timeout (\d+)s;", upstream, re.MULTILINE)
    assert int(seconds) < KEEP_ALIVE


def answer_of(call: Any) -> str:
    """OK, or the reason of the service or of nginx, or the code of an answer that has none."""
    error = call.exception()
    return "OK" if error is None else reason_of(error) or call.code().name


@pytest.fixture(scope="module")
def front(
    service: RunningService, service_database: TestDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nginx]:
    """nginx with a place for one call."""
    if INSTALLED is None:
        pytest.skip("nginx is not installed")
    gated_inserts(service_database.admin_url)
    folder = tmp_path_factory.mktemp("nginx")
    with Nginx(folder, service.grpc_address, service.http_address, calls=1, origin=ORIGIN) as nginx:
        yield nginx


@pytest.fixture
def busy(front: Nginx, service: RunningService, service_database: TestDatabase) -> Iterator[Callable[[], None]]:
    """Somebody has the one place, until this is called."""
    with grpc.insecure_channel(front.grpc_address) as channel, ExitStack() as gate:
        gate.enter_context(closed_gate(service_database.admin_url))
        request = pb.CreateLeadRequest(lead=somebody(name=SLOW))
        holding = service.stub(channel).CreateLead.future(request, timeout=60, metadata=service.metadata())
        assert eventually(lambda: waits_at_gate(service_database.admin_url), within=60)
        yield gate.close
        gate.close()
        assert holding.result().id


@pytest.mark.usefixtures("busy")
def test_a_call_without_a_place_gets_what_the_service_sends(front: Nginx, service: RunningService) -> None:
    with grpc.insecure_channel(front.grpc_address) as channel:
        stub = service.stub(channel)
        for _ in range(8):  # there are several waits
            request = pb.CreateLeadRequest(lead=somebody())
            failure = fails(lambda: stub.CreateLead(request, timeout=10, metadata=service.metadata()))  # noqa: B023
            assert failure.retry_after is not None
            expected = QueueFullError(failure.retry_after)
            status = status_of(expected)
            assert (failure.code.value[0], failure.text) == (status.code, status.message)
            assert failure.trailing["grpc-status-details-bin"] == status.SerializeToString()
            assert failure.trailing["grpc-retry-pushback-ms"] == pushback(expected, 10)["grpc-retry-pushback-ms"]


@pytest.mark.usefixtures("busy")
def test_a_request_without_a_place_gets_what_the_service_sends(front: Nginx, service: RunningService) -> None:
    answer = httpx.get(f"http://{front.http_address}/api/leads", headers=dict(service.metadata()), timeout=10)
    wait = float(answer.headers["retry-after"])
    expected = failure_response(QueueFullError(wait), {})
    assert (answer.status_code, answer.content) == (expected.status_code, expected.body)
    assert set(expected.headers.items()) <= set(answer.headers.items())


def page_may_read(answer: httpx.Response) -> list[str]:
    """The origins whose pages may read an answer."""
    return answer.headers.get_list("access-control-allow-origin")


@pytest.mark.usefixtures("busy")
def test_a_page_of_a_listed_origin_reads_that_it_has_no_place(front: Nginx, service: RunningService) -> None:
    def ask(origin: str) -> httpx.Response:
        headers = {**dict(service.metadata()), "origin": origin}
        return httpx.get(f"http://{front.http_address}/api/leads", headers=headers, timeout=10)

    answer = ask(ORIGIN)
    assert (answer.status_code, page_may_read(answer)) == (429, [ORIGIN])
    assert answer.headers["access-control-expose-headers"] == "retry-after"
    other = ask("https://evil.example")
    assert (other.status_code, page_may_read(other)) == (429, [])
    assert "access-control-expose-headers" not in other.headers


@pytest.mark.usefixtures("busy")
def test_a_page_needs_no_place_to_ask_whether_it_may_call(front: Nginx) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    answer = httpx.options(f"http://{front.http_address}/leadkeep.v1.LeadService/GetLead", headers=asked, timeout=10)
    assert answer.status_code == 204


def test_only_the_service_says_who_may_read_its_answers(front: Nginx) -> None:
    # It lists no origin.
    answer = httpx.get(f"http://{front.http_address}/api/leads", headers={"origin": ORIGIN}, timeout=10)
    assert (answer.status_code, page_may_read(answer)) == (401, [])


@pytest.mark.skipif(INSTALLED is None, reason="nginx is not installed")
def test_a_page_of_a_listed_origin_reads_that_no_replica_answers(tmp_path: Path) -> None:
    with Nginx(tmp_path, "127.0.0.1:9", "127.0.0.1:9", origin=ORIGIN) as nginx:
        answer = httpx.get(f"http://{nginx.http_address}/api/leads", headers={"origin": ORIGIN}, timeout=10)
        assert (answer.status_code, page_may_read(answer)) == (502, [ORIGIN])


@pytest.mark.skipif(INSTALLED is None, reason="nginx is not installed")
def test_a_call_that_no_replica_answers_gets_an_answer_that_every_library_repeats(tmp_path: Path) -> None:
    with Nginx(tmp_path, "127.0.0.1:9", "127.0.0.1:9") as nginx, grpc.insecure_channel(nginx.grpc_address) as channel:
        stub = LeadServiceStub(channel)
        failure = fails(lambda: stub.GetLead(pb.GetLeadRequest(id="1"), timeout=10))
        assert (failure.code, failure.text) == (grpc.StatusCode.UNAVAILABLE, "no replica answers; try again shortly")
        assert "grpc-retry-pushback-ms" not in failure.trailing


@pytest.mark.usefixtures("busy")
def test_health_needs_no_place(front: Nginx) -> None:
    with grpc.insecure_channel(front.grpc_address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (
            health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        )
    assert httpx.get(f"http://{front.http_address}/healthz", timeout=10).status_code == 200


def test_the_retry_policy_repeats_what_had_no_place(
    front: Nginx, service: RunningService, busy: Callable[[], None]
) -> None:
    options = [("grpc.service_config", RETRY_POLICY), *ALONE]
    with grpc.insecure_channel(front.grpc_address, options=options) as channel:
        request = pb.CreateLeadRequest(lead=somebody(), request_id=str(uuid4()))
        before = front.refused
        call = service.stub(channel).CreateLead.future(request, timeout=60, metadata=service.metadata())
        assert eventually(lambda: front.refused > before, within=60)
        assert not call.done(), call.code()
        busy()
        assert call.result().state == pb.SAVE_STATE_SAVED
        assert dict(call.trailing_metadata())["leadkeep-retries"] != "0"


@pytest.fixture(scope="module")
def wide_front(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx as it is shipped."""
    if INSTALLED is None:
        pytest.skip("nginx is not installed")
    with Nginx(tmp_path_factory.mktemp("nginx"), service.grpc_address, service.http_address) as nginx:
        yield nginx


async def answers_to(front: Nginx, request: bytes) -> list[bytes]:
    """The status codes that come back until the connection is closed."""
    host, _, port = front.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    received = await reader.read()
    writer.close()
    return re.findall(rb"HTTP/1\.1 (\d+) ", received)


async def test_of_many_requests_sent_at_once_for_what_is_no_call_the_first_is_answered(wide_front: Nginx) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
    assert await answers_to(wide_front, request * 20) == [b"200"]


async def test_requests_for_what_is_no_call_are_few_a_second(wide_front: Nginx) -> None:
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    # As many would pass in 23 seconds.
    answers = await asyncio.gather(*(answers_to(wide_front, request) for _ in range(500)))
    assert {answer for (answer,) in answers} == {b"200", b"429"}


def test_an_address_gets_few_pages_that_it_does_not_read(wide_front: Nginx, service: RunningService) -> None:
    def served() -> float:
        codes = ("OK", "RESOURCE_EXHAUSTED")
        return sum(service.metric(f'leadkeep_calls_total{{code="{c}",door="grpc",rpc="ListLeads"}}') for c in codes)

    async def besieged() -> int:
        unread = Calls(LIST_LEADS, sent=5, half_close=True, window=0, token=service.token("agent"))
        host, _, port = wide_front.grpc_address.rpartition(":")
        return (await besiege(unread, (host, int(port)), (host, 0), 3)).opened

    before = served()
    assert asyncio.run(besieged()) > PAGES
    assert served() - before <= PAGES


@pytest.mark.skipif(INSTALLED is None, reason="nginx is not installed")
def test_each_call_of_a_burst_is_stored_or_refused_with_what_the_retry_policy_repeats(
    database: TestDatabase, start_service: StartService, tmp_path: Path
) -> None:
    # Few places, so that some calls are refused however slowly they arrive.
    places = {"LEADKEEP_MAX_CONCURRENT_CALLS": "50"}
    service = start_service(database_url=database.serve_url, settings=places)
    metadata = service.metadata("chatbot")
    with Nginx(tmp_path, service.grpc_address, service.http_address) as nginx, ExitStack() as channels:
        stubs = [
            service.stub(channels.enter_context(grpc.insecure_channel(nginx.grpc_address, options=[*ALONE, ("n", n)])))
            for n in range(CONNECTIONS)
        ]
        calls = [
            stubs[n % CONNECTIONS].CreateLead.future(
                pb.CreateLeadRequest(lead=somebody()), timeout=120, metadata=metadata
            )
            for n in range(BURST)
        ]
        answers = Counter(map(answer_of, calls))
    assert answers.keys() == {"OK", "QUEUE_FULL"}, answers
