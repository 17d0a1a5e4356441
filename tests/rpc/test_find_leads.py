"""Leads are found by the reference of their confirmation and by their e-mail, and not by a stranger's."""

from __future__ import annotations

from uuid import UUID, uuid4

import httpx
import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from service.validation.reference import reference_of
from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect


def mailbox() -> str:
    """An address of one test's own."""
    return f"Jane.{uuid4()}@Example.com"


def alias_of(service: RunningService, lead_id: str, *, created_by: str = "admin") -> str:
    """An id that was acknowledged and leads to a lead."""
    statement = "INSERT INTO lead_alias (id, lead_id, created_by) VALUES (%(id)s, %(lead)s, %(by)s) RETURNING id"
    return str(execute(service, statement, id=uuid4(), lead=lead_id, by=created_by)[0][0])


def conflict_of(service: RunningService, creator: Client) -> tuple[str, str]:
    """A lead, and the conflict of a submission of the same subject that has its phone."""
    sent = somebody()
    lead_id = creator.create(sent).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        creator.create(somebody(phone=sent.phone))
    return lead_id, conflict_with(service.environment["LEADKEEP_DATABASE_URL"], lead_id)


def decided(admin: Client, conflict_id: str, resolution: pb.ConflictResolution) -> str:
    request = pb.ResolveConflictRequest(id=conflict_id, resolution=resolution)
    return str(admin.call("ResolveConflict", request).lead.id)


