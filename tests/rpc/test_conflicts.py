"""Submissions that met a lead after they were acknowledged: who sees them, and what each decision does."""

from __future__ import annotations

import psycopg
import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused
from tests.rpc.conftest import Connect

KEEP_FIRST = pb.CONFLICT_RESOLUTION_KEEP_FIRST
TAKE_NEW = pb.CONFLICT_RESOLUTION_TAKE_NEW
OWN_LEAD = pb.CONFLICT_RESOLUTION_OWN_LEAD


class Case:
    """A lead, and a submission with its phone that came late."""

    def __init__(self, admin: Client, database_url: str) -> None:
        self.admin, self._database_url = admin, database_url
        self.sent = somebody(email="first@example.com")
        self.first = admin.create(self.sent).id
        self.late = somebody(phone=self.sent.phone, conversation_id=f"late-{self.first}")
        self.late.ClearField("email")
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            admin.create(self.late)
        self.id = conflict_with(database_url, self.first)

    def resolve(self, resolution: pb.ConflictResolution, **more: str) -> pb.Lead:
        request = pb.ResolveConflictRequest(id=self.id, resolution=resolution, **more)  # type: ignore[arg-type] # texts only
        answer: pb.ResolveConflictResponse = self.admin.call("ResolveConflict", request)
        return answer.lead

    def get(self, lead_id: str) -> pb.Lead:
        answer: pb.GetLeadResponse = self.admin.call("GetLead", pb.GetLeadRequest(id=lead_id))
        return answer.lead

    def row(self) -> tuple[object, ...]:
        with psycopg.connect(self._database_url) as connection:
            query = "SELECT resolution, resolved_by, reason, resolved_at IS NOT NULL FROM lead_conflict WHERE id = %s"
            found = connection.execute(query, [self.id]).fetchone()
        assert found is not None
        return found


@pytest.fixture
def case(admin: Client, database_url: str) -> Case:
    return Case(admin, database_url)


def listed(admin: Client, **request: object) -> list[pb.Conflict]:
    found: list[pb.Conflict] = []
    token = ""
    while True:
        answer = admin.call("ListConflicts", pb.ListConflictsRequest(page_token=token, **request))  # type: ignore[arg-type]
        found += answer.conflicts
        token = answer.next_page_token
        if not token:
            return found


def test_a_conflict_shows_both_sides(admin: Client, case: Case) -> None:
    (conflict,) = [each for each in listed(admin) if each.id == case.id]

    assert (conflict.submission.nid, conflict.submission.phone) == (case.late.nid, case.sent.phone)
    assert [(lead.id, lead.nid) for lead in conflict.leads] == [(case.first, case.sent.nid)]
    assert list(conflict.met_fields) == ["phone"]
    assert conflict.resolution == pb.CONFLICT_RESOLUTION_UNSPECIFIED


def test_conflicts_are_listed_oldest_first_page_by_page(admin: Client, database_url: str) -> None:
    made = [Case(admin, database_url).id for _ in range(3)]

    found = [conflict.id for conflict in listed(admin, page_size=2)]

    assert [each for each in found if each in made] == made
    assert len(found) == len(set(found))


def test_only_who_operates_sees_or_decides(connect: Connect, case: Case) -> None:
    everything_else = connect("boss", scopes=set(Scope) - {Scope.OPERATE})
    for rpc, request in (
        ("ListConflicts", pb.ListConflictsRequest()),
        ("ResolveConflict", pb.ResolveConflictRequest(id=case.id, resolution=KEEP_FIRST)),
    ):
        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
            everything_else.call(rpc, request)


def test_who_operates_without_unmask_sees_masks(connect: Connect, case: Case) -> None:
    operator = connect("operator", scopes={Scope.OPERATE})

    (conflict,) = [each for each in listed(operator) if each.id == case.id]

    assert conflict.submission.masked
    assert conflict.leads[0].masked
    assert case.sent.nid not in str(conflict)


def test_an_id_in_conflict_says_so_and_is_not_missing(case: Case) -> None:
    with refused(StatusCode.FAILED_PRECONDITION, "LEAD_IN_CONFLICT") as refusal:
        case.get(case.id)
    assert refusal.metadata == {"conflict_id": case.id}


def test_keeping_the_first_leaves_it_as_it_is_and_leads_the_id_to_it(case: Case) -> None:
    before = case.get(case.first)

    assert case.resolve(KEEP_FIRST, reason="same customer") == before

    assert case.get(case.id) == before
    assert case.row() == ("keep_first", "admin", "same customer", True)


