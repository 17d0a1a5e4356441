"""EraseLead: what goes, what stays, and what callers hear afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc
import httpx
import psycopg
import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.daily_files import file_of, leads_in, soon_in
from tests.harness.faults import conflict_with, locked_lead, value_of
from tests.harness.leads import somebody
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused
from tests.rpc.conftest import Connect

REFERRING = (
    *("lead_event.lead_id", "lead_conversation.lead_id", "resubmission.lead_id"),
    *("lead_alias.lead_id", "lead_alias.id", "lead_conflict.id", "lead.id"),
    *("lead_conflict.phone_lead_id", "lead_conflict.nid_lead_id", "lead_conflict.request_lead_id"),
)
"""Every column that names a lead or a submission, but the tombstone's."""

KEPT = {"lead_event": f" AND type <> {pb.LEAD_EVENT_TYPE_ERASED}"}
"""What of a table is no trace of an erased lead's life."""


@pytest.fixture
def rows(database_url: str) -> Iterator[psycopg.Connection]:
    """The database as the role of `serve`."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def erase(client: Client, lead_id: str, reason: str = "asked for it") -> list[str]:
    """Erase, and answer the conflicts of others that are kept."""
    return list(client.call("EraseLead", pb.EraseLeadRequest(id=lead_id, reason=reason)).kept_ids)


def named_in(rows: psycopg.Connection, lead_id: str) -> set[str]:
    """The columns in which an id stands."""
    found = set()
    for column in REFERRING:
        table, _, name = column.partition(".")
        condition = f"{name} = %s{KEPT.get(table, '')}"
        if rows.execute(f"SELECT FROM {table} WHERE {condition} LIMIT 1".encode(), [lead_id]).rowcount:
            found.add(column)
    return found


def tombstone(rows: psycopg.Connection, lead_id: str) -> tuple[object, ...] | None:
    query = "SELECT lead_id::text, erased_by, reason, created_at IS NOT NULL FROM tombstone WHERE id = %s"
    return rows.execute(query, [lead_id]).fetchone()


def resubmit(client: Client, lead: pb.Lead, reason: str = "DUPLICATE_PHONE", **request: str) -> None:
    with refused(StatusCode.ALREADY_EXISTS, reason):
        client.create(lead, **request)


def test_of_a_lead_with_a_history_only_a_tombstone_stays(admin: Client, rows: psycopg.Connection) -> None:
    person = somebody(conversation_id=f"talk-{uuid4()}")
    lead_id = admin.create(person, request_id=str(uuid4())).id
    admin.move(lead_id, pb.LEAD_STATUS_CONTACTED, reason="called")
    admin.assign(lead_id, "rahima", reason="near")
    resubmit(admin, person, request_id=str(uuid4()))
    assert len(named_in(rows, lead_id)) == 4, "the lead is not in every table that this test looks at"

    erase(admin, lead_id)

    assert named_in(rows, lead_id) == set()
    assert tombstone(rows, lead_id) == (lead_id, "admin", "asked for it", True)


def test_every_column_that_names_a_lead_is_looked_at(rows: psycopg.Connection) -> None:
    query = """
        SELECT a.attrelid::regclass || '.' || a.attname FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.contype = 'f' AND c.confrelid = 'lead'::regclass"""
    assert {name for (name,) in rows.execute(query)} <= set(REFERRING)


def test_nothing_finds_an_erased_lead(admin: Client, service: RunningService) -> None:
    person = somebody(conversation_id=f"talk-{uuid4()}")
    lead_id = admin.create(person).id
    erase(admin, lead_id)

    for rpc, request in (
        ("GetLead", pb.GetLeadRequest(id=lead_id)),
        ("UpdateStatus", pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED)),
        ("UpdateLead", pb.UpdateLeadRequest(lead=pb.Lead(id=lead_id, name="Somebody Else"))),
        ("AssignLead", pb.AssignLeadRequest(id=lead_id, assignee="rahima")),
        ("ListStatusChanges", pb.ListStatusChangesRequest(lead_id=lead_id)),
        ("ListAssignments", pb.ListAssignmentsRequest(lead_id=lead_id)),
        ("ListLeadEvents", pb.ListLeadEventsRequest(lead_id=lead_id)),
        ("ListResubmissions", pb.ListResubmissionsRequest(lead_id=lead_id)),
    ):
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
            admin.call(rpc, request)
    with refused(StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"):
        admin.by_conversation(person.conversation_id)
    assert admin.listed_ids(phone=person.phone) == admin.listed_ids(nid=person.nid) == []


def test_the_same_again_succeeds_and_the_first_reason_stays(admin: Client, rows: psycopg.Connection) -> None:
    lead_id = admin.create(somebody()).id
    erase(admin, lead_id)
    erase(admin, lead_id, reason="once more")
    assert tombstone(rows, lead_id) == (lead_id, "admin", "asked for it", True)


def test_an_id_that_never_was_is_not_found_however_often(admin: Client) -> None:
    never = str(uuid4())
    for _ in range(2):
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
            erase(admin, never)


def test_the_reason_is_checked_like_any_other(admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        erase(admin, lead_id, reason="x" * 501)
    assert list(refusal.violations) == ["reason"]
    assert admin.get(lead_id).id == lead_id


def test_only_the_scope_for_it_erases(admin: Client, connect: Connect) -> None:
    lead_id = admin.create(somebody()).id
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
        erase(connect("boss", scopes=set(Scope) - {Scope.ERASE}), lead_id)
    assert refusal.metadata == {"scope": "leads:erase"}
    erase(connect("clerk", scopes={Scope.ERASE}), lead_id)
    with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
        admin.get(lead_id)


def test_the_person_can_come_back_as_a_new_lead(admin: Client) -> None:
    person, request_id = somebody(), str(uuid4())
    first = admin.create(person, request_id=request_id).id
    erase(admin, first)

    second = admin.create(person, request_id=request_id)

    assert second.id != first
    assert admin.get(second.id).phone == person.phone
    with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
        admin.get(first)


def test_an_id_that_leads_to_the_lead_erases_it_and_goes_with_it(
    admin: Client, rows: psycopg.Connection, database_url: str
) -> None:
    first = admin.create(person := somebody()).id
    resubmit(admin, person, request_id=str(uuid4()))
    other = conflict_with(database_url, first)
    resolve(admin, other, pb.CONFLICT_RESOLUTION_KEEP_FIRST)
    assert admin.get(other).id == first

    erase(admin, other)

    assert named_in(rows, first) == named_in(rows, other) == set()
    assert tombstone(rows, other) == (first, "admin", "asked for it", True)
    for each in (first, other):
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
            admin.get(each)
        erase(admin, each)


def resolve(admin: Client, conflict_id: str, resolution: pb.ConflictResolution) -> pb.ResolveConflictResponse:
    answer: pb.ResolveConflictResponse = admin.call(
        "ResolveConflict", pb.ResolveConflictRequest(id=conflict_id, resolution=resolution)
    )
    return answer


class TestKeptConflict:
    """A submission that shares the phone with a lead which was erased since."""

    @pytest.fixture
    def late(self, admin: Client, database_url: str) -> pb.Lead:
        """What was submitted, with the id of its conflict."""
        first = admin.create(person := somebody()).id
        late = somebody(phone=person.phone, conversation_id=f"late-{uuid4()}")
        resubmit(admin, late)
        late.id = conflict_with(database_url, first)
        assert erase(admin, first, reason="asked for it") == [late.id]
        return late

    def test_it_waits_for_a_decision_with_no_lead_beside_it(self, admin: Client, late: pb.Lead) -> None:
        with refused(StatusCode.FAILED_PRECONDITION, "LEAD_IN_CONFLICT"):
            admin.get(late.id)
        listed = admin.call("ListConflicts", pb.ListConflictsRequest()).conflicts
        (conflict,) = [each for each in listed if each.id == late.id]
        assert (list(conflict.met_fields), list(conflict.leads)) == (["erased"], [])
        assert (conflict.submission.phone, conflict.submission.nid) == (late.phone, late.nid)

    def test_keeping_the_first_drops_it_under_the_tombstone(
        self, admin: Client, late: pb.Lead, rows: psycopg.Connection
    ) -> None:
        for _ in range(2):
            assert not resolve(admin, late.id, pb.CONFLICT_RESOLUTION_KEEP_FIRST).HasField("lead")
        assert named_in(rows, late.id) == set()
        found = tombstone(rows, late.id)
        assert found is not None
        assert (found[0] != late.id, found[1]) == (True, "admin")
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
            admin.get(late.id)
        with refused(StatusCode.NOT_FOUND, "CONFLICT_NOT_FOUND"):
            resolve(admin, late.id, pb.CONFLICT_RESOLUTION_OWN_LEAD)

    def test_as_a_lead_of_its_own_it_is_found_by_everything(self, admin: Client, late: pb.Lead) -> None:
        own = resolve(admin, late.id, pb.CONFLICT_RESOLUTION_OWN_LEAD).lead
        assert (own.id, own.phone, own.nid) == (late.id, late.phone, late.nid)
        assert admin.get(late.id) == own
        assert admin.by_conversation(late.conversation_id).lead.id == late.id
        assert admin.listed_ids(phone=late.phone) == [late.id]

    def test_there_is_no_lead_to_take_its_values(self, admin: Client, late: pb.Lead) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            resolve(admin, late.id, pb.CONFLICT_RESOLUTION_TAKE_NEW)
        assert list(refusal.violations) == ["resolution"]

    def test_no_lead_can_be_named(self, admin: Client, late: pb.Lead) -> None:
        request = pb.ResolveConflictRequest(
            id=late.id, resolution=pb.CONFLICT_RESOLUTION_KEEP_FIRST, lead_id=str(uuid4())
        )
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.call("ResolveConflict", request)
        assert list(refusal.violations) == ["lead_id"]

    def test_the_command_line_says_what_can_be_decided(self, service: RunningService, late: pb.Lead) -> None:
        shown = service.leadkeep_here("conflicts", "list").stdout
        lines = shown[shown.index(late.id) :].splitlines()
        assert "erased: keep-first drops it, own-lead keeps it" in lines[2]
        decided = service.leadkeep_here("conflicts", "resolve", late.id, "keep-first")
        assert decided.stdout == f"Resolved: {late.id} is dropped; a tombstone stays.\n"


def test_a_conflict_is_erased_without_the_lead_that_it_met(
    admin: Client, rows: psycopg.Connection, database_url: str
) -> None:
    first = admin.create(person := somebody()).id
    resubmit(admin, somebody(phone=person.phone))
    conflict_id = conflict_with(database_url, first)

    erase(admin, conflict_id)

    assert named_in(rows, conflict_id) == set()
    assert admin.get(first).id == first
    with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
        admin.get(conflict_id)


def test_a_lead_of_its_own_beside_an_erased_one_stays(
    admin: Client, rows: psycopg.Connection, database_url: str
) -> None:
    first = admin.create(person := somebody()).id
    resubmit(admin, somebody(phone=person.phone))
    own = conflict_with(database_url, first)
    resolve(admin, own, pb.CONFLICT_RESOLUTION_OWN_LEAD)

    erase(admin, first)

    assert admin.get(own).phone == person.phone
    assert tombstone(rows, own) is None
    assert named_in(rows, own) == {"lead.id", "lead_event.lead_id"}
    erase(admin, own)
    assert named_in(rows, own) == set()


def test_a_resubmission_that_shares_one_value_with_each_of_two_leads_stays_with_the_other(
    admin: Client, rows: psycopg.Connection
) -> None:
    one, other = somebody(), somebody()
    first, second = admin.create(one).id, admin.create(other).id
    resubmit(admin, somebody(phone=one.phone, nid=other.nid))
    assert erase(admin, first) == []
    assert [kept.lead.nid for kept in admin.resubmissions(second)] == [other.nid]


def test_what_the_person_submitted_goes_from_another_lead_whose_file_follows(
    admin: Client, rows: psycopg.Connection, database_url: str, service: RunningService
) -> None:
    husband = somebody()
    first = admin.create(husband).id
    wife = somebody(phone=husband.phone)
    resubmit(admin, wife)
    her_id = conflict_with(database_url, first)
    resolve(admin, her_id, pb.CONFLICT_RESOLUTION_OWN_LEAD)
    resubmit(admin, wife)
    today = file_of(service)
    assert eventually(lambda: len(leads_in(today).get(first, {}).get("kept_resubmissions", [])) == 2, within=30)

    erase(admin, her_id)

    assert admin.resubmissions(first) == []
    assert admin.get(first).resubmissions == 0
    assert admin.listed_ids(phone=husband.phone, order_by=pb.LEAD_ORDER_RESUBMITTED_DESC) == []
    assert soon_in(today, first, kept_resubmissions=[])


def test_the_daily_file_follows(admin: Client, service: RunningService) -> None:
    lead_id = admin.create(somebody()).id
    today = file_of(service)
    assert soon_in(today, lead_id)
    erase(admin, lead_id)
    assert eventually(lambda: lead_id not in today.read_text(), within=30)


def test_an_old_days_file_follows(admin: Client, service: RunningService, rows: psycopg.Connection) -> None:
    lead_id = admin.create(somebody()).id
    rows.execute("UPDATE lead SET created_at = '2024-02-29 12:00Z' WHERE id = %s", [lead_id])
    old = service.data_dir / "files" / "leads_2024-02-29.json"
    assert soon_in(old, lead_id)
    erase(admin, lead_id)
    assert eventually(lambda: not old.exists() or lead_id not in old.read_text(), within=30)


@pytest.mark.parametrize("attempt", range(4))
def test_what_happens_at_the_same_moment_leaves_nothing_behind(
    attempt: int, admin: Client, rows: psycopg.Connection, database_url: str
) -> None:
    """A change, a correction, an assignment, a duplicate and a decision race with the erasure of their lead."""
    person = somebody(conversation_id=f"talk-{uuid4()}")
    lead_id = admin.create(person).id
    resubmit(admin, somebody(phone=person.phone))
    conflict_id = conflict_with(database_url, lead_id)
    again = pb.Lead()
    again.CopyFrom(person)
    again.conversation_id = f"talk-{uuid4()}"
    calls = {
        "EraseLead": pb.EraseLeadRequest(id=lead_id),
        "UpdateStatus": pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED, reason="called"),
        "UpdateLead": pb.UpdateLeadRequest(lead=pb.Lead(id=lead_id, address="Elsewhere 1")),
        "AssignLead": pb.AssignLeadRequest(id=lead_id, assignee="rahima"),
        "ResolveConflict": pb.ResolveConflictRequest(id=conflict_id, resolution=pb.CONFLICT_RESOLUTION_OWN_LEAD),
        "CreateLead": pb.CreateLeadRequest(lead=again),
    }
    begin = threading.Barrier(len(calls))

    def call(rpc: str) -> StatusCode:
        begin.wait()
        try:
            admin.call(rpc, calls[rpc])
        except grpc.RpcError as error:
            return error.code()
        return StatusCode.OK

    with ThreadPoolExecutor(len(calls)) as threads:
        codes = dict(zip(calls, threads.map(call, calls), strict=True))

    assert codes["EraseLead"] is StatusCode.OK
    assert set(codes.values()) <= {StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.ALREADY_EXISTS}
    assert named_in(rows, lead_id) == set(), codes
    # The submission of another person was decided to be a lead of its own, before the erasure or after it.
    assert codes["ResolveConflict"] is StatusCode.OK
    of_its_own = {
        "lead.id",
        "lead_event.lead_id",
        "lead_conflict.id",
        "lead_conversation.lead_id",
        "resubmission.lead_id",
    }
    assert {"lead.id"} <= named_in(rows, conflict_id) <= of_its_own, codes


def test_an_erasure_waits_for_who_holds_the_lead_and_then_succeeds(
    admin: Client, rows: psycopg.Connection, database_url: str
) -> None:
    lead_id = admin.create(somebody()).id
    with locked_lead(database_url, lead_id) as holder, ThreadPoolExecutor(1) as threads:
        erasing = threads.submit(erase, admin, lead_id)
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%leads_sharing_with%'"
        )
        assert eventually(lambda: bool(value_of(database_url, waits)), within=30)
        holder.execute("UPDATE lead SET version = version + 1 WHERE id = %s", [lead_id])
        holder.execute(
            "INSERT INTO lead_event (type, lead_id, from_status, to_status, actor, version, reason)"
            " VALUES (3, %s, 'new', 'contacted', 'x', 2, 'while it was erased')",
            [lead_id],
        )
        holder.commit()
        erasing.result(timeout=10)
    assert named_in(rows, lead_id) == set()


class TestJsonEndpoint:
    @pytest.mark.parametrize("how", ["body", "query"])
    def test_delete_erases_for_the_reason_given(
        self, how: str, admin: Client, service: RunningService, rows: psycopg.Connection
    ) -> None:
        lead_id = admin.create(somebody()).id
        headers = {"authorization": f"Bearer {service.token('admin')}"}
        url, reason = f"{service.http_url}/api/leads/{lead_id}", {"reason": "by letter"}
        sent = {"json": reason} if how == "body" else {"params": reason}
        for _ in range(2):
            answer = httpx.request("DELETE", url, headers=headers, **sent)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()) == (200, {"kept_ids": []})
        assert tombstone(rows, lead_id) == (lead_id, "admin", "by letter", True)
        assert httpx.get(url, headers=headers).status_code == 404

    def test_without_a_reason_it_erases_too_and_an_unknown_field_is_refused(
        self, admin: Client, service: RunningService
    ) -> None:
        lead_id = admin.create(somebody()).id
        headers = {"authorization": f"Bearer {service.token('admin')}"}
        url = f"{service.http_url}/api/leads/{lead_id}"
        assert httpx.request("DELETE", url, headers=headers, json={"why": "x"}).status_code == 400
        assert httpx.delete(url, headers=headers).status_code == 200
        assert httpx.delete(url.replace(lead_id, str(uuid4())), headers=headers).status_code == 404
