"""Every error of the contract, provoked at both endpoints of a running service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import Reason
from service.rpc.status import REASONS
from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import ROLES
from tests.conftest import StartService
from tests.harness import faults
from tests.harness.answers import Failure, fails
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer, own_postgres
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService


@dataclass
class Attempt:
    """A call that must fail, as each endpoint takes it."""

    rpc: str
    request: Message
    http: tuple[str, str] | None
    """Method and path; None for a call that the JSON endpoint does not have."""
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    role: str = "admin"
    token: str | None = None
    """Instead of the role's; empty for none."""
    seconds: float = 10


class World:
    """A running service, its database, and a client of each endpoint."""

    def __init__(self, service: RunningService, database: TestDatabase) -> None:
        self.service, self.admin_url = service, database.admin_url
        self.channel = service.channel()
        self.stub = service.stub(self.channel)
        self.http = httpx.Client(base_url=service.http_url, timeout=30)

    def close(self) -> None:
        self.channel.close()
        self.http.close()

    def lead(self, lead: pb.Lead | None = None, **request: str) -> pb.Lead:
        wanted = pb.CreateLeadRequest(lead=lead or somebody(), **request)
        answer: pb.CreateLeadResponse = self.stub.CreateLead(wanted, metadata=self.service.metadata(), timeout=10)
        return answer.lead

    def conflict(self) -> str:
        """The id of a conflict that waits."""
        lead = self.lead()
        fails(lambda: self.lead(somebody(phone=lead.phone)))
        return faults.conflict_with(self.admin_url, lead.id)

    def over_grpc(self, attempt: Attempt) -> Failure:
        token = self._token(attempt)
        metadata = [("authorization", f"Bearer {token}")] if token else []
        metadata += [(name, value) for name, value in attempt.headers.items() if name == "leadkeep-reason"]
        method = getattr(self.stub, attempt.rpc)
        return fails(lambda: method(attempt.request, metadata=metadata, timeout=attempt.seconds))

    def raw(self, rpc: str, sent: bytes, *metadata: tuple[str, str]) -> Failure:
        """A call with bytes of the test's own."""
        path = f"/leadkeep.v1.LeadService/{rpc}"
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(path, None, None)
        return fails(lambda: method(sent, metadata=metadata, timeout=10))

    def over_http(self, attempt: Attempt) -> httpx.Response:
        assert attempt.http is not None
        token = self._token(attempt)
        headers = {"request-timeout": str(attempt.seconds), **attempt.headers}
        if token:
            headers["authorization"] = f"Bearer {token}"
        method, path = attempt.http
        return self.http.request(method, path, json=attempt.body, headers=headers)

    def _token(self, attempt: Attempt) -> str:
        return self.service.token(attempt.role) if attempt.token is None else attempt.token


def create(lead: pb.Lead, **more: Any) -> Attempt:
    """CreateLead at both endpoints."""
    sent = {name.name: value for name, value in lead.ListFields()}
    request_id = more.pop("request_id", "")
    headers = {"idempotency-key": request_id} if request_id else {}
    request = pb.CreateLeadRequest(lead=lead, request_id=request_id)
    return Attempt("CreateLead", request, ("POST", "/api/leads/"), body=sent, headers=headers, **more)


def get(lead_id: str, **more: Any) -> Attempt:
    """GetLead at both endpoints."""
    return Attempt("GetLead", pb.GetLeadRequest(id=lead_id), ("GET", f"/api/leads/{lead_id}"), **more)


def move(lead_id: str, status: pb.LeadStatus, version: int = 0, **more: Any) -> Attempt:
    """UpdateStatus at both endpoints."""
    return Attempt(
        "UpdateStatus",
        pb.UpdateStatusRequest(id=lead_id, status=status, expected_version=version),
        ("POST", f"/api/leads/{lead_id}/status"),
        body={"status": pb.LeadStatus.Name(status), "expected_version": version},
        **more,
    )


def resolve(conflict_id: str, resolution: pb.ConflictResolution) -> Attempt:
    """ResolveConflict, which only the gRPC endpoint has."""
    return Attempt("ResolveConflict", pb.ResolveConflictRequest(id=conflict_id, resolution=resolution), None)


@contextmanager
def lead_invalid(world: World) -> Iterator[Attempt]:
    yield create(pb.Lead(name="N", phone="12", email="no address"))


@contextmanager
def duplicate_phone(world: World) -> Iterator[Attempt]:
    yield create(somebody(phone=world.lead().phone))