def test_taking_the_new_values_changes_the_first_and_keeps_what_was_not_told(case: Case) -> None:
    taken = case.resolve(TAKE_NEW)

    assert (taken.id, taken.nid, taken.address) == (case.first, case.late.nid, case.late.address)
    assert taken.email == case.sent.email
    assert taken.version == 2
    assert case.get(case.id) == taken


def test_a_lead_of_its_own_stands_beside_the_first(case: Case) -> None:
    own = case.resolve(OWN_LEAD)

    assert (own.id, own.phone, own.nid) == (case.id, case.sent.phone, case.late.nid)
    assert case.get(case.id).phone == case.get(case.first).phone
    assert set(case.admin.listed_ids(phone=case.sent.phone)) == {case.first, case.id}


def test_what_comes_next_meets_the_first_of_two_that_share_a_phone(case: Case) -> None:
    case.resolve(OWN_LEAD)

    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
        case.admin.create(somebody(phone=case.sent.phone))
    assert refusal.metadata["lead_id"] == case.first


def test_a_corrected_phone_is_shared_no_more(case: Case) -> None:
    case.resolve(OWN_LEAD)
    fresh = somebody().phone
    case.admin.call("UpdateLead", pb.UpdateLeadRequest(lead=pb.Lead(id=case.id, phone=fresh)))

    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
        case.admin.create(somebody(phone=fresh))
    assert refusal.metadata["lead_id"] == case.id


@pytest.mark.parametrize("resolution", [KEEP_FIRST, TAKE_NEW, OWN_LEAD])
def test_the_conversation_leads_to_what_was_decided(case: Case, resolution: pb.ConflictResolution) -> None:
    decided = case.resolve(resolution)

    request = pb.GetLeadByConversationRequest(conversation_id=case.late.conversation_id)
    assert case.admin.call("GetLeadByConversation", request).lead.id == decided.id


@pytest.mark.parametrize("resolution", [KEEP_FIRST, TAKE_NEW, OWN_LEAD])
def test_the_same_decision_again_changes_nothing(case: Case, resolution: pb.ConflictResolution) -> None:
    assert case.resolve(resolution) == case.resolve(resolution)


def test_another_decision_is_refused(case: Case) -> None:
    case.resolve(KEEP_FIRST)

    with refused(StatusCode.FAILED_PRECONDITION, "CONFLICT_RESOLVED") as refusal:
        case.resolve(OWN_LEAD)
    assert refusal.metadata == {"resolution": "keep_first"}


def test_new_values_that_meet_a_third_lead_are_refused_and_the_conflict_waits(case: Case) -> None:
    third = case.admin.create(somebody(nid=case.late.nid)).id

    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID") as refusal:
        case.resolve(TAKE_NEW)
    assert refusal.metadata["lead_id"] == third
    assert case.resolve(KEEP_FIRST).id == case.first


def test_a_lead_that_was_not_met_cannot_be_named(case: Case) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        case.resolve(KEEP_FIRST, lead_id=case.admin.create(somebody()).id)
    assert list(refusal.violations) == ["lead_id"]


def test_a_resolution_must_be_named(case: Case) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        case.resolve(pb.CONFLICT_RESOLUTION_UNSPECIFIED)
    assert list(refusal.violations) == ["resolution"]


def test_changes_follow_the_id_to_its_lead(case: Case) -> None:
    case.resolve(KEEP_FIRST)

    moved = case.admin.call("UpdateStatus", pb.UpdateStatusRequest(id=case.id, status=pb.LEAD_STATUS_CONTACTED)).lead

    assert moved.id == case.first
    history = case.admin.call("ListStatusChanges", pb.ListStatusChangesRequest(lead_id=case.id)).changes
    assert [change.to_status for change in history] == [pb.LEAD_STATUS_CONTACTED]


def test_who_was_given_an_id_that_leads_to_somebody_elses_lead_is_told_which_scope_it_needs(
    connect: Connect, case: Case, database_url: str
) -> None:
    bot = connect("chatbot", subject="bot-2")
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE lead_conflict SET created_by = 'bot-2' WHERE id = %s", [case.id])
    case.resolve(KEEP_FIRST)

    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
        bot.get(case.id)
    with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
        connect("chatbot", subject="bot-3").get(case.id)


def test_the_command_line_lists_masked_and_decides(service: RunningService, case: Case) -> None:
    shown = service.leadkeep("conflicts", "list")
    assert shown.returncode == 0, shown.stderr
    assert case.id in shown.stdout
    assert case.late.nid not in shown.stdout

    decided = service.leadkeep("conflicts", "resolve", case.id, "take-new", "--reason", "he moved")
    assert decided.returncode == 0, decided.stderr
    assert case.get(case.id).id == case.first
    assert str(case.row()[1]).startswith("cli:")
