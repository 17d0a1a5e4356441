"""Each unmasked answer is on record before it leaves, and what cannot be recorded does not leave. At every endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import grpc
import httpx
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import READ_SCOPES, Scope
from service.validation import MASK
from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect
from tests.rpc.showing import CONFLICT_WITH, MASKED_FOR_ALL, SHOWING, WITH_VIEW, answered, clear_values, requests_for

READS = [rpc for rpc in SHOWING if rpc in READ_SCOPES]
CHANGES = [rpc for rpc in SHOWING if rpc not in READ_SCOPES]
EVERYTHING = {"phone", "nid", "address", "email", "notes"}


def accesses(client: Client, **wanted: object) -> list[pb.Access]:
    """What is on record, newest first."""
    return list(client.call("ListAccesses", pb.ListAccessesRequest(**wanted)).accesses)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def owner(service: RunningService) -> str:
    """The database of the module's service, as its owner sees it."""
    return service.environment["LEADKEEP_DATABASE_URL"].replace("leadkeep_serve", "postgres")


@contextmanager
def insert_revoked(owner: str) -> Iterator[None]:
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("REVOKE INSERT ON access_record FROM leadkeep_app")
        try:
            yield
        finally:
            connection.execute("GRANT INSERT ON access_record TO leadkeep_app")


@pytest.mark.parametrize("rpc", SHOWING)
def test_what_an_rpc_shows_is_on_record(
    rpc: str, admin: Client, connect: Connect, person: pb.Lead, lead_id: str
) -> None:
    looker = connect("admin", subject=f"looker at {rpc}")
    request = requests_for(rpc, lead_id, person)
    clear = clear_values(request.lead if isinstance(request, pb.CreateLeadRequest) else person)

    told = answered(looker, rpc, request)

    assert all(value in told for value in clear)
    entries = accesses(admin, subject=f"looker at {rpc}")
    assert {entry.operation for entry in entries} == {rpc}
    assert all(set(entry.fields) == EVERYTHING and entry.lead_id and entry.request_id for entry in entries)
    if rpc != "CreateLead":
        assert lead_id in {entry.lead_id for entry in entries}


def test_both_sides_of_a_conflict_are_on_record(admin: Client, connect: Connect, lead_id: str) -> None:
    connect("admin", subject="decider").call("ListConflicts", pb.ListConflictsRequest(include_resolved=True))
    assert {entry.lead_id for entry in accesses(admin, subject="decider")} == {lead_id, CONFLICT_WITH[lead_id]}


def test_a_lead_in_several_conflicts_of_a_page_is_one_access(
    admin: Client, connect: Connect, database_url: str
) -> None:
    sent = somebody()
    met = admin.create(sent).id
    conflicts = []
    for _ in range(2):
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            admin.create(somebody(phone=sent.phone))
        conflicts.append(conflict_with(database_url, met))

    request = pb.ListConflictsRequest(reveal=FieldMask(paths=["nid"]))
    connect("admin", subject="reads two").call("ListConflicts", request)

    recorded = [(entry.lead_id, list(entry.fields)) for entry in accesses(admin, subject="reads two")]
    wanted = [(each, ["nid"]) for each in (met, *conflicts)]
    assert sorted(each for each in recorded if each in wanted) == sorted(wanted)


def test_a_look_by_an_alias_is_on_record_for_the_lead(
    service: RunningService, admin: Client, connect: Connect, lead_id: str
) -> None:
    (alias,) = execute(
        service,
        "INSERT INTO lead_alias (id, lead_id, created_by) VALUES (gen_random_uuid(), %(lead)s, 'admin') RETURNING id",
        lead=lead_id,
    )[0]
    looker = connect("admin", subject="looker by alias")
    looker.get(str(alias))
    assert looker.resubmissions(str(alias))
    assert {entry.lead_id for entry in accesses(admin, subject="looker by alias")} == {lead_id}


def test_a_list_is_one_access_for_each_lead(admin: Client, connect: Connect) -> None:
    policy = "Listed policy"
    ids = {admin.create(somebody(interested_policy=policy)).id for _ in range(3)}
    connect("admin", subject="lister").list_leads(interested_policy=policy)
    entries = accesses(admin, subject="lister")
    assert {entry.lead_id for entry in entries} == ids
    assert len({entry.request_id for entry in entries}) == 1


