"""What the chain does around every call, link by link and as a whole at a running service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc
from structlog.testing import capture_logs

from service.errors import LeadkeepError, LeadNotFoundError, QueueFullError, StorageUnavailableError
from service.rpc import interceptors
from service.rpc.call import SERVICE, Call, Handler, Interceptor, Work, answer_by, chained, compose
from service.rpc.limits import Places
from service.rpc.metrics import Metrics
from service.rpc.server import GrpcServer
from service.scopes import SCOPES, Caller, Scope
from service.storage.database.failures import retry_scope
from service.use_cases.confirmation import ConfirmationService
from tests.harness import faults
from tests.harness.answers import fails
from tests.harness.leads import somebody
from tests.harness.masking import unmasking_into
from tests.harness.policy import RETRY_POLICY
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

# The running service


@pytest.fixture(scope="module")
def database(service_database: TestDatabase) -> TestDatabase:
    faults.gated_inserts(service_database.admin_url)
    return service_database


@pytest.fixture(scope="module")
def service(database: TestDatabase, service: RunningService) -> RunningService:
    return service


Stub = lead_service_pb2_grpc.LeadServiceStub


def bearer(service: RunningService) -> dict[str, str]:
    return {"authorization": f"Bearer {service.token()}"}


def trailing(call: grpc.Call) -> dict[str, str | bytes]:
    return dict(call.trailing_metadata())


def lines_of(service: RunningService, request_id: str, event: str) -> list[dict[str, object]]:
    """The log's lines of one call; the one of its end is written after the caller has its answer."""
    wanted: list[dict[str, object]] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        lines = [json.loads(line) for line in service.log().splitlines() if request_id in line]
        wanted = [line for line in lines if line["event"] == event]
        if any(line["event"] == "call" for line in lines):
            break
        time.sleep(0.02)
    return wanted


def stored(database: TestDatabase, request_id: str) -> bool:
    return bool(faults.value_of(database.admin_url, f"SELECT count(*) FROM lead WHERE request_id = '{request_id}'"))


def create(service: RunningService, stub: Stub, *metadata: tuple[str, str]) -> grpc.Call:
    request = pb.CreateLeadRequest(lead=somebody())
    _, call = stub.CreateLead.with_call(request, metadata=[*service.metadata(), *metadata], timeout=10)
    assert isinstance(call, grpc.Call)
    return call


def test_callers_request_id_is_taken_over(service: RunningService, stub: Stub) -> None:
    assert trailing(create(service, stub, ("x-request-id", "chat-4711")))["x-request-id"] == "chat-4711"


@pytest.mark.parametrize(
    "unusable", ["", "two words", "x" * 129, 'a\tb"'], ids=["empty", "with a space", "too long", "with a tab"]
)
def test_unusable_request_id_is_replaced(service: RunningService, unusable: str) -> None:
    # Over HTTP: a gRPC client does not even send some of these.
    headers = {"x-request-id": unusable} | bearer(service)
    answer = httpx.get(f"{service.http_url}/api/leads", headers=headers)
    assert UUID(answer.headers["x-request-id"])


def test_failed_call_has_its_request_id_too(service: RunningService, stub: Stub) -> None:
    metadata = [("x-request-id", "chat-4712")]
    failure = fails(lambda: stub.GetLead(pb.GetLeadRequest(id=str(uuid4())), metadata=metadata, timeout=10))
    assert failure.trailing["x-request-id"] == "chat-4712"


def test_call_without_retries_says_zero(service: RunningService, stub: Stub) -> None:
    assert trailing(create(service, stub))["leadkeep-retries"] == "0"


def test_clients_attempts_are_counted_and_logged(service: RunningService) -> None:
    # Over HTTP: a gRPC client writes this header itself, as the tests with the recommended policy show.
    request_id = str(uuid4())
    headers = {"grpc-previous-rpc-attempts": "2", "x-request-id": request_id}
    answer = httpx.get(f"{service.http_url}/api/leads", headers=headers | bearer(service))
    assert answer.headers["leadkeep-retries"] == "2"
    (line,) = lines_of(service, request_id, "client retried")
    assert (line["rpc"], line["attempt"]) == ("ListLeads", 3)