@contextmanager
def duplicate_nid(world: World) -> Iterator[Attempt]:
    yield create(somebody(nid=world.lead().nid))


@contextmanager
def request_id_reused(world: World) -> Iterator[Attempt]:
    request_id = str(uuid4())
    world.lead(request_id=request_id)
    yield create(somebody(), request_id=request_id)


@contextmanager
def lead_not_found(world: World) -> Iterator[Attempt]:
    yield get(str(uuid4()))


@contextmanager
def conversation_not_found(world: World) -> Iterator[Attempt]:
    request = pb.GetLeadByConversationRequest(conversation_id="nobody-spoke-here")
    yield Attempt("GetLeadByConversation", request, ("GET", "/api/conversations/nobody-spoke-here/lead"))


@contextmanager
def version_mismatch(world: World) -> Iterator[Attempt]:
    yield move(world.lead().id, pb.LEAD_STATUS_CONTACTED, version=7)


@contextmanager
def status_transition(world: World) -> Iterator[Attempt]:
    lead = world.lead()
    world.stub.UpdateStatus(
        pb.UpdateStatusRequest(id=lead.id, status=pb.LEAD_STATUS_CONTACTED), metadata=world.service.metadata()
    )
    yield move(lead.id, pb.LEAD_STATUS_NEW)


@contextmanager
def correction_closed(world: World) -> Iterator[Attempt]:
    request = pb.CreateLeadRequest(lead=somebody())
    lead = world.stub.CreateLead(request, metadata=world.service.metadata("chatbot"), timeout=10).lead
    world.stub.AssignLead(pb.AssignLeadRequest(id=lead.id, assignee="sam"), metadata=world.service.metadata())
    late = pb.UpdateLeadRequest(lead=pb.Lead(id=lead.id, name="Too Late"), expected_version=2)
    yield Attempt("UpdateLead", late, None, role="chatbot")


@contextmanager
def token_missing(world: World) -> Iterator[Attempt]:
    yield get(str(uuid4()), token="")


@contextmanager
def token_invalid(world: World) -> Iterator[Attempt]:
    yield get(str(uuid4()), token="not.a.token")


@contextmanager
def token_expired(world: World) -> Iterator[Attempt]:
    key = LocalSigningKey.load(world.service.data_dir / "signing-key.pem")
    old = key.issue("admin", ROLES["admin"], timedelta(hours=1), now=time.time() - 7200)
    yield get(str(uuid4()), token=old)


@contextmanager
def scope_missing(world: World) -> Iterator[Attempt]:
    yield move(str(uuid4()), pb.LEAD_STATUS_CONTACTED, role="chatbot")


@contextmanager
def page_token_invalid(world: World) -> Iterator[Attempt]:
    yield Attempt("ListLeads", pb.ListLeadsRequest(page_token="AAAA"), ("GET", "/api/leads?page_token=AAAA"))


@contextmanager
def reason_required(world: World) -> Iterator[Attempt]:
    yield get(str(uuid4()))


@contextmanager
def reason_not_accepted(world: World) -> Iterator[Attempt]:
    yield get(str(uuid4()), headers={"leadkeep-reason": "curiosity"})


@contextmanager
def unmask_limit(world: World) -> Iterator[Attempt]:
    for _ in range(2):
        world.lead()
    yield Attempt("ListLeads", pb.ListLeadsRequest(), ("GET", "/api/leads"), headers={"leadkeep-reason": "audit"})


@contextmanager
def duplicate_limit(world: World) -> Iterator[Attempt]:
    for _ in range(2):
        with suppress(grpc.RpcError):
            world.lead(somebody(phone="+8801712999999"))
    yield create(somebody())


@contextmanager
def queue_full(world: World) -> Iterator[Attempt]:
    lead = world.lead()
    moved = pb.UpdateStatusRequest(id=lead.id, status=pb.LEAD_STATUS_CONTACTED)
    with faults.locked_lead(world.admin_url, lead.id):
        blocked = world.stub.UpdateStatus.future(moved, metadata=world.service.metadata(), timeout=20)
        assert eventually(lambda: _waits_for_a_lock(world.admin_url), within=20)
        yield get(lead.id)
    blocked.result()


