from __future__ import annotations

from uuid import uuid4

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect


def conversation() -> str:
    return f"conversation-{uuid4()}"


def test_an_admin_sees_every_field(admin: Client) -> None:
    sent = somebody(preferred_contact_time="evenings", conversation_id=conversation())

    lead = admin.get(admin.create(sent).id)

    assert not lead.masked
    for descriptor, value in sent.ListFields():
        assert getattr(lead, descriptor.name) == value


def test_an_id_in_upper_case_names_the_same_lead(admin: Client) -> None:
    lead_id = admin.create(somebody()).id

    assert admin.get(lead_id.upper()).id == lead_id


def test_an_unknown_id_is_not_found(admin: Client) -> None:
    with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
        admin.get(str(uuid4()))


class TestReadOwn:
    def test_a_chatbot_reads_what_it_created(self, chatbot: Client) -> None:
        lead_id = chatbot.create(somebody()).id

        assert chatbot.get(lead_id).id == lead_id

    def test_what_another_created_does_not_exist_for_a_chatbot(self, chatbot: Client, connect: Connect) -> None:
        lead_id = connect("chatbot", subject="another-bot").create(somebody()).id

        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND") as unreadable:
            chatbot.get(lead_id)
        with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND") as unknown:
            chatbot.get(str(uuid4()))

        assert unreadable == unknown

    def test_a_chatbot_finds_its_own_lead_by_conversation(self, chatbot: Client) -> None:
        talk = conversation()
        lead_id = chatbot.create(somebody(conversation_id=talk)).id

        assert chatbot.by_conversation(talk).lead.id == lead_id

    def test_anothers_conversation_does_not_exist_for_a_chatbot(self, chatbot: Client, connect: Connect) -> None:
        talk = conversation()
        connect("chatbot", subject="another-bot").create(somebody(conversation_id=talk))

        with refused(StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"):
            chatbot.by_conversation(talk)

    def test_of_a_shared_conversation_a_chatbot_sees_only_its_own_leads(
        self, chatbot: Client, connect: Connect
    ) -> None:
        talk = conversation()
        mine = chatbot.create(somebody(conversation_id=talk)).id
        connect("chatbot", subject="another-bot").create(somebody(conversation_id=talk))

        found = chatbot.by_conversation(talk)

        assert (found.lead.id, list(found.other_lead_ids)) == (mine, [])

    def test_a_chatbot_lists_only_its_own_leads(self, chatbot: Client, connect: Connect) -> None:
        policy = f"policy {uuid4()}"
        mine = chatbot.create(somebody(interested_policy=policy)).id
        connect("chatbot", subject="another-bot").create(somebody(interested_policy=policy))

        assert chatbot.listed_ids(interested_policy=policy) == [mine]

    def test_the_scope_to_read_all_goes_beyond_ones_own(self, chatbot: Client, connect: Connect) -> None:
        lead_id = chatbot.create(somebody()).id

        both = connect(subject="reader", scopes={Scope.READ, Scope.READ_OWN})

        assert both.get(lead_id).id == lead_id

    @pytest.mark.parametrize("rpc", ["ListStatusChanges", "ListAssignments", "ListLeadEvents", "ListResubmissions"])
    def test_histories_are_not_for_chatbots(self, chatbot: Client, rpc: str) -> None:
        lead_id = chatbot.create(somebody()).id

        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
            chatbot.call(rpc, getattr(pb, f"{rpc}Request")(lead_id=lead_id))

        assert refusal.metadata == {"scope": "leads:read"}


@pytest.mark.parametrize("rpc", ["ListStatusChanges", "ListAssignments", "ListLeadEvents", "ListResubmissions"])
def test_the_history_of_an_unknown_lead_is_not_found(agent: Client, rpc: str) -> None:
    with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
        agent.call(rpc, getattr(pb, f"{rpc}Request")(lead_id=str(uuid4())))


class TestConversations:
    def test_the_newest_lead_is_shown_and_the_others_are_named(self, chatbot: Client, agent: Client) -> None:
        talk = conversation()
        first, second, third = (chatbot.create(somebody(conversation_id=talk)).id for _ in range(3))

        found = agent.by_conversation(talk)

        assert found.lead.id == third
        assert list(found.other_lead_ids) == [second, first]

    def test_a_lead_tells_its_conversation(self, chatbot: Client, agent: Client) -> None:
        talk = conversation()
        lead_id = chatbot.create(somebody(conversation_id=talk)).id

        assert agent.get(lead_id).conversation_id == talk

    def test_an_unknown_conversation_is_not_found(self, agent: Client) -> None:
        with refused(StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"):
            agent.by_conversation(conversation())

    def test_no_conversation_is_a_violation(self, agent: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            agent.by_conversation("")

        assert refusal.violations == {"conversation_id": "is required"}

    @pytest.mark.parametrize("field", ["phone", "nid"])
    def test_a_strangers_phone_or_nid_alone_does_not_link_a_conversation(
        self, chatbot: Client, agent: Client, field: str
    ) -> None:
        victim, talk = somebody(), conversation()
        chatbot.create(victim)

        with refused(StatusCode.ALREADY_EXISTS, f"DUPLICATE_{field.upper()}"):
            chatbot.create(somebody(conversation_id=talk, **{field: getattr(victim, field)}))

        with refused(StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"):
            agent.by_conversation(talk)

    def test_phone_and_nid_of_two_people_link_a_conversation_to_neither(self, chatbot: Client, agent: Client) -> None:
        one, other, talk = somebody(), somebody(), conversation()
        chatbot.create(one)
        chatbot.create(other)

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            chatbot.create(somebody(phone=one.phone, nid=other.nid, conversation_id=talk))

        assert refusal.metadata["fields"] == "phone,nid"
        with refused(StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"):
            agent.by_conversation(talk)

    def test_phone_and_nid_together_link_the_conversation(self, chatbot: Client, agent: Client) -> None:
        person, talk = somebody(), conversation()
        lead_id = chatbot.create(person).id

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            chatbot.create(somebody(phone=person.phone, nid=person.nid, conversation_id=talk))

        assert agent.by_conversation(talk).lead.id == lead_id


class TestMovedTokens:
    """A sealed value copied to another row or column does not open."""

    @pytest.fixture
    def moved_between_leads(self, service: RunningService, admin: Client) -> tuple[str, str]:
        """The policy of three leads and the id of the one that holds another's address."""
        policy = f"policy {uuid4()}"
        good, source, damaged = (admin.create(somebody(interested_policy=policy)).id for _ in range(3))
        execute(
            service,
            "UPDATE lead SET address = (SELECT address FROM lead WHERE id = %(source)s) WHERE id = %(damaged)s",
            source=source,
            damaged=damaged,
        )
        assert good
        return policy, damaged

    def test_a_value_of_another_lead_is_data_loss(self, admin: Client, moved_between_leads: tuple[str, str]) -> None:
        with refused(StatusCode.DATA_LOSS, "FIELD_UNREADABLE") as refusal:
            admin.get(moved_between_leads[1])

        assert refusal.metadata == {"fields": "address"}

    @pytest.mark.parametrize(("source", "target"), [("nid", "phone"), ("notes", "address"), ("email", "notes")])
    def test_a_value_of_another_field_is_data_loss(
        self, service: RunningService, admin: Client, source: str, target: str
    ) -> None:
        lead_id = admin.create(somebody()).id
        execute(service, f"UPDATE lead SET {target} = {source} WHERE id = %(id)s", id=lead_id)

        with refused(StatusCode.DATA_LOSS, "FIELD_UNREADABLE") as refusal:
            admin.get(lead_id)

        assert refusal.metadata == {"fields": target}

    def test_a_damaged_value_is_data_loss(self, service: RunningService, admin: Client) -> None:
        lead_id = admin.create(somebody()).id
        execute(
            service,
            "UPDATE lead SET notes = left(notes, 60) || 'AAAA' || substr(notes, 65) WHERE id = %(id)s",
            id=lead_id,
        )

        with refused(StatusCode.DATA_LOSS, "FIELD_UNREADABLE"):
            admin.get(lead_id)

    def test_the_list_goes_on_and_flags_the_lead(self, admin: Client, moved_between_leads: tuple[str, str]) -> None:
        policy, damaged = moved_between_leads

        leads = {lead.id: lead for lead in admin.list_leads(interested_policy=policy).leads}

        assert len(leads) == 3
        assert list(leads[damaged].unreadable_fields) == ["address"]
        assert leads[damaged].address == ""
        assert leads[damaged].phone
        assert all(not lead.unreadable_fields for lead in leads.values() if lead.id != damaged)

    def test_a_masked_answer_does_not_open_what_the_mask_hides_whole(
        self, agent: Client, moved_between_leads: tuple[str, str]
    ) -> None:
        policy, damaged = moved_between_leads

        [listed] = [lead for lead in agent.list_leads(interested_policy=policy).leads if lead.id == damaged]

        moved, assigned = agent.move(damaged, pb.LEAD_STATUS_CONTACTED), agent.assign(damaged, "somebody")
        for lead in (listed, agent.get(damaged), moved, assigned):
            assert (lead.address, list(lead.unreadable_fields)) == ("•••", [])
            assert lead.phone

    def test_a_masked_read_opens_what_the_mask_shows_a_part_of(
        self, service: RunningService, admin: Client, agent: Client
    ) -> None:
        lead_id = admin.create(somebody(interested_policy=(policy := f"policy {uuid4()}"))).id
        execute(service, "UPDATE lead SET phone = nid WHERE id = %(id)s", id=lead_id)

        [lead] = agent.list_leads(interested_policy=policy).leads
        with refused(StatusCode.DATA_LOSS, "FIELD_UNREADABLE"):
            agent.get(lead_id)

        assert (lead.phone, list(lead.unreadable_fields)) == ("", ["phone"])

    def test_a_correction_mends_the_field(self, admin: Client, moved_between_leads: tuple[str, str]) -> None:
        damaged = moved_between_leads[1]

        admin.correct(damaged, address="1 Mended Road")

        assert admin.get(damaged).address == "1 Mended Road"

    def test_a_resubmission_that_cannot_be_opened_is_flagged(self, service: RunningService, admin: Client) -> None:
        person = somebody()
        lead_id = admin.create(person).id
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            admin.create(person, request_id="another")
        execute(service, "UPDATE resubmission SET address = phone WHERE lead_id = %(id)s", id=lead_id)

        [kept] = admin.resubmissions(lead_id)

        assert (kept.lead.address, list(kept.lead.unreadable_fields)) == ("", ["address"])
        assert kept.lead.phone == person.phone
