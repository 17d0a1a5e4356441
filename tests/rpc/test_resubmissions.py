from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.validation import MASK
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect

PAGE = 20
"""As the contract says, when the caller names no size."""


def resubmit(client: Client, lead: pb.Lead, *, request_id: str = "", reason: str = "DUPLICATE_PHONE") -> None:
    with refused(StatusCode.ALREADY_EXISTS, reason):
        client.create(lead, request_id=request_id)


@pytest.fixture
def person() -> pb.Lead:
    return somebody()


@pytest.fixture
def lead_id(chatbot: Client, person: pb.Lead) -> str:
    return chatbot.create(person).id


def test_a_refused_duplicate_is_kept_as_it_was_sent(
    connect: Connect, admin: Client, person: pb.Lead, lead_id: str
) -> None:
    came_back = somebody(
        phone=person.phone, preferred_contact_time="mornings", conversation_id=f"talk-{uuid4()}", notes="back again"
    )
    resubmit(connect("chatbot", subject="bot-2"), came_back)

    [kept] = admin.resubmissions(lead_id)

    for descriptor, value in came_back.ListFields():
        assert getattr(kept.lead, descriptor.name) == value
    assert (kept.actor, kept.verified) == ("bot-2", False)
    assert kept.submitted_at.ToDatetime() > admin.get(lead_id).created_at.ToDatetime()


def test_a_resubmissions_conversation_hides_the_leads_phone_and_its_own(
    admin: Client, agent: Client, person: pb.Lead, lead_id: str
) -> None:
    other = somebody(nid=person.nid)
    for conversation_id in (f"whatsapp:{person.phone}", f"whatsapp:{other.phone}", "chat-42"):
        other.conversation_id = conversation_id
        resubmit(admin, other, reason="DUPLICATE_NID")

    shown = [kept.lead.conversation_id for kept in agent.resubmissions(lead_id)]

    assert shown == ["chat-42", MASK, MASK]
    assert [kept.lead.conversation_id for kept in admin.resubmissions(lead_id)][-1] == f"whatsapp:{person.phone}"


def test_output_fields_of_a_resubmission_are_not_set(admin: Client, person: pb.Lead, lead_id: str) -> None:
    resubmit(admin, person)

    [kept] = admin.resubmissions(lead_id)

    assert (kept.lead.id, kept.lead.version, kept.lead.status) == ("", 0, pb.LEAD_STATUS_UNSPECIFIED)
    assert not kept.lead.HasField("created_at")


def test_the_lead_counts_its_resubmissions(admin: Client, person: pb.Lead, lead_id: str) -> None:
    resubmit(admin, person)
    resubmit(admin, person)

    assert admin.get(lead_id).resubmissions == 2


def test_a_resubmission_changes_neither_version_nor_updated_at(admin: Client, person: pb.Lead, lead_id: str) -> None:
    before = admin.get(lead_id)
    resubmit(admin, person)

    after = admin.get(lead_id)

    assert (after.version, after.updated_at) == (before.version, before.updated_at)


def test_phone_and_nid_together_are_verified(admin: Client, person: pb.Lead, lead_id: str) -> None:
    resubmit(admin, somebody(phone=person.phone, nid=person.nid))

    [kept] = admin.resubmissions(lead_id)

    assert kept.verified


def test_phone_of_one_and_nid_of_another_are_kept_with_both_and_verified_with_neither(admin: Client) -> None:
    one, other = somebody(), somebody()
    ids = [admin.create(one).id, admin.create(other).id]
    crossed = somebody(phone=one.phone, nid=other.nid)
    resubmit(admin, crossed)

    for lead_id in ids:
        [kept] = admin.resubmissions(lead_id)
        assert (kept.lead.name, kept.verified) == (crossed.name, False)


def names(resubmissions: Iterable[pb.Resubmission]) -> list[str]:
    return [each.lead.name for each in resubmissions]


def test_of_45_who_share_a_phone_one_is_the_lead_and_44_are_paged_newest_first(
    admin: Client, person: pb.Lead, lead_id: str
) -> None:
    sent = [somebody(phone=person.phone) for _ in range(44)]
    for lead in sent:
        resubmit(admin, lead)
    newest_first = [lead.name for lead in reversed(sent)]

    first = admin.resubmission_page(lead_id)
    second = admin.resubmission_page(lead_id, page_token=first.next_page_token)
    third = admin.resubmission_page(lead_id, page_token=second.next_page_token)

    assert [len(page.resubmissions) for page in (first, second, third)] == [PAGE, PAGE, 4]
    assert names([*first.resubmissions, *second.resubmissions, *third.resubmissions]) == newest_first
    assert third.next_page_token == ""
    assert admin.get(lead_id).resubmissions == 44
    assert names(admin.resubmission_page(lead_id, page_size=100).resubmissions) == newest_first


