"""A real endpoint on a real socket, with the real chain, in front of a servicer that answers what the test tells it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from google.protobuf import message_factory
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from prometheus_client import CollectorRegistry

from service.errors import TokenExpiredError, TokenInvalidError
from service.http.endpoint import HttpEndpoint
from service.rpc.call import SERVICE, Call, Handler, Work, chained
from service.rpc.interceptors import standard_chain
from service.rpc.metrics import Metrics
from service.rpc.readiness import Readiness, ReadinessReason
from service.scopes import ROLES, Caller
from service.use_cases.confirmation import ConfirmationService
from tests.harness.masking import unmasking_into

LEAD_ID = "01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f"

STORY = {
    "name": "John Doe",
    "phone": "+1234567890",
    "nid": "123456789",
    "address": "123 Main St, City, Country",
    "interested_policy": "Term Life 20-Year",
    "email": "john@example.com",
}


class Servicer:
    """Remembers what it was asked, and answers or raises what the test says."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.requests: list[Message] = []
        self.answers: dict[str, Message | Exception] = {}
        self.before: Callable[[], Awaitable[None]] | None = None

    def __getattr__(self, rpc: str) -> Handler:
        method = SERVICE.methods_by_name[rpc]

        async def answer(call: Call, request: Message) -> Message:
            self.calls.append(call)
            self.requests.append(request)
            if self.before is not None:
                await self.before()
            outcome = self.answers.get(rpc) or message_factory.GetMessageClass(method.output_type)()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return answer


class FixedReadiness(Readiness):
    """Says what a test sets."""

    def __init__(self) -> None:
        self.ready, self.degraded = True, False
        self.reasons: tuple[ReadinessReason, ...] = ()


async def verify(token: str) -> Caller:
    if token == "expired":
        raise TokenExpiredError
    if token not in ROLES:
        raise TokenInvalidError
    return Caller(token, ROLES[token])


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def readiness() -> FixedReadiness:
    return FixedReadiness()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def methods(servicer: Servicer, metrics: Metrics) -> Mapping[str, Handler]:
    chain = standard_chain(
        verify=verify,
        explain=ConfirmationService().explain,
        database_away=lambda: False,
        unmasking=unmasking_into(),
        metrics=metrics,
        max_concurrent_calls=64,
        default_deadline=10,
        work=Work(),
        new_id=uuid4,
    )
    return chained(chain, servicer)


def endpoint_of(methods: Mapping[str, Handler] | None, **given: Any) -> HttpEndpoint:
    """An endpoint on a free port, unless `given`, its other arguments, says something else."""
    options: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "tls": None,
        "readiness": FixedReadiness(),
        "registry": CollectorRegistry(),
    }
    return HttpEndpoint(methods, **options | given)


@contextlib.asynccontextmanager
async def serving(methods: Mapping[str, Handler] | None, **given: Any) -> AsyncIterator[HttpEndpoint]:
    """A started endpoint, as `endpoint_of` makes it."""
    started = endpoint_of(methods, **given)
    await started.start()
    try:
        yield started
    finally:
        await started.stop(0)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, on which nothing takes longer than 20 seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


@pytest_asyncio.fixture
async def endpoint(
    methods: Mapping[str, Handler], readiness: FixedReadiness, metrics: Metrics
) -> AsyncIterator[HttpEndpoint]:
    async with serving(methods, readiness=readiness, registry=metrics.registry) as started:
        yield started


@pytest_asyncio.fixture
async def client(endpoint: HttpEndpoint) -> AsyncIterator[httpx.AsyncClient]:
    """An admin, who sees everything."""
    headers = {"authorization": "Bearer admin"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{endpoint.port}", headers=headers, timeout=20) as client:
        yield client


def lead(**changes: object) -> pb.Lead:
    fields: dict[str, object] = {**STORY, "id": LEAD_ID, "status": "LEAD_STATUS_NEW", "version": 1, **changes}
    return pb.Lead(**fields)  # type: ignore[arg-type] # the fields' types differ


def submission(**fields: str) -> pb.CreateLeadRequest:
    """What the servicer gets of these fields."""
    return pb.CreateLeadRequest(lead=pb.Lead(**fields))  # type: ignore[arg-type] # they are texts


def created(state: int = pb.SAVE_STATE_SAVED) -> pb.CreateLeadResponse:
    return pb.CreateLeadResponse(
        id=LEAD_ID,
        message="Lead created successfully",
        state=state,  # type: ignore[arg-type] # an enum value is an int
        confirmation=pb.Confirmation(text="Thank you, José", locale="es"),
        lead=lead(),
    )