@contextmanager
def query_timeout(world: World) -> Iterator[Attempt]:
    world.lead()
    start = datetime.now(UTC) - timedelta(days=1)
    asked = pb.SummarizeLeadsRequest(group_by=pb.LEAD_GROUP_DAY)
    asked.created_after.FromDatetime(start)
    path = f"/api/leads/summary?group_by=day&created_after={start:%Y-%m-%dT%H:%M:%SZ}"
    with faults.endless_summaries(world.admin_url), ThreadPoolExecutor(1) as thread:
        ended = thread.submit(eventually, lambda: faults.cancel_summary(world.admin_url), within=20)
        yield Attempt("SummarizeLeads", asked, ("GET", path))
        assert ended.result()


@contextmanager
def deadline_too_short(world: World) -> Iterator[Attempt]:
    faults.slow_changes(world.admin_url, 3)
    attempt = move(world.lead().id, pb.LEAD_STATUS_CONTACTED, seconds=2)
    attempt.request.MergeFrom(pb.UpdateStatusRequest(reason=faults.SLOW))
    yield replace(attempt, body={**(attempt.body or {}), "reason": faults.SLOW})


@contextmanager
def conflict_not_found(world: World) -> Iterator[Attempt]:
    yield resolve(str(uuid4()), pb.CONFLICT_RESOLUTION_KEEP_FIRST)


@contextmanager
def conflict_resolved(world: World) -> Iterator[Attempt]:
    conflict_id = world.conflict()
    first = pb.ResolveConflictRequest(id=conflict_id, resolution=pb.CONFLICT_RESOLUTION_KEEP_FIRST)
    world.stub.ResolveConflict(first, metadata=world.service.metadata(), timeout=10)
    yield resolve(conflict_id, pb.CONFLICT_RESOLUTION_TAKE_NEW)


@contextmanager
def lead_in_conflict(world: World) -> Iterator[Attempt]:
    yield get(world.conflict())


@contextmanager
def index_incomplete(world: World) -> Iterator[Attempt]:
    lead, row = world.lead(), "UPDATE lead SET email_index = {} WHERE id = '{}'"
    before = faults.value_of(world.admin_url, f"SELECT email_index FROM lead WHERE id = '{lead.id}'")
    faults.execute(world.admin_url, row.format("NULL", lead.id))
    yield Attempt("ListLeads", pb.ListLeadsRequest(email="jane@example.com"), None)
    faults.execute(world.admin_url, row.format(f"'{before}'", lead.id))


@contextmanager
def field_unreadable(world: World) -> Iterator[Attempt]:
    one, other = world.lead(), world.lead()
    taken = f"(SELECT phone FROM lead WHERE id = '{other.id}')"
    faults.execute(world.admin_url, f"UPDATE lead SET phone = {taken} WHERE id = '{one.id}'")
    yield get(one.id)


@contextmanager
def internal(world: World) -> Iterator[Attempt]:
    # For its content alone: made-up submissions pass.
    faults.execute(world.admin_url, "ALTER TABLE lead ADD CONSTRAINT odd CHECK (name <> 'Odd Name') NOT VALID")
    yield create(somebody(name="Odd Name"))
    faults.execute(world.admin_url, "ALTER TABLE lead DROP CONSTRAINT odd")


@contextmanager
def storage_unavailable(world: World) -> Iterator[Attempt]:
    assert eventually(lambda: "database_away" in world.service.readiness["reasons"], within=30)
    yield get(str(uuid4()))


@contextmanager
def keys_unavailable(world: World) -> Iterator[Attempt]:
    yield get(str(uuid4()))


@dataclass(frozen=True)
class Row:
    provoke: Callable[[World], AbstractContextManager[Attempt]]
    code: grpc.StatusCode
    http: int
    metadata: frozenset[str] = frozenset()
    """The names of ErrorInfo's metadata."""
    retry: bool = False
    world: str = "world"
    """The fixture of the service that can fail like this."""


