"""ListLeadEvents: everything that happened to a lead, in one list."""

from __future__ import annotations

from uuid import uuid4

import httpx
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

CREATED, CORRECTED = pb.LEAD_EVENT_TYPE_CREATED, pb.LEAD_EVENT_TYPE_CORRECTED
MOVED, ASSIGNED = pb.LEAD_EVENT_TYPE_STATUS_CHANGED, pb.LEAD_EVENT_TYPE_ASSIGNED
RESUBMITTED, DECIDED = pb.LEAD_EVENT_TYPE_RESUBMITTED, pb.LEAD_EVENT_TYPE_CONFLICT_DECIDED
REVEALED = pb.LEAD_EVENT_TYPE_REVEALED


@pytest.fixture
def again(chatbot: Client, database_url: str) -> Again:
    return Again(chatbot, database_url)


class Again:
    """Sends a person's phone once more."""

    def __init__(self, chatbot: Client, database_url: str) -> None:
        self._chatbot, self._database_url = chatbot, database_url

    def resubmit(self, lead: pb.Lead) -> None:
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            self._chatbot.create(lead)

    def conflict(self, lead_id: str, lead: pb.Lead) -> str:
        """The id of the submission as a conflict with a lead."""
        self.resubmit(lead)
        return conflict_with(self._database_url, lead_id)


def resolve(admin: Client, conflict: str, resolution: pb.ConflictResolution, reason: str = "") -> str:
    request = pb.ResolveConflictRequest(id=conflict, resolution=resolution, reason=reason)
    lead_id: str = admin.call("ResolveConflict", request).lead.id
    return lead_id


def summary(events: list[pb.LeadEvent]) -> list[tuple[object, ...]]:
    return [(event.type, event.version, event.actor, ",".join(event.fields), event.reason) for event in events]


def test_a_leads_life_is_listed_in_order_with_who_and_which_fields(
    chatbot: Client, admin: Client, agent: Client, again: Again
) -> None:
    person = somebody()
    made = chatbot.create(person).lead
    admin.correct(made.id, address="2 New Road", name=person.name, reason="moved house")
    agent.correct(made.id, notes="calls back", name="Rahima B.")
    agent.move(made.id, pb.LEAD_STATUS_CONTACTED, reason="called")
    agent.assign(made.id, "rahima")
    agent.assign(made.id, "karim", reason="holiday")
    conflict = again.conflict(made.id, somebody(phone=person.phone, address="3 Other Road"))
    resolve(admin, conflict, pb.CONFLICT_RESOLUTION_TAKE_NEW, reason="the same person")

    events = agent.events(made.id)

    assert summary(events) == [
        (CREATED, 1, "chatbot", "", ""),
        (CORRECTED, 2, "admin", "address", "moved house"),
        (CORRECTED, 3, "agent", "name,notes", ""),
        (MOVED, 4, "agent", "", "called"),
        (ASSIGNED, 5, "agent", "", ""),
        (ASSIGNED, 6, "agent", "", "holiday"),
        (RESUBMITTED, 6, "chatbot", "", ""),
        # All that was submitted: names of what differs would tell which masked values are equal.
        (CORRECTED, 7, "admin", "name,phone,nid,address,interested_policy,email,notes", "the same person"),
        (DECIDED, 7, "admin", "", "the same person"),
    ]
    assert (events[3].from_status, events[3].to_status) == (pb.LEAD_STATUS_NEW, pb.LEAD_STATUS_CONTACTED)
    assert [(each.from_assignee, each.to_assignee) for each in events[4:6]] == [("", "rahima"), ("rahima", "karim")]
    assert {each.lead_id for each in events} == {made.id}
    assert len({each.id for each in events}) == len(events)
    assert events[0].at == made.created_at
    assert [each.to_status for each in agent.status_changes(made.id)] == [pb.LEAD_STATUS_CONTACTED]
    assert [each.to_assignee for each in agent.assignments(made.id)] == ["rahima", "karim"]


