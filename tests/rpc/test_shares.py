"""What one caller may take of what all need."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import LeadkeepError, QueueFullError, TokenMissingError
from service.rpc import limits
from service.rpc.call import Call
from service.rpc.limits import FAILURES, HOLD_SECONDS, MOST_HELD, Places, strangers
from service.scopes import Caller, Scope
from tests.harness.answers import Failure, failure_of
from tests.harness.leads import somebody
from tests.harness.processes import until
from tests.harness.running_service import RunningService
from tests.harness.strangers import LIST_LEADS, Calls, besiege


def taken(places: Places, subject: str, wanted: int, request: Message | None = None) -> list[Call]:
    """The calls of a subject that get their places, of so many."""
    got = []
    for _ in range(wanted):
        try:
            places.take()
        except QueueFullError:
            break
        call = a_call(subject=subject)
        try:
            places.claim(call, request or pb.GetLeadRequest())
            got.append(call)
        except QueueFullError:
            places.leave(call)
    return got


@pytest.mark.parametrize(("limit", "share"), [(1, 1), (2, 2), (3, 3), (4, 3), (512, 384)])
def test_a_subject_alone_gets_three_quarters_of_the_places(limit: int, share: int) -> None:
    assert len(taken(Places(limit), "greedy", 10_000)) == share


def test_each_further_subject_finds_a_place() -> None:
    places = Places(512)
    shares = [len(taken(places, f"subject {number}", 10_000)) for number in range(4)]
    assert all(shares)
    assert sum(shares) < 512


def test_a_place_that_is_left_can_be_taken_again() -> None:
    places = Places(4)
    for _ in range(3):
        got = taken(places, "one", 10)
        assert len(got) == 3
        for call in got:
            places.leave(call)


@pytest.mark.parametrize(("limit", "pages"), [(1, 1), (16, 5), (512, 38)])
def test_a_page_takes_the_places_of_several_calls(limit: int, pages: int) -> None:
    places = Places(limit)
    got = taken(places, "reader", 10_000, pb.ListLeadsRequest())
    assert len(got) == pages
    for call in got:
        places.leave(call)
    assert len(taken(places, "reader", 10_000, pb.ListLeadsRequest())) == pages


def test_a_call_keeps_its_places_until_its_answer_is_taken() -> None:
    places = Places(4)
    got = taken(places, "one", 10)
    for call in got:
        places.leave(call)
    assert all(call.keep_places for call in got)
    taking = [call.keep_places(call) for call in got if call.keep_places]
    assert taken(places, "one", 10) == []
    assert len(taken(places, "two", 10)) == 1
    for take in taking:
        take()
    assert taken(places, "one", 10)


def a_call(peer: str = "ipv4:127.0.0.1:4711", *, subject: str | None = None) -> Call:
    caller = Caller(subject, frozenset()) if subject is not None else None
    return Call(rpc="GetLead", transport="grpc", peer=peer, metadata={}, deadline=time.monotonic() + 5, caller=caller)


async def tokenless(_call: Call, _request: Message) -> Message:
    raise TokenMissingError


async def with_token(call: Call, request: Message) -> Message:
    call.caller = Caller("anybody", frozenset(Scope))
    return request


async def reasons(intercept: object, number: int, **call: str) -> Counter[str]:
    """The reasons that so many calls without a token get, one after the other."""
    counted: Counter[str] = Counter()
    for _ in range(number):
        try:
            await intercept(a_call(**call), pb.GetLeadRequest(), tokenless)  # type: ignore[operator]
        except LeadkeepError as error:
            counted[error.reason] += 1
    return counted


async def test_connection_without_good_tokens_is_slowed_down_and_refused() -> None:
    intercept = strangers()
    assert await reasons(intercept, FAILURES) == {"TOKEN_MISSING": FAILURES}
    began = time.monotonic()
    assert await reasons(intercept, 1) == {"QUEUE_FULL": 1}
    assert time.monotonic() - began >= HOLD_SECONDS * 0.9
    assert await reasons(intercept, 1, peer="ipv4:127.0.0.1:4712") == {"TOKEN_MISSING": 1}


async def test_good_tokens_are_looked_at_on_a_connection_that_also_floods() -> None:
    intercept = strangers()
    await intercept(a_call(), pb.GetLeadRequest(), with_token)
    assert await reasons(intercept, FAILURES) == {"TOKEN_MISSING": FAILURES}
    began = time.monotonic()
    looked_at = asyncio.ensure_future(intercept(a_call(), pb.GetLeadRequest(), with_token))
    await turns()
    assert looked_at.done(), "it was held"
    assert looked_at.result() == pb.GetLeadRequest()
    assert await reasons(intercept, 1) == {"TOKEN_MISSING": 1}
    assert time.monotonic() - began >= HOLD_SECONDS * 0.9


async def test_refused_connection_is_tried_again_a_second_later() -> None:
    intercept = strangers()
    await reasons(intercept, FAILURES)
    await asyncio.sleep(1.1)
    assert await reasons(intercept, 1) == {"TOKEN_MISSING": 1}


async def test_refusals_that_are_held_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOLD_SECONDS", 60)
    intercept = strangers()
    await reasons(intercept, FAILURES)
    held = [asyncio.create_task(reasons(intercept, 1)) for _ in range(MOST_HELD + 50)]
    await turns()
    assert sum(each.done() for each in held) == 50
    for each in held:
        each.cancel()


async def turns() -> None:
    """Let the event loop do whatever waits for nothing."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_callers_beside_a_flood_without_tokens_are_answered(service: RunningService) -> None:
    def refusal(call: grpc.Future[object]) -> Failure:
        error = call.exception()
        assert isinstance(error, grpc.RpcError)
        return failure_of(error)

    own = [("grpc.use_local_subchannel_pool", 1)]
    with (
        grpc.insecure_channel(service.grpc_address, options=own) as flooding,
        service.channel() as channel,
        ThreadPoolExecutor(8) as threads,
    ):
        flood = [
            service.stub(flooding).CreateLead.future(pb.CreateLeadRequest(lead=somebody()), timeout=60)
            for _ in range(1000)
        ]
        create, metadata = service.stub(channel).CreateLead, service.metadata("chatbot")

        def state(_: int) -> int:
            answer: pb.CreateLeadResponse = create(pb.CreateLeadRequest(lead=somebody()), timeout=15, metadata=metadata)
            return answer.state

        assert set(threads.map(state, range(100))) == {pb.SAVE_STATE_SAVED}
        refused = Counter(refusal(call).reason for call in flood)
    assert refused.keys() == {"TOKEN_MISSING", "QUEUE_FULL"}
    assert refused["QUEUE_FULL"] > 500