@pytest.mark.parametrize("nonsense", ["-1", "many", "1.5", "٣"])
def test_nonsense_in_the_number_of_attempts_counts_nothing(service: RunningService, nonsense: str) -> None:
    headers = {
        b"authorization": f"Bearer {service.token()}".encode(),
        b"grpc-previous-rpc-attempts": nonsense.encode(),
    }
    answer = httpx.get(f"{service.http_url}/api/leads", headers=headers)
    assert (answer.status_code, answer.headers["leadkeep-retries"]) == (200, "0")


def test_lock_timeouts_are_retried_until_the_lock_is_released(
    service: RunningService, stub: Stub, database: TestDatabase
) -> None:
    lead = stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=service.metadata()).lead
    request_id = str(uuid4())
    with faults.locked_lead(database.admin_url, lead.id) as holder, ThreadPoolExecutor(1) as threads:
        posted = threads.submit(
            httpx.post,
            f"{service.http_url}/api/leads/{lead.id}/status",
            json={"status": "LEAD_STATUS_CONTACTED"},
            headers={"x-request-id": request_id, "grpc-previous-rpc-attempts": "3"} | bearer(service),
            timeout=20,
        )
        retried = re.compile(rf'"event":"storage retried".*{request_id}|{request_id}.*"event":"storage retried"')
        assert eventually(lambda: bool(retried.search(service.log())), within=30)
        holder.rollback()
        answer = posted.result()
    assert answer.status_code == 200
    lines = lines_of(service, request_id, "storage retried")
    assert lines
    assert answer.headers["leadkeep-retries"] == str(3 + len(lines))
    assert [line["attempt"] for line in lines] == list(range(1, len(lines) + 1))
    assert {(line["rpc"], line["cause"]) for line in lines} == {("UpdateStatus", "55P03")}
    assert all(isinstance(line["wait_ms"], float) and line["wait_ms"] >= 0 for line in lines)


@pytest.mark.parametrize("sqlstate", ["40P01", "40001", "57P01", "53300"])
def test_passing_faults_of_the_storage_are_retried(
    service: RunningService, stub: Stub, database: TestDatabase, sqlstate: str
) -> None:
    request_id = str(uuid4())
    with faults.failing_inserts(database.admin_url, sqlstate, times=2):
        call = create(service, stub, ("x-request-id", request_id))
    assert trailing(call)["leadkeep-retries"] == "2"
    assert [line["cause"] for line in lines_of(service, request_id, "storage retried")] == [sqlstate] * 2


def test_lasting_fault_of_the_storage_is_not_retried(
    service: RunningService, stub: Stub, database: TestDatabase
) -> None:
    request = pb.CreateLeadRequest(lead=somebody())
    with faults.failing_inserts(database.admin_url, "22012", times=1):
        failure = fails(lambda: stub.CreateLead(request, metadata=service.metadata(), timeout=10))
    assert (failure.code, failure.trailing["leadkeep-retries"]) == (grpc.StatusCode.INTERNAL, "0")


def test_storage_retries_are_metrics_by_cause(service: RunningService, stub: Stub, database: TestDatabase) -> None:
    with faults.failing_inserts(database.admin_url, "40P01", times=1):
        create(service, stub)
    metrics = httpx.get(f"{service.http_url}/metrics").text
    assert re.search(r'^leadkeep_storage_retries_total\{cause="40P01",rpc="CreateLead"\} [1-9]', metrics, re.MULTILINE)


