"""A service that does without national ID, address and policy: what it takes, shows, corrects and describes."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from grpc import StatusCode
from jsonschema import Draft202012Validator
from leadkeep.v1 import lead_service_pb2 as pb

from service.lead import OPTIONAL_BY_SETTING
from tests.conftest import StartService
from tests.harness.faults import conflict_with, execute
from tests.harness.leads import STORY, somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused

PLACEHOLDERS = (
    *("none", "None", "NULL", "undefined", "unknown", "not provided", "Not provided.", "N/A", "N/A N/A", "n/a", "skip"),
    *("true", "-", "--", "nil", "no", "নাই", "pending", "not available", "xxxx", "asdf", "0000000000", "1111111111"),
    *("9999999999", "0", "00000000T"),
)
"""What 26 people without a national ID send as one."""


@pytest.fixture(scope="module")
def relaxed_database(postgres_server: TestServer) -> TestDatabase:
    return postgres_server.fresh_database()


@pytest.fixture(scope="module")
def relaxed(relaxed_database: TestDatabase, start_shared: StartService) -> RunningService:
    settings = {"LEADKEEP_OPTIONAL_FIELDS": "nid, address, interested_policy"}
    return start_shared("relaxed", database_url=relaxed_database.serve_url, settings=settings)


@pytest.fixture(scope="module")
def caller(relaxed: RunningService) -> Iterator[Client]:
    """Somebody with every scope."""
    with relaxed.channel() as channel:
        yield Client(relaxed, channel)


@pytest.fixture(scope="module")
def http(relaxed: RunningService) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {relaxed.token('chatbot')}"}
    with httpx.Client(base_url=relaxed.http_url, headers=headers, timeout=20) as client:
        yield client


def without(*names: str, **fields: str) -> pb.Lead:
    lead = somebody(**fields)
    for name in names:
        lead.ClearField(name)
    return lead


class TestPlaceholders:
    def test_26_people_with_placeholders_are_refused_where_an_id_is_required(self, admin: Client) -> None:
        for placeholder in PLACEHOLDERS:
            with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
                admin.create(somebody(nid=placeholder))
            [(field, description)] = refusal.violations.items()
            assert (field, description.partition(",")[0]) == ("lead.nid", "is a placeholder"), placeholder

    def test_26_people_with_placeholders_are_26_leads_where_it_is_optional(self, caller: Client) -> None:
        created = [caller.create(somebody(nid=placeholder)) for placeholder in PLACEHOLDERS]

        assert len(PLACEHOLDERS) == len({each.id for each in created}) == 26
        assert [(each.lead.nid, list(each.ignored_fields)) for each in created] == [("", ["nid"])] * 26

    @pytest.mark.parametrize("nid", ["123", "12#34", "1234567890.0"])
    def test_a_misspelt_one_is_refused_in_both(self, admin: Client, caller: Client, nid: str) -> None:
        for client in (admin, caller):
            with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
                client.create(somebody(nid=nid))
            assert list(refusal.violations) == ["lead.nid"]


class TestAnswers:
    @pytest.mark.parametrize("name", OPTIONAL_BY_SETTING)
    def test_a_lead_goes_without_each_of_them_and_shows_it_empty(self, caller: Client, name: str) -> None:
        sent = without(name)

        created = caller.create(sent)

        assert (getattr(created.lead, name), list(created.ignored_fields)) == ("", [])
        assert sent.name in created.confirmation.text
        assert [getattr(caller.get(created.id, view), name) for view in (pb.LEAD_VIEW_MASKED, pb.LEAD_VIEW_FULL)] == [
            "",
            "",
        ]
        [listed] = caller.list_leads(phone=sent.phone).leads
        assert (getattr(listed, name), list(listed.unreadable_fields)) == ("", [])

    def test_one_without_all_of_them_is_found_moved_and_assigned(self, caller: Client) -> None:
        talk = f"talk-{uuid4()}"
        lead_id = caller.create(without(*OPTIONAL_BY_SETTING, conversation_id=talk)).id

        assert caller.by_conversation(talk).lead.id == lead_id
        assert caller.move(lead_id, pb.LEAD_STATUS_CONTACTED).version == 2
        assert caller.assign(lead_id, "rahima").version == 3

    def test_a_policy_that_is_not_there_is_of_no_list_by_policy(self, caller: Client) -> None:
        policy = f"policy {uuid4()}"
        lead_id = caller.create(somebody(interested_policy=policy)).id
        caller.create(without("interested_policy"))

        assert caller.listed_ids(interested_policy=policy) == [lead_id]

    def test_only_name_and_phone_are_required(self, caller: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            caller.create(pb.Lead())

        assert set(refusal.violations) == {"lead.name", "lead.phone"}

    def test_an_address_that_cannot_be_read_costs_no_lead(self, caller: Client) -> None:
        created = caller.create(somebody(address="x" * 501))

        assert (created.lead.address, list(created.ignored_fields)) == ("", ["address"])

    def test_the_same_phone_without_an_id_is_a_duplicate_of_the_phone(self, caller: Client) -> None:
        first = without("nid")
        lead_id = caller.create(first).id

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            caller.create(without("nid", phone=first.phone))

        assert refusal.metadata["fields"] == "phone"
        [kept] = caller.resubmissions(lead_id)
        assert (kept.lead.nid, kept.verified) == ("", False)

    def test_the_same_again_without_a_request_id_is_a_repeat_until_the_lead_has_an_id(self, caller: Client) -> None:
        lead = without("nid")
        first = caller.create(lead)

        again = caller.create(lead)
        assert (again.id, again.is_repeat) == (first.id, True)

        caller.correct(first.id, nid=somebody().nid)
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            caller.create(lead)

    def test_a_repeat_of_a_request_answers_its_lead(self, caller: Client) -> None:
        lead = without(*OPTIONAL_BY_SETTING)
        first = caller.create(lead, request_id="without-nid")

        assert caller.create(lead, request_id="without-nid").id == first.id
        lead.nid = "1985123456789"
        with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
            caller.create(lead, request_id="without-nid")


class TestHttp:
    def test_json_shows_them_empty(self, http: httpx.Client) -> None:
        number = uuid4().int % 10**8
        created = http.post("/api/leads", json={"name": "Rahima", "phone": f"+88018{number:08d}", "nid": "N/A"})

        assert created.status_code == 201, created.text
        answer = created.json()
        assert answer["ignored_fields"] == ["nid"]
        assert [answer["lead"][name] for name in OPTIONAL_BY_SETTING] == ["", "", ""]
        assert http.get(f"/api/leads/{answer['id']}").json()["lead"] == answer["lead"]

    def test_an_id_that_is_a_number_in_json_is_refused_all_the_same(self, http: httpx.Client) -> None:
        answer = http.post("/api/leads", json={**STORY, "phone": "+8801811000001", "nid": 1985123456789})

        assert answer.status_code == 400
        assert [each["field"] for each in answer.json()["violations"]] == ["lead.nid"]

    def test_an_address_that_is_no_text_is_left_out(self, http: httpx.Client) -> None:
        number = uuid4().int % 10**8
        sent = {"name": "Rahima", "phone": f"+88018{number:08d}", "address": {"city": "Dhaka"}}

        assert http.post("/api/leads", json=sent).json()["ignored_fields"] == ["address"]

    def test_the_description_requires_what_the_service_requires(
        self, http: httpx.Client, service: RunningService
    ) -> None:
        sent = {"name": "Rahima", "phone": "+8801712345678", "nid": ""}
        described = http.get("/openapi.json").json()["components"]["schemas"]["LeadSubmission"]
        by_default = httpx.get(f"{service.http_url}/openapi.json").json()["components"]["schemas"]["LeadSubmission"]

        assert described["required"] == ["name", "phone"]
        assert Draft202012Validator(described).is_valid(sent)
        assert by_default["required"] == ["name", "phone", *OPTIONAL_BY_SETTING]
        assert not Draft202012Validator(by_default).is_valid(sent)


class TestCorrections:
    def test_an_id_is_added_and_keeps_others_out_from_then_on(self, caller: Client) -> None:
        nid = somebody().nid
        lead_id = caller.create(without("nid")).id

        assert caller.correct(lead_id, nid=nid).nid == nid

        assert caller.listed_ids(nid=nid) == [lead_id]
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID"):
            caller.create(somebody(nid=nid))

    def test_one_that_somebody_else_has_is_not_added(self, caller: Client) -> None:
        taken = somebody()
        caller.create(taken)
        lead_id = caller.create(without("nid")).id

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID"):
            caller.correct(lead_id, nid=taken.nid)

        assert caller.get(lead_id).nid == ""

    @pytest.mark.parametrize("name", OPTIONAL_BY_SETTING)
    def test_each_of_them_is_removed_and_added_again(self, caller: Client, name: str) -> None:
        lead = somebody()
        lead_id = caller.create(lead).id

        removed = caller.correct(lead_id, [name])
        assert (getattr(removed, name), removed.version) == ("", 2)
        assert caller.correct(lead_id, [name]).version == 2, "the same again changes nothing"
        again = caller.correct(lead_id, **{name: getattr(lead, name)})
        assert (getattr(again, name), again.version) == (getattr(lead, name), 3)

    def test_an_id_that_was_removed_is_free_for_another_lead(self, caller: Client) -> None:
        lead = somebody()
        lead_id = caller.create(lead).id
        caller.correct(lead_id, ["nid"])

        other = caller.create(somebody(nid=lead.nid)).id

        assert caller.listed_ids(nid=lead.nid) == [other]
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID"):
            caller.correct(lead_id, nid=lead.nid)

    def test_a_placeholder_removes_nothing(self, caller: Client) -> None:
        lead = somebody()
        lead_id = caller.create(lead).id

        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID"):
            caller.correct(lead_id, nid="N/A")

        assert caller.get(lead_id).nid == lead.nid

    @pytest.mark.parametrize("name", ["nid", "email"])
    def test_one_that_cannot_be_opened_can_be_removed(
        self, caller: Client, relaxed_database: TestDatabase, name: str
    ) -> None:
        lead_id = caller.create(somebody()).id
        execute(relaxed_database.admin_url, f"UPDATE lead SET {name} = 'gone.gAAAAAAAAAAA' WHERE id = '{lead_id}'")
        with refused(StatusCode.DATA_LOSS, "FIELD_UNREADABLE"):
            caller.get(lead_id)

        assert getattr(caller.correct(lead_id, [name]), name) == ""

        assert caller.get(lead_id).version == 2


class TestConflicts:
    @pytest.mark.parametrize(("first", "late"), [("", ""), ("", "some"), ("some", "")])
    def test_taking_the_new_values_keeps_an_id_that_was_left_out_this_time(
        self, caller: Client, relaxed_database: TestDatabase, first: str, late: str
    ) -> None:
        lead, again = somebody(), somebody()
        again.phone = lead.phone
        for each, wanted in ((lead, first), (again, late)):
            if not wanted:
                each.ClearField("nid")
        lead_id = caller.create(lead).id
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            caller.create(again)
        conflict = conflict_with(relaxed_database.admin_url, lead_id)
        [shown] = [
            each for each in caller.call("ListConflicts", pb.ListConflictsRequest()).conflicts if each.id == conflict
        ]
        assert (shown.submission.nid, list(shown.submission.unreadable_fields)) == (again.nid, [])

        request = pb.ResolveConflictRequest(id=conflict, resolution=pb.CONFLICT_RESOLUTION_TAKE_NEW)
        resolved = caller.call("ResolveConflict", request).lead

        assert (resolved.id, resolved.name, resolved.nid) == (lead_id, again.name, again.nid or lead.nid)