def test_what_changes_nothing_is_no_event(admin: Client, again: Again) -> None:
    person = somebody()
    lead_id = admin.create(person, request_id="once").id
    other = admin.create(somebody())
    admin.create(person, request_id="once")
    admin.move(lead_id, pb.LEAD_STATUS_NEW)
    admin.assign(lead_id, "")
    admin.correct(lead_id, name=person.name)
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.correct(lead_id, phone=other.lead.phone)
    with refused(StatusCode.ABORTED, "VERSION_MISMATCH"):
        admin.move(lead_id, pb.LEAD_STATUS_CONTACTED, expected_version=7)
    conflict = again.conflict(lead_id, person)
    resolve(admin, conflict, pb.CONFLICT_RESOLUTION_KEEP_FIRST)

    assert [each.type for each in admin.events(lead_id)] == [CREATED, RESUBMITTED, DECIDED]
    assert admin.get(lead_id).version == 1


def test_a_lead_of_its_own_begins_with_what_was_submitted_and_both_show_the_decision(
    admin: Client, again: Again
) -> None:
    person = somebody()
    first = admin.create(person).id
    conflict = again.conflict(first, somebody(phone=person.phone))

    own = resolve(admin, conflict, pb.CONFLICT_RESOLUTION_OWN_LEAD, reason="a relative")

    assert summary(admin.events(own)) == [(CREATED, 1, "chatbot", "", ""), (DECIDED, 1, "admin", "", "a relative")]
    assert admin.events(own)[0].at == admin.get(own).created_at
    assert [each.type for each in admin.events(first)] == [CREATED, RESUBMITTED, DECIDED]


def test_an_id_that_leads_to_a_lead_shows_its_events(admin: Client, again: Again) -> None:
    person = somebody()
    lead_id = admin.create(person).id
    conflict = again.conflict(lead_id, somebody(phone=person.phone))
    resolve(admin, conflict, pb.CONFLICT_RESOLUTION_KEEP_FIRST)

    assert admin.events(conflict) == admin.events(lead_id)
    first = admin.event_page(conflict, page_size=1)
    assert admin.event_page(lead_id, page_size=1, page_token=first.next_page_token).events[0].type == RESUBMITTED