def test_hanging_up_does_not_cancel_the_work(service: RunningService, stub: Stub, database: TestDatabase) -> None:
    request_id = str(uuid4())
    request = pb.CreateLeadRequest(lead=somebody(name=faults.SLOW), request_id=request_id)
    with faults.closed_gate(database.admin_url):
        call = stub.CreateLead.future(request, metadata=[*service.metadata(), ("x-request-id", request_id)], timeout=20)
        assert eventually(lambda: faults.waits_at_gate(database.admin_url), within=30)
        call.cancel()
        (line,) = lines_of(service, request_id, "call")
        assert line["code"] == "CANCELLED"
        assert not stored(database, request_id)
    assert eventually(lambda: stored(database, request_id), within=20)


def test_hanging_up_at_the_json_endpoint_does_not_cancel_the_work(
    service: RunningService, database: TestDatabase
) -> None:
    request_id = str(uuid4())
    lead = somebody(name=faults.SLOW)
    body = json.dumps({sent.name: value for sent, value in lead.ListFields()})
    host, port = service.http_address.rsplit(":", 1)
    with faults.closed_gate(database.admin_url):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"POST /api/leads/ HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {service.token()}\r\n"
                f"content-type: application/json\r\nidempotency-key: {request_id}\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            assert eventually(lambda: faults.waits_at_gate(database.admin_url), within=30)
        assert not stored(database, request_id)
    assert eventually(lambda: stored(database, request_id), within=20)


def test_work_goes_on_after_the_deadline(service: RunningService, stub: Stub, database: TestDatabase) -> None:
    lead = stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=service.metadata(), timeout=10).lead
    faults.slow_changes(database.admin_url, 1.5)
    request = pb.UpdateStatusRequest(id=lead.id, status=pb.LEAD_STATUS_CONTACTED, reason=faults.SLOW)
    failure = fails(lambda: stub.UpdateStatus(request, metadata=service.metadata(), timeout=1))
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    moved = f"SELECT count(*) FROM lead WHERE id = '{lead.id}' AND status = 'contacted'"
    assert eventually(lambda: faults.value_of(database.admin_url, moved) == 1, within=20)


def test_a_create_that_takes_too_long_is_delayed_and_its_repeat_answers_the_lead(
    service: RunningService, stub: Stub, database: TestDatabase
) -> None:
    request = pb.CreateLeadRequest(lead=somebody(name=faults.SLOW), request_id=str(uuid4()))

    def answered() -> pb.CreateLeadResponse | None:
        try:
            response: pb.CreateLeadResponse = stub.CreateLead(request, metadata=service.metadata(), timeout=2)
        except grpc.RpcError as error:  # a busy machine answers too late
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017
            return None
        return response

    with faults.closed_gate(database.admin_url):
        first = next(filter(None, (answered() for _ in range(5))))
    assert first.state == pb.SAVE_STATE_DELAYED
    repeated = stub.CreateLead(request, metadata=service.metadata(), timeout=10)
    assert repeated.lead.nid == request.lead.nid
    assert eventually(lambda: stored(database, request.request_id), within=20)
    stored_as = faults.value_of(database.admin_url, f"SELECT id FROM lead WHERE request_id = '{request.request_id}'")
    assert first.id == repeated.id == str(stored_as)


def test_access_log_has_one_line_for_each_call(service: RunningService, stub: Stub) -> None:
    request_id = str(uuid4())
    create(service, stub, ("x-request-id", request_id))
    (line,) = lines_of(service, request_id, "call")
    assert isinstance(line.pop("milliseconds"), float)
    assert str(line.pop("peer")).startswith("ipv4:127.0.0.1:")
    assert line.pop("timestamp")
    assert line == {
        "event": "call",
        "level": "info",
        "rpc": "CreateLead",
        "door": "grpc",
        "code": "OK",
        "reason": None,
        "subject": "admin",
        "retries": 0,
        "request_id": request_id,
    }


def test_access_log_names_the_reason_of_a_failure(service: RunningService, stub: Stub) -> None:
    request_id = str(uuid4())
    metadata = [*service.metadata("agent"), ("x-request-id", request_id)]
    fails(lambda: stub.GetLead(pb.GetLeadRequest(id=str(uuid4())), metadata=metadata, timeout=10))
    (line,) = lines_of(service, request_id, "call")
    assert (line["code"], line["reason"], line["subject"]) == ("NOT_FOUND", "LEAD_NOT_FOUND", "agent")