def test_pages_stay_whole_while_new_ones_arrive(admin: Client, person: pb.Lead, lead_id: str) -> None:
    sent = [somebody(phone=person.phone) for _ in range(6)]
    for lead in sent:
        resubmit(admin, lead)
    page = admin.resubmission_page(lead_id, page_size=2)
    found = list(page.resubmissions)
    while page.next_page_token:
        resubmit(admin, somebody(phone=person.phone))
        page = admin.resubmission_page(lead_id, page_size=2, page_token=page.next_page_token)
        found += page.resubmissions

    assert names(found) == [lead.name for lead in reversed(sent)]


@pytest.fixture
def token(admin: Client, person: pb.Lead, lead_id: str) -> str:
    """Of the second page of a lead's resubmissions."""
    for _ in range(2):
        resubmit(admin, person)
    return admin.resubmission_page(lead_id, page_size=1).next_page_token


def test_an_altered_page_token_is_refused(admin: Client, lead_id: str, token: str) -> None:
    for place in (0, len(token) // 2, len(token) - 3):
        altered = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            admin.resubmission_page(lead_id, page_token=altered)


def test_a_page_token_of_another_lead_or_list_is_refused(admin: Client, lead_id: str, token: str) -> None:
    another = admin.create(somebody()).id
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        admin.resubmission_page(another, page_token=token)
    of_leads = admin.list_leads(page_size=1).next_page_token
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        admin.resubmission_page(lead_id, page_token=of_leads)
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        admin.list_leads(page_token=token)


def test_a_negative_page_size_is_refused(admin: Client, lead_id: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        admin.resubmission_page(lead_id, page_size=-1)
    assert list(refusal.violations) == ["page_size"]


def test_a_repeat_of_a_refused_duplicate_is_kept_once(
    chatbot: Client, admin: Client, person: pb.Lead, lead_id: str
) -> None:
    came_back, request_id = somebody(phone=person.phone), str(uuid4())
    resubmit(chatbot, came_back, request_id=request_id)
    resubmit(chatbot, came_back, request_id=request_id)

    assert len(admin.resubmissions(lead_id)) == 1
    assert admin.get(lead_id).resubmissions == 1


def test_without_a_request_id_each_attempt_is_kept(
    chatbot: Client, admin: Client, person: pb.Lead, lead_id: str
) -> None:
    person.notes = "once more"
    resubmit(chatbot, person)
    resubmit(chatbot, person)

    assert len(admin.resubmissions(lead_id)) == 2


def test_the_same_request_id_of_another_subject_is_another_attempt(
    chatbot: Client, connect: Connect, admin: Client, person: pb.Lead, lead_id: str
) -> None:
    request_id = str(uuid4())
    resubmit(chatbot, person, request_id=request_id)
    resubmit(connect("chatbot", subject="bot-2"), person, request_id=request_id)

    assert admin.get(lead_id).resubmissions == 2


def test_a_masked_caller_sees_resubmissions_masked(agent: Client, admin: Client, person: pb.Lead, lead_id: str) -> None:
    resubmit(admin, somebody(phone=person.phone, email="jane@example.com"))

    [kept] = agent.resubmissions(lead_id)

    assert kept.lead.masked
    assert (kept.lead.address, kept.lead.email) == ("•••", "j•••@example.com")


def test_a_resubmission_lies_sealed(service: RunningService, admin: Client, person: pb.Lead, lead_id: str) -> None:
    came_back = somebody(phone=person.phone, address="Canary Street 2", notes="canary note", email="canary@example.com")
    resubmit(admin, came_back)

    [stored] = execute(service, "SELECT resubmission::text FROM resubmission WHERE lead_id = %(id)s", id=lead_id)

    row = stored[0].lower()
    assert "canary" not in row
    for value in (came_back.phone.lstrip("+"), came_back.nid):
        assert value not in row
        assert value.encode().hex() not in row


def test_a_lead_without_resubmissions_has_none(admin: Client, lead_id: str) -> None:
    assert admin.resubmissions(lead_id) == []
