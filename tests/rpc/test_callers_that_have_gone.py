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
from tests.harness.running_service import RunningService


async def test_work_that_fails_after_its_callers_deadline_is_logged_without_its_text() -> None:
    async def fails_late(_call: Call, _request: Message) -> Message:
        await asyncio.sleep(0.05)
        raise RuntimeError("+8801712345678")

    work = Work()
    call = Call(rpc="CreateLead", door="grpc", peer="", metadata={}, deadline=time.monotonic() + 0.01, id="this-call")
    with capture_logs() as lines:
        with pytest.raises(DeadlineTooShortError):
            await deadline(work)(call, pb.CreateLeadRequest(), fails_late)
        await work.finish(1)
    assert [(line["request_id"], line["error"]) for line in lines] == [("this-call", "RuntimeError")]
    assert "8801712345678" not in repr(lines)


def test_two_tokens_in_one_call_are_none(service: RunningService) -> None:
    with service.channel() as channel:
        call = service.stub(channel).GetLead
        metadata = [*service.metadata("agent"), *service.metadata("admin")]
        with pytest.raises(grpc.RpcError) as refused:
            call(pb.GetLeadRequest(id="01a20a83-a794-720b-8b2f-a6136ae67e03"), metadata=metadata, timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