class TestReference:
    @pytest.mark.parametrize(
        "written", [str, str.lower, lambda given: given.removeprefix("LK-"), lambda given: given.replace("-", " ")]
    )
    def test_the_reference_of_a_confirmation_finds_its_lead(self, admin: Client, written: object) -> None:
        made = admin.create(somebody())
        assert callable(written)

        [found] = admin.list_leads(reference=written(made.confirmation.reference)).leads

        assert (found.id, found.reference) == (made.id, made.confirmation.reference)

    def test_every_answer_names_the_reference(self, admin: Client) -> None:
        made = admin.create(somebody())

        named = [made.lead, admin.get(made.id), admin.move(made.id, pb.LEAD_STATUS_CONTACTED)]

        assert {each.reference for each in named} == {made.confirmation.reference}

    def test_the_reference_of_an_alias_finds_the_lead_that_it_leads_to(
        self, service: RunningService, admin: Client
    ) -> None:
        lead_id = admin.create(somebody()).id
        alias = alias_of(service, lead_id)

        assert admin.listed_ids(reference=reference_of(UUID(alias))) == [lead_id]

    def test_two_leads_that_share_a_reference_are_both_found(self, service: RunningService, admin: Client) -> None:
        one, other = (admin.create(somebody()).id for _ in range(2))
        namesake = str(UUID(bytes=uuid4().bytes[:11] + UUID(one).bytes[11:]))
        execute(service, "UPDATE lead SET id = %(new)s WHERE id = %(old)s", new=namesake, old=other)

        assert admin.listed_ids(reference=reference_of(UUID(one))) == [namesake, one]

    def test_a_strangers_reference_finds_nothing(self, admin: Client) -> None:
        assert admin.listed_ids(reference=reference_of(uuid4())) == []

    def test_other_filters_must_match_too(self, admin: Client) -> None:
        made = admin.create(somebody(source="the booth"))
        reference = made.confirmation.reference

        assert admin.listed_ids(reference=reference, source="the booth") == [made.id]
        assert admin.listed_ids(reference=reference, source="another") == []

    def test_the_reference_of_an_undecided_conflict_says_so_until_it_is_decided(
        self, service: RunningService, admin: Client
    ) -> None:
        lead_id, conflict_id = conflict_of(service, admin)
        reference = reference_of(UUID(conflict_id))

        with refused(StatusCode.FAILED_PRECONDITION, "LEAD_IN_CONFLICT") as refusal:
            admin.list_leads(reference=reference)
        decided(admin, conflict_id, pb.CONFLICT_RESOLUTION_KEEP_FIRST)

        assert refusal.metadata == {"conflict_id": conflict_id}
        assert admin.listed_ids(reference=reference) == [lead_id]

    def test_a_conflict_that_becomes_a_lead_of_its_own_is_found_by_its_reference(
        self, service: RunningService, admin: Client
    ) -> None:
        _, conflict_id = conflict_of(service, admin)
        decided(admin, conflict_id, pb.CONFLICT_RESOLUTION_OWN_LEAD)

        assert admin.listed_ids(reference=reference_of(UUID(conflict_id))) == [conflict_id]

    def test_an_erased_leads_reference_finds_nothing(self, service: RunningService, admin: Client) -> None:
        made = admin.create(somebody())
        alias = alias_of(service, made.id)
        admin.call("EraseLead", pb.EraseLeadRequest(id=made.id))

        assert admin.listed_ids(reference=made.confirmation.reference) == []
        assert admin.listed_ids(reference=reference_of(UUID(alias))) == []

    def test_who_reads_only_its_own_finds_only_its_own(
        self, service: RunningService, admin: Client, connect: Connect
    ) -> None:
        bot, other = connect("chatbot", subject="finder-1"), connect("chatbot", subject="finder-2")
        made = bot.create(somebody())
        of_another = alias_of(service, made.id, created_by="finder-2")
        _, conflict_id = conflict_of(service, bot)

        assert bot.listed_ids(reference=made.confirmation.reference) == [made.id]
        assert other.listed_ids(reference=made.confirmation.reference) == []
        assert other.listed_ids(reference=reference_of(UUID(of_another))) == []
        assert other.listed_ids(reference=reference_of(UUID(conflict_id))) == []
        with refused(StatusCode.FAILED_PRECONDITION, "LEAD_IN_CONFLICT"):
            bot.list_leads(reference=reference_of(UUID(conflict_id)))

    @pytest.mark.parametrize("malformed", ["LK-1234", "LK-1234-567U", " ", "01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f"])
    def test_what_is_no_reference_is_refused(self, admin: Client, malformed: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.list_leads(reference=malformed)

        assert set(refusal.violations) == {"reference"}

    def test_over_http_it_is_a_query_parameter(self, service: RunningService, admin: Client) -> None:
        made = admin.create(somebody())

        answer = httpx.get(
            f"{service.http_url}/api/leads",
            params={"reference": made.confirmation.reference.lower()},
            headers={"authorization": f"Bearer {service.token('agent')}"},
        )

        assert [lead["reference"] for lead in answer.json()["leads"]] == [made.confirmation.reference]


class TestEmail:
    @pytest.mark.parametrize(
        "written",
        [
            *(str, str.lower, str.upper, "  {} ".format, "\u200b{}\u00a0".format),
            lambda given: given.replace("@", " @ "),
        ],
    )
    def test_it_is_found_in_another_case_and_with_spaces(self, admin: Client, written: object) -> None:
        email = mailbox()
        lead_id = admin.create(somebody(email=email)).id
        assert callable(written)

        assert admin.listed_ids(email=written(email)) == [lead_id]

    def test_an_international_domain_is_found_in_both_forms(self, admin: Client) -> None:
        name = uuid4()
        lead_id = admin.create(somebody(email=f"{name}@xn--bcher-kva.example")).id

        assert admin.listed_ids(email=f"{name}@BÜCHER.example") == [lead_id]

    def test_all_who_share_it_are_found_newest_first(self, admin: Client) -> None:
        email = mailbox()
        made = [admin.create(somebody(email=email)).id for _ in range(3)]

        first = admin.list_leads(email=email, page_size=2)
        rest = admin.listed_ids(email=email.lower(), page_size=2, page_token=first.next_page_token)

        assert [lead.id for lead in first.leads] + rest == made[::-1]

    def test_a_strangers_is_not_found(self, admin: Client) -> None:
        email = mailbox()
        admin.create(somebody(email=email))

        assert admin.listed_ids(email=f"x{email}") == []
        assert admin.listed_ids(email=email.replace(".", "", 1)) == []
        assert admin.listed_ids(email=email.replace("@", "+tag@")) == []

    def test_a_corrected_address_is_found_and_the_old_one_is_not(self, admin: Client) -> None:
        old, new = mailbox(), mailbox()
        lead_id = admin.create(somebody(email=old)).id
        admin.correct(lead_id, email=new)

        assert (admin.listed_ids(email=old), admin.listed_ids(email=new)) == ([], [lead_id])

    def test_an_address_that_was_added_is_found_and_one_that_was_removed_is_not(self, admin: Client) -> None:
        email, sent = mailbox(), somebody()
        sent.ClearField("email")
        lead_id = admin.create(sent).id
        admin.correct(lead_id, email=email)
        found = admin.listed_ids(email=email)
        admin.correct(lead_id, ["email"])

        assert (found, admin.listed_ids(email=email)) == ([lead_id], [])

    def test_an_erased_leads_address_finds_nothing(self, admin: Client) -> None:
        email = mailbox()
        lead_id = admin.create(somebody(email=email)).id
        admin.call("EraseLead", pb.EraseLeadRequest(id=lead_id))

        assert admin.listed_ids(email=email) == []

    @pytest.mark.parametrize(
        "resolution", [pb.CONFLICT_RESOLUTION_TAKE_NEW, pb.CONFLICT_RESOLUTION_OWN_LEAD], ids=["take new", "own lead"]
    )
    def test_the_address_of_a_decided_conflict_is_found(
        self, service: RunningService, admin: Client, resolution: pb.ConflictResolution
    ) -> None:
        sent, email = somebody(email=(before := mailbox())), mailbox()
        lead_id = admin.create(sent).id
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            admin.create(somebody(phone=sent.phone, email=email))
        conflict_id = conflict_with(service.environment["LEADKEEP_DATABASE_URL"], lead_id)

        taken = decided(admin, conflict_id, resolution)

        takes_new = resolution == pb.CONFLICT_RESOLUTION_TAKE_NEW
        assert admin.listed_ids(email=email) == [taken] == [lead_id if takes_new else conflict_id]
        assert admin.listed_ids(email=before) == ([] if takes_new else [lead_id])

    def test_a_masked_caller_cannot_test_guesses(self, connect: Connect, chatbot: Client) -> None:
        for caller in (connect(scopes={Scope.READ, Scope.UNMASK_PHONE}), chatbot):
            with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
                caller.list_leads(email="jane@example.com")
            assert refusal.metadata == {"scope": "leads:unmask:email"}

    def test_who_may_unmask_but_reads_only_its_own_finds_only_its_own(self, connect: Connect, admin: Client) -> None:
        email = mailbox()
        admin.create(somebody(email=email))

        assert connect(subject="own-mails", scopes={Scope.READ_OWN, Scope.UNMASK}).listed_ids(email=email) == []

    def test_what_is_no_address_is_refused(self, admin: Client) -> None:
        for malformed in ("jane", " ", "N/A"):
            with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
                admin.list_leads(email=malformed)
            assert set(refusal.violations) == {"email"}

    def test_it_is_refused_in_a_query_string(self, service: RunningService) -> None:
        answer = httpx.get(
            f"{service.http_url}/api/leads",
            params={"email": "jane@example.com"},
            headers={"authorization": f"Bearer {service.token()}"},
        )

        assert (answer.status_code, answer.json()["reason"]) == (400, "LEAD_INVALID")

    def test_over_http_it_is_posted(self, service: RunningService, admin: Client) -> None:
        email = mailbox()
        lead_id = admin.create(somebody(email=email)).id

        answer = httpx.post(
            f"{service.http_url}/leadkeep.v1.LeadService/ListLeads",
            json={"email": email.upper()},
            headers={"authorization": f"Bearer {service.token()}"},
        )

        assert [lead["id"] for lead in answer.json()["leads"]] == [lead_id]

    @pytest.mark.parametrize("view", [pb.LEAD_VIEW_FULL, pb.LEAD_VIEW_MASKED])
    def test_a_search_is_on_record_hit_or_not(self, admin: Client, connect: Connect, view: pb.LeadView) -> None:
        email, subject = mailbox(), f"mail searcher {view}"
        lead_id = admin.create(somebody(email=email)).id
        searcher = connect("admin", subject=subject)

        searcher.list_leads(email=email, view=view)
        searcher.list_leads(email=mailbox(), view=view)

        entries = admin.call("ListAccesses", pb.ListAccessesRequest(subject=subject)).accesses
        assert [(entry.lead_id, "email" in entry.fields) for entry in entries] == [("", True), (lead_id, True)]
        assert email.lower() not in str(entries).lower()

    def test_what_is_not_yet_indexed_makes_the_search_refused_not_incomplete(
        self, service: RunningService, admin: Client
    ) -> None:
        email = mailbox()
        lead_id = admin.create(somebody(email=email)).id
        [(index,)] = execute(
            service,
            "UPDATE lead l SET email_index = NULL FROM lead old WHERE l.id = old.id AND l.id = %(id)s"
            " RETURNING old.email_index",
            id=lead_id,
        )

        with refused(StatusCode.FAILED_PRECONDITION, "INDEX_INCOMPLETE"):
            admin.list_leads(email=mailbox())

        execute(service, "UPDATE lead SET email_index = %(i)s WHERE id = %(id)s", i=index, id=lead_id)
        assert admin.listed_ids(email=email) == [lead_id]


class TestManyMatches:
    def test_more_than_a_thousand_are_refused_and_are_found_with_another_filter(
        self, service: RunningService, admin: Client, connect: Connect
    ) -> None:
        email = mailbox()
        lead_id = admin.create(somebody(email=email, source="one of many")).id
        execute(
            service,
            "INSERT INTO lead"
            " (id, name, phone, email, email_index, phone_index, created_by, content_digest, index_epoch)"
            " SELECT gen_random_uuid(), 'Namesake', phone, email, email_index, sha256(n::text::bytea), 'bot', '', 9"
            " FROM lead, generate_series(1, 1000) n WHERE id = %(id)s",
            id=lead_id,
        )
        searcher = connect("admin", subject="searches many")

        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            searcher.list_leads(email=email)

        assert set(refusal.violations) == {"email"}
        assert "1,000" in refusal.violations["email"]
        # That so many have it says something about the value.
        [entry] = admin.call("ListAccesses", pb.ListAccessesRequest(subject="searches many")).accesses
        assert list(entry.fields) == ["email"]
        assert admin.listed_ids(email=email, source="one of many") == [lead_id]

    def test_exactly_a_thousand_are_listed(self, service: RunningService, admin: Client) -> None:
        talk = f"talk-{uuid4()}"
        lead_id = admin.create(somebody(conversation_id=talk)).id
        execute(
            service,
            "WITH made AS (INSERT INTO lead (id, name, phone, phone_index, created_by, content_digest, index_epoch)"
            " SELECT gen_random_uuid(), 'Namesake', phone, sha256('c' || n::text::bytea), 'bot', '', 9"
            " FROM lead, generate_series(1, 999) n WHERE id = %(id)s RETURNING id)"
            " INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)"
            " SELECT made.id, made.id, conversation_id, conversation_index"
            " FROM made, lead_conversation l WHERE l.lead_id = %(id)s",
            id=lead_id,
        )

        assert len(admin.list_leads(conversation_id=talk, page_size=100).leads) == 100
