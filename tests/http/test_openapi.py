"""The OpenAPI document: it is made of the contract and its comments, and says what the endpoint does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from jsonschema import Draft202012Validator
from leadkeep.v1 import lead_service_pb2 as pb
from openapi_spec_validator import validate

from clients.openapi.comments import PROTOS
from clients.openapi.document import document
from clients.openapi.examples import REQUESTS, SUBMISSION, created
from clients.openapi.generate import text
from service.errors import LeadValidationError, Reason
from service.http.endpoint import DOCUMENT
from service.http.problems import HTTP_STATUS
from service.http.routes import ROUTES
from service.lead import CUSTOMER_FIELDS, FIELD_RULES, REQUIRED_FIELDS
from service.rpc.call import SERVICE
from service.rpc.readiness import ReadinessReason
from service.validation import ValidationService
from tests.harness.leads import MARKED
from tests.http import conftest
from tests.http.conftest import STORY, FixedReadiness, Servicer

SERVED: dict[str, Any] = json.loads(DOCUMENT.read_text())
SCHEMAS: dict[str, Any] = SERVED["components"]["schemas"]
CONTRACT = "leadkeep/v1/lead_service.proto"
OPERATIONS = [operation for methods in SERVED["paths"].values() for operation in methods.values()]

_COMMENT = re.compile(r"^ *// ?(.*)$")
_DECLARED = re.compile(r"^ *(?:(message|enum|service|rpc) (\w+)|[\w. ]+ (\w+) = \d+)")


def commented() -> Iterator[tuple[str, str, str]]:
    """The kind, the name (of fields and values with that of their owner), and the first line of each comment."""
    owner, first = "", None
    for line in (PROTOS / CONTRACT).read_text().splitlines():
        if comment := _COMMENT.match(line):
            first = comment[1] if first is None else first
            continue
        if first is not None and (declared := _DECLARED.match(line)):
            kind, name, member = declared.groups()
            owner = name if kind in ("message", "enum") else owner
            yield kind or "member", name or f"{owner}.{member}", first
        first = None


COMMENTED = list(commented())


def test_the_document_is_that_of_the_contract() -> None:
    assert DOCUMENT.read_text() == text(), "run `make generate`"


def test_the_document_is_valid_openapi() -> None:
    validate(SERVED)


def test_every_route_is_in_the_document() -> None:
    described = {(verb.upper(), path) for path, verbs in SERVED["paths"].items() for verb in verbs if "/api/" in path}
    assert described == {(route.verb, route.path.replace(":path", "")) for route in ROUTES}


def test_every_rpc_is_in_the_document() -> None:
    described = {path for path in SERVED["paths"] if path.startswith(f"/{SERVICE.full_name}/")}
    assert described == {f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods}
    assert "/grpc.health.v1.Health/Check" in SERVED["paths"]


def test_the_comments_of_the_contract_are_all_found() -> None:
    messages, enums = pb.DESCRIPTOR.message_types_by_name.values(), pb.DESCRIPTOR.enum_types_by_name.values()
    members = sum(len(message.fields) for message in messages) + sum(len(enum.values) for enum in enums)
    assert len(COMMENTED) == members + len(messages) + len(enums) + len(SERVICE.methods) + 1


@pytest.mark.parametrize(("kind", "name", "first"), COMMENTED, ids=[name for _, name, _ in COMMENTED])
def test_a_comment_of_the_contract_is_in_the_document(kind: str, name: str, first: str) -> None:
    owner, _, member = name.partition(".")
    if kind == "rpc":
        described = SERVED["paths"][f"/{SERVICE.full_name}/{name}"]["post"]["description"]
    elif kind == "service":
        described = next(tag["description"] for tag in SERVED["tags"] if tag["name"] == name)
    elif member and owner in pb.DESCRIPTOR.message_types_by_name:
        described = SCHEMAS[owner]["properties"][member]["description"]
    else:
        described = SCHEMAS[owner]["description"]
    assert first in described


@pytest.mark.parametrize(
    "declared",
    ["  rpc AssignLead", "  string assignee = 15", "  LEAD_STATUS_NEW = 1", "message Lead ", "enum LeadView "],
)
def test_nothing_is_described_without_a_comment(tmp_path: Path, declared: str) -> None:
    shutil.copytree(PROTOS, tmp_path / "protos")
    contract = tmp_path / "protos" / CONTRACT
    without, count = re.subn(rf"(?:^ *//.*\n)+(?={declared})", "", contract.read_text(), flags=re.MULTILINE)
    assert count == 1
    contract.write_text(without)
    with pytest.raises(KeyError, match=declared.split()[1 if declared.split()[0] != "LEAD_STATUS_NEW" else 0]):
        document(tmp_path / "protos")


def test_everything_has_a_description() -> None:
    parameters = [
        *SERVED["components"]["parameters"].values(),
        *(p for each in OPERATIONS for p in each.get("parameters", ()) if "$ref" not in p),
    ]
    assert [each["name"] for each in parameters if not each["description"]] == []
    requests = {method.input_type.name for method in SERVICE.methods} | {
        "LeadSubmission",
        "LeadFields",
        "LeadCorrection",
    }
    described = {name: SCHEMAS[name] for name in requests | {method.output_type.name for method in SERVICE.methods}}
    assert [
        (name, key)
        for name, schema in described.items()
        for key, value in schema["properties"].items()
        if not value["description"]
    ] == []


def test_each_operation_has_a_name_of_its_own_in_every_language() -> None:
    names = [re.sub(r"\W|_", "", operation["operationId"]).lower() for operation in OPERATIONS]
    assert len(set(names)) == len(names)


def test_the_submission_has_every_customer_field_and_requires_what_the_service_does() -> None:
    assert tuple(SCHEMAS["LeadSubmission"]["properties"]) == CUSTOMER_FIELDS
    assert set(SCHEMAS["LeadSubmission"]["required"]) == REQUIRED_FIELDS


def test_every_filter_is_a_described_parameter() -> None:
    parameters = SERVED["paths"]["/api/leads"]["get"]["parameters"]
    described = {parameter["name"] for parameter in parameters if parameter.get("in") == "query"}
    assert described == set(pb.ListLeadsRequest.DESCRIPTOR.fields_by_name) - {"email", "name_prefix"}


def test_an_example_shows_the_state_of_its_answer() -> None:
    answers = SERVED["paths"]["/api/leads"]["post"]["responses"]
    states = {status: answers[status]["content"]["application/json"]["example"]["state"] for status in ("201", "202")}
    assert states == {"201": "SAVE_STATE_SAVED", "202": "SAVE_STATE_DELAYED"}


async def test_a_described_timeout_is_one_that_is_taken(client: httpx.AsyncClient) -> None:
    schema = SERVED["components"]["parameters"]["Request-Timeout"]["schema"]
    for sent in ("2.5", "1", "0.001", "999999", "0", "0.0", "1e1", "5e-324", "-1", "1000000", "", "x"):
        is_taken = (await client.get("/api/leads", headers={"request-timeout": sent})).status_code != 400
        assert Draft202012Validator(schema).is_valid(sent) == is_taken, sent


def test_what_is_always_there_is_required() -> None:
    assert {"created_at", "updated_at", "phone"} <= {*SCHEMAS["Lead"]["required"]}
    assert {"lead", "confirmation"} <= {*SCHEMAS["CreateLeadResponse"]["required"]}
    assert "recorded_at" in SCHEMAS["Access"]["required"]
    assert "created_at" not in SCHEMAS["PartialLead"]["required"]


def test_what_may_be_absent_in_an_answer_is_not_required() -> None:
    requests = tuple(name for name in SCHEMAS if name.endswith(("Request", "Body")))
    hand_written = ("Problem", "ProblemViolation")
    absent = {
        f"{name}.{key}"
        for name, schema in SCHEMAS.items()
        if name not in (*requests, *hand_written, "PartialLead", "LeadSubmission", "LeadFields", "LeadCorrection")
        for key in schema.get("properties", {})
        if key not in schema["required"]
    }
    assert absent == {
        *("Conflict.resolved_at", "PersonMatch.lead", "ResolveConflictResponse.lead"),
        *("PersonRecord.lead", "PersonRecord.resubmission", "PersonRecord.conflict", "PersonRecord.event"),
    }
    partial = {
        f"{name}.{key}"
        for name, schema in SCHEMAS.items()
        for key, value in schema.get("properties", {}).items()
        if "PartialLead" in json.dumps(value)
    }
    assert partial == {"Resubmission.lead", "Conflict.submission", "Conflict.leads", "PersonRecord.lead"}


def test_what_a_call_needs_is_required() -> None:
    assert SCHEMAS["SummarizeLeadsRequest"]["required"] == ["created_after", "group_by"]
    assert SCHEMAS["UpdateStatusRequest"]["required"] == ["id", "status"]
    assert SCHEMAS["UpdateStatusBody"]["required"] == ["status"]
    assert SCHEMAS["LeadCorrection"]["required"] == ["id"]
    for name in ("ExportPersonRequest", "ExportPersonBody", "ErasePersonRequest", "ErasePersonBody"):
        assert SCHEMAS[name]["required"] == ["refs"]
        assert SCHEMAS[name]["properties"]["refs"]["minItems"] == 1


def test_ids_of_requests_are_uuids() -> None:
    for path, place in (("/api/leads/{id}", "id"), ("/api/leads/{lead_id}/events", "lead_id")):
        (parameter,) = [each for each in SERVED["paths"][path]["get"]["parameters"] if each.get("name") == place]
        assert parameter["schema"]["format"] == "uuid"


def test_every_schema_has_one_type() -> None:
    def schemas(content: object) -> Iterator[dict[str, Any]]:
        if isinstance(content, dict):
            yield content
        for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
            yield from schemas(each)

    for schema in schemas(SERVED):
        assert not isinstance(schema.get("type"), list), "generators of Go take no list of types"
        assert "const" not in schema or "type" in schema, "ogen writes code that does not compile"


def test_sensitive_fields_are_marked() -> None:
    marked = {name for name, schema in SCHEMAS["Lead"]["properties"].items() if schema.get("x-sensitive")}
    assert marked == set(MARKED)
    parameters = SERVED["paths"]["/api/leads"]["get"]["parameters"]
    assert {each["name"] for each in parameters if each.get("x-sensitive")} == {"phone", "nid", "conversation_id"}


def test_every_status_and_reason_of_an_error_is_described() -> None:
    described = SERVED["components"]["responses"]
    for kind in ("Error", "ConnectError"):
        found = {name: each["description"] for name, each in described.items() if name.removeprefix(kind).isdigit()}
        assert set(get_args(Reason)) == set(re.findall(r"`([A-Z_]+)`", " ".join(found.values())))
    assert {f"Error{HTTP_STATUS[code]}" for code in (5, 6, 10)} <= set(described)


@pytest.mark.parametrize("name", sorted(name for name, rule in FIELD_RULES.items() if rule.limit))
def test_a_described_limit_is_the_limit(name: str) -> None:
    longest = SCHEMAS["LeadSubmission"]["properties"][name]["maxLength"]
    validation = ValidationService()
    domain = f"@{'.'.join(['a' * 60] * 3)}.{'a' * 36}.com"
    for length, accepted in ((longest, True), (longest + 1, False)):
        value = "x" * length if name != "email" else domain.rjust(length, "j")
        try:
            refused = [f"lead.{left_out}" for left_out in validation.submission({**STORY, name: value}).ignored]
        except LeadValidationError as error:
            refused = [violation.field for violation in error.violations]
        assert refused == ([] if accepted else [f"lead.{name}"])


def test_the_limits_of_reason_assignee_and_request_id_are_the_limits() -> None:
    validation = ValidationService()
    for name, schema in (
        ("reason", SCHEMAS["UpdateStatusRequest"]["properties"]["reason"]),
        ("reason", SERVED["components"]["parameters"]["leadkeep-reason"]["schema"]),
        ("assignee", SCHEMAS["AssignLeadRequest"]["properties"]["assignee"]),
        ("request_id", SCHEMAS["CreateLeadRequest"]["properties"]["request_id"]),
    ):
        validation.text(name, "x" * schema["maxLength"])
        with pytest.raises(LeadValidationError):
            validation.text(name, "x" * (schema["maxLength"] + 1))


@pytest.mark.parametrize("rpc", [method.name for method in SERVICE.methods])
def test_an_example_fits_its_schema(rpc: str) -> None:
    fits(SERVICE.methods_by_name[rpc].input_type.name, REQUESTS[rpc])


async def test_the_storys_request_and_its_answer_fit_their_schemas(
    client: httpx.AsyncClient, servicer: Servicer
) -> None:
    servicer.answers["CreateLead"] = whole = conftest.created()
    whole.lead.created_at.GetCurrentTime()
    whole.lead.updated_at.GetCurrentTime()
    fits("LeadSubmission", STORY)
    fits("CreateLeadResponse", (await client.post("/api/leads/", json=STORY)).json())
    fits("CreateLeadResponse", created("SAVE_STATE_SAVED"))
    fits("Problem", (await client.get("/api/leads?page_size=x")).json())
    fits("ConnectError", (await client.post(f"/{SERVICE.full_name}/GetLead", json={"id": 1.5})).json())
    assert SUBMISSION == STORY


async def test_the_endpoint_serves_the_document(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == SERVED


async def test_the_answer_of_readyz_fits_its_schema_and_the_schema_holds_no_other_word(
    client: httpx.AsyncClient, readiness: FixedReadiness
) -> None:
    readiness.reasons = tuple(ReadinessReason)
    fits("Readiness", (await client.get("/readyz")).json())
    words = SCHEMAS["Readiness"]["properties"]["reasons"]["items"]["enum"]
    assert words == list(ReadinessReason)


def fits(name: str, content: object) -> None:
    Draft202012Validator({**SERVED, "$ref": f"#/components/schemas/{name}"}).validate(content)
