from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.lead import CUSTOMER_FIELDS
from service.rpc.wire import customer_fields
from service.validation import ValidationService
from tests.http.conftest import LEAD_ID, STORY, Servicer, created, submission

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", ["/api/leads/", "/api/leads"])
async def test_the_storys_request_is_answered_with_id_and_message(
    client: httpx.AsyncClient, servicer: Servicer, path: str
) -> None:
    servicer.answers["CreateLead"] = created()
    response = await client.post(path, json=STORY)
    assert response.status_code == 201
    assert response.json()["id"] == LEAD_ID
    assert response.json()["message"] == "Lead created successfully"
    assert servicer.requests == [submission(**STORY)]


async def test_a_created_lead_is_found_at_its_location(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["CreateLead"] = created()
    response = await client.post("/api/leads/", json=STORY)
    assert response.headers["location"] == f"/api/leads/{LEAD_ID}"


async def test_a_delayed_save_is_accepted_and_not_created(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["CreateLead"] = created(pb.SAVE_STATE_DELAYED)
    response = await client.post("/api/leads/", json=STORY)
    assert response.status_code == 202
    assert response.json()["state"] == "SAVE_STATE_DELAYED"


async def test_headers_carry_request_id_and_locale(client: httpx.AsyncClient, servicer: Servicer) -> None:
    await client.post("/api/leads/", json=STORY, headers={"Idempotency-Key": "key-1", "Accept-Language": "bn-BD"})
    (request,) = servicer.requests
    assert isinstance(request, pb.CreateLeadRequest)
    assert (request.request_id, request.locale) == ("key-1", "bn-BD")


async def test_a_quoted_idempotency_key_is_the_same_key(client: httpx.AsyncClient, servicer: Servicer) -> None:
    await client.post("/api/leads/", json=STORY, headers={"Idempotency-Key": '"key-1"'})
    (request,) = servicer.requests
    assert isinstance(request, pb.CreateLeadRequest)
    assert request.request_id == "key-1"


async def test_every_customer_field_is_read_in_both_spellings(client: httpx.AsyncClient, servicer: Servicer) -> None:
    descriptor = pb.Lead.DESCRIPTOR
    snake = {name: f"value of {name}" for name in CUSTOMER_FIELDS}
    camel = {descriptor.fields_by_name[name].camelcase_name: value for name, value in snake.items()}
    for body in (snake, camel):
        await client.post("/api/leads/", json=body)
    assert servicer.requests == [submission(**snake)] * 2


async def test_output_fields_are_ignored(client: httpx.AsyncClient, servicer: Servicer) -> None:
    output: dict[str, Any] = {"id": 1, "status": "odd", "created_at": {}, "version": [], "masked": "yes"}
    await client.post("/api/leads/", json={**STORY, **output, "unreadable_fields": 3, "transcriptUri": None})
    assert servicer.requests == [submission(**STORY)]


async def test_null_is_not_given(client: httpx.AsyncClient, servicer: Servicer) -> None:
    await client.post("/api/leads/", json={**STORY, "notes": None})
    assert servicer.requests == [submission(**STORY)]


async def test_the_answer_shows_every_field_and_is_not_escaped(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["CreateLead"] = created()
    response = await client.post("/api/leads/", json=STORY)
    answer = response.json()
    assert set(answer["lead"]) == set(pb.Lead.DESCRIPTOR.fields_by_name) - {"created_at", "updated_at"}
    assert (answer["lead"]["masked"], answer["lead"]["version"], answer["lead"]["resubmissions"]) == (False, "1", "0")
    assert "José".encode() in response.content


async def test_a_chatbot_sees_its_lead_masked(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["CreateLead"] = created()
    response = await client.post("/api/leads/", json=STORY, headers={"authorization": "Bearer chatbot"})
    assert response.json()["lead"]["masked"] is True
    assert response.json()["lead"]["phone"] == "+1•••90"


async def test_answers_name_the_call_and_its_retries_and_are_not_cached(
    client: httpx.AsyncClient, servicer: Servicer
) -> None:
    sent = {"x-request-id": "mine", "grpc-previous-rpc-attempts": "2"}
    response = await client.post("/api/leads/", json=STORY, headers=sent)
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["leadkeep-retries"] == "2"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "server" not in response.headers


async def test_the_region_of_a_phone_number_is_a_parameter(client: httpx.AsyncClient, servicer: Servicer) -> None:
    await client.post("/api/leads/?phone_region=001", json=STORY)
    (request,) = servicer.requests
    assert isinstance(request, pb.CreateLeadRequest)
    assert request.phone_region == "001"


@pytest.mark.parametrize("name", ["phone", "nid"])
@pytest.mark.parametrize("number", [1990123456789, 1.0, 1.2e12])
async def test_a_number_in_the_place_of_digits_is_refused_with_its_reason(
    client: httpx.AsyncClient, servicer: Servicer, name: str, number: float
) -> None:
    response = await client.post("/api/leads/", json={**STORY, name: number})
    [violation] = response.json()["violations"]
    assert violation["field"] == f"lead.{name}"
    assert "must be a string, in quotes" in violation["description"]
    assert servicer.requests == []


async def test_an_integer_is_read_as_the_text_of_other_fields(client: httpx.AsyncClient, servicer: Servicer) -> None:
    await client.post("/api/leads/", json={**STORY, "conversation_id": 4711, "address": 12})
    assert servicer.requests == [submission(**{**STORY, "conversation_id": "4711", "address": "12"})]


@pytest.mark.parametrize("value", [["x"], {"a": 1}, True, 2**53, 1.5, "half of a pair \ud83d"])
@pytest.mark.parametrize("name", ["email", "preferred_contact_time", "notes", "conversation_id"])
async def test_an_optional_value_that_is_no_text_costs_no_lead(
    client: httpx.AsyncClient, servicer: Servicer, name: str, value: object
) -> None:
    await client.post("/api/leads/", content=json.dumps({**STORY, name: value}), headers=JSON)
    (request,) = servicer.requests
    assert isinstance(request, pb.CreateLeadRequest)
    assert ValidationService().submission(customer_fields(request.lead)).ignored == (name,)


async def test_an_optional_value_that_is_no_text_is_named_where_the_lead_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/leads/", json={**STORY, "name": [], "notes": []})
    assert [violation["field"] for violation in response.json()["violations"]] == ["lead.name", "lead.notes"]