def test_calls_at_both_endpoints_are_metrics(service: RunningService, stub: Stub) -> None:
    create(service, stub)
    httpx.get(f"{service.http_url}/api/leads")
    metrics = httpx.get(f"{service.http_url}/metrics").text
    assert 'leadkeep_calls_total{code="OK",door="grpc",rpc="CreateLead"}' in metrics
    assert 'leadkeep_calls_total{code="UNAUTHENTICATED",door="http",rpc="ListLeads"}' in metrics


# The chain without a service behind it


class Leads:
    """A servicer whose GetLead does what a test wants; no other method is called."""

    def __init__(self, get_lead: Callable[[Call], Awaitable[Message]]) -> None:
        self._get_lead = get_lead

    async def GetLead(self, call: Call, _request: Message) -> Message:  # noqa: N802
        return await self._get_lead(call)

    def __getattr__(self, _name: str) -> object:
        return self.GetLead


async def anybody(_token: str) -> Caller:
    return Caller("anybody", frozenset(Scope))


def a_call(**fields: object) -> Call:
    metadata = {"authorization": "Bearer anybody"}
    known = {"rpc": "GetLead", "transport": "grpc", "peer": "", "metadata": metadata, "deadline": time.monotonic() + 5}
    return Call(**(known | fields))  # type: ignore[arg-type]


def standard(work: Work | None = None, limit: int = 10, default_deadline: float = 10) -> list[Interceptor]:
    chain = interceptors.standard_chain(
        verify=anybody,
        explain=ConfirmationService().explain,
        database_away=lambda: False,
        unmasking=unmasking_into(),
        metrics=Metrics(),
        max_concurrent_calls=limit,
        default_deadline=default_deadline,
        work=work or Work(),
        new_id=uuid4,
    )
    return list(chain)


@asynccontextmanager
async def served(leads: Leads, *options: tuple[str, object]) -> AsyncIterator[Stub]:
    """The stub of a server in this loop."""
    server = GrpcServer(chained(standard(), leads), address="127.0.0.1:0", tls=None)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        yield lead_service_pb2_grpc.LeadServiceStub(channel)
    await server.stop(0)


BEARER = (("authorization", "Bearer anybody"),)


def test_order_of_the_chain() -> None:
    names = [link.__qualname__.split(".")[0] for link in standard()]
    assert names == [
        "access_log",
        "errors",
        "strangers",
        "deadline",
        "authentication",
        "availability",
        "unmasking",
        "retry_log",
    ]


def test_first_interceptor_is_outermost() -> None:
    order: list[str] = []

    def noting(name: str) -> Interceptor:
        async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
            order.append(name)
            response = await proceed(call, request)
            order.append(f"{name} after")
            return response

        return intercept

    async def handler(_call: Call, request: Message) -> Message:
        order.append("handler")
        return request

    asyncio.run(compose([noting("first"), noting("second")], handler)(a_call(), pb.GetLeadRequest()))
    assert order == ["first", "second", "handler", "second after", "first after"]


def test_every_method_of_the_contract_needs_a_scope() -> None:
    assert SCOPES.keys() == {method.name for method in SERVICE.methods}


ROUNDING = 1e-6


@pytest.mark.parametrize(("seconds", "margin"), [(10, 0.15), (1, 0.1), (0.5, 0.05), (0.2, 0.02), (0.01, 0.001)])
def test_answer_is_due_before_the_callers_deadline(seconds: float, margin: float) -> None:
    earliest = time.monotonic() + seconds - margin
    due = answer_by(seconds)
    assert earliest <= due <= time.monotonic() + seconds - margin + ROUNDING