TABLE = {
    "LEAD_INVALID": Row(lead_invalid, grpc.StatusCode.INVALID_ARGUMENT, 400),
    "DUPLICATE_PHONE": Row(
        duplicate_phone, grpc.StatusCode.ALREADY_EXISTS, 409, frozenset({"fields", "lead_id", "phone_lead_id"})
    ),
    "DUPLICATE_NID": Row(
        duplicate_nid, grpc.StatusCode.ALREADY_EXISTS, 409, frozenset({"fields", "lead_id", "nid_lead_id"})
    ),
    "REQUEST_ID_REUSED": Row(request_id_reused, grpc.StatusCode.ALREADY_EXISTS, 409),
    "LEAD_NOT_FOUND": Row(lead_not_found, grpc.StatusCode.NOT_FOUND, 404),
    "CONVERSATION_NOT_FOUND": Row(conversation_not_found, grpc.StatusCode.NOT_FOUND, 404),
    "VERSION_MISMATCH": Row(version_mismatch, grpc.StatusCode.ABORTED, 409, frozenset({"current_version"})),
    "STATUS_TRANSITION": Row(status_transition, grpc.StatusCode.FAILED_PRECONDITION, 400, frozenset({"from", "to"})),
    "CORRECTION_CLOSED": Row(correction_closed, grpc.StatusCode.FAILED_PRECONDITION, 400),
    "TOKEN_MISSING": Row(token_missing, grpc.StatusCode.UNAUTHENTICATED, 401),
    "TOKEN_INVALID": Row(token_invalid, grpc.StatusCode.UNAUTHENTICATED, 401),
    "TOKEN_EXPIRED": Row(token_expired, grpc.StatusCode.UNAUTHENTICATED, 401),
    "SCOPE_MISSING": Row(scope_missing, grpc.StatusCode.PERMISSION_DENIED, 403, frozenset({"scope"})),
    "PAGE_TOKEN_INVALID": Row(page_token_invalid, grpc.StatusCode.INVALID_ARGUMENT, 400),
    "REASON_REQUIRED": Row(
        reason_required, grpc.StatusCode.INVALID_ARGUMENT, 400, frozenset({"purposes"}), world="world_that_asks_why"
    ),
    "REASON_NOT_ACCEPTED": Row(
        reason_not_accepted, grpc.StatusCode.INVALID_ARGUMENT, 400, frozenset({"purposes"}), world="world_that_asks_why"
    ),
    "UNMASK_LIMIT": Row(
        unmask_limit,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        429,
        frozenset({"limit"}),
        retry=True,
        world="world_that_asks_why",
    ),
    "DUPLICATE_LIMIT": Row(
        duplicate_limit,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        429,
        frozenset({"limit"}),
        retry=True,
        world="world_of_one_duplicate",
    ),
    "QUEUE_FULL": Row(queue_full, grpc.StatusCode.RESOURCE_EXHAUSTED, 429, retry=True, world="world_of_one_call"),
    "QUERY_TIMEOUT": Row(query_timeout, grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    "DEADLINE_TOO_SHORT": Row(deadline_too_short, grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    "STORAGE_UNAVAILABLE": Row(
        storage_unavailable, grpc.StatusCode.UNAVAILABLE, 503, retry=True, world="world_without_database"
    ),
    "KEYS_UNAVAILABLE": Row(
        keys_unavailable, grpc.StatusCode.UNAVAILABLE, 503, retry=True, world="world_without_issuer"
    ),
    "CONFLICT_NOT_FOUND": Row(conflict_not_found, grpc.StatusCode.NOT_FOUND, 404),
    "CONFLICT_RESOLVED": Row(conflict_resolved, grpc.StatusCode.FAILED_PRECONDITION, 400, frozenset({"resolution"})),
    "LEAD_IN_CONFLICT": Row(lead_in_conflict, grpc.StatusCode.FAILED_PRECONDITION, 400, frozenset({"conflict_id"})),
    "INDEX_INCOMPLETE": Row(index_incomplete, grpc.StatusCode.FAILED_PRECONDITION, 400),
    "FIELD_UNREADABLE": Row(field_unreadable, grpc.StatusCode.DATA_LOSS, 500, frozenset({"fields"})),
    "INTERNAL": Row(internal, grpc.StatusCode.INTERNAL, 500, frozenset({"incident_id"})),
}

NOT_IN_TABLE: dict[Reason, str] = {
    "SERVICE_STOPPING": "only a service that ends answers it: tests/faults/test_stop_under_load.py",
}
"""Reasons that no call to these services can answer, each with why."""

GRPC_ONLY = {
    "CORRECTION_CLOSED": "UpdateLead has no path at the JSON endpoint",
    "CONFLICT_NOT_FOUND": "ResolveConflict has no path at the JSON endpoint",
    "CONFLICT_RESOLVED": "ResolveConflict has no path at the JSON endpoint",
    "INDEX_INCOMPLETE": "the filter `email` is no parameter of a route, because query strings are logged",
}

VALUES = {
    "DUPLICATE_PHONE": {"fields": "phone"},
    "DUPLICATE_NID": {"fields": "nid"},
    "VERSION_MISMATCH": {"current_version": "1"},
    "STATUS_TRANSITION": {"from": "contacted", "to": "new"},
    "SCOPE_MISSING": {"scope": "leads:update"},
    "FIELD_UNREADABLE": {"fields": "phone"},
    "UNMASK_LIMIT": {"limit": "1"},
    "DUPLICATE_LIMIT": {"limit": "1"},
}
"""Metadata whose values are the same each time."""


def _running(start: StartService, server: TestServer, **settings: str) -> Iterator[World]:
    database = server.fresh_database()
    name = urlsplit(database.serve_url).path.strip("/")
    world = World(start(name, database_url=database.serve_url, settings=settings), database)
    yield world
    world.close()


@pytest.fixture(scope="module")
def world(postgres_server: TestServer, start_shared: StartService) -> Iterator[World]:
    yield from _running(start_shared, postgres_server)


@pytest.fixture(scope="module")
def world_of_one_call(postgres_server: TestServer, start_shared: StartService) -> Iterator[World]:
    yield from _running(start_shared, postgres_server, LEADKEEP_MAX_CONCURRENT_CALLS="1")


@pytest.fixture(scope="module")
def world_that_asks_why(postgres_server: TestServer, start_shared: StartService) -> Iterator[World]:
    """It shows one lead an hour."""
    settings = {"LEADKEEP_PURPOSES": "callback audit", "LEADKEEP_UNMASK_LIMIT": "1"}
    yield from _running(start_shared, postgres_server, **settings)


@pytest.fixture(scope="module")
def world_of_one_duplicate(postgres_server: TestServer, start_shared: StartService) -> Iterator[World]:
    """A subject finds one an hour."""
    yield from _running(start_shared, postgres_server, LEADKEEP_DUPLICATE_LIMIT="1")


@pytest.fixture(scope="module")
def world_without_issuer(postgres_server: TestServer, start_shared: StartService) -> Iterator[World]:
    yield from _running(
        start_shared,
        postgres_server,
        LEADKEEP_AUTH_JWKS="http://127.0.0.1:9/jwks",
        LEADKEEP_AUTH_ISSUER="https://issuer.example/",
        LEADKEEP_AUTH_AUDIENCE="leadkeep",
    )


@pytest.fixture(scope="module")
def world_without_database(start_shared: StartService) -> Iterator[World]:
    with own_postgres() as server:
        worlds = _running(start_shared, server)
        world = next(worlds)
        server.stop()
        yield world
        next(worlds, None)


@pytest.mark.parametrize("reason", TABLE)
def test_grpc_answers_status_and_reason(reason: Reason, request: pytest.FixtureRequest) -> None:
    row = TABLE[reason]
    world: World = request.getfixturevalue(row.world)
    with row.provoke(world) as attempt:
        failure = world.over_grpc(attempt)
    assert (failure.code, failure.reason, failure.domain) == (row.code, reason, "leadkeep.v1")
    assert failure.metadata.keys() == row.metadata
    assert row.metadata <= set(REASONS[reason].metadata), "clients/policy/reasons.json names all"
    assert REASONS[reason].repeat >= row.retry
    assert VALUES.get(reason, {}).items() <= failure.metadata.items()
    assert (failure.retry_after is not None) == row.retry
    assert ("grpc-retry-pushback-ms" in failure.trailing) == row.retry
    assert failure.text
    assert failure.trailing["x-request-id"]


@pytest.mark.parametrize("reason", [reason for reason in TABLE if reason not in GRPC_ONLY])
def test_json_endpoint_answers_the_same_as_a_problem(reason: Reason, request: pytest.FixtureRequest) -> None:
    row = TABLE[reason]
    world: World = request.getfixturevalue(row.world)
    with row.provoke(world) as attempt:
        response = world.over_http(attempt)
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["reason"]) == (row.http, row.http, reason)
    assert problem["type"] == f"urn:leadkeep:problem:{reason}"
    assert problem["detail"]
    assert problem.get("metadata", {}).keys() == row.metadata
    assert VALUES.get(reason, {}).items() <= problem.get("metadata", {}).items()
    assert ("retry-after" in response.headers) == row.retry
    assert problem["request_id"] == response.headers["x-request-id"]


def test_every_reason_is_in_the_table() -> None:
    assert TABLE.keys() | NOT_IN_TABLE.keys() == set(get_args(Reason))
    assert not TABLE.keys() & NOT_IN_TABLE.keys()


def test_all_violations_are_named_at_once(world: World) -> None:
    with lead_invalid(world) as attempt:
        failure = world.over_grpc(attempt)
        problem = world.over_http(attempt).json()
    fields = {"lead.phone", "lead.nid", "lead.address", "lead.interested_policy", "lead.email"}
    assert failure.violations.keys() == fields
    assert {violation["field"] for violation in problem["violations"]} == fields


def test_phones_reason_comes_first_when_both_met_a_lead(world: World) -> None:
    lead = world.lead()
    failure = world.over_grpc(create(somebody(phone=lead.phone, nid=lead.nid)))
    assert (failure.reason, failure.metadata["fields"]) == ("DUPLICATE_PHONE", "phone,nid")


def test_duplicate_does_not_tell_the_lead_to_who_may_not_read_it(world: World) -> None:
    failure = world.over_grpc(create(somebody(phone=world.lead().phone), role="chatbot"))
    assert failure.reason == "DUPLICATE_PHONE"
    assert failure.metadata == {"fields": "phone"}


def test_incident_tells_its_id_and_nothing_of_its_cause(world: World) -> None:
    with internal(world) as attempt:
        failure = world.over_grpc(attempt)
    incident_id = failure.metadata["incident_id"]
    assert UUID(incident_id)
    assert failure.text == f"an unexpected error; tell the operator this incident id: {incident_id}"
    lines = map(json.loads, world.service.log().splitlines())
    assert [line["cause"] for line in lines if line.get("incident_id") == incident_id] == ["23514"]


def test_a_change_for_a_reason_that_is_not_accepted_is_done_and_answered_masked(world_that_asks_why: World) -> None:
    metadata = [*world_that_asks_why.service.metadata(), ("leadkeep-reason", "curiosity")]
    made = world_that_asks_why.stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=metadata, timeout=10)
    assert (made.state, made.lead.masked) == (pb.SAVE_STATE_SAVED, True)


