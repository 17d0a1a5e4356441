from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused
from tests.rpc.conftest import Connect

NO_IDS = ["", "7", "not-a-uuid", "01a20a638ee1744aafa5abde66ecd311", "{01a20a63-8ee1-744a-afa5-abde66ecd311}"]


@pytest.mark.parametrize("lead_id", NO_IDS)
@pytest.mark.parametrize(
    ("rpc", "path"),
    [
        ("GetLead", "id"),
        ("AssignLead", "id"),
        ("ListStatusChanges", "lead_id"),
        ("ListAssignments", "lead_id"),
        ("ListResubmissions", "lead_id"),
    ],
)
def test_what_is_no_id_is_a_violation(admin: Client, rpc: str, path: str, lead_id: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.call(rpc, getattr(pb, f"{rpc}Request")(**{path: lead_id}))

    assert list(refusal.violations) == [path]


def test_an_update_names_its_lead_by_the_leads_id(admin: Client) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.call("UpdateLead", pb.UpdateLeadRequest(lead=pb.Lead(name="Ada")))

    assert list(refusal.violations) == ["lead.id"]


@pytest.mark.parametrize("status", [pb.LEAD_STATUS_UNSPECIFIED, 99, -1])
def test_a_status_that_is_none_is_a_violation(admin: Client, status: Any) -> None:
    lead_id = admin.create(somebody()).id

    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.move(lead_id, status)
    assert list(refusal.violations) == ["status"]

    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.list_leads(statuses=[status])
    assert list(refusal.violations) == ["statuses"]


def test_a_negative_version_is_a_violation(admin: Client) -> None:
    lead_id = admin.create(somebody()).id

    changes: list[Callable[[], pb.Lead]] = [
        lambda: admin.move(lead_id, pb.LEAD_STATUS_CONTACTED, expected_version=-1),
        lambda: admin.assign(lead_id, "Sam", expected_version=-1),
        lambda: admin.correct(lead_id, name="Ada", expected_version=-1),
    ]
    for change in changes:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            change()
        assert list(refusal.violations) == ["expected_version"]


@pytest.mark.parametrize("name", ["created_after", "created_before"])
@pytest.mark.parametrize(
    "moment", [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(seconds=253402300800)]
)
def test_a_moment_beyond_the_calendar_is_a_violation(admin: Client, name: str, moment: Timestamp) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.list_leads(**{name: moment})

    assert list(refusal.violations) == [name]


@pytest.mark.parametrize("seconds", [-62135596800, 253402300799])
def test_the_first_and_the_last_second_of_the_calendar_are_moments(admin: Client, seconds: int) -> None:
    admin.list_leads(created_after=Timestamp(seconds=seconds))


def test_an_unknown_view_is_a_violation(admin: Client) -> None:
    lead_id = admin.create(somebody()).id

    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.get(lead_id, view=9)  # type: ignore[arg-type]

    assert list(refusal.violations) == ["view"]


def _raw_call(service: RunningService, raw: bytes, metadata: list[tuple[str, str]]) -> None:
    with service.channel() as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/leadkeep.v1.LeadService/CreateLead", request_serializer=None, response_deserializer=None
        )
        call(raw, metadata=tuple(metadata), timeout=10)


BROKEN = [b"\xff\xff\xff", b"\x0a\x03\x12\x01\xff"]
"""No message at all; a lead whose name is no UTF-8."""


@pytest.mark.parametrize("raw", BROKEN)
def test_bytes_that_are_no_request_are_a_violation(service: RunningService, raw: bytes) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        _raw_call(service, raw, service.metadata("admin"))

    assert list(refusal.violations) == ["request"]


def test_that_a_request_cannot_be_read_is_told_only_to_who_may_make_the_call(service: RunningService) -> None:
    with refused(StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"):
        _raw_call(service, BROKEN[0], [])
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
        _raw_call(service, BROKEN[0], service.metadata("agent"))


def test_a_field_of_a_newer_contract_is_ignored(service: RunningService, admin: Client) -> None:
    unknown_field = b"\xa2\x06\x03new"  # number 100
    request = pb.CreateLeadRequest(lead=somebody()).SerializeToString() + unknown_field

    _raw_call(service, request, service.metadata("admin"))


def test_an_answer_names_the_call_and_counts_retries(service: RunningService) -> None:
    # grpc's own retries would take the header of earlier attempts away from a first attempt.
    with grpc.insecure_channel(service.grpc_address, options=[("grpc.enable_retries", 0)]) as channel:
        _, call = service.stub(channel).ListLeads.with_call(
            pb.ListLeadsRequest(),
            metadata=[*service.metadata("admin"), ("x-request-id", "call-42"), ("grpc-previous-rpc-attempts", "2")],
            timeout=10,
        )

    trailing = dict(call.trailing_metadata())
    assert trailing["x-request-id"] == "call-42"
    assert trailing["leadkeep-retries"] == "2"


def test_a_message_of_10_mb_is_refused_and_the_service_goes_on(connect: Connect) -> None:
    chatbot = connect("chatbot")

    with pytest.raises(grpc.RpcError) as raised:
        chatbot.create(somebody(notes="x" * 10_000_000))

    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
    chatbot.create(somebody())


@pytest.mark.parametrize("time", ["created", "updated"])
def test_a_moment_between_two_microseconds_is_behind_the_first(admin: Client, time: str) -> None:
    lead = admin.create(somebody()).lead
    found = {}
    for nanos in (0, 1, 999):
        moment = Timestamp()
        moment.FromNanoseconds(getattr(lead, f"{time}_at").ToNanoseconds() + nanos)
        for side in ("after", "before"):
            found[nanos, side] = lead.id in admin.listed_ids(reference=lead.reference, **{f"{time}_{side}": moment})
    assert {key for key, is_found in found.items() if is_found} == {(0, "after"), (1, "before"), (999, "before")}


def test_the_last_moment_of_all_is_one(admin: Client) -> None:
    last = Timestamp(seconds=253402300799, nanos=999_999_999)
    assert admin.list_leads(created_before=last, page_size=1).leads
    assert not admin.list_leads(created_after=last).leads
