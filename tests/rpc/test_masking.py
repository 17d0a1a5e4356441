from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.descriptor import Descriptor
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.lead import SENSITIVE_FIELDS
from service.rpc.masking import (
    MASKS,
    mask_email,
    mask_former_phones,
    mask_message,
    mask_nid,
    mask_phone,
    shown_values,
    with_former_phones,
)
from service.scopes import Scope
from service.validation import MASK
from tests.harness.leads import somebody
from tests.rpc.calls import Client, refused
from tests.rpc.conftest import Connect
from tests.rpc.showing import (
    CANARY,
    RPCS,
    SHOWING,
    WITH_VIEW,
    all_messages,
    answered,
    clear_values,
    filled,
    requests_for,
    texts,
)


class TestMasks:
    @pytest.mark.parametrize(
        ("phone", "masked"),
        [
            ("+8801712345678", "+880•••78"),
            ("+1234567890", "+1•••90"),
            ("+4915112345678", "+49•••78"),
            ("+1234567", "+1•••67"),
            ("+8801234", "•••"),
        ],
    )
    def test_a_phone_keeps_country_code_and_last_two_digits(self, phone: str, masked: str) -> None:
        assert mask_phone(phone) == masked

    def test_a_phone_of_no_known_country_keeps_its_last_two_digits(self) -> None:
        assert mask_phone("+99912345678") == "+•••78"

    @pytest.mark.parametrize(("nid", "masked"), [("123456789", "•••89"), ("123456", "•••56"), ("12345", "•••")])
    def test_an_nid_keeps_its_last_two_characters(self, nid: str, masked: str) -> None:
        assert mask_nid(nid) == masked

    @pytest.mark.parametrize(
        ("email", "masked"),
        [("john@example.com", "j•••@example.com"), ("jo@example.com", "j•••@example.com"), ("j@example.com", "•••")],
    )
    def test_an_email_keeps_first_letter_and_domain(self, email: str, masked: str) -> None:
        assert mask_email(email) == masked

    @pytest.mark.parametrize("length", range(7, 16))
    def test_a_masked_phone_hides_four_digits_at_least_and_never_its_length(self, length: int) -> None:
        masked = mask_phone("+880" + "1" * (length - 3))

        assert masked in (MASK, "+880•••11")
        assert (masked == MASK) == (length - 3 - 2 < 4)

    def test_equal_ends_give_equal_masks_whatever_the_length(self) -> None:
        assert mask_nid("123456") == mask_nid("9" * 30 + "56")

    @pytest.mark.parametrize("value", ["", "+", "x", "+1", "@", "a@", "ab@", "☃☃☃☃☃☃☃"])
    @pytest.mark.parametrize("mask", MASKS.values())
    def test_every_mask_contains_the_sign_whatever_the_value(self, mask: Callable[[str], str], value: str) -> None:
        assert MASK in mask(value)


class TestMessages:
    @pytest.mark.parametrize("descriptor", all_messages(), ids=lambda descriptor: descriptor.name)
    def test_every_sensitive_field_at_any_depth_is_masked_and_no_other(self, descriptor: Descriptor) -> None:
        message = filled(descriptor, CANARY)

        mask_message(message)

        assert all(CANARY not in text and MASK in text for text in texts(message, sensitive=True))
        named = set(pb.Lead.DESCRIPTOR.fields_by_name)  # in masked_fields
        assert all(text == CANARY or text in named for text in texts(message, sensitive=False))

    def test_the_contract_has_messages_in_which_there_is_something_to_mask(self) -> None:
        sensitive = {d.name for d in all_messages() if list(texts(filled(d, CANARY), sensitive=True))}

        assert {"Lead", "GetLeadResponse", "ListLeadsResponse", "ListResubmissionsResponse"} <= sensitive

    def test_a_field_that_is_not_set_stays_unset(self) -> None:
        lead = pb.Lead(name="Ada", phone="+8801712345678")

        mask_message(lead)

        assert lead == pb.Lead(name="Ada", phone="+880•••78", masked=True, masked_fields=["phone"])