def test_full_view_without_the_scope_names_the_scope(world: World) -> None:
    lead = world.lead()
    request = pb.GetLeadRequest(id=lead.id, view=pb.LEAD_VIEW_FULL)
    failure = world.over_grpc(Attempt("GetLead", request, None, role="agent"))
    assert (failure.reason, failure.metadata) == ("SCOPE_MISSING", {"scope": "leads:unmask"})


def test_page_token_of_another_filter_is_refused(world: World) -> None:
    for _ in range(2):
        world.lead()
    page = world.stub.ListLeads(pb.ListLeadsRequest(page_size=1), metadata=world.service.metadata(), timeout=10)
    other = pb.ListLeadsRequest(page_size=1, page_token=page.next_page_token, assignee="somebody")
    assert world.over_grpc(Attempt("ListLeads", other, None)).reason == "PAGE_TOKEN_INVALID"


def test_list_goes_on_past_a_field_that_cannot_be_opened(world: World) -> None:
    with field_unreadable(world) as attempt:
        broken = attempt.request.id  # type: ignore[attr-defined] # a GetLeadRequest
    page = world.stub.ListLeads(pb.ListLeadsRequest(page_size=2), metadata=world.service.metadata(), timeout=10)
    flagged = {lead.id: list(lead.unreadable_fields) for lead in page.leads}
    assert len(flagged) == 2
    assert flagged[broken] == ["phone"]


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"\x0a\x04\x12\x02\xff\xfe", id="text that is no UTF-8"),
        pytest.param(b"\x0a\x7f\x00", id="truncated message"),
        pytest.param(b"\xff\xff\xff\xff", id="no protobuf at all"),
    ],
)
def test_undecodable_request_is_invalid(world: World, damaged: bytes) -> None:
    failure = world.raw("CreateLead", damaged, *world.service.metadata())
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LEAD_INVALID")
    assert failure.violations.keys() == {"request"}


def test_undecodable_request_of_a_stranger_is_not_looked_at(world: World) -> None:
    assert world.raw("CreateLead", b"\xff").reason == "TOKEN_MISSING"


def test_unknown_method_is_unimplemented(world: World) -> None:
    assert world.raw("Nothing", b"").code == grpc.StatusCode.UNIMPLEMENTED


def _waits_for_a_lock(admin_url: str) -> bool:
    # Between two attempts nobody waits; then the next look sees it.
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(faults.value_of(admin_url, waiting))
