"""Words for the customer in the errors of CreateLead, as clients of both endpoints read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.failures import detail
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client

Connect = Callable[..., Client]


def failure(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def words_of(error: grpc.RpcError) -> tuple[str, str]:
    found = detail(error, error_details_pb2.LocalizedMessage)
    assert found is not None, error
    return found.locale, found.message


def violations_of(error: grpc.RpcError) -> dict[str, error_details_pb2.BadRequest.FieldViolation]:
    found = detail(error, error_details_pb2.BadRequest)
    assert found is not None, error
    return {each.field: each for each in found.field_violations}


def posted(service: RunningService, body: Mapping[str, object], **headers: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {service.token('chatbot')}"} | headers
    answer: dict[str, Any] = httpx.post(f"{service.http_url}/api/leads", json=body, headers=headers, timeout=10).json()
    return answer


@pytest.mark.parametrize(
    ("locale", "used", "words"),
    [("bn_BD", "bn", "আগে থেকেই"), ("es-419,en;q=0.5", "es", "Ya tenemos"), ("", "en", "already")],
)
def test_a_duplicate_is_told_in_the_customers_language(
    connect: Connect, chatbot: Client, locale: str, used: str, words: str
) -> None:
    lead = somebody()
    lead_id = chatbot.create(lead).id
    error = failure(lambda: connect("chatbot", subject="another").create(lead, locale=locale))
    told_in, told = words_of(error)
    assert told_in == used
    assert words in told
    assert not any(value in told for value in (lead_id, lead.phone, lead.nid, lead.name))


def test_each_violation_has_its_reason_and_its_words(chatbot: Client) -> None:
    lead = somebody(phone="none", nid="", address="x" * 501)
    error = failure(lambda: chatbot.create(lead, locale="es"))
    assert words_of(error)[1].startswith("Algunos de estos datos")
    found = violations_of(error)
    assert {name: each.reason for name, each in found.items()} == {
        "lead.phone": "PLACEHOLDER",
        "lead.nid": "REQUIRED",
        "lead.address": "TOO_LONG",
    }
    assert {each.localized_message.locale for each in found.values()} == {"es"}
    assert found["lead.nid"].localized_message.message == "Documento de identidad: rellene este dato, por favor."


def test_a_call_without_a_good_token_has_words_too(service: RunningService) -> None:
    with service.channel() as channel:
        request = pb.CreateLeadRequest(lead=somebody(), locale="bn")
        error = failure(lambda: service.stub(channel).CreateLead(request, timeout=10))
    assert words_of(error)[0] == "bn"


def test_other_calls_have_reasons_and_no_words(admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    error = failure(lambda: admin.correct(lead_id, phone="none"))
    assert detail(error, error_details_pb2.LocalizedMessage) is None
    violation = violations_of(error)["lead.phone"]
    assert (violation.reason, violation.HasField("localized_message")) == ("PLACEHOLDER", False)


def test_the_json_endpoint_tells_the_same(service: RunningService, admin: Client) -> None:
    lead = somebody()
    admin.create(lead)
    body = MessageToDict(lead, preserving_proto_field_name=True)
    duplicate = posted(service, body, **{"accept-language": "es-AR,es;q=0.9,en;q=0.5"})
    assert duplicate["reason"] == "DUPLICATE_PHONE"
    assert duplicate["localized_message"]["locale"] == "es"
    assert "Ya tenemos" in duplicate["localized_message"]["message"]


@pytest.mark.parametrize(
    ("body", "violation", "reason"),
    [({"phone": "none"}, "lead.phone", "PLACEHOLDER"), ({"phone": 8801711}, "lead.phone", "INVALID")],
)
def test_what_the_json_endpoint_cannot_read_is_told_in_the_customers_language(
    service: RunningService, body: dict[str, object], violation: str, reason: str
) -> None:
    problem = posted(
        service, MessageToDict(somebody(), preserving_proto_field_name=True) | body, **{"accept-language": "bn"}
    )
    (found,) = problem["violations"]
    assert (found["field"], found["reason"]) == (violation, reason)
    assert found["localized_message"]["locale"] == problem["localized_message"]["locale"] == "bn"
    assert found["localized_message"]["message"].startswith("ফোন নম্বর: ")
