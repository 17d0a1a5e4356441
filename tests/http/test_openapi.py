from __future__ import annotations

from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from leadkeep.v1 import lead_service_pb2 as pb
from openapi_spec_validator import validate

from service.errors import LeadValidationError
from service.http import openapi_texts as texts
from service.http.openapi import document
from service.http.problems import HTTP_STATUS
from service.http.routes import ROUTES
from service.lead import CUSTOMER_FIELDS, FIELD_RULES
from service.rpc.call import SERVICE
from service.rpc.readiness import ReadinessReason
from service.rpc.status import CODES
from service.validation import ValidationService
from tests.http.conftest import STORY, FixedReadiness, Servicer, created


def test_the_document_is_valid_openapi() -> None:
    validate(document())


def test_every_path_of_the_endpoint_is_in_the_document() -> None:
    described = {
        (method.upper(), path)
        for path, methods in document()["paths"].items()
        for method in methods
        if path.startswith("/api")
    }
    assert described == {(route.verb, route.path.replace(":path", "")) for route in ROUTES}


@pytest.mark.parametrize("name", ["Lead", "Confirmation", *(f"{route.rpc}Response" for route in ROUTES)])
def test_a_schema_has_the_fields_of_its_message(name: str) -> None:
    fields = set(SERVICE.file.message_types_by_name[name].fields_by_name)
    assert set(document()["components"]["schemas"][name]["properties"]) == fields
    assert set(texts.FIELDS[name]) == fields


def test_words_stand_for_fields_that_exist() -> None:
    for name, words in texts.FIELDS.items():
        assert set(words) <= set(SERVICE.file.message_types_by_name[name].fields_by_name)


def test_the_submission_has_every_customer_field() -> None:
    assert tuple(document()["components"]["schemas"]["LeadSubmission"]["properties"]) == CUSTOMER_FIELDS


def test_every_filter_is_a_described_parameter() -> None:
    parameters = document()["paths"]["/api/leads"]["get"]["parameters"]
    described = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
    assert described == set(pb.ListLeadsRequest.DESCRIPTOR.fields_by_name) - {"email", "name_prefix"}


def test_each_operation_has_a_name_of_its_own() -> None:
    names = [operation.get("operationId") for methods in document()["paths"].values() for operation in methods.values()]
    assert None not in names
    assert len(set(names)) == len(names)


def test_an_example_shows_the_state_of_its_answer() -> None:
    answers = document()["paths"]["/api/leads"]["post"]["responses"]
    states = {
        status: answers[status]["content"]["application/json"]["examples"]["story"]["value"]["state"]
        for status in ("201", "202")
    }
    assert states == {"201": "SAVE_STATE_SAVED", "202": "SAVE_STATE_DELAYED"}


async def test_a_described_timeout_is_one_that_is_taken(client: httpx.AsyncClient) -> None:
    parameters = document()["paths"]["/api/leads"]["get"]["parameters"]
    schema = next(each["schema"] for each in parameters if each["name"] == "Request-Timeout")
    for sent in ("2.5", "1", "0.001", "999999", "0", "0.0", "1e1", "5e-324", "-1", "1000000", "", "x"):
        is_taken = (await client.get("/api/leads", headers={"request-timeout": sent})).status_code != 400
        assert Draft202012Validator(schema).is_valid(sent) == is_taken, sent


def test_what_is_always_there_is_required() -> None:
    schemas = document()["components"]["schemas"]
    assert {"created_at", "updated_at", "phone"} <= {*schemas["Lead"]["required"]}
    assert {"lead", "confirmation"} <= {*schemas["CreateLeadResponse"]["required"]}
    assert "recorded_at" in schemas["Access"]["required"]
    assert "created_at" not in schemas["SubmittedLead"]["required"]


def test_every_status_of_an_error_is_described() -> None:
    assert {HTTP_STATUS[code] for code in CODES.values()} <= set(texts.ERRORS)


@pytest.mark.parametrize("name", sorted(name for name, rule in FIELD_RULES.items() if rule.limit))
def test_a_described_limit_is_the_limit(name: str) -> None:
    longest = FIELD_RULES[name].limit
    assert longest is not None
    validation = ValidationService()
    domain = f"@{'.'.join(['a' * 60] * 3)}.{'a' * 36}.com"
    for length, accepted in ((longest, True), (longest + 1, False)):
        value = "x" * length if name != "email" else domain.rjust(length, "j")
        try:
            refused = [f"lead.{left_out}" for left_out in validation.submission({**STORY, name: value}).ignored]
        except LeadValidationError as error:
            refused = [violation.field for violation in error.violations]
        assert refused == ([] if accepted else [f"lead.{name}"])


def test_the_limits_of_reason_and_request_id_are_the_limits() -> None:
    validation = ValidationService()
    for check, longest in (
        (validation.reason, texts.LONGEST_REASON),
        (validation.request_id, texts.LONGEST_REQUEST_ID),
    ):
        check("x" * longest)
        with pytest.raises(LeadValidationError):
            check("x" * (longest + 1))


async def test_the_storys_request_and_its_answer_fit_their_schemas(
    client: httpx.AsyncClient, servicer: Servicer
) -> None:
    described = (await client.get("/openapi.json")).json()
    servicer.answers["CreateLead"] = whole = created()
    whole.lead.created_at.GetCurrentTime()
    whole.lead.updated_at.GetCurrentTime()
    answer = (await client.post("/api/leads/", json=STORY)).json()
    problem = (await client.get("/api/leads?page_size=x")).json()
    for name, content in (
        ("LeadSubmission", STORY),
        ("CreateLeadResponse", answer),
        ("CreateLeadResponse", texts.EXAMPLE_CREATED),
        ("Problem", problem),
    ):
        _check(described, name, content)
    assert texts.EXAMPLE_SUBMISSION == STORY


async def test_the_answer_of_readyz_fits_its_schema_and_the_schema_holds_no_other_word(
    client: httpx.AsyncClient, readiness: FixedReadiness
) -> None:
    described = (await client.get("/openapi.json")).json()
    readiness.reasons = tuple(ReadinessReason)
    _check(described, "Readiness", (await client.get("/readyz")).json())
    words = described["components"]["schemas"]["Readiness"]["properties"]["reasons"]["items"]["enum"]
    assert words == list(ReadinessReason)


def _check(described: dict[str, Any], name: str, content: object) -> None:
    Draft202012Validator({**described, "$ref": f"#/components/schemas/{name}"}).validate(content)
