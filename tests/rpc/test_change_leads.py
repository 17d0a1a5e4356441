from __future__ import annotations

from datetime import UTC
from uuid import uuid4

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.lead import CORRECTABLE_FIELDS, REQUIRED_FIELDS
from tests.harness.leads import somebody
from tests.rpc.calls import Client, refused
from tests.rpc.conftest import Connect

STATUSES = [number for number in pb.LeadStatus.values() if number]
BEYOND_NEW = [number for number in STATUSES if number != pb.LEAD_STATUS_NEW]


@pytest.fixture
def person() -> pb.Lead:
    return somebody(preferred_contact_time="evenings", conversation_id=f"talk-{uuid4()}", source="web")


@pytest.fixture
def lead_id(chatbot: Client, person: pb.Lead) -> str:
    return chatbot.create(person).id


class TestStatus:
    def test_a_lead_moves_on(self, agent: Client, lead_id: str) -> None:
        lead = agent.move(lead_id, pb.LEAD_STATUS_CONTACTED)

        assert (lead.status, lead.version) == (pb.LEAD_STATUS_CONTACTED, 2)
        assert agent.get(lead_id) == lead

    @pytest.mark.parametrize("from_status", BEYOND_NEW)
    @pytest.mark.parametrize("to_status", BEYOND_NEW)
    def test_every_status_beyond_new_leads_to_every_other(
        self, agent: Client, lead_id: str, from_status: pb.LeadStatus, to_status: pb.LeadStatus
    ) -> None:
        agent.move(lead_id, from_status)

        assert agent.move(lead_id, to_status).status == to_status

    @pytest.mark.parametrize("from_status", BEYOND_NEW)
    def test_back_to_new_is_refused(self, agent: Client, lead_id: str, from_status: pb.LeadStatus) -> None:
        before = agent.move(lead_id, from_status)

        with refused(StatusCode.FAILED_PRECONDITION, "STATUS_TRANSITION") as refusal:
            agent.move(lead_id, pb.LEAD_STATUS_NEW)

        name = pb.LeadStatus.Name(from_status).removeprefix("LEAD_STATUS_").lower()
        assert refusal.metadata == {"from": name, "to": "new"}
        assert agent.get(lead_id) == before

    @pytest.mark.parametrize("status", STATUSES)
    def test_the_same_status_again_changes_nothing_and_succeeds(
        self, agent: Client, lead_id: str, status: pb.LeadStatus
    ) -> None:
        before = agent.move(lead_id, status)

        assert agent.move(lead_id, status) == before
        assert len(agent.status_changes(lead_id)) == (status != pb.LEAD_STATUS_NEW)

    def test_a_repeat_after_a_lost_reply_succeeds_though_its_version_is_stale(
        self, agent: Client, lead_id: str
    ) -> None:
        moved = agent.move(lead_id, pb.LEAD_STATUS_CONTACTED, expected_version=1)

        assert agent.move(lead_id, pb.LEAD_STATUS_CONTACTED, expected_version=1) == moved

    def test_a_stale_version_is_refused_and_the_current_one_told(self, agent: Client, lead_id: str) -> None:
        agent.move(lead_id, pb.LEAD_STATUS_CONTACTED)

        with refused(StatusCode.ABORTED, "VERSION_MISMATCH") as refusal:
            agent.move(lead_id, pb.LEAD_STATUS_CONVERTED, expected_version=1)

        assert refusal.metadata == {"current_version": "2"}
        assert agent.get(lead_id).status == pb.LEAD_STATUS_CONTACTED

    def test_the_right_version_is_accepted(self, agent: Client, lead_id: str) -> None:
        agent.move(lead_id, pb.LEAD_STATUS_CONTACTED, expected_version=1)

        assert agent.move(lead_id, pb.LEAD_STATUS_CONVERTED, expected_version=2).version == 3

    def test_the_history_tells_who_why_and_when_oldest_first(self, connect: Connect, lead_id: str) -> None:
        sam, ada = connect("agent", subject="sam"), connect("agent", subject="ada")
        sam.move(lead_id, pb.LEAD_STATUS_CONTACTED, reason="  called twice ")
        lead = ada.move(lead_id, pb.LEAD_STATUS_CONVERTED)

        first, second = sam.status_changes(lead_id)

        assert (first.from_status, first.to_status) == (pb.LEAD_STATUS_NEW, pb.LEAD_STATUS_CONTACTED)
        assert (first.actor, first.reason, first.version) == ("sam", "called twice", 2)
        assert (second.from_status, second.to_status) == (pb.LEAD_STATUS_CONTACTED, pb.LEAD_STATUS_CONVERTED)
        assert (second.actor, second.reason, second.version) == ("ada", "", 3)
        assert lead.created_at.ToDatetime() < first.changed_at.ToDatetime() < second.changed_at.ToDatetime()
        assert second.changed_at.ToDatetime() <= lead.updated_at.ToDatetime()

    def test_a_new_lead_has_no_history(self, agent: Client, lead_id: str) -> None:
        assert agent.status_changes(lead_id) == []
        assert agent.assignments(lead_id) == []

    def test_updated_at_moves_on_and_created_at_stays(self, agent: Client, lead_id: str) -> None:
        before = agent.get(lead_id)

        after = agent.move(lead_id, pb.LEAD_STATUS_CONTACTED)

        assert after.updated_at.ToDatetime(tzinfo=UTC) > before.updated_at.ToDatetime(tzinfo=UTC)
        assert after.created_at == before.created_at

    def test_a_reason_of_more_than_500_characters_is_refused(self, agent: Client, lead_id: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            agent.move(lead_id, pb.LEAD_STATUS_CONTACTED, reason="x" * 501)

        assert list(refusal.violations) == ["reason"]

    def test_an_unknown_lead_is_not_found(self, agent: Client) -> None:
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
            agent.move(str(uuid4()), pb.LEAD_STATUS_CONTACTED)

    def test_a_chatbot_may_not(self, chatbot: Client, lead_id: str) -> None:
        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
            chatbot.move(lead_id, pb.LEAD_STATUS_CONTACTED)

        assert refusal.metadata == {"scope": "leads:update"}


class TestAssignment:
    def test_a_lead_is_given_to_somebody(self, agent: Client, lead_id: str) -> None:
        lead = agent.assign(lead_id, " Sam ")

        assert (lead.assignee, lead.version) == ("Sam", 2)
        assert agent.get(lead_id) == lead

    def test_a_lead_is_given_to_nobody(self, agent: Client, lead_id: str) -> None:
        agent.assign(lead_id, "Sam")

        assert agent.assign(lead_id, "").assignee == ""

    def test_the_same_assignee_again_changes_nothing_whatever_the_version(self, agent: Client, lead_id: str) -> None:
        before = agent.assign(lead_id, "Sam", expected_version=1)

        assert agent.assign(lead_id, "Sam", expected_version=1) == before

    def test_nobody_again_changes_nothing(self, agent: Client, lead_id: str) -> None:
        assert agent.assign(lead_id, "").version == 1

    def test_a_stale_version_is_refused(self, agent: Client, lead_id: str) -> None:
        agent.assign(lead_id, "Sam")

        with refused(StatusCode.ABORTED, "VERSION_MISMATCH") as refusal:
            agent.assign(lead_id, "Ada", expected_version=1)

        assert refusal.metadata == {"current_version": "2"}

    def test_the_history_tells_from_whom_to_whom_oldest_first(self, connect: Connect, lead_id: str) -> None:
        boss = connect("agent", subject="boss")
        boss.assign(lead_id, "Sam", reason="knows the region")
        boss.assign(lead_id, "Ada")
        boss.assign(lead_id, "")

        history = [(a.from_assignee, a.to_assignee, a.actor, a.reason, a.version) for a in boss.assignments(lead_id)]

        assert history == [
            ("", "Sam", "boss", "knows the region", 2),
            ("Sam", "Ada", "boss", "", 3),
            ("Ada", "", "boss", "", 4),
        ]

    def test_status_and_assignment_share_one_version(self, agent: Client, lead_id: str) -> None:
        agent.assign(lead_id, "Sam")
        agent.move(lead_id, pb.LEAD_STATUS_CONTACTED)

        assert [change.version for change in agent.status_changes(lead_id)] == [3]
        assert [change.version for change in agent.assignments(lead_id)] == [2]

    def test_an_unknown_lead_is_not_found(self, agent: Client) -> None:
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
            agent.assign(str(uuid4()), "Sam")


class TestCorrection:
    def test_without_a_mask_the_fields_that_are_set_are_corrected(
        self, admin: Client, lead_id: str, person: pb.Lead
    ) -> None:
        lead = admin.correct(lead_id, name="New Name", email="new@example.com")

        assert (lead.name, lead.email, lead.version) == ("New Name", "new@example.com", 2)
        assert (lead.address, lead.notes, lead.phone) == (person.address, person.notes, person.phone)
        assert admin.get(lead_id) == lead

    def test_with_a_mask_only_the_named_fields_are_corrected(
        self, admin: Client, lead_id: str, person: pb.Lead
    ) -> None:
        lead = admin.correct(lead_id, ["address"], address="9 New Road", name="Ignored", notes="ignored")

        assert (lead.address, lead.name, lead.notes) == ("9 New Road", person.name, person.notes)

    def test_a_star_sets_every_customer_field(self, admin: Client, lead_id: str, person: pb.Lead) -> None:
        other = somebody()
        required = {name: getattr(other, name) for name in REQUIRED_FIELDS}

        lead = admin.correct(lead_id, ["*"], **required)

        assert {name: getattr(lead, name) for name in REQUIRED_FIELDS} == required
        assert (lead.email, lead.notes, lead.preferred_contact_time) == ("", "", "")
        assert lead.conversation_id == person.conversation_id

    @pytest.mark.parametrize("field", sorted(set(CORRECTABLE_FIELDS) - REQUIRED_FIELDS))
    def test_an_optional_field_that_is_named_and_empty_is_removed(
        self, admin: Client, lead_id: str, field: str
    ) -> None:
        assert getattr(admin.get(lead_id), field)

        assert getattr(admin.correct(lead_id, [field]), field) == ""

    @pytest.mark.parametrize("field", sorted(REQUIRED_FIELDS))
    def test_a_required_field_cannot_be_emptied(self, admin: Client, lead_id: str, field: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.correct(lead_id, [field])

        assert list(refusal.violations) == [f"lead.{field}"]

    @pytest.mark.parametrize("field", CORRECTABLE_FIELDS)
    def test_a_masked_value_is_refused(self, admin: Client, lead_id: str, field: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.correct(lead_id, [field], expected_version=0, **{field: "+880•••78"})

        assert "masked" in refusal.violations[f"lead.{field}"]

    def test_a_masked_lead_sent_back_overwrites_nothing(self, agent: Client, admin: Client, lead_id: str) -> None:
        before = admin.get(lead_id)
        masked = agent.get(lead_id)

        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            agent.correct(lead_id, **{name: getattr(masked, name) for name in CORRECTABLE_FIELDS})

        assert set(refusal.violations) == {f"lead.{name}" for name in ("phone", "nid", "address", "email", "notes")}
        assert admin.get(lead_id) == before

    def test_all_violations_are_told_at_once(self, admin: Client, lead_id: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.correct(lead_id, phone="12", nid="1", email="nobody", notes="\x00")

        assert set(refusal.violations) == {"lead.phone", "lead.nid", "lead.email", "lead.notes"}

    @pytest.mark.parametrize(
        "path", ["status", "assignee", "version", "id", "created_at", "conversation_id", "lead.name", "unknown", ""]
    )
    def test_what_cannot_be_corrected_is_refused_in_the_mask(self, admin: Client, lead_id: str, path: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.correct(lead_id, ["name", path], name="New Name")

        assert list(refusal.violations) == ["update_mask"]
        assert admin.get(lead_id).version == 1

    def test_a_star_beside_other_paths_is_refused(self, admin: Client, lead_id: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.correct(lead_id, ["*", "name"], name="New Name")

        assert list(refusal.violations) == ["update_mask"]

    def test_an_update_of_nothing_is_refused(self, admin: Client, lead_id: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.correct(lead_id)

        assert list(refusal.violations) == ["update_mask"]

    def test_a_conversation_in_the_lead_is_not_taken_over(self, admin: Client, lead_id: str, person: pb.Lead) -> None:
        lead = admin.correct(lead_id, name="New Name", conversation_id="another")

        assert lead.conversation_id == person.conversation_id

    def test_a_correction_that_changes_nothing_succeeds_whatever_the_version(
        self, admin: Client, lead_id: str, person: pb.Lead
    ) -> None:
        before = admin.correct(lead_id, name="New Name", expected_version=1)

        again = admin.correct(lead_id, name=" New Name ", phone=person.phone, expected_version=1)

        assert again == before

    def test_a_masked_caller_cannot_test_a_guess_with_a_version_that_never_matches(
        self, agent: Client, lead_id: str, person: pb.Lead
    ) -> None:
        with refused(StatusCode.ABORTED, "VERSION_MISMATCH"):
            agent.correct(lead_id, nid=person.nid, expected_version=99)

    @pytest.mark.parametrize("right", [True, False])
    def test_a_masked_caller_cannot_test_a_guess_with_the_true_version(
        self, agent: Client, lead_id: str, person: pb.Lead, right: bool
    ) -> None:
        guess = person if right else somebody()

        lead = agent.correct(lead_id, phone=guess.phone, address=guess.address, expected_version=1)

        assert (lead.masked, lead.version) == (True, 2)

    def test_a_stale_version_is_refused(self, admin: Client, lead_id: str) -> None:
        admin.correct(lead_id, name="New Name")

        with refused(StatusCode.ABORTED, "VERSION_MISMATCH") as refusal:
            admin.correct(lead_id, name="Newer Name", expected_version=1)

        assert refusal.metadata == {"current_version": "2"}

    def test_updated_at_moves_on_and_created_at_stays(self, admin: Client, lead_id: str) -> None:
        before = admin.get(lead_id)

        after = admin.correct(lead_id, name="New Name")

        assert after.updated_at.ToDatetime() > before.updated_at.ToDatetime()
        assert after.created_at == before.created_at

    @pytest.mark.parametrize("field", ["phone", "nid"])
    def test_the_old_value_is_free_for_another_lead(
        self, admin: Client, chatbot: Client, lead_id: str, person: pb.Lead, field: str
    ) -> None:
        admin.correct(lead_id, **{field: getattr(somebody(), field)})

        assert chatbot.create(somebody(**{field: getattr(person, field)})).id != lead_id

    @pytest.mark.parametrize(("field", "reason"), [("phone", "DUPLICATE_PHONE"), ("nid", "DUPLICATE_NID")])
    def test_the_new_value_blocks_another_lead(
        self, admin: Client, chatbot: Client, lead_id: str, field: str, reason: str
    ) -> None:
        value = getattr(somebody(), field)
        admin.correct(lead_id, None, **{field: value})

        with refused(StatusCode.ALREADY_EXISTS, reason):
            chatbot.create(somebody(**{field: value}))

    @pytest.mark.parametrize(("field", "reason"), [("phone", "DUPLICATE_PHONE"), ("nid", "DUPLICATE_NID")])
    def test_a_correction_that_meets_another_lead_is_refused(
        self, admin: Client, lead_id: str, field: str, reason: str
    ) -> None:
        other = somebody()
        other_id = admin.create(other).id

        with refused(StatusCode.ALREADY_EXISTS, reason) as refusal:
            admin.correct(lead_id, name="New Name", **{field: getattr(other, field)})

        assert refusal.metadata == {"fields": field, "lead_id": other_id, f"{field}_lead_id": other_id}
        assert admin.get(lead_id).version == 1

    def test_a_correction_that_meets_two_leads_names_both(self, admin: Client, lead_id: str) -> None:
        one, other = somebody(), somebody()
        one_id, other_id = admin.create(one).id, admin.create(other).id

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            admin.correct(lead_id, phone=one.phone, nid=other.nid)

        assert refusal.metadata == {
            "fields": "phone,nid",
            "lead_id": one_id,
            "phone_lead_id": one_id,
            "nid_lead_id": other_id,
        }

    def test_a_refused_correction_is_no_resubmission(self, admin: Client, lead_id: str) -> None:
        other = somebody()
        other_id = admin.create(other).id
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            admin.correct(lead_id, phone=other.phone)

        assert admin.get(other_id).resubmissions == 0

    def test_a_masked_caller_gets_the_corrected_lead_masked(self, agent: Client, lead_id: str) -> None:
        lead = agent.correct(lead_id, address="9 New Road")

        assert lead.masked
        assert lead.address == "•••"

    def test_an_unknown_lead_is_not_found(self, admin: Client) -> None:
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
            admin.correct(str(uuid4()), name="New Name")

    def test_a_correction_leaves_the_request_id_to_the_first_content(self, admin: Client, chatbot: Client) -> None:
        person, request_id = somebody(), str(uuid4())
        lead_id = chatbot.create(person, request_id=request_id).id
        admin.correct(lead_id, name="New Name")

        assert chatbot.create(person, request_id=request_id).id == lead_id


def test_a_correction_refuses_an_optional_field_that_cannot_be_read_and_keeps_the_stored_one(admin: Client) -> None:
    lead = admin.create(somebody(email="kept@example.com")).lead

    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.correct(lead.id, email="N/A")

    assert set(refusal.violations) == {"lead.email"}
    assert admin.get(lead.id).email == "kept@example.com"


def test_the_region_of_a_correction_reads_digits_without_a_plus(admin: Client) -> None:
    lead = admin.create(somebody()).lead

    assert admin.correct(lead.id, phone="447911123457", phone_region="001").phone == "+447911123457"