PHONE = "+8801711223344"


class TestConversations:
    @pytest.mark.parametrize(
        "talk",
        [
            *("whatsapp:+8801711223344", "8801711223344@c.us", "01711223344", "wa-01711-22-33-44", "tel:0171/1223344"),
            *("11223344", "x11223344x", "whatsapp:+৮৮০১৭১১২২৩৩৪৪", "1711223344/1711223355"),
        ],
    )
    def test_one_that_holds_the_end_of_the_phone_is_masked_with_its_transcript(self, talk: str) -> None:
        lead = pb.Lead(phone=PHONE, conversation_id=talk, transcript_uri=f"https://chat.example/{talk}")

        mask_message(lead)

        masked = ["phone", "conversation_id", "transcript_uri"]
        assert lead == pb.Lead(
            phone="+880•••44", conversation_id=MASK, transcript_uri=MASK, masked=True, masked_fields=masked
        )

    @pytest.mark.parametrize(
        ("phone", "talk"),
        [("+3545812345", "sms:5812345"), ("+9607712345", "viber:771-2345"), ("+376312345", "312345@pbx")],
    )
    def test_a_number_that_is_shorter_without_its_country_code_is_recognised(self, phone: str, talk: str) -> None:
        lead = pb.Lead(phone=phone, conversation_id=talk)

        mask_message(lead)

        assert lead.conversation_id == MASK

    @pytest.mark.parametrize(
        "talk", ["chat-42", "1122334", "whatsapp:+8801711223345", "0190a5d2-1122-4334-8abc-0f1e2d3c4b5a", "x" * 200]
    )
    def test_any_other_one_is_shown_with_its_transcript(self, talk: str) -> None:
        lead = pb.Lead(phone=PHONE, conversation_id=talk, transcript_uri=f"https://chat.example/{talk}")

        mask_message(lead)

        assert (lead.conversation_id, lead.transcript_uri) == (talk, f"https://chat.example/{talk}")

    def test_one_beside_a_phone_that_cannot_be_opened_is_masked(self) -> None:
        lead = pb.Lead(conversation_id="8801711223344@c.us", unreadable_fields=["phone"])

        mask_message(lead)

        assert lead.conversation_id == MASK

    @pytest.mark.parametrize("length", [7, 8, 15])
    def test_a_phone_of_any_length_is_recognised(self, length: int) -> None:
        phone = "123456789012345"[:length]
        lead = pb.Lead(phone=f"+{phone}", conversation_id=f"tel:{phone}")

        mask_message(lead)

        assert lead.conversation_id == MASK

    def test_a_conflicts_submission_and_its_leads_hide_each_others_phones(self) -> None:
        other = pb.Lead(phone="+8801999999999", conversation_id="8801711223344@c.us")
        conflict = pb.Conflict(submission=pb.Lead(phone=PHONE, conversation_id="8801999999999@c.us"), leads=[other])

        mask_message(conflict)

        assert (conflict.submission.conversation_id, conflict.leads[0].conversation_id) == (MASK, MASK)

    @pytest.mark.parametrize("talk", ["whatsapp:+8801999999999", "1999-99-99", "(01999)999.999"])
    def test_one_that_may_hold_a_former_phone_is_masked(self, talk: str) -> None:
        new, changed = (pb.Lead(id=f"{n}", version=n, phone=PHONE, conversation_id=talk) for n in (1, 2))
        listed = pb.ListLeadsResponse(leads=[new, changed])
        mask_message(listed)

        mask_former_phones(listed, with_former_phones(listed))

        assert [lead.conversation_id for lead in listed.leads] == [talk, MASK]
        assert [list(lead.masked_fields) for lead in listed.leads] == [["phone"], ["phone", "conversation_id"]]

    def test_a_submission_may_hold_a_former_phone_of_a_lead_that_it_matches(self) -> None:
        submission = pb.Lead(phone="+8801999999998", conversation_id="8801999999999@c.us")
        for version, shown in ((1, submission.conversation_id), (2, MASK)):
            conflict = pb.Conflict(id="c", submission=submission, leads=[pb.Lead(id="l", version=version, phone=PHONE)])
            suspects = with_former_phones(conflict)
            assert ("l" in suspects) == (version > 1)

            mask_former_phones(conflict, suspects & {"l"})

            assert conflict.submission.conversation_id == shown

    def test_showing_one_is_no_look_and_showing_the_phone_beside_it_is(self) -> None:
        lead = pb.Lead(id="a", phone=PHONE, conversation_id=PHONE, transcript_uri=PHONE)

        assert list(shown_values(lead, SENSITIVE_FIELDS)) == [("a", ("phone",))]


