"""What a generated client puts on the wire and reads from it, while grpc_testing plays the server."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import grpc
import grpc_testing
import pytest
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.errors import DuplicateLeadError, LeadkeepError, QueueFullError
from service.rpc.call import SERVICE
from service.rpc.connections import STATUS_DETAILS
from service.rpc.status import status_of
from tests.harness.answers import fails
from tests.harness.leads import somebody

BEARER = (("authorization", "Bearer TOKEN"),)


@pytest.fixture
def channel() -> Iterator[grpc_testing.Channel]:
    made = grpc_testing.channel([SERVICE], grpc_testing.strict_real_time())
    yield made
    made.close()


def refuse(channel: grpc_testing.Channel, error: LeadkeepError) -> None:
    """Answer the waiting call as the gRPC endpoint does."""
    _, _, call = channel.take_unary_unary(SERVICE.methods_by_name["CreateLead"])
    status = status_of(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    call.terminate(None, ((STATUS_DETAILS, status.SerializeToString()),), code, status.message)


def test_token_and_request_id_are_what_a_client_sends(channel: grpc_testing.Channel) -> None:
    stub = lead_service_pb2_grpc.LeadServiceStub(channel)
    answer = stub.CreateLead.future(pb.CreateLeadRequest(lead=somebody(), request_id="r-1"), metadata=BEARER)
    metadata, request, call = channel.take_unary_unary(SERVICE.methods_by_name["CreateLead"])
    call.terminate(pb.CreateLeadResponse(id="made"), (), grpc.StatusCode.OK, "")
    assert ("authorization", "Bearer TOKEN") in metadata
    assert request.request_id == "r-1"
    assert answer.result().id == "made"


def test_client_reads_which_field_met_a_lead(channel: grpc_testing.Channel) -> None:
    stub = lead_service_pb2_grpc.LeadServiceStub(channel)
    answer = stub.CreateLead.future(pb.CreateLeadRequest(lead=somebody()), metadata=BEARER)
    met = DuplicateLeadError(phone_lead_id=None, nid_lead_id=uuid4(), visible=frozenset())
    refuse(channel, met)
    failure = fails(answer.result)
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_NID")
    assert failure.metadata == {"fields": "nid"}


def test_client_reads_when_to_try_again(channel: grpc_testing.Channel) -> None:
    stub = lead_service_pb2_grpc.LeadServiceStub(channel)
    answer = stub.CreateLead.future(pb.CreateLeadRequest(lead=somebody()), metadata=BEARER)
    refuse(channel, QueueFullError(retry_after=1.5))
    failure = fails(answer.result)
    assert (failure.code, failure.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1.5)
