from __future__ import annotations

from typing import get_args
from uuid import UUID

import httpx
import pytest
from google.rpc import code_pb2

from service.errors import (
    ConflictNotFoundError,
    ConflictResolvedError,
    ConversationNotFoundError,
    CorrectionClosedError,
    DeadlineTooShortError,
    DuplicateLeadError,
    DuplicateLimitError,
    FieldUnreadableError,
    IndexIncompleteError,
    KeysUnavailableError,
    LeadInConflictError,
    LeadNotFoundError,
    LeadValidationError,
    PageTokenInvalidError,
    QueryTimeoutError,
    QueueFullError,
    Reason,
    ReasonNotAcceptedError,
    ReasonRequiredError,
    RequestIdReusedError,
    ServiceStoppingError,
    StatusTransitionError,
    StorageUnavailableError,
    UnmaskLimitError,
    VersionMismatchError,
    Violation,
)
from service.http.problems import HTTP_STATUS
from tests.http.conftest import LEAD_ID, STORY, Servicer

RAISED = [
    (LeadValidationError([Violation("lead.phone", "is required")]), 400, "LEAD_INVALID"),
    (DuplicateLeadError(phone_lead_id=UUID(LEAD_ID), nid_lead_id=None, visible=frozenset()), 409, "DUPLICATE_PHONE"),
    (DuplicateLeadError(phone_lead_id=None, nid_lead_id=UUID(LEAD_ID), visible=frozenset()), 409, "DUPLICATE_NID"),
    (RequestIdReusedError(), 409, "REQUEST_ID_REUSED"),
    (LeadNotFoundError(), 404, "LEAD_NOT_FOUND"),
    (ConversationNotFoundError(), 404, "CONVERSATION_NOT_FOUND"),
    (ConflictNotFoundError(), 404, "CONFLICT_NOT_FOUND"),
    (LeadInConflictError(UUID(LEAD_ID)), 400, "LEAD_IN_CONFLICT"),
    (IndexIncompleteError(), 400, "INDEX_INCOMPLETE"),
    (ConflictResolvedError("keep_first"), 400, "CONFLICT_RESOLVED"),
    (VersionMismatchError(4), 409, "VERSION_MISMATCH"),
    (StatusTransitionError("contacted", "new"), 400, "STATUS_TRANSITION"),
    (CorrectionClosedError(), 400, "CORRECTION_CLOSED"),
    (PageTokenInvalidError(), 400, "PAGE_TOKEN_INVALID"),
    (ReasonRequiredError(), 400, "REASON_REQUIRED"),
    (ReasonNotAcceptedError(["claim"]), 400, "REASON_NOT_ACCEPTED"),
    (QueueFullError(0.2), 429, "QUEUE_FULL"),
    (UnmaskLimitError(10, 60.0), 429, "UNMASK_LIMIT"),
    (DuplicateLimitError(10, 60.0), 429, "DUPLICATE_LIMIT"),
    (DeadlineTooShortError(), 504, "DEADLINE_TOO_SHORT"),
    (QueryTimeoutError(), 504, "QUERY_TIMEOUT"),
    (StorageUnavailableError(1.5), 503, "STORAGE_UNAVAILABLE"),
    (ServiceStoppingError(), 503, "SERVICE_STOPPING"),
    (KeysUnavailableError(), 503, "KEYS_UNAVAILABLE"),
    (FieldUnreadableError(["phone"]), 500, "FIELD_UNREADABLE"),
    (RuntimeError("SELECT '+1234567890'"), 500, "INTERNAL"),
]
BY_TOKEN = [
    (None, 401, "TOKEN_MISSING"),
    ("Bearer strange", 401, "TOKEN_INVALID"),
    ("Bearer expired", 401, "TOKEN_EXPIRED"),
    ("Bearer agent", 403, "SCOPE_MISSING"),
]


def test_every_reason_has_its_row() -> None:
    assert {reason for _, _, reason in [*RAISED, *BY_TOKEN]} == set(get_args(Reason))


def test_every_status_code_has_its_http_status() -> None:
    assert set(HTTP_STATUS) == set(code_pb2.Code.values()) - {code_pb2.OK}


