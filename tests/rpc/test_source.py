"""Where a lead came from: kept with it wherever it goes, in clear, and found by it."""

from __future__ import annotations

from uuid import uuid4

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused
from tests.rpc.test_list_leads import pages, people, some_policy


def some_source() -> str:
    """A source of one test's own: the filter by it keeps other tests' leads out of the list."""
    return f"campaign {uuid4()}"


def test_it_is_kept_normalised_and_shown_in_a_masked_answer(chatbot: Client) -> None:
    created = chatbot.create(somebody(source="  Whats\u200eApp, SPRING "))

    assert (created.lead.masked, created.lead.source) == (True, "WhatsApp, SPRING")
    assert chatbot.get(created.id).source == "WhatsApp, SPRING"


def test_one_that_cannot_be_read_costs_no_lead(chatbot: Client) -> None:
    created = chatbot.create(somebody(source="x" * 101))

    assert (created.lead.source, list(created.ignored_fields)) == ("", ["source"])


def test_it_is_corrected_and_removed(admin: Client) -> None:
    lead = admin.create(somebody(source="whatsapp")).lead

    assert admin.correct(lead.id, source="facebook").source == "facebook"
    assert admin.correct(lead.id, ["source"]).source == ""


def test_a_repeat_with_another_source_is_another_submission(chatbot: Client) -> None:
    lead = somebody(source="whatsapp")
    first = chatbot.create(lead, request_id="from-whatsapp")
    assert chatbot.create(lead, request_id="from-whatsapp").id == first.id

    lead.source = "facebook"

    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        chatbot.create(lead, request_id="from-whatsapp")


def test_a_resubmission_keeps_its_own(admin: Client) -> None:
    lead = somebody(source="whatsapp")
    lead_id = admin.create(lead).id
    lead.source = "facebook"
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.create(lead)

    assert admin.get(lead_id).source == "whatsapp"
    assert [kept.lead.source for kept in admin.resubmissions(lead_id)] == ["facebook"]


@pytest.mark.parametrize(
    ("resolution", "source"), [("TAKE_NEW", "facebook"), ("KEEP_FIRST", "whatsapp"), ("OWN_LEAD", "facebook")]
)
def test_a_conflict_keeps_its_own(service: RunningService, admin: Client, resolution: str, source: str) -> None:
    lead = somebody(source="whatsapp")
    lead_id = admin.create(lead).id
    lead.source = "facebook"
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.create(lead)
    conflict = conflict_with(service.environment["LEADKEEP_DATABASE_URL"], lead_id)

    request = pb.ResolveConflictRequest(id=conflict, resolution=f"CONFLICT_RESOLUTION_{resolution}")

    assert admin.call("ResolveConflict", request).lead.source == source


def test_what_is_kept_of_another_person_after_an_erasure_keeps_its_own(admin: Client) -> None:
    lead = somebody(source="whatsapp")
    lead_id = admin.create(lead).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.create(somebody(phone=lead.phone, source="facebook"))

    [kept] = admin.call("EraseLead", pb.EraseLeadRequest(id=lead_id)).kept_ids

    request = pb.ResolveConflictRequest(id=kept, resolution=pb.CONFLICT_RESOLUTION_OWN_LEAD)
    assert admin.call("ResolveConflict", request).lead.source == "facebook"


class TestFilter:
    def test_it_finds_exactly_the_leads_of_one_source_page_by_page(self, admin: Client) -> None:
        source = some_source()
        made = people(admin, 5, source=source)
        people(admin, 1, source=f"{source} 2")
        people(admin, 1)

        assert pages(admin, source=f" {source} ", page_size=2) == [made[:2:-1], made[2:0:-1], made[:1]]

    def test_it_is_combined_with_another_filter(self, admin: Client) -> None:
        source, policy = some_source(), some_policy()
        people(admin, 1, source=source)
        [both] = people(admin, 1, source=source, interested_policy=policy)

        assert admin.listed_ids(source=source, interested_policy=policy) == [both]

    def test_a_page_token_is_of_one_source(self, admin: Client) -> None:
        source = some_source()
        people(admin, 2, source=source)
        token = admin.list_leads(source=source, page_size=1).next_page_token

        for other in ("", some_source()):
            with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
                admin.list_leads(source=other, page_size=1, page_token=token)

    def test_what_no_source_can_be_is_refused(self, admin: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.list_leads(source="x" * 101)

        assert list(refusal.violations) == ["source"]