def test_looks_stand_where_they_happened_and_only_for_who_operates(connect: Connect, admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    viewer = connect("viewer", subject="viewer", scopes={Scope.READ, Scope.UNMASK})
    viewer.get(lead_id)
    admin.move(lead_id, pb.LEAD_STATUS_CONTACTED)
    viewer.get(lead_id)

    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
        viewer.events(lead_id, include_accesses=True)
    assert refusal.metadata["scope"] == "leads:operate"
    assert REVEALED not in [each.type for each in viewer.events(lead_id)]

    events = [each for each in admin.events(lead_id, include_accesses=True) if each.actor != "admin" or not each.fields]
    assert [(each.type, each.actor) for each in events] == [
        (CREATED, "admin"),
        (REVEALED, "viewer"),
        (MOVED, "admin"),
        (REVEALED, "viewer"),
    ]
    assert list(events[1].fields) == ["phone", "nid", "address", "email", "notes"]
    assert (events[1].version, events[1].lead_id) == (0, lead_id)


@pytest.mark.parametrize("include_accesses", [False, True])
@pytest.mark.parametrize("page_size", [1, 2, 3])
def test_pages_are_the_list_and_newest_first_its_reverse(
    admin: Client, again: Again, include_accesses: bool, page_size: int
) -> None:
    person = somebody()
    lead_id = admin.create(person).id
    for number in range(3):
        again.resubmit(somebody(phone=person.phone))
        admin.get(lead_id)
        admin.assign(lead_id, f"agent {number}")

    whole = admin.event_page(lead_id, include_accesses=include_accesses).events

    for newest_first in (False, True):
        page = {"include_accesses": include_accesses, "newest_first": newest_first, "page_size": page_size}
        assert admin.events(lead_id, **page) == list(whole)[:: -1 if newest_first else 1]


def test_what_happens_between_two_pages_neither_shifts_nor_repeats_events(admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    admin.assign(lead_id, "one")
    for wanted in ({}, {"include_accesses": True}):
        page = admin.event_page(lead_id, page_size=1, **wanted)
        admin.assign(lead_id, f"another {wanted}")
        rest = admin.event_page(lead_id, page_token=page.next_page_token, **wanted).events
        assert [*page.events, *rest] == admin.events(lead_id, **wanted)


def test_a_token_of_another_lead_order_or_selection_is_refused(admin: Client) -> None:
    ids = [admin.create(somebody()).id for _ in range(2)]
    for lead_id in ids:
        admin.assign(lead_id, "rahima")
    token = admin.event_page(ids[0], page_size=1).next_page_token
    assert token
    for lead_id, more in ((ids[1], {}), (ids[0], {"newest_first": True}), (ids[0], {"include_accesses": True})):
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            admin.event_page(lead_id, page_token=token, **more)
    listed = admin.list_leads(page_size=1).next_page_token
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        admin.event_page(ids[0], page_token=listed)


def test_only_who_reads_every_lead_sees_a_history(chatbot: Client, connect: Connect) -> None:
    lead_id = chatbot.create(somebody()).id
    for caller in (chatbot, connect("boss", scopes=set(Scope) - {Scope.READ})):
        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
            caller.events(lead_id)


def test_the_reason_of_a_correction_is_checked_like_any_other(admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    for bad in ("x" * 501, "\0"):
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.correct(lead_id, name="Rahima", reason=bad)
        assert list(refusal.violations) == ["reason"]
    assert admin.get(lead_id).version == 1


def test_of_an_erased_lead_one_event_stays_that_nobody_lists(admin: Client, again: Again, database_url: str) -> None:
    person = somebody()
    lead_id = admin.create(person).id
    admin.move(lead_id, pb.LEAD_STATUS_CONTACTED, reason="called")
    again.resubmit(somebody(phone=person.phone))

    admin.call("EraseLead", pb.EraseLeadRequest(id=lead_id, reason="asked for it"))
    admin.call("EraseLead", pb.EraseLeadRequest(id=lead_id, reason="asked once more"))

    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT type, version, actor, reason, fields, from_status FROM lead_event WHERE lead_id = %s", [lead_id]
        ).fetchall()
        (erased_at,) = connection.execute(
            "SELECT e.at = t.erased_at FROM lead_event e JOIN tombstone t ON t.id = e.lead_id WHERE t.id = %s",
            [lead_id],
        ).fetchone() or (None,)
    assert rows == [(pb.LEAD_EVENT_TYPE_ERASED, 2, "admin", "asked for it", None, None)]
    assert erased_at
    with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
        admin.events(lead_id)


class TestJsonEndpoint:
    def test_events_are_paged_like_over_grpc(self, admin: Client, service: RunningService) -> None:
        lead_id = admin.create(somebody()).id
        admin.correct(lead_id, name="Rahima", reason="misspelt")
        url = f"{service.http_url}/api/leads/{lead_id}/events"
        headers = {"authorization": f"Bearer {service.token('admin')}"}

        first = httpx.get(url, params={"newest_first": "true", "pageSize": "1"}, headers=headers).json()
        rest = httpx.get(
            url, params={"newest_first": "true", "page_token": first["next_page_token"]}, headers=headers
        ).json()

        (corrected,) = first["events"]
        assert (corrected["type"], corrected["fields"]) == ("LEAD_EVENT_TYPE_CORRECTED", ["name"])
        assert (corrected["version"], corrected["reason"], corrected["actor"]) == ("2", "misspelt", "admin")
        assert [each["type"] for each in rest["events"]] == ["LEAD_EVENT_TYPE_CREATED"]
        assert rest["next_page_token"] == ""

    @pytest.mark.parametrize(
        ("query", "status", "word"),
        [
            ({"include_accesses": "true"}, 200, "LEAD_EVENT_TYPE_REVEALED"),
            ({"include_accesses": "false"}, 200, "CREATED"),
            ({"newest_first": "yes"}, 400, "newest_first"),
            ({"newest_first": "1"}, 400, "newest_first"),
            ({"page_size": "-1"}, 400, "page_size"),
            ({"view": "full"}, 400, "view"),
            ({"page_token": "x"}, 400, "PAGE_TOKEN_INVALID"),
        ],
    )
    def test_its_parameters_are_read_strictly(
        self, admin: Client, service: RunningService, query: dict[str, str], status: int, word: str
    ) -> None:
        lead_id = admin.create(somebody()).id
        admin.get(lead_id)
        headers = {"authorization": f"Bearer {service.token('admin')}"}
        answer = httpx.get(f"{service.http_url}/api/leads/{lead_id}/events", params=query, headers=headers)
        assert answer.status_code == status
        assert word in answer.text

    def test_an_unknown_lead_is_not_found(self, service: RunningService) -> None:
        headers = {"authorization": f"Bearer {service.token('agent')}"}
        answer = httpx.get(f"{service.http_url}/api/leads/{uuid4()}/events", headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (404, "LEAD_NOT_FOUND")