@pytest.mark.parametrize(
    ("seconds", "default", "answered", "retried"),
    [
        *((None, 10, 10, 9.95), (None, 2, 2, 1.95), (None, 30, 30, 29.95), (5, 2, 4.85, 4.8), (60, 2, 59.85, 10)),
        (0.2, 10, 0.18, 0.162),
    ],
)
async def test_who_sets_no_deadline_gets_the_operators(
    seconds: float | None, default: float, answered: float, retried: float
) -> None:
    ends: list[float] = []

    async def look(call: Call, _request: Message) -> Message:
        scope = retry_scope.get()
        assert scope is not None
        ends.extend((call.deadline, scope.deadline))
        return pb.GetLeadResponse()

    began = time.monotonic()
    handler = compose(standard(default_deadline=default), look)
    await handler(a_call(deadline=answer_by(seconds)), pb.GetLeadRequest())
    took = time.monotonic() - began
    for end, wanted in zip(ends, (answered, retried), strict=True):
        assert -ROUNDING <= end - began - wanted <= took


async def test_a_short_call_that_runs_out_of_time_says_nothing_of_the_storage() -> None:
    async def waits_in_vain(_call: Call, _request: Message) -> Message:
        scope = retry_scope.get()
        assert scope is not None
        await asyncio.sleep(scope.deadline - time.monotonic())
        raise StorageUnavailableError

    with pytest.raises(LeadkeepError) as failed:
        await compose(standard(), waits_in_vain)(a_call(deadline=answer_by(0.3)), pb.GetLeadRequest())
    assert failed.value.reason == "DEADLINE_TOO_SHORT"


async def test_deadline_that_is_over_begins_nothing() -> None:
    began = []

    async def handler(call: Call, _request: Message) -> Message:
        began.append(call)
        return pb.GetLeadResponse()

    with pytest.raises(LeadkeepError) as failed:
        await compose(standard(), handler)(a_call(deadline=time.monotonic()), pb.GetLeadRequest())
    assert failed.value.reason == "DEADLINE_TOO_SHORT"
    assert not began


async def test_work_that_was_left_running_counts_against_the_bound() -> None:
    work, finish = Work(), asyncio.Event()

    async def handler(_call: Call, _request: Message) -> Message:
        await finish.wait()
        return pb.GetLeadResponse()

    handle = compose(standard(work, limit=1), handler)
    with pytest.raises(LeadkeepError) as late:
        await handle(a_call(deadline=time.monotonic() + 0.5), pb.GetLeadRequest())
    with pytest.raises(LeadkeepError) as refused:
        await handle(a_call(), pb.GetLeadRequest())
    assert (late.value.reason, refused.value.reason) == ("DEADLINE_TOO_SHORT", "QUEUE_FULL")
    finish.set()
    await work.finish(20)
    assert await handle(a_call(), pb.GetLeadRequest()) == pb.GetLeadResponse()


async def test_call_that_was_refused_gives_no_place_free() -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def handler(call: Call, request: Message) -> Message:
        begun.set()
        await finish.wait()
        return request

    handle = compose([interceptors.authentication(anybody, Places(1))], handler)
    running = asyncio.create_task(handle(a_call(), pb.GetLeadRequest()))
    await begun.wait()
    for _ in range(3):
        with pytest.raises(QueueFullError):
            await handle(a_call(), pb.GetLeadRequest())
    finish.set()
    await running