class TestRpcs:
    @pytest.mark.parametrize("rpc", RPCS)
    def test_a_masked_caller_never_gets_a_clear_value(
        self, connect: Connect, person: pb.Lead, lead_id: str, rpc: str
    ) -> None:
        masked = connect(subject="all-but-unmask", scopes=set(Scope) - {Scope.UNMASK})
        request = requests_for(rpc, lead_id, person)
        clear = clear_values(request.lead if isinstance(request, pb.CreateLeadRequest) else person)

        told = answered(masked, rpc, request)

        assert not [value for value in clear if value in told]

    @pytest.mark.parametrize("rpc", SHOWING)
    def test_the_same_request_shows_them_to_who_may_unmask(
        self, admin: Client, person: pb.Lead, lead_id: str, rpc: str
    ) -> None:
        request = requests_for(rpc, lead_id, person)
        clear = clear_values(request.lead if isinstance(request, pb.CreateLeadRequest) else person)

        told = answered(admin, rpc, request)

        assert all(value in told for value in clear)

    @pytest.mark.parametrize("rpc", WITH_VIEW)
    def test_a_masked_view_is_masked_for_everybody(
        self, admin: Client, person: pb.Lead, lead_id: str, rpc: str
    ) -> None:
        request = requests_for(rpc, lead_id, person)
        request.view = pb.LEAD_VIEW_MASKED  # type: ignore[attr-defined]

        told = answered(admin, rpc, request)

        assert MASK in told
        assert not [value for value in clear_values(person) if value in told]

    @pytest.mark.parametrize("rpc", WITH_VIEW)
    def test_a_full_view_is_refused_without_the_scope(
        self, connect: Connect, person: pb.Lead, lead_id: str, rpc: str
    ) -> None:
        masked = connect(subject="all-but-unmask", scopes=set(Scope) - {Scope.UNMASK})
        request = requests_for(rpc, lead_id, person)
        request.view = pb.LEAD_VIEW_FULL  # type: ignore[attr-defined]

        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
            masked.call(rpc, request)

        assert refusal.metadata == {"scope": "leads:unmask"}

    @pytest.mark.parametrize("rpc", WITH_VIEW)
    def test_a_full_view_is_given_with_the_scope(self, admin: Client, person: pb.Lead, lead_id: str, rpc: str) -> None:
        request = requests_for(rpc, lead_id, person)
        request.view = pb.LEAD_VIEW_FULL  # type: ignore[attr-defined]

        assert person.address in answered(admin, rpc, request)

    def test_a_lead_says_whether_it_is_masked(self, admin: Client, agent: Client, lead_id: str) -> None:
        assert agent.get(lead_id).masked
        assert not admin.get(lead_id).masked
        assert admin.get(lead_id, view=pb.LEAD_VIEW_MASKED).masked

    def test_fields_that_were_not_given_stay_unset_in_a_masked_view(self, chatbot: Client) -> None:
        sent = somebody()
        sent.ClearField("email")
        sent.ClearField("notes")

        lead = chatbot.create(sent).lead

        assert lead.masked
        assert (lead.email, lead.notes) == ("", "")

    def test_name_and_policy_are_shown(self, agent: Client, admin: Client) -> None:
        lead = agent.get(admin.create(somebody(name="Ada", interested_policy="Term")).id)

        assert (lead.name, lead.interested_policy) == ("Ada", "Term")