@pytest.mark.parametrize(("raised", "status", "reason"), RAISED, ids=[row[2] for row in RAISED])
async def test_an_error_is_a_problem_with_its_reason(
    client: httpx.AsyncClient, servicer: Servicer, raised: Exception, status: int, reason: str
) -> None:
    servicer.answers["CreateLead"] = raised
    response = await client.post("/api/leads/", json=STORY)
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["reason"] == reason
    assert problem["type"] == f"urn:leadkeep:problem:{reason}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert response.headers["cache-control"] == "no-store"
    assert not [value for value in STORY.values() if value in response.text]


@pytest.mark.parametrize(("token", "status", "reason"), BY_TOKEN, ids=[row[2] for row in BY_TOKEN])
async def test_a_token_that_does_not_do_is_answered_as_rfc_6750_says(
    client: httpx.AsyncClient, servicer: Servicer, token: str | None, status: int, reason: str
) -> None:
    del client.headers["authorization"]
    response = await client.post("/api/leads/", json=STORY, headers={"authorization": token} if token else {})
    assert (response.status_code, response.json()["reason"]) == (status, reason)
    expected = {
        "TOKEN_MISSING": 'Bearer realm="leadkeep"',
        "SCOPE_MISSING": 'Bearer realm="leadkeep", error="insufficient_scope", scope="leads:create"',
    }
    invalid = 'Bearer realm="leadkeep", error="invalid_token"'
    assert response.headers["www-authenticate"] == expected.get(reason, invalid)
    assert servicer.calls == []


async def test_two_tokens_are_no_token(client: httpx.AsyncClient) -> None:
    two = [("authorization", "Bearer strange"), ("authorization", "Bearer admin")]
    del client.headers["authorization"]
    response = await client.get("/api/leads", headers=two)
    assert response.status_code == 401


async def test_violations_and_metadata_are_members_of_the_problem(
    client: httpx.AsyncClient, servicer: Servicer
) -> None:
    servicer.answers["CreateLead"] = LeadValidationError([Violation("lead.phone", "is required", "REQUIRED")])
    problem = (await client.post("/api/leads/", json=STORY, headers={"accept-language": "es-MX"})).json()
    words = {"locale": "es", "message": "Número de teléfono: rellene este dato, por favor."}
    assert problem["violations"] == [
        {"field": "lead.phone", "description": "is required", "reason": "REQUIRED", "localized_message": words}
    ]
    servicer.answers["CreateLead"] = VersionMismatchError(4)
    problem = (await client.post("/api/leads/", json=STORY)).json()
    assert problem["metadata"] == {"current_version": "4"}


async def test_retry_after_is_in_whole_seconds_and_never_too_soon(
    client: httpx.AsyncClient, servicer: Servicer
) -> None:
    servicer.answers["CreateLead"] = StorageUnavailableError(1.5)
    response = await client.post("/api/leads/", json=STORY)
    assert response.headers["retry-after"] == "2"


async def test_faults_of_a_request_are_told_only_to_those_who_may_call(client: httpx.AsyncClient) -> None:
    for token, status in (("Bearer strange", 401), ("Bearer agent", 403), ("Bearer chatbot", 400)):
        response = await client.post("/api/leads/", json={"phone": 1}, headers={"authorization": token})
        assert response.status_code == status
        assert ("lead.phone" in response.text) == (status == 400)


@pytest.mark.parametrize("path", ["/", "/api", "/api/lead", f"/api/leads/{LEAD_ID}/notes", "/docs", "/healthz//"])
async def test_an_unknown_path_is_a_problem(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status_code, response.json()["type"]) == (404, "about:blank")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/leads", "POST, GET, HEAD, OPTIONS"),
        ("PUT", f"/api/leads/{LEAD_ID}", "GET, DELETE, HEAD, OPTIONS"),
        ("GET", f"/api/leads/{LEAD_ID}/status", "POST, OPTIONS"),
        ("HEAD", f"/api/leads/{LEAD_ID}/status", "POST, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_another_method_is_refused_and_the_right_ones_named(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