async def test_cancelled_caller_leaves_the_work_running() -> None:
    work, begun, finish, finished = Work(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(_call: Call, request: Message) -> Message:
        begun.set()
        await finish.wait()
        finished.set()
        return request

    handle = compose(standard(work), handler)
    caller = asyncio.create_task(handle(a_call(), pb.GetLeadRequest()))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    finish.set()
    await work.finish(20)
    assert finished.is_set()


async def test_text_of_an_unforeseen_error_goes_nowhere() -> None:
    async def fail(_call: Call) -> Message:
        raise ValueError("+8801712345678 of John")

    with capture_logs() as logs:
        async with served(Leads(fail)) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetLead(pb.GetLeadRequest(), metadata=BEARER, timeout=5)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    everything = f"{caught.value.details()}{caught.value.trailing_metadata()}{logs}"
    assert "8801712345678" not in everything
    assert "John" not in everything
    (line,) = [line for line in logs if line["event"] == "unexpected error"]
    assert line["error"] == "ValueError"
    assert line["incident_id"] in (caught.value.details() or "")
    assert any("test_chain.py" in place for place in line["at"])


async def test_error_of_the_domain_keeps_its_reason_through_the_chain() -> None:
    async def fail(_call: Call) -> Message:
        raise LeadNotFoundError

    async with served(Leads(fail)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetLead(pb.GetLeadRequest(), metadata=BEARER, timeout=5)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_servicer_that_is_cancelled_from_within_still_gives_a_status() -> None:
    async def fail(_call: Call) -> Message:
        raise asyncio.CancelledError

    async with served(Leads(fail)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetLead(pb.GetLeadRequest(), metadata=BEARER, timeout=5)
    assert caught.value.code() == grpc.StatusCode.INTERNAL


async def test_error_after_the_caller_has_gone_is_printed_by_nobody(caplog: pytest.LogCaptureFixture) -> None:
    gone, failed = asyncio.Event(), asyncio.Event()

    async def handler(_call: Call, _request: Message) -> Message:
        await gone.wait()
        failed.set()
        raise ValueError("+8801712345678")

    work = Work()
    with contextlib.suppress(LeadkeepError), capture_logs() as logs:
        await compose(standard(work), handler)(a_call(deadline=time.monotonic() + 0.2), pb.GetLeadRequest())
    gone.set()
    await work.finish(20)
    assert failed.is_set()
    assert "8801712345678" not in caplog.text + str(logs)


async def test_client_with_the_recommended_policy_repeats_what_was_unavailable() -> None:
    attempts: list[str] = []

    async def fail_twice(call: Call) -> Message:
        attempts.append(call.metadata.get("grpc-previous-rpc-attempts", "0"))
        if len(attempts) < 3:
            raise StorageUnavailableError
        return pb.GetLeadResponse()

    async with served(Leads(fail_twice), ("grpc.service_config", RETRY_POLICY)) as stub:
        call = stub.GetLead(pb.GetLeadRequest(), metadata=BEARER, timeout=20)
        await call
        told = dict(await call.trailing_metadata())
    assert attempts == ["0", "1", "2"]
    assert told["leadkeep-retries"] == "2"


async def test_client_with_the_recommended_policy_repeats_what_no_place_was_free_for() -> None:
    attempts = 0

    async def fail_once(_call: Call) -> Message:
        nonlocal attempts
        attempts += 1
        if attempts < 2:
            raise QueueFullError
        return pb.CreateLeadResponse()

    async with served(Leads(fail_once), ("grpc.service_config", RETRY_POLICY)) as stub:
        await stub.CreateLead(pb.CreateLeadRequest(), metadata=BEARER, timeout=20)
    assert attempts == 2


async def test_client_with_the_recommended_policy_does_not_repeat_what_cannot_help_before_its_deadline() -> None:
    attempts = 0

    async def fail(_call: Call) -> Message:
        nonlocal attempts
        attempts += 1
        raise QueueFullError(retry_after=30)

    async with served(Leads(fail), ("grpc.service_config", RETRY_POLICY)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CreateLead(pb.CreateLeadRequest(), metadata=BEARER, timeout=20)
    assert (refused.value.code(), attempts) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1)


async def test_client_with_the_recommended_policy_repeats_no_refusal() -> None:
    attempts = 0

    async def fail(_call: Call) -> Message:
        nonlocal attempts
        attempts += 1
        raise LeadNotFoundError

    async with served(Leads(fail), ("grpc.service_config", RETRY_POLICY)) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetLead(pb.GetLeadRequest(), metadata=BEARER, timeout=20)
    assert attempts == 1
