"""One field is shown, and no other: by every rpc and route that shows leads, whatever scope, view and reveal say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import grpc
import httpx
import psycopg
import pytest
from google.protobuf import message_factory
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import Parse
from google.protobuf.message import Message
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.http.routes import ROUTES as ALL_ROUTES
from service.rpc.call import SERVICE
from service.scopes import Scope
from service.validation import MASK
from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refusal_of, refused
from tests.rpc.conftest import Connect
from tests.rpc.showing import WITH_VIEW, answered, clear_values, known_person, requests_for

FIELDS = ("phone", "nid", "email", "address", "notes")
SCOPES: dict[str, set[Scope]] = {"none": set(), "one": {Scope.UNMASK_PHONE}, "all": {Scope.UNMASK}}
VIEWS = ("LEAD_VIEW_UNSPECIFIED", "LEAD_VIEW_MASKED", "LEAD_VIEW_FULL")
REVEALS = {"empty": [], "allowed": ["phone"], "forbidden": ["phone", "nid"], "unknown": ["phone", "conversation_id"]}
"""What `reveal` names. `forbidden` is so for who has the scope of the phone alone."""

CHANGES = ["CreateLead", "UpdateStatus", "UpdateLead", "AssignLead"]

ROUTES = {route.rpc: route for route in ALL_ROUTES if route.rpc in WITH_VIEW}

Refused = tuple[str, str]
"""The reason of a refusal, and the scope that it names."""


def expected(scope: str, view: str, reveal: str) -> set[str] | Refused:
    """The fields that the answer shows, or its refusal: the rules, written once more."""
    if reveal == "unknown" or (reveal != "empty" and view != "LEAD_VIEW_UNSPECIFIED"):
        return "LEAD_INVALID", ""
    if reveal != "empty":
        missing = [field for field in REVEALS[reveal] if scope == "none" or (scope == "one" and field != "phone")]
        return ("SCOPE_MISSING", f"leads:unmask:{missing[0]}") if missing else set(REVEALS[reveal])
    if view == "LEAD_VIEW_FULL" and scope != "all":
        return "SCOPE_MISSING", "leads:unmask"
    return set(FIELDS) if scope == "all" and view != "LEAD_VIEW_MASKED" else set()


def over_grpc(client: Client, rpc: str, request: Any, view: str, reveal: list[str]) -> Message | Refused:
    request.view = view
    request.reveal.paths.extend(reveal)
    try:
        answer: Message = client.call(rpc, request)
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        return refusal.reason, refusal.metadata.get("scope", "")
    return answer


def over_http(http: httpx.Client, rpc: str, request: Any, view: str, reveal: list[str]) -> Message | Refused:
    sent = {field.name: value for field, value in request.ListFields()}
    path = ROUTES[rpc].path.replace(":path", "").format(**{name: quote(str(sent[name]), safe="") for name in sent})
    query = {name: value for name, value in sent.items() if f"{{{name}" not in ROUTES[rpc].path}
    query |= {"view": view.removeprefix("LEAD_VIEW_").lower()} if view != "LEAD_VIEW_UNSPECIFIED" else {}
    response = http.get(path, params=query | ({"reveal": ",".join(reveal)} if reveal else {}))
    if not response.is_success:
        problem = response.json()
        return problem["reason"], problem.get("metadata", {}).get("scope", "")
    return Parse(response.text, message_factory.GetMessageClass(SERVICE.methods_by_name[rpc].output_type)())


def leads_in(message: Message) -> Iterator[pb.Lead]:
    """Every lead and submission in an answer."""
    if isinstance(message, pb.Lead):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from leads_in(inner)


Recorded = Callable[[str], list[set[str]]]


@pytest.fixture(scope="module")
def recorded(service: RunningService) -> Iterator[Recorded]:
    """The fields of each entry that the access record has of a subject."""
    with psycopg.connect(service.environment["LEADKEEP_DATABASE_URL"], autocommit=True) as connection:

        def of(subject: str) -> list[set[str]]:
            rows = connection.execute("SELECT fields FROM access_record WHERE subject = %s", (subject,))
            return [set(fields) for (fields,) in rows]

        yield of


@pytest.fixture(scope="module")
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.http_url) as client:
        yield client


@pytest.mark.parametrize("way", [*WITH_VIEW, *(f"http {rpc}" for rpc in ROUTES)])
@pytest.mark.parametrize(("scope", "view", "reveal"), list(product(SCOPES, VIEWS, REVEALS)))
def test_what_is_shown_masked_named_recorded_and_refused(
    scope: str,
    view: str,
    reveal: str,
    way: str,
    service: RunningService,
    recorded: Recorded,
    http: httpx.Client,
    connect: Connect,
    person: pb.Lead,
    lead_id: str,
) -> None:
    subject, scopes = f"{scope} {view} {reveal} {way}", SCOPES[scope] | {Scope.READ, Scope.OPERATE}
    transport, rpc = way.split() if way.startswith("http") else ("grpc", way)
    request = requests_for(rpc, lead_id, person)
    if transport == "http":
        http.headers["authorization"] = f"Bearer {service.token(subject=subject, scopes=scopes)}"
        answer = over_http(http, rpc, request, view, REVEALS[reveal])
    else:
        answer = over_grpc(connect(subject=subject, scopes=scopes), rpc, request, view, REVEALS[reveal])

    wanted = expected(scope, view, reveal)
    if isinstance(wanted, tuple):
        assert (answer, recorded(subject)) == (wanted, [])
        return
    assert isinstance(answer, Message)
    leads = list(leads_in(answer))
    assert len(leads) == (2 if rpc == "ListConflicts" else 1)
    for lead in leads:
        clear = {field for field in (*FIELDS, "conversation_id") if getattr(lead, field) == getattr(person, field)}
        assert clear == wanted | ({"conversation_id"} if "phone" in wanted else set())
        assert set(lead.masked_fields) == {*FIELDS, "conversation_id"} - clear
        assert lead.masked == bool(lead.masked_fields)
    searched = {"phone"} if rpc in ("GetLeadByConversation", "ListLeads") else set()
    assert recorded(subject) == [wanted | searched for lead in leads if wanted | searched]


# What a caller with the scope of the phone alone may try.


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def nosy(connect: Connect, subject: str) -> Client:
    """Somebody who may do everything with every lead, and see nothing but the phone."""
    scopes = {scope for scope in Scope if not scope.startswith(Scope.UNMASK)} - {Scope.READ_OWN}
    return connect(subject=subject, scopes=scopes | {Scope.UNMASK_PHONE})


def unseen(person: pb.Lead) -> list[str]:
    """What `nosy` must never get."""
    return [getattr(person, field) for field in FIELDS if field != "phone"]


@pytest.mark.parametrize("rpc", CHANGES)
def test_the_answer_to_a_change_is_masked_and_unrecorded(
    rpc: str, nosy: Client, subject: str, recorded: Recorded, person: pb.Lead, lead_id: str
) -> None:
    request = requests_for(rpc, lead_id, person)
    told = answered(nosy, rpc, request)
    assert MASK in told
    assert not [value for value in clear_values(getattr(request, "lead", person)) if value and value in told]
    assert recorded(subject) == []


@pytest.mark.parametrize("field", ["nid", "phone"])
def test_a_filter_needs_the_scope_of_its_field(
    field: str, nosy: Client, subject: str, recorded: Recorded, person: pb.Lead, lead_id: str
) -> None:
    value = getattr(person, field)
    request = pb.ListLeadsRequest(**{field: value}, reveal=FieldMask(paths=["phone"]))
    told = answered(nosy, "ListLeads", request)
    assert not [each for each in unseen(person) if each in told]
    assert ("leads:unmask:nid" in told) == (field == "nid")
    assert recorded(subject) == ([{"phone"}] if field == "phone" else [])


def test_what_is_searched_and_what_is_shown_are_one_entry(
    connect: Connect, subject: str, recorded: Recorded, person: pb.Lead, lead_id: str
) -> None:
    searcher = connect(subject=subject, scopes={Scope.READ, Scope.UNMASK_PHONE, Scope.UNMASK_EMAIL})
    (lead,) = searcher.list_leads(phone=person.phone, reveal=FieldMask(paths=["email"])).leads
    assert (lead.id, lead.email, MASK in lead.phone) == (lead_id, person.email, True)
    assert recorded(subject) == [{"phone", "email"}]


def test_a_page_token_takes_no_reveal_along(nosy: Client, subject: str, recorded: Recorded, admin: Client) -> None:
    policy = f"Policy {uuid4()}"
    for _ in range(2):
        admin.create(somebody(interested_policy=policy))
    wanted: dict[str, Any] = {"interested_policy": policy, "page_size": 1}
    first = nosy.list_leads(**wanted, reveal=FieldMask(paths=["phone"]))
    wanted["page_token"] = first.next_page_token
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
        nosy.list_leads(**wanted, reveal=FieldMask(paths=["nid"]))
    (second,) = nosy.list_leads(**wanted).leads
    assert MASK not in first.leads[0].phone
    assert set(second.masked_fields) == set(FIELDS)
    assert recorded(subject) == [{"phone"}]


@pytest.mark.parametrize(
    ("guessed", "right", "answer", "looks"),
    [
        (["phone"], True, StatusCode.OK, [{"phone"}]),
        (["phone", "name"], True, StatusCode.OK, [{"phone"}]),
        (["phone"], False, StatusCode.ABORTED, [{"phone"}]),
        (["nid"], True, StatusCode.ABORTED, []),
        (["nid"], False, StatusCode.ABORTED, []),
        (["phone", "nid"], True, StatusCode.ABORTED, []),
        (["phone", "nid"], False, StatusCode.ABORTED, []),
        (["phone", "email", "notes"], True, StatusCode.ABORTED, []),
    ],
)
def test_a_correction_tells_nothing_of_fields_without_their_scope(
    guessed: list[str],
    right: bool,
    answer: StatusCode,
    looks: list[set[str]],
    nosy: Client,
    subject: str,
    recorded: Recorded,
    admin: Client,
) -> None:
    person = known_person()
    lead_id = admin.create(person).id
    guess = person if right else known_person()
    code = StatusCode.OK
    try:
        lead = nosy.correct(lead_id, expected_version=7, **{field: getattr(guess, field) for field in guessed})
        assert (set(lead.masked_fields) >= set(FIELDS), lead.version) == (True, 1)
    except grpc.RpcError as error:
        code = error.code()
    assert code == answer
    assert recorded(subject) == looks


def test_a_right_guess_among_others_makes_a_version_like_a_wrong_one(nosy: Client, admin: Client) -> None:
    person = known_person()
    lead_id = admin.create(person).id
    right = nosy.correct(lead_id, phone=person.phone, nid=person.nid)
    wrong = nosy.correct(lead_id, phone=person.phone, nid=known_person().nid)
    assert (right.version, wrong.version) == (2, 3)


def test_the_history_does_not_tell_which_of_several_fields_was_guessed(connect: Connect, admin: Client) -> None:
    person = known_person()
    lead_id = admin.create(person).id
    connect("agent").correct(lead_id, phone=person.phone, email=known_person().email)
    asked = pb.ListLeadEventsRequest(lead_id=lead_id, newest_first=True, page_size=1)
    (event,) = admin.call("ListLeadEvents", asked).events
    assert set(event.fields) == {"phone", "email"}


def test_a_refused_reveal_decides_nothing(nosy: Client, admin: Client, service: RunningService) -> None:
    lead = somebody()
    lead_id = admin.create(lead).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.create(lead, request_id=str(uuid4()))
    conflict = conflict_with(service.environment["LEADKEEP_DATABASE_URL"], lead_id)
    decision = pb.ResolveConflictRequest(id=conflict, resolution=pb.CONFLICT_RESOLUTION_KEEP_FIRST)
    for paths, reason in (
        (["phone", "nid"], "SCOPE_MISSING"),
        (["*"], "LEAD_INVALID"),
        (["lead.phone"], "LEAD_INVALID"),
    ):
        decision.reveal.CopyFrom(FieldMask(paths=paths))
        with pytest.raises(grpc.RpcError) as error:
            nosy.call("ResolveConflict", decision)
        assert refusal_of(error.value).reason == reason
    waiting = nosy.call("ListConflicts", pb.ListConflictsRequest()).conflicts
    assert conflict in {each.id for each in waiting}


def test_a_conversation_follows_the_phone(nosy: Client, connect: Connect, person: pb.Lead, lead_id: str) -> None:
    emails = connect(scopes={Scope.READ, Scope.UNMASK_EMAIL})
    assert emails.reveal(lead_id, "email").conversation_id == MASK
    assert nosy.reveal(lead_id, "phone").conversation_id == person.conversation_id


def test_a_correction_of_the_phone_does_not_show_the_former_one(
    connect: Connect, admin: Client, database_url: str, subject: str
) -> None:
    first, bot = known_person(), connect("chatbot", subject=subject)
    made = bot.create(first)
    again = known_person()
    again.nid, again.conversation_id = first.nid, f"wa/{first.phone[:6]}-{first.phone[6:]}"
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID"):
        admin.create(again)
    conflict = conflict_with(database_url, made.id)
    agent = connect(scopes={Scope.READ, Scope.UPDATE, Scope.UNMASK_EMAIL, Scope.OPERATE})

    shown = [bot.correct(made.id, expected_version=1, phone=known_person().phone), bot.get(made.id)]
    shown += [agent.correct(made.id, phone=known_person().phone), agent.assign(made.id, "Sam")]
    shown += [agent.get(made.id), agent.reveal(made.id, "email"), agent.by_conversation(first.conversation_id).lead]
    shown += agent.list_leads(reference=made.lead.reference).leads
    shown += [kept.lead for kept in agent.resubmissions(made.id)]
    conflicts = agent.call("ListConflicts", pb.ListConflictsRequest()).conflicts
    shown += [side for each in conflicts if each.id == conflict for side in (each.submission, *each.leads)]

    assert len(shown) == 11
    assert {lead.conversation_id for lead in shown} == {MASK}
    assert all("conversation_id" in lead.masked_fields for lead in shown)
    assert admin.get(made.id).conversation_id == first.conversation_id


def test_a_conversation_that_holds_no_phone_is_shown_beside_a_corrected_one(connect: Connect, admin: Client) -> None:
    agent = connect(scopes={Scope.READ, Scope.UPDATE})
    for talk, field in (("chat-42", "phone"), (f"psid-{uuid4().int}", "name")):
        person = known_person()
        person.conversation_id = talk
        new = pb.Lead(id=admin.create(person).id)
        setattr(new, field, getattr(known_person(), field))
        corrected = agent.call("UpdateLead", pb.UpdateLeadRequest(lead=new)).lead
        assert (corrected.conversation_id, agent.get(new.id).conversation_id) == (talk, talk)


def test_a_resubmission_with_another_phone_hides_the_leads(
    nosy: Client, subject: str, recorded: Recorded, connect: Connect, admin: Client
) -> None:
    first = known_person()
    lead_id = admin.create(first).id
    again = known_person()
    again.nid, again.conversation_id = first.nid, f"whatsapp:{first.phone}"
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID"):
        admin.create(again)
    emails = connect(scopes={Scope.READ, Scope.UNMASK_EMAIL})
    asked = pb.ListResubmissionsRequest(lead_id=lead_id, reveal=FieldMask(paths=["email"]))
    (kept,) = emails.call("ListResubmissions", asked).resubmissions
    assert (kept.lead.email, kept.lead.conversation_id) == (again.email, MASK)
    (kept,) = nosy.call("ListResubmissions", pb.ListResubmissionsRequest(lead_id=lead_id)).resubmissions
    assert kept.lead.conversation_id == MASK
    assert recorded(subject) == []


def test_an_agents_day_shows_and_records_the_number_alone(
    connect: Connect, subject: str, recorded: Recorded, person: pb.Lead, lead_id: str
) -> None:
    agent = connect("agent", subject=subject)
    assert all(lead.masked for lead in agent.list_leads().leads)
    assert agent.get(lead_id).masked
    assert recorded(subject) == []
    lead = agent.reveal(lead_id, "phone", "email")
    assert (lead.phone, lead.email) == (person.phone, person.email)
    assert set(lead.masked_fields) == {"nid", "address", "notes"}
    assert recorded(subject) == [{"phone", "email"}]
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
        agent.reveal(lead_id, "notes")
    assert refusal.metadata == {"scope": "leads:unmask:notes"}


def test_nothing_is_masked_when_everything_is_revealed(admin: Client, lead_id: str) -> None:
    lead = admin.reveal(lead_id, *FIELDS)
    assert (lead.masked, list(lead.masked_fields)) == (False, [])


def test_a_lead_that_has_only_what_is_shown_is_not_masked(connect: Connect, admin: Client) -> None:
    lead = somebody()
    lead.ClearField("notes")
    lead_id = admin.create(lead).id
    seer = connect(scopes={Scope.READ, *(scope for scope in Scope if scope.startswith("leads:unmask:"))})
    assert not seer.reveal(lead_id, *set(FIELDS) - {"notes"}).masked
    assert list(seer.reveal(lead_id, *set(FIELDS) - {"email"}).masked_fields) == ["email"]


def test_who_created_a_lead_is_shown_to_who_may_read_it(connect: Connect, admin: Client) -> None:
    bot = connect(subject="bot-7", scopes={Scope.CREATE, Scope.READ_OWN, Scope.UNMASK})
    made = bot.create(somebody())
    own = [made.lead, bot.get(made.id), *bot.list_leads().leads]
    assert {lead.created_by for lead in own} == {""}
    assert connect(scopes={Scope.UPDATE, Scope.READ_OWN}, subject="bot-7").assign(made.id, "mina").created_by == ""
    reader = connect(scopes={Scope.READ})
    assert {reader.get(made.id).created_by, admin.get(made.id).created_by} == {"bot-7"}
    assert admin.create(somebody()).lead.created_by == "admin"


def test_only_what_is_revealed_is_opened(connect: Connect, service: RunningService, admin: Client) -> None:
    lead_id, other = (admin.create(known_person()).id for _ in range(2))
    execute(
        service,
        "UPDATE lead SET notes = (SELECT notes FROM lead WHERE id = %(b)s) WHERE id = %(a)s",
        a=lead_id,
        b=other,
    )
    seer = connect(scopes={Scope.READ, Scope.UNMASK_PHONE, Scope.UNMASK_NOTES})
    assert MASK not in seer.reveal(lead_id, "phone").phone
    with refused(StatusCode.DATA_LOSS, "FIELD_UNREADABLE"):
        seer.reveal(lead_id, "notes")


@pytest.mark.parametrize("query", ["reveal=*", "reveal=phone&reveal=nid", "reveal=lead.phone", "reveal=01711"])
def test_a_query_names_fields_and_nothing_else(query: str, service: RunningService, lead_id: str) -> None:
    headers = {"authorization": f"Bearer {service.token()}"}
    refusal = httpx.get(f"{service.http_url}/api/leads/{lead_id}?{query}", headers=headers)
    (violation,) = refusal.json()["violations"]
    assert (refusal.status_code, violation["field"]) == (400, "reveal")
    assert "01711" not in refusal.text