async def test_pages_that_a_subject_does_not_take_are_few_on_however_many_connections(service: RunningService) -> None:
    calls = 'leadkeep_calls_total{code="%s",door="grpc",rpc="ListLeads"}'
    token = service.token("agent", subject="unread")
    unread = Calls(LIST_LEADS, sent=5, half_close=True, window=0, token=token)
    host, _, port = service.grpc_address.rpartition(":")
    task = asyncio.create_task(besiege(unread, (host, int(port)), (host, 0), 60))
    await until(lambda: service.metric(calls % "RESOURCE_EXHAUSTED") > 100)
    # 38, and some that begin between the end of one's work and the sending of its answer.
    assert 0 < service.metric(calls % "OK") < 60

    def list_as(subject: str) -> str:
        with service.channel() as channel:
            request, metadata = pb.ListLeadsRequest(), service.metadata("agent", subject=subject)
            call = service.stub(channel).ListLeads.with_call
            try:
                call(request, timeout=10, metadata=metadata)
            except grpc.RpcError as error:
                return failure_of(error).reason
            return "OK"

    assert await asyncio.to_thread(list_as, "unread") == "QUEUE_FULL"
    create = pb.CreateLeadRequest(lead=somebody())
    with service.channel() as channel:  # its other calls find places
        metadata = service.metadata("chatbot", subject="unread")
        assert await asyncio.to_thread(service.stub(channel).CreateLead, create, timeout=10, metadata=metadata)
    assert await asyncio.to_thread(list_as, "another") == "OK"
    task.cancel()
    await asyncio.wait({task})
    await until(lambda: list_as("unread") == "OK")
