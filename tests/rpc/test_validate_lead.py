"""ValidateLead, from the client's side."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.failures import detail
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused

Connect = Callable[..., Client]

WRONG = pb.Lead(name="Nobody", phone="+12", nid="1.2E12", address="x" * 501, interested_policy="Term Life")
TABLES = ("lead", "resubmission", "lead_conflict", "access_record")


def validated(client: Client, lead: pb.Lead, **request: str) -> pb.ValidateLeadResponse:
    response: pb.ValidateLeadResponse = client.call("ValidateLead", pb.ValidateLeadRequest(lead=lead, **request))
    return response


@pytest.mark.parametrize("locale", ["en", "bn-BD", "es-419, en;q=0.5", ""])
def test_faults_have_the_reasons_and_the_words_of_create_lead(chatbot: Client, locale: str) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        chatbot.create(WRONG, locale=locale)
    bad_request = detail(refusal.value, error_details_pb2.BadRequest)
    assert bad_request is not None
    of_create = [(each.field, each.reason, each.localized_message.message) for each in bad_request.field_violations]
    answer = validated(chatbot, WRONG, locale=locale)
    assert [(each.field, each.reason, each.text) for each in answer.violations] == of_create
    assert len(of_create) == 3


def test_one_field_is_checked_alone(chatbot: Client) -> None:
    assert validated(chatbot, pb.Lead(email="anika@example.com")) == pb.ValidateLeadResponse()
    answer = validated(chatbot, pb.Lead(phone="+12"))
    assert [each.field for each in answer.violations] == ["lead.phone"]


def test_a_submission_that_create_lead_takes_has_no_fault(chatbot: Client) -> None:
    person = somebody(email="N/A")
    assert validated(chatbot, person) == pb.ValidateLeadResponse(ignored_fields=["email"])
    assert list(chatbot.create(person).ignored_fields) == ["email"]


def test_the_region_of_a_phone_number_counts_and_is_checked(chatbot: Client) -> None:
    number = pb.Lead(phone="8801712345678")
    assert not validated(chatbot, number, phone_region="001").violations
    assert [each.reason for each in validated(chatbot, number).violations] == ["NO_COUNTRY_CODE"]
    assert [each.field for each in validated(chatbot, number, phone_region="XX").violations] == ["phone_region"]


def test_output_fields_are_ignored(chatbot: Client) -> None:
    copied = pb.Lead(id="no id", status=pb.LEAD_STATUS_CONVERTED, version=7, masked=True, assignee="x" * 900)
    assert validated(chatbot, copied) == pb.ValidateLeadResponse()


def test_nothing_is_looked_up_stored_or_recorded(chatbot: Client, admin: Client, service: RunningService) -> None:
    person = somebody()
    chatbot.create(person)

    def rows() -> list[list[tuple[object, ...]]]:
        return [execute(service, f"SELECT count(*) FROM {table}") for table in TABLES]

    before = rows()
    for client in (chatbot, admin):
        assert validated(client, person) == pb.ValidateLeadResponse(), "that it is a duplicate, nobody is told"
        validated(client, WRONG)
    assert rows() == before


def test_it_needs_the_scope_to_create(connect: Connect) -> None:
    others = set(Scope) - {Scope.CREATE}
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
        validated(connect(scopes=others), pb.Lead(phone="+12"))
    assert refusal.metadata["scope"] == "leads:create"


@pytest.mark.parametrize("path", ["/api/leads:validate", "/api/leads:validate/", "/api/leads%3Avalidate"])
def test_it_has_a_path_of_its_own(service: RunningService, path: str) -> None:
    headers = {"authorization": f"Bearer {service.token('chatbot')}", "accept-language": "es"}
    body = {"phone": "+12", "email": "N/A", "version": "7"}
    answer = httpx.post(f"{service.http_url}{path}", json=body, headers=headers, timeout=10)
    assert answer.status_code == 200
    assert answer.json() == {
        "violations": [
            {
                "field": "lead.phone",
                "reason": "WRONG_LENGTH",
                "text": "Número de teléfono: revise cuántas cifras o letras tiene, por favor.",
            }
        ],
        "ignored_fields": ["email"],
    }
    assert httpx.get(f"{service.http_url}{path}", headers=headers).status_code == 405


def test_over_http_the_region_is_a_parameter_and_an_unknown_name_a_fault(service: RunningService) -> None:
    url = f"{service.http_url}/api/leads:validate?phone_region=001"
    headers = {"authorization": f"Bearer {service.token('chatbot')}"}
    assert httpx.post(url, json={"phone": "8801712345678"}, headers=headers).json()["violations"] == []
    answer = httpx.post(url, json={"telephone": "+12"}, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (400, "LEAD_INVALID")