@pytest.mark.parametrize("rpc", [*SHOWING, *MASKED_FOR_ALL])
def test_what_cannot_be_recorded_does_not_leave(
    rpc: str, admin: Client, owner: str, person: pb.Lead, lead_id: str
) -> None:
    request = requests_for(rpc, lead_id, person)
    clear = clear_values(request.lead if isinstance(request, pb.CreateLeadRequest) else person)
    with insert_revoked(owner):
        told = answered(admin, rpc, request)
    assert not [value for value in clear if value in told]
    assert ("STORAGE_UNAVAILABLE" in told) == (rpc in READ_SCOPES)
    assert (MASK in told) == (rpc in CHANGES)


@pytest.mark.parametrize("rpc", WITH_VIEW)
def test_a_revealed_field_that_cannot_be_recorded_does_not_leave(
    rpc: str, connect: Connect, owner: str, person: pb.Lead, lead_id: str
) -> None:
    request: Any = requests_for(rpc, lead_id, person)
    request.reveal.paths.append("phone")
    seer = connect(scopes={Scope.READ, Scope.OPERATE, Scope.UNMASK_PHONE})
    with insert_revoked(owner):
        told = answered(seer, rpc, request)
    assert not [value for value in clear_values(person) if value in told]
    assert ("STORAGE_UNAVAILABLE" in told) == (rpc in READ_SCOPES)


@pytest.mark.parametrize(
    "path", ["/api/leads/{lead_id}", "/api/leads?conversation_id={talk}", "/api/conversations/{talk}/lead"]
)
def test_the_json_endpoint_lets_nothing_out_either(
    path: str, service: RunningService, owner: str, person: pb.Lead, lead_id: str
) -> None:
    url = service.http_url + path.format(lead_id=lead_id, talk=quote(person.conversation_id))
    headers = {"authorization": f"Bearer {service.token()}"}
    assert person.address in httpx.get(url, headers=headers).text
    with insert_revoked(owner):
        refusal = httpx.get(url, headers=headers)
    assert (refusal.status_code, refusal.json()["reason"]) == (503, "STORAGE_UNAVAILABLE")
    assert not [value for value in clear_values(person) if value in refusal.text]


def test_masked_reads_go_on_without_the_record(
    admin: Client, agent: Client, owner: str, person: pb.Lead, lead_id: str
) -> None:
    with insert_revoked(owner):
        assert agent.get(lead_id).masked
        assert admin.get(lead_id, view=pb.LEAD_VIEW_MASKED).masked
        assert agent.list_leads(page_size=1).leads


@pytest.mark.parametrize("by_conversation", ["GetLeadByConversation", "ListLeads"])
def test_nobody_looks_for_a_phone_by_a_conversation_without_the_record(
    admin: Client, agent: Client, owner: str, person: pb.Lead, lead_id: str, by_conversation: str
) -> None:
    del lead_id
    request = requests_for(by_conversation, "", person)
    with insert_revoked(owner):
        for caller in (admin, agent):
            assert "STORAGE_UNAVAILABLE" in answered(caller, by_conversation, request)


