"""Calls that lost their time in the queue before the service are refused with what the retry policy repeats; a caller
who asks for too little gets DEADLINE_TOO_SHORT."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.errors import LeadkeepError
from service.rpc import interceptors
from service.rpc.call import MANY, Call, Handler, QueueWait, Work, chained
from service.rpc.interceptors import FEWEST_SECONDS
from service.rpc.metrics import Metrics
from service.rpc.server import GrpcServer
from service.scopes import Caller, Scope
from service.use_cases.confirmation import ConfirmationService
from tests.harness.masking import unmasking_into


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def noted(wait: QueueWait, clock: Clock, *left: float, seconds: int = 3, calls: int = MANY) -> float:
    """The estimate after some seconds with so many calls each, which have so much time left in turn."""
    estimate = 0.0
    for _ in range(seconds):
        clock.now += 1
        for each in itertools.islice(itertools.cycle(left), calls):
            estimate = wait.seconds(each)
    return estimate


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wait(clock: Clock) -> QueueWait:
    return QueueWait(clock)


def test_calls_with_the_time_that_is_usual_have_not_waited(wait: QueueWait, clock: Clock) -> None:
    assert noted(wait, clock, 5.0, 15.0) == pytest.approx(0, abs=0.1)


def test_what_all_calls_have_less_than_usual_they_have_waited(wait: QueueWait, clock: Clock) -> None:
    noted(wait, clock, 5.0, 15.0)
    assert noted(wait, clock, 0.1, 10.1) == pytest.approx(4.9, abs=0.1)


def test_an_overload_of_minutes_is_no_new_usual(wait: QueueWait, clock: Clock) -> None:
    noted(wait, clock, 15.0)
    assert noted(wait, clock, 0.1, seconds=600) > 5


def test_who_asks_for_little_beside_others_has_not_waited(wait: QueueWait, clock: Clock) -> None:
    assert noted(wait, clock, 0.05, 15.0) == pytest.approx(0, abs=0.1)


def test_what_waited_while_the_process_stood_still_has_waited(wait: QueueWait, clock: Clock) -> None:
    noted(wait, clock, 15.0)
    clock.now += 10
    assert noted(wait, clock, 4.0, seconds=1) == pytest.approx(11, abs=0.1)


def test_few_calls_with_little_time_have_not_waited(wait: QueueWait, clock: Clock) -> None:
    noted(wait, clock, 15.0)
    assert noted(wait, clock, 0.05, calls=MANY // 3) == 0


def test_callers_who_always_ask_for_little_have_not_waited(wait: QueueWait, clock: Clock) -> None:
    assert noted(wait, clock, 0.05) == pytest.approx(0, abs=0.1)


async def anybody(_token: str) -> Caller:
    return Caller("anybody", frozenset(Scope))


class Leads:
    """Notes how much time each call had left that was begun."""

    def __init__(self, takes: float = 0.0) -> None:
        self._takes = takes
        self.begun_with: list[float] = []

    async def GetLead(self, call: Call, _request: Message) -> Message:  # noqa: N802
        self.begun_with.append(call.deadline - time.monotonic())
        await asyncio.sleep(self._takes)
        return pb.GetLeadResponse()

    def __getattr__(self, _name: str) -> object:
        return self.GetLead


def served(leads: Leads) -> dict[str, Handler]:
    chain = interceptors.standard_chain(
        verify=anybody,
        explain=ConfirmationService().explain,
        database_away=lambda: False,
        unmasking=unmasking_into(),
        metrics=Metrics(),
        max_concurrent_calls=10_000,
        default_deadline=10,
        work=Work(),
        new_id=lambda: pytest.fail("every call has an id"),
    )
    return chained(chain, leads)


@pytest.mark.parametrize(
    ("left", "waited", "reason"),
    [
        (0.3, 4.7, "QUEUE_FULL"),
        (-0.1, 5.1, "QUEUE_FULL"),
        (-0.1, 0.0, "DEADLINE_TOO_SHORT"),
        (0.3, 0.0, None),
        (10.0, 20.0, None),
    ],
)
async def test_a_call_is_not_begun_that_lost_more_time_than_it_has_left(
    left: float, waited: float, reason: str | None
) -> None:
    leads = Leads()
    call = Call(
        rpc="GetLead",
        transport="grpc",
        peer="",
        metadata={"authorization": "Bearer anybody", "x-request-id": "1"},
        deadline=time.monotonic() + left,
        waited=waited,
    )
    handle = served(leads)["GetLead"]
    try:
        await handle(call, pb.GetLeadRequest())
        refused = None
    except LeadkeepError as error:
        refused = error.reason
    assert refused == reason
    assert len(leads.begun_with) == (0 if reason else 1)


BURST = 1000
TIMEOUT = 3.0
CONNECTIONS = 16


def reason_of(call: Any) -> str:
    """The service's reason, or the code where the answer is not the service's."""
    if call.code() is grpc.StatusCode.OK:
        return "OK"
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            if any(detail.Unpack(info) for detail in status_pb2.Status.FromString(value).details):
                return str(info.reason)
    return str(call.code().name)


async def test_calls_that_a_busy_service_takes_too_late_are_not_told_to_ask_for_more_time() -> None:
    leads = Leads(takes=TIMEOUT / 10)
    server = GrpcServer(served(leads), address="127.0.0.1:0", tls=None)
    await server.start()
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CONNECTIONS)
    ]
    stubs = [lead_service_pb2_grpc.LeadServiceStub(channel) for channel in channels]
    metadata = [("authorization", "Bearer anybody"), ("x-request-id", "1")]

    def send(calls: int, sent: threading.Event | None = None) -> list[Any]:
        request, each = pb.GetLeadRequest(id="x"), [stubs[n % CONNECTIONS].GetLead for n in range(calls)]
        futures = [get.future(request, metadata=metadata, timeout=TIMEOUT) for get in each]
        if sent is not None:
            sent.set()
        return futures

    assert {await asyncio.to_thread(reason_of, call) for call in send(CONNECTIONS)} == {"OK"}
    leads.begun_with.clear()
    sent = threading.Event()
    sending = asyncio.get_running_loop().run_in_executor(None, send, BURST, sent)
    # The process stands still while the burst arrives, and until even the last one has hardly any time left.
    sent.wait()
    time.sleep(TIMEOUT - FEWEST_SECONDS)  # noqa: ASYNC251
    answers = Counter([await asyncio.to_thread(reason_of, call) for call in await sending])
    assert answers.keys() <= {"OK", "QUEUE_FULL", "DEADLINE_TOO_SHORT", "DEADLINE_EXCEEDED"}, answers
    # So many are taken before it is known that they waited; on an idle machine they are answered in time.
    assert answers["DEADLINE_TOO_SHORT"] < MANY, answers
    assert len(leads.begun_with) < MANY
    for channel in channels:
        channel.close()
    await server.stop(0)
