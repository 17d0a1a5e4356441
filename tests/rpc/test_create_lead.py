from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.conftest import StartService
from tests.harness.leads import STORY, somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect

TOLERANCE = timedelta(seconds=30)
"""Between the clocks of this process and of PostgreSQL, which run on one machine, plus a slow test run."""


def different(lead: pb.Lead, **fields: str) -> pb.Lead:
    other = pb.Lead()
    other.CopyFrom(lead)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def test_the_storys_request_is_stored_as_it_was_sent(chatbot: Client, admin: Client) -> None:
    created = chatbot.create(pb.Lead(**STORY))  # type: ignore[arg-type] # texts only

    lead = admin.get(created.id)
    assert {name: getattr(lead, name) for name in STORY} == STORY
    assert (created.message, created.state) == ("Lead created successfully", pb.SAVE_STATE_SAVED)


def test_a_new_lead_has_everything_that_the_service_sets(chatbot: Client, admin: Client) -> None:
    created = chatbot.create(somebody())

    lead = admin.get(created.id)
    assert UUID(lead.id).version == 7
    assert (lead.status, lead.version, lead.resubmissions) == (pb.LEAD_STATUS_NEW, 1, 0)
    assert (lead.assignee, lead.transcript_uri) == ("", "")
    assert abs(lead.created_at.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < TOLERANCE
    assert lead.created_at == lead.updated_at


def test_the_answer_holds_the_lead_as_it_was_stored(admin: Client) -> None:
    created = admin.create(somebody())

    assert created.lead == admin.get(created.id)


def test_a_chatbot_gets_the_lead_back_masked(chatbot: Client) -> None:
    lead = chatbot.create(somebody(email="jane@example.com")).lead

    assert lead.masked
    assert (lead.address, lead.email) == ("•••", "j•••@example.com")


def test_values_are_kept_normalised(admin: Client) -> None:
    sent = somebody(name="  Zoë ", nid="ab-12 34/xy", phone="+880 (0)1711-999 001")

    lead = admin.create(sent).lead

    assert (lead.name, lead.nid, lead.phone) == ("Zoë", "AB1234XY", "+8801711999001")


def test_output_fields_in_a_request_are_ignored(admin: Client) -> None:
    sent = somebody()
    sent.id = str(uuid4())
    sent.status = pb.LEAD_STATUS_CONVERTED
    sent.version = 7
    sent.assignee = "Eve"
    sent.resubmissions = 9
    sent.transcript_uri = "https://elsewhere.example"

    lead = admin.create(sent).lead

    assert lead.id != sent.id
    assert (lead.status, lead.version, lead.assignee) == (pb.LEAD_STATUS_NEW, 1, "")
    assert (lead.resubmissions, lead.transcript_uri) == (0, "")


def test_fields_that_were_not_given_stay_unset(admin: Client) -> None:
    sent = somebody()
    for name in ("email", "notes"):
        sent.ClearField(name)

    lead = admin.create(sent).lead

    assert [lead.email, lead.notes, lead.preferred_contact_time, lead.conversation_id] == [""] * 4


def test_an_optional_field_that_cannot_be_read_is_left_out_and_named(admin: Client) -> None:
    made = admin.create(somebody(email="N/A", conversation_id="a b"))

    assert made.ignored_fields == ["email", "conversation_id"]
    assert (made.lead.email, made.lead.conversation_id) == ("", "")
    assert admin.get(made.id).email == ""


def test_the_region_of_a_call_reads_digits_without_a_plus(admin: Client) -> None:
    made = admin.create(somebody(phone="447911123456"), phone_region="001")

    assert made.lead.phone == "+447911123456"
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.create(somebody(phone="01712345678"), phone_region="XX")
    assert set(refusal.violations) == {"phone_region"}


def test_people_who_give_a_placeholder_for_a_national_id_are_refused_one_by_one(chatbot: Client) -> None:
    for _ in range(26):
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            chatbot.create(somebody(nid="not provided"))
        assert "placeholder" in refusal.violations["lead.nid"]


def test_all_violations_are_told_at_once(chatbot: Client) -> None:
    lead = pb.Lead(
        name="  ", phone="12", nid="1", address="x" * 501, email="nobody", notes="\x00", conversation_id="a b"
    )

    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        chatbot.create(lead, request_id="not visible")

    fields = ("name", "phone", "nid", "address", "interested_policy", "email", "notes", "conversation_id")
    assert set(refusal.violations) == {f"lead.{name}" for name in fields} | {"request_id"}


def test_an_empty_request_names_every_required_field(chatbot: Client) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        chatbot.create(pb.Lead())

    required = ("name", "phone", "nid", "address", "interested_policy")
    assert refusal.violations == {f"lead.{name}": "is required" for name in required}


@pytest.mark.parametrize("field", ["name", "phone", "nid", "address", "interested_policy", "email", "notes"])
def test_a_masked_value_is_refused(chatbot: Client, field: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        chatbot.create(somebody(**{field: "a•••b"}))

    assert "masked" in refusal.violations[f"lead.{field}"]


def test_no_violation_holds_the_value(chatbot: Client) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        chatbot.create(somebody(phone="secret-phone", nid="secret_nid!", email="secret-email"))

    assert "secret" not in refusal.text + str(refusal.violations)


def test_creating_needs_its_scope(connect: Connect) -> None:
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
        connect("agent").create(somebody())

    assert refusal.metadata == {"scope": "leads:create"}


class TestDuplicates:
    @pytest.mark.parametrize(
        ("reason", "same"), [("DUPLICATE_PHONE", "phone"), ("DUPLICATE_NID", "nid"), ("DUPLICATE_PHONE", "phone,nid")]
    )
    def test_the_same_phone_or_nid_is_refused_with_the_phones_reason_first(
        self, chatbot: Client, reason: str, same: str
    ) -> None:
        first = somebody()
        chatbot.create(first)

        with refused(StatusCode.ALREADY_EXISTS, reason) as refusal:
            chatbot.create(somebody(**{name: getattr(first, name) for name in same.split(",")}))

        assert refusal.metadata["fields"] == same

    @pytest.mark.parametrize(
        "phone",
        [
            "+880 1711-888001",
            "+880 (0)1711 888 001",
            "+৮৮০১৭১১৮৮৮০০১",
            "＋８８０１７１１８８８００１",  # noqa: RUF001 # as keyboards of East Asia type it
            "+880.1711.888.001",
        ],
    )
    def test_one_phone_in_another_form_is_the_same_phone(self, chatbot: Client, connect: Connect, phone: str) -> None:
        admin = connect("admin")
        if not admin.listed_ids(phone="+8801711888001"):
            chatbot.create(somebody(phone="+8801711888001"))

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            chatbot.create(somebody(phone=phone))

    def test_one_nid_in_another_form_is_the_same_nid(self, chatbot: Client) -> None:
        chatbot.create(somebody(nid="AB-778-X"))

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID"):
            chatbot.create(somebody(nid=" ab 778 x"))

    def test_the_existing_leads_id_is_told_to_who_created_it(self, chatbot: Client) -> None:
        first = somebody()
        lead_id = chatbot.create(first).id

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            chatbot.create(different(first, notes="once more"))

        assert refusal.metadata == {
            "fields": "phone,nid",
            "lead_id": lead_id,
            "phone_lead_id": lead_id,
            "nid_lead_id": lead_id,
        }

    def test_the_existing_leads_id_is_not_told_to_who_may_not_read_it(self, chatbot: Client, connect: Connect) -> None:
        first = somebody()
        chatbot.create(first)

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            connect("chatbot", subject="another-bot").create(first)

        assert refusal.metadata == {"fields": "phone,nid"}

    def test_who_created_it_but_may_not_read_is_not_told_the_id(self, connect: Connect) -> None:
        writer = connect(subject="write-only", scopes={Scope.CREATE})
        first = somebody()
        writer.create(first)

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            writer.create(different(first, notes="once more"))

        assert refusal.metadata == {"fields": "phone,nid"}

    def test_of_two_met_leads_only_the_readable_ones_id_is_told(self, chatbot: Client, connect: Connect) -> None:
        mine, theirs = somebody(), somebody()
        my_id = chatbot.create(mine).id
        connect("chatbot", subject="another-bot").create(theirs)

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            chatbot.create(somebody(phone=theirs.phone, nid=mine.nid))

        assert refusal.metadata == {"fields": "phone,nid", "lead_id": my_id, "nid_lead_id": my_id}

    def test_the_refusal_holds_no_value(self, chatbot: Client) -> None:
        first = somebody()
        chatbot.create(first)

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
            chatbot.create(different(first, notes="once more"))

        told = refusal.text + str(refusal.metadata)
        assert first.phone.lstrip("+") not in told
        assert first.nid not in told


class TestRequestId:
    def test_the_same_request_again_answers_the_same_lead(self, chatbot: Client) -> None:
        lead, request_id = somebody(), str(uuid4())

        first = chatbot.create(lead, request_id=request_id)
        again = chatbot.create(lead, request_id=request_id)

        first.is_repeat = True
        assert again == first

    def test_a_repeat_is_no_resubmission(self, chatbot: Client, admin: Client) -> None:
        lead, request_id = somebody(), str(uuid4())
        lead_id = chatbot.create(lead, request_id=request_id).id

        chatbot.create(lead, request_id=request_id)

        assert admin.get(lead_id).resubmissions == 0

    def test_a_repeat_in_another_form_is_the_same_content(self, chatbot: Client) -> None:
        lead, request_id = somebody(), str(uuid4())
        first = chatbot.create(lead, request_id=request_id)

        again = chatbot.create(different(lead, name=f" {lead.name} "), request_id=request_id)

        assert again.id == first.id

    def test_a_repeat_shows_todays_state(self, chatbot: Client, agent: Client) -> None:
        lead, request_id = somebody(), str(uuid4())
        lead_id = chatbot.create(lead, request_id=request_id).id
        agent.move(lead_id, pb.LEAD_STATUS_CONTACTED)

        assert chatbot.create(lead, request_id=request_id).lead.status == pb.LEAD_STATUS_CONTACTED

    @pytest.mark.parametrize(
        "change", [{"phone": "+8801711777001"}, {"address": "Elsewhere 1"}, {"email": ""}, {"conversation_id": "other"}]
    )
    def test_other_content_is_refused_and_changes_nothing(
        self, chatbot: Client, admin: Client, change: Mapping[str, str]
    ) -> None:
        lead, request_id = somebody(), str(uuid4())
        created = admin.create(lead, request_id=request_id)

        with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
            admin.create(different(lead, **change), request_id=request_id)

        assert admin.get(created.id) == created.lead

    def test_the_reused_request_id_comes_before_duplicates(self, chatbot: Client) -> None:
        lead, stranger, request_id = somebody(), somebody(), str(uuid4())
        chatbot.create(lead, request_id=request_id)
        chatbot.create(stranger)

        with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
            chatbot.create(stranger, request_id=request_id)

    def test_another_subjects_request_id_is_another_request(self, chatbot: Client, connect: Connect) -> None:
        request_id = str(uuid4())
        first = chatbot.create(somebody(), request_id=request_id)

        second = connect("chatbot", subject="another-bot").create(somebody(), request_id=request_id)

        assert second.id != first.id

    def test_another_subject_cannot_have_a_lead_repeated_to_it(self, chatbot: Client, connect: Connect) -> None:
        lead, request_id = somebody(), str(uuid4())
        chatbot.create(lead, request_id=request_id)

        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            connect("chatbot", subject="another-bot").create(lead, request_id=request_id)


class TestConfirmation:
    @pytest.mark.parametrize(
        ("locale", "thanks", "told_as"),
        [
            ("en", "Thank you for your interest, Ada L.", "en"),
            ("bn-BD", "আপনার আগ্রহের জন্য ধন্যবাদ, Ada L", "bn"),
            ("es-419,en;q=0.5", "Gracias por su interés, Ada L.", "es"),
            ("tlh", "Thank you for your interest, Ada L.", "en"),
            ("", "Thank you for your interest, Ada L.", "en"),
        ],
    )
    def test_it_thanks_by_name_in_the_customers_language(
        self, chatbot: Client, locale: str, thanks: str, told_as: str
    ) -> None:
        confirmation = chatbot.create(somebody(name="Ada L"), locale=locale).confirmation

        assert confirmation.text.startswith(thanks)
        assert confirmation.locale == told_as
        assert confirmation.reference in confirmation.text

    def test_it_says_what_happens_next_and_when(self, chatbot: Client) -> None:
        confirmation = chatbot.create(somebody(preferred_contact_time="after 6 pm")).confirmation

        assert any("after 6 pm" in step for step in confirmation.next_steps)

    def test_a_repeat_gives_the_same_reference(self, chatbot: Client) -> None:
        lead, request_id = somebody(), str(uuid4())

        first = chatbot.create(lead, request_id=request_id)
        again = chatbot.create(lead, request_id=request_id)

        assert again.confirmation.reference == first.confirmation.reference


def test_nothing_sensitive_is_stored_in_clear(service: RunningService, chatbot: Client) -> None:
    lead = somebody(email="clear-canary@example.com", address="Canary Street 1", notes="a canary's note")
    lead_id = chatbot.create(lead).id

    [stored] = execute(service, "SELECT lead::text FROM lead WHERE id = %(id)s", id=lead_id)

    row = stored[0].lower()
    assert "canary" not in row
    for value in (lead.phone.lstrip("+"), lead.nid):
        assert value not in row
        assert value.encode().hex() not in row


def test_the_transcripts_address_holds_the_conversation_percent_encoded(
    start_service: StartService, database: TestDatabase
) -> None:
    service = start_service(
        database_url=database.serve_url,
        settings={"LEADKEEP_TRANSCRIPT_URL": "https://chat.example/conversations/{conversation_id}?view=all"},
    )
    with service.channel() as channel:
        admin = Client(service, channel)
        lead = admin.create(somebody(conversation_id="wa/42?x=1#ü&../..")).lead
        without = admin.create(somebody()).lead

    encoded = "wa%2F42%3Fx%3D1%23%C3%BC%26..%2F.."
    assert lead.transcript_uri == f"https://chat.example/conversations/{encoded}?view=all"
    assert without.transcript_uri == ""