def test_a_search_by_a_conversation_that_may_be_a_phone_is_on_record_whoever_asks(
    admin: Client, connect: Connect, person: pb.Lead, lead_id: str
) -> None:
    searcher = connect("agent", subject="looks by conversation")
    unknown = "whatsapp:+8801999999999"

    assert searcher.by_conversation(person.conversation_id).lead.masked
    assert searcher.listed_ids(conversation_id=person.conversation_id) == [lead_id]
    with refused(StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"):
        searcher.by_conversation(unknown)
    assert searcher.listed_ids(conversation_id=unknown) == []

    looks = [(each.lead_id, each.operation) for each in accesses(admin, subject="looks by conversation")][::-1]
    assert looks == [
        (lead_id, "GetLeadByConversation"),
        (lead_id, "ListLeads"),
        ("", "GetLeadByConversation"),
        ("", "ListLeads"),
    ]
    assert {tuple(each.fields) for each in accesses(admin, subject="looks by conversation")} == {("phone",)}


def test_a_search_by_another_conversation_is_no_look(admin: Client, connect: Connect) -> None:
    sent = somebody(conversation_id=f"talk-1234567-{uuid4().hex[:4]}")
    made = admin.create(sent)
    searcher = connect("agent", subject="looks by name of a talk")

    assert searcher.by_conversation(sent.conversation_id).lead.id == made.id
    assert searcher.listed_ids(conversation_id=sent.conversation_id) == [made.id]

    assert accesses(admin, subject="looks by name of a talk") == []


def test_a_change_is_done_and_answered_masked_without_the_record(admin: Client, owner: str) -> None:
    sent = somebody()
    with insert_revoked(owner):
        made = admin.create(sent)
        assert made.state == pb.SAVE_STATE_SAVED
        assert made.lead.masked
        assert admin.assign(made.id, "rahima").masked
    assert admin.get(made.id).assignee == "rahima"


def test_masked_answers_leave_no_entry(admin: Client, connect: Connect, lead_id: str) -> None:
    connect("agent", subject="masked agent").get(lead_id)
    connect("admin", subject="masked agent").get(lead_id, view=pb.LEAD_VIEW_MASKED)
    assert accesses(admin, subject="masked agent") == []


def test_a_search_by_value_is_on_record_though_the_answer_is_masked(
    admin: Client, connect: Connect, owner: str, person: pb.Lead, lead_id: str
) -> None:
    searcher = connect("admin", subject="searcher")
    assert searcher.list_leads(phone=person.phone, view=pb.LEAD_VIEW_MASKED).leads[0].masked
    assert searcher.list_leads(nid="NOBODY 99", view=pb.LEAD_VIEW_MASKED).leads == []
    met_none, met = accesses(admin, subject="searcher")
    assert (met.lead_id, list(met.fields)) == (lead_id, ["phone"])
    assert (met_none.lead_id, list(met_none.fields)) == ("", ["nid"])
    with insert_revoked(owner), refused(StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"):
        searcher.list_leads(phone=person.phone, view=pb.LEAD_VIEW_MASKED)


@pytest.mark.parametrize("role", ["agent", "admin"])
def test_a_duplicate_of_a_correction_is_an_access_of_the_lead_that_it_matches(
    role: str, admin: Client, connect: Connect
) -> None:
    theirs, others, own = (somebody() for _ in range(3))
    phone_of, nid_of, corrected = (admin.create(lead).id for lead in (theirs, others, own))
    guesser = connect(role, subject=f"guesser as {role}")
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        guesser.correct(corrected, ["phone", "nid"], phone=theirs.phone, nid=others.nid)
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        guesser.correct(corrected, ["phone", "nid"], phone=theirs.phone, nid=theirs.nid)
    found = accesses(admin, subject=f"guesser as {role}")
    assert {entry.operation for entry in found} == {"UpdateLead"}
    both, *each = [(entry.lead_id, list(entry.fields)) for entry in found]
    assert both == (phone_of, ["phone", "nid"])
    assert sorted(each) == sorted([(phone_of, ["phone"]), (nid_of, ["nid"])])


def test_a_duplicate_of_a_correction_that_cannot_be_recorded_is_not_answered(
    admin: Client, agent: Client, owner: str, person: pb.Lead, lead_id: str
) -> None:
    corrected = admin.create(somebody()).id
    with insert_revoked(owner), refused(StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"):
        agent.correct(corrected, phone=person.phone)
    assert admin.get(corrected).version == 1


def test_a_duplicate_of_a_submission_is_no_access(
    admin: Client, connect: Connect, person: pb.Lead, lead_id: str
) -> None:
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        connect("admin", subject="submitter").create(somebody(phone=person.phone))
    assert accesses(admin, subject="submitter") == []


def read_with_reason(service: RunningService, lead_id: str, reason: str, subject: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {service.token(subject=subject)}", "leadkeep-reason": reason.encode()}
    return httpx.get(f"{service.http_url}/api/leads/{lead_id}", headers=headers)  # type: ignore[arg-type]


def test_the_reason_and_the_request_are_on_record(
    service: RunningService, admin: Client, person: pb.Lead, lead_id: str
) -> None:
    metadata = [*service.metadata(subject="joe"), ("leadkeep-reason", " call back "), ("x-request-id", "call-7")]
    with service.channel() as channel:
        service.stub(channel).GetLead(pb.GetLeadRequest(id=lead_id), metadata=metadata, timeout=10)
    (entry,) = accesses(admin, subject="joe")
    assert (entry.reason, entry.request_id) == ("call back", "call-7")


def test_a_header_holds_a_reason_in_any_script(service: RunningService, admin: Client, lead_id: str) -> None:
    assert read_with_reason(service, lead_id, "গ্রাহক ফোন করেছেন", "mina").status_code == 200
    assert accesses(admin, subject="mina")[0].reason == "গ্রাহক ফোন করেছেন"


@pytest.mark.parametrize("reason", ["x" * 501, "a\x9fb"])
def test_a_reason_is_checked_like_others(reason: str, service: RunningService, lead_id: str) -> None:
    refusal = read_with_reason(service, lead_id, reason, "joe")
    assert (refusal.status_code, refusal.json()["violations"][0]["field"]) == (400, "leadkeep-reason")
    assert reason not in refusal.text


def test_no_reason_and_no_value_is_logged(service: RunningService, lead_id: str, person: pb.Lead) -> None:
    read_with_reason(service, lead_id, "a reason to be found", "joe")
    assert "a reason to be found" not in service.log()
    assert person.address not in service.log()


@pytest.fixture(scope="module")
def read(admin: Client, connect: Connect) -> str:
    """A lead that `ann` read five times."""
    lead_id = admin.create(somebody()).id
    for _ in range(5):
        connect("admin", subject="ann").get(lead_id)
    return str(lead_id)


class TestListAccesses:
    def test_pages_hold_each_entry_once(self, admin: Client, read: str) -> None:
        numbers, token = [], ""
        while True:
            request = pb.ListAccessesRequest(subject="ann", page_size=2, page_token=token)
            page = admin.call("ListAccesses", request)
            numbers += [entry.number for entry in page.accesses]
            if not (token := page.next_page_token):
                break
        assert len(numbers) == 5
        assert numbers == sorted(set(numbers), reverse=True)

    def test_a_page_token_belongs_to_its_filter(self, admin: Client, read: str) -> None:
        token = admin.call("ListAccesses", pb.ListAccessesRequest(subject="ann", page_size=2)).next_page_token
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            accesses(admin, subject="joe", page_token=token)

    def test_the_span_is_half_open(self, admin: Client, read: str) -> None:
        newest, *older = accesses(admin, subject="ann")
        assert accesses(admin, subject="ann", recorded_before=newest.recorded_at) == older
        assert accesses(admin, subject="ann", recorded_after=newest.recorded_at) == [newest]

    def test_a_lead_has_its_own(self, admin: Client, read: str) -> None:
        assert {entry.operation for entry in accesses(admin, lead_id=read)} == {"CreateLead", "GetLead"}

    def test_the_scope_is_needed(self, connect: Connect) -> None:
        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
            accesses(connect(subject="reader", scopes=set(Scope) - {Scope.OPERATE}))

    @pytest.mark.parametrize(
        "wrong", [{"lead_id": "7"}, {"subject": "x" * 201}, {"subject": "a\x00b"}, {"page_size": -1}]
    )
    def test_a_wrong_filter_is_named(self, wrong: dict[str, object], admin: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            accesses(admin, **wrong)
        assert refusal.violations.keys() == wrong.keys()

    def test_the_json_endpoint_answers_the_same(self, service: RunningService, admin: Client, read: str) -> None:
        url = f"{service.http_url}/api/accesses?subject=ann&page_size=2&lead_id={read}"
        found = httpx.get(url, headers={"authorization": f"Bearer {service.token()}"}).json()
        expected = [str(entry.number) for entry in accesses(admin, subject="ann", page_size=2)]
        assert [entry["number"] for entry in found["accesses"]] == expected


def test_the_record_holds_no_value(service: RunningService, person: pb.Lead, lead_id: str) -> None:
    rows = str(execute(service, "SELECT * FROM access_record"))
    assert not [value for value in clear_values(person) if value in rows]


def test_entries_of_one_call_are_one_transaction(admin: Client, service: RunningService, connect: Connect) -> None:
    policy = "One transaction"
    for _ in range(3):
        admin.create(somebody(interested_policy=policy))
    connect("admin", subject="once").list_leads(interested_policy=policy)
    (count,) = execute(service, "SELECT count(DISTINCT xmin::text) FROM access_record WHERE subject = 'once'")
    assert count == (1,)


def test_a_caller_who_has_gone_leaves_the_record_whole(service: RunningService, lead_id: str) -> None:
    with service.channel() as channel:
        call = service.stub(channel).GetLead.future(pb.GetLeadRequest(id=lead_id), metadata=service.metadata())
        call.cancel()
        with suppress(grpc.FutureCancelledError, grpc.RpcError):  # it may have been answered already
            call.result()
    assert service.leadkeep_here("audit", "verify").returncode == 0
