"""What happens to work whose caller did not wait for it."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from structlog.testing import capture_logs

from service.errors import DeadlineTooShortError
from service.rpc.call import Call, Work
from service.rpc.interceptors import deadline
from tests.harness.processes import until
from tests.harness.running_service import RunningService


async def test_work_that_fails_after_its_callers_deadline_is_logged_without_its_text() -> None:
    gone = asyncio.Event()

    async def fails_late(_call: Call, _request: Message) -> Message:
        await gone.wait()
        raise RuntimeError("+8801712345678")

    work = Work()
    call = Call(
        rpc="CreateLead", transport="grpc", peer="", metadata={}, deadline=time.monotonic() + 0.2, id="this-call"
    )
    with capture_logs() as lines:
        with pytest.raises(DeadlineTooShortError):
            await deadline(work, 10)(call, pb.CreateLeadRequest(), fails_late)
        gone.set()
        await work.finish(20)
    assert [(line["request_id"], line["error"]) for line in lines] == [("this-call", "RuntimeError")]
    assert "8801712345678" not in repr(lines)


async def test_work_that_fails_in_the_moment_in_which_its_caller_goes_is_heard_of() -> None:
    begun, failing = asyncio.Event(), asyncio.Event()

    async def fails(_call: Call, _request: Message) -> Message:
        begun.set()
        await failing.wait()
        raise RuntimeError("+8801712345678")

    work = Work()
    call = Call(
        rpc="CreateLead", transport="grpc", peer="", metadata={}, deadline=time.monotonic() + 60, id="this-call"
    )
    with capture_logs() as lines:
        caller = asyncio.create_task(deadline(work, 10)(call, pb.CreateLeadRequest(), fails))
        await begun.wait()
        failing.set()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await work.finish(20)
        await until(lambda: lines)
    assert [(line["request_id"], line["error"]) for line in lines] == [("this-call", "RuntimeError")]


async def test_work_counts_until_it_has_ended() -> None:
    going_on = asyncio.Event()

    async def goes_on() -> Message:
        await going_on.wait()
        return pb.CreateLeadResponse()

    work = Work()
    task, _ = work.begin(goes_on())
    await work.finish(0.01)
    assert not task.done()
    going_on.set()
    await work.finish(20)
    assert task.done()


def test_two_tokens_in_one_call_are_none(service: RunningService) -> None:
    with service.channel() as channel:
        call = service.stub(channel).GetLead
        metadata = [*service.metadata("agent"), *service.metadata("admin")]
        with pytest.raises(grpc.RpcError) as refused:
            call(pb.GetLeadRequest(id="01a20a83-a794-720b-8b2f-a6136ae67e03"), metadata=metadata, timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
