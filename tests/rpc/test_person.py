"""FindPerson, ExportPerson and ErasePerson: what is a person's, all of it, and nothing of anybody else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect

LEAD, RESUBMISSION, CONFLICT, WAITING = (
    pb.PERSON_MATCH_KIND_LEAD,
    pb.PERSON_MATCH_KIND_RESUBMISSION,
    pb.PERSON_MATCH_KIND_CONFLICT,
    pb.PERSON_MATCH_KIND_WAITING,
)


def find(client: Client, **wanted: str) -> list[pb.PersonMatch]:
    """The matches of all pages."""
    page = client.call("FindPerson", pb.FindPersonRequest(**wanted))
    found = list(page.matches)
    while page.next_page_token:
        request = pb.FindPersonRequest(**wanted, page_token=page.next_page_token)
        page = client.call("FindPerson", request)
        found += page.matches
    return found


def refs_of(matches: Iterable[pb.PersonMatch]) -> list[pb.PersonRef]:
    return [pb.PersonRef(kind=each.kind, id=each.id) for each in matches]


def export(client: Client, matches: Iterable[pb.PersonMatch]) -> list[pb.PersonRecord]:
    """The records of all pages."""
    request = pb.ExportPersonRequest(refs=refs_of(matches))
    page = client.call("ExportPerson", request)
    records = list(page.records)
    while page.next_page_token:
        request.page_token = page.next_page_token
        page = client.call("ExportPerson", request)
        records += page.records
    return records


def erase(client: Client, matches: Iterable[pb.PersonMatch], reason: str = "asked for it") -> pb.ErasePersonResponse:
    answer: pb.ErasePersonResponse = client.call(
        "ErasePerson", pb.ErasePersonRequest(refs=refs_of(matches), reason=reason)
    )
    return answer


def resubmit(client: Client, lead: pb.Lead, reason: str = "DUPLICATE_PHONE", **request: str) -> None:
    with refused(StatusCode.ALREADY_EXISTS, reason):
        client.create(lead, request_id=str(uuid4()), **request)


@dataclass
class Life:
    """What there is of somebody, by e-mail, and of strangers whose phones some of it was sent with."""

    email: str
    leads: list[str] = field(default_factory=list)
    stranger: str = ""
    stranger_with: pb.Lead = field(default_factory=pb.Lead)


def live(admin: Client) -> Life:
    """Two leads, three resubmissions (one beside a stranger's lead), and a conflict."""
    life = Life(f"p{uuid4()}@example.com")
    first = somebody(email=life.email, conversation_id=f"talk-{uuid4()}")
    life.leads = [admin.create(first).id, admin.create(somebody(email=life.email)).id]
    resubmit(admin, first)
    resubmit(admin, somebody(phone=first.phone, email=life.email))
    life.stranger_with = somebody()
    life.stranger = admin.create(life.stranger_with).id
    resubmit(admin, somebody(phone=life.stranger_with.phone, email=life.email))
    gone = somebody()
    gone_id = admin.create(gone).id
    resubmit(admin, somebody(phone=gone.phone, email=life.email))
    admin.call("EraseLead", pb.EraseLeadRequest(id=gone_id))
    return life


def kinds(matches: Iterable[pb.PersonMatch]) -> list[int]:
    return [each.kind for each in matches]


def test_everything_of_a_person_is_found_and_nothing_of_a_stranger(admin: Client) -> None:
    life = live(admin)

    found = find(admin, email=life.email.upper())

    assert kinds(found) == [LEAD, LEAD, RESUBMISSION, RESUBMISSION, RESUBMISSION, CONFLICT]
    assert [each.id for each in found[:2]] == [each.lead_id for each in found[:2]] == life.leads
    assert [each.lead_id for each in found[2:5]] == [life.leads[0], life.leads[0], life.stranger]
    assert all(each.matched_fields == ["email"] for each in found)
    assert all(each.HasField("lead") == (each.kind == LEAD) for each in found)
    assert [each.lead.id for each in found[:2]] == life.leads
    assert all(each.lead.masked and "•••" in each.lead.email for each in found[:2])


def test_a_stranger_is_not_found_by_what_is_kept_beside_it(admin: Client) -> None:
    life = live(admin)

    by_nid = find(admin, nid=life.stranger_with.nid)
    by_phone = find(admin, phone=life.stranger_with.phone)

    assert [(each.kind, each.id) for each in by_nid] == [(LEAD, life.stranger)]
    # The other one carries the phone itself: it was sent with it.
    assert kinds(by_phone) == [LEAD, RESUBMISSION]


def test_each_match_names_the_fields_that_it_carries(admin: Client) -> None:
    person = somebody()
    lead_id = admin.create(person).id
    resubmit(admin, somebody(phone=person.phone, email=person.email))

    found = find(admin, phone=person.phone, nid=person.nid, email=person.email)

    assert [(each.id == lead_id, list(each.matched_fields)) for each in found] == [
        (True, ["phone", "nid", "email"]),
        (False, ["phone", "email"]),
    ]


def test_a_phone_that_is_written_in_two_ways_is_one(admin: Client) -> None:
    number = f"8{uuid4().int % 10**7:07d}"
    admin.create(somebody(phone=f"+55119{number}"))
    resubmit(admin, somebody(phone=f"+5511{number}"))

    for written in (f"+55119{number}", f"+5511{number}"):
        assert kinds(find(admin, phone=written)) == [LEAD, RESUBMISSION]


def test_45_people_on_one_phone_are_found_page_by_page_and_erasing_one_leaves_44(admin: Client) -> None:
    shared = somebody()
    admin.create(shared)
    people = [somebody(phone=shared.phone) for _ in range(50)]
    for each in people:
        resubmit(admin, each)

    page = admin.call("FindPerson", pb.FindPersonRequest(phone=shared.phone))
    found = find(admin, phone=shared.phone)

    assert (len(page.matches), len(found), len({each.id for each in found})) == (50, 51, 51)
    erase(admin, found[7:8])
    assert [each.id for each in find(admin, phone=shared.phone)] == [each.id for each in found if each != found[7]]
    assert admin.get(found[0].id).resubmissions == 49
    # Beside whom the others were kept: they stay, for a person to decide.
    kept = erase(admin, found[:1]).kept_ids
    left = find(admin, phone=shared.phone)
    assert (len(left), {each.kind for each in left}, {each.id for each in left}) == (49, {CONFLICT}, set(kept))


@pytest.mark.parametrize("field_name", ["phone", "nid", "email"])
def test_a_caller_without_the_scope_of_the_field_learns_nothing(
    connect: Connect, admin: Client, field_name: str
) -> None:
    person = somebody()
    admin.create(person)
    others = {Scope.UNMASK_PHONE, Scope.UNMASK_NID, Scope.UNMASK_EMAIL} - {Scope(f"leads:unmask:{field_name}")}
    client = connect(scopes={Scope.PERSON, Scope.READ, *others})

    for value in (getattr(person, field_name), getattr(somebody(), field_name)):
        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
            find(client, **{field_name: value})
        assert refusal.metadata["scope"] == f"leads:unmask:{field_name}"


@pytest.mark.parametrize("rpc", ["FindPerson", "ExportPerson", "ErasePerson"])
def test_nobody_without_the_scope_of_a_person_may_call(connect: Connect, rpc: str) -> None:
    client = connect(scopes=set(Scope) - {Scope.PERSON})

    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
        client.call(rpc, getattr(pb, f"{rpc}Request")())
    assert refusal.metadata["scope"] == "leads:person"


def test_export_and_erasure_need_the_scopes_of_what_they_do(connect: Connect, admin: Client) -> None:
    chosen = find(admin, email=live(admin).email)
    client = connect(scopes=set(Scope) - {Scope.UNMASK, Scope.ERASE})

    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as no_unmask:
        export(client, chosen)
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as no_erase:
        erase(client, chosen)

    assert [no_unmask.metadata["scope"], no_erase.metadata["scope"]] == ["leads:unmask", "leads:erase"]
    assert len(find(admin, email=admin.get(chosen[0].id).email)) == 6


def test_a_hit_and_a_miss_are_on_record(connect: Connect, service: RunningService, admin: Client) -> None:
    subject = f"officer-{uuid4()}"
    officer = connect("admin", subject=subject)
    life = live(admin)

    found = find(officer, email=life.email)
    missed = find(officer, nid="M1SS" + uuid4().hex[:8])

    recorded = execute(
        service, "SELECT lead_id::text, fields FROM access_record WHERE subject = %(who)s ORDER BY id", who=subject
    )
    assert missed == []
    assert recorded == [*((each.id, ["email"]) for each in found), (None, ["nid"])]


def test_what_cannot_be_an_identifier_is_refused_with_its_reason(admin: Client) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        find(admin, nid="N/A", email="nobody")
    assert refusal.violations.keys() == {"nid", "email"}
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID"):
        find(admin)


def test_a_page_token_of_another_search_is_refused(admin: Client) -> None:
    shared = somebody()
    admin.create(shared)
    for _ in range(50):
        resubmit(admin, somebody(phone=shared.phone))
    token = admin.call("FindPerson", pb.FindPersonRequest(phone=shared.phone)).next_page_token

    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        admin.call("FindPerson", pb.FindPersonRequest(nid=shared.nid, page_token=token))


def test_an_export_shows_the_whole_lead_with_its_history_and_the_persons_other_submissions(admin: Client) -> None:
    life = live(admin)
    admin.move(life.leads[0], pb.LEAD_STATUS_CONTACTED, reason="called")
    lead, *_ = found = find(admin, email=life.email)

    records = export(admin, [lead])

    chosen, same, history = (
        [each for each in records if each.part == part]
        for part in (pb.PERSON_PART_CHOSEN, pb.PERSON_PART_SAME_PERSON, pb.PERSON_PART_HISTORY)
    )
    assert [each.id for each in chosen] == [lead.id] == [chosen[0].lead.id]
    assert (chosen[0].lead.email, chosen[0].lead.status, chosen[0].lead.masked) == (life.email, 2, False)
    # With both its phone and its nid; the other one, with the phone alone, is chosen by itself or not at all.
    assert [(each.id, each.lead_id, each.resubmission.verified) for each in same] == [(found[2].id, lead.id, True)]
    events = [each.event for each in history]
    assert [each.type for each in events if each.type != 8] == [1, 5, 5, 3]
    assert [(each.actor, list(each.fields)) for each in events if each.type == 8][-1:] == [("admin", ["email"])]


def test_each_look_of_an_export_is_on_record_with_its_reason(
    connect: Connect, service: RunningService, admin: Client
) -> None:
    subject = f"officer-{uuid4()}"
    officer = connect("admin", subject=subject)
    found = find(admin, email=live(admin).email)

    export(officer, found)

    recorded = execute(
        service,
        "SELECT lead_id::text, 'notes' = ANY (fields) FROM access_record WHERE subject = %(who)s ORDER BY id",
        who=subject,
    )
    assert recorded == [(each.id, True) for each in found]


def test_a_long_export_comes_page_by_page_without_gap_or_repeat(admin: Client) -> None:
    person = somebody()
    lead_id = admin.create(person).id
    for _ in range(60):
        resubmit(admin, person)
    lead = pb.PersonMatch(kind=LEAD, id=lead_id)

    records = export(admin, [lead])
    token = admin.call("ExportPerson", pb.ExportPersonRequest(refs=refs_of([lead]))).next_page_token

    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        other = pb.PersonMatch(kind=CONFLICT, id=lead_id)
        admin.call("ExportPerson", pb.ExportPersonRequest(refs=refs_of([other]), page_token=token))
    content = [each.id for each in records if each.part != pb.PERSON_PART_HISTORY]
    events = [(each.id, each.event.id) for each in records if each.part == pb.PERSON_PART_HISTORY]
    assert len(content) == len(set(content)) == 61
    assert len(events) == len(set(events)) >= 61


def become_a_lead(admin: Client, service: RunningService, lead_id: str, submission: pb.Lead) -> str:
    """The id of a submission that matches a lead by its phone and was decided to be a lead of its own."""
    resubmit(admin, submission)
    conflict_id = conflict_with(service.environment["LEADKEEP_DATABASE_URL"], lead_id)
    decision = pb.ResolveConflictRequest(id=conflict_id, resolution=pb.CONFLICT_RESOLUTION_OWN_LEAD)
    assert admin.call("ResolveConflict", decision).lead.id == conflict_id
    return conflict_id


def test_an_export_shows_nothing_of_a_relative_who_became_a_lead_beside_the_chosen_one(
    service: RunningService, admin: Client
) -> None:
    person = somebody()
    lead_id = admin.create(person).id
    relative = somebody(phone=person.phone)
    become_a_lead(admin, service, lead_id, relative)

    records = export(admin, [pb.PersonMatch(kind=LEAD, id=lead_id)])

    assert {each.id for each in records} == {lead_id}
    assert relative.address not in str(records)


def test_an_export_of_a_lead_shows_what_was_submitted_before_it_was_decided_and_corrected(
    service: RunningService, admin: Client
) -> None:
    other = somebody()
    sent = somebody(phone=other.phone)
    lead_id = become_a_lead(admin, service, admin.create(other).id, sent)
    admin.correct(lead_id, address="Somewhere else")

    for chosen in ([LEAD], [LEAD, CONFLICT], [CONFLICT, LEAD]):
        records = export(admin, [pb.PersonMatch(kind=kind, id=lead_id) for kind in chosen])
        contents = [each.lead.address or each.conflict.submission.address for each in records if each.part != 3]
        assert sorted(filter(None, contents)) == sorted([sent.address, "Somewhere else"]), chosen
    found = export(admin, [pb.PersonMatch(kind=LEAD, id=lead_id)])
    events = [(each.event.type == 8, each.event.id) for each in found if each.part == 3]
    assert len(events) == len(set(events))


def test_refs_that_nobody_knows_are_named(admin: Client) -> None:
    unknown = pb.PersonMatch(kind=CONFLICT, id=str(uuid4()))
    chosen = pb.ExportPersonRequest(refs=refs_of([unknown]))

    assert list(admin.call("ExportPerson", chosen).not_found) == refs_of([unknown])
    assert list(erase(admin, [unknown]).not_found) == refs_of([unknown])
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID"):
        admin.call("ExportPerson", pb.ExportPersonRequest())
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID"):
        admin.call("ErasePerson", pb.ErasePersonRequest(refs=[pb.PersonRef(id=str(uuid4()))]))


def test_a_lead_that_is_named_as_a_submission_stays_and_is_not_called_erased(admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    as_submission = [pb.PersonMatch(kind=kind, id=lead_id) for kind in (RESUBMISSION, CONFLICT)]

    done = erase(admin, as_submission)

    assert (list(done.erased), list(done.not_found)) == ([], refs_of(as_submission))
    assert admin.get(lead_id).id == lead_id


def test_the_conflict_that_became_a_lead_goes_alone(service: RunningService, admin: Client) -> None:
    other = somebody()
    sent = somebody(phone=other.phone)
    lead_id = become_a_lead(admin, service, admin.create(other).id, sent)

    done = erase(admin, [pb.PersonMatch(kind=CONFLICT, id=lead_id)])

    assert [each.id for each in done.erased] == [lead_id]
    assert kinds(find(admin, nid=sent.nid)) == [LEAD]


def test_after_an_erasure_of_everything_nothing_is_found_and_the_stranger_is_whole(admin: Client) -> None:
    life = live(admin)
    before = admin.get(life.stranger)

    done = erase(admin, find(admin, email=life.email))

    assert (len(done.erased), list(done.not_found), list(done.kept_ids)) == (6, [], [])
    assert find(admin, email=life.email) == []
    after = admin.get(life.stranger)
    assert (before.resubmissions, after.resubmissions) == (1, 0)
    after.resubmissions = before.resubmissions
    assert after == before
    assert len(erase(admin, [pb.PersonMatch(kind=LEAD, id=each) for each in life.leads]).erased) == 2


def test_the_routes_take_identifiers_in_the_body_alone(service: RunningService, admin: Client) -> None:
    life = live(admin)
    with httpx.Client(
        base_url=service.http_url, headers={"authorization": f"Bearer {service.token('admin')}"}, timeout=20
    ) as http:
        found = http.post("/api/persons:find", json={"email": life.email})
        in_url = http.post("/api/persons:find", params={"email": life.email}, json={})
        chosen = [{"kind": "RESUBMISSION", "id": found.json()["matches"][2]["id"]}]
        shown = http.post("/api/persons:export", json={"refs": chosen})
        gone = http.post("/api/persons:erase", json={"refs": chosen, "reason": "asked for it"})

    assert [each["kind"] for each in found.json()["matches"][:3]] == [
        *["PERSON_MATCH_KIND_LEAD"] * 2,
        "PERSON_MATCH_KIND_RESUBMISSION",
    ]
    assert in_url.status_code == 400
    assert shown.json()["records"][0]["resubmission"]["lead"]["email"] == life.email
    assert [each["id"] for each in gone.json()["erased"]] == [chosen[0]["id"]]
