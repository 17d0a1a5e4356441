"""Two replicas that ask why, and that show a subject 10 leads an hour."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from grpc import StatusCode
from grpc_status import rpc_status
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import UnmaskLimitError
from service.rpc.call import Call
from service.scopes import Caller, Scope
from service.validation import MASK
from tests.conftest import StartService
from tests.harness.leads import somebody
from tests.harness.masking import KeptRecord, unmasking_into
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused

LIMIT = 10


class Asking(Client):
    """A caller who says why."""

    def __init__(
        self, service: RunningService, channel: grpc.Channel, role: str, reason: str | None, subject: str
    ) -> None:
        super().__init__(service, channel, role, subject=subject)
        if reason is not None:
            self._metadata.append(("leadkeep-reason", reason))


Replicas = tuple[RunningService, RunningService]


@pytest.fixture(scope="module")
def replicas(service_database: TestDatabase, shared_keyring: dict[str, str], start_shared: StartService) -> Replicas:
    url = service_database.serve_url
    settings = shared_keyring | {
        "LEADKEEP_REASON_REQUIRED": "1",
        "LEADKEEP_UNMASK_LIMIT": str(LIMIT),
        "LEADKEEP_LOG_LEVEL": "error",
    }
    one, other = (start_shared(name, database_url=url, settings=settings) for name in ("one", "other"))
    return one, other


@pytest.fixture
def caller(replicas: Replicas, channels: list[grpc.Channel], request: pytest.FixtureRequest) -> Any:
    """A caller of one replica, with a subject of the test's own."""

    def of(replica: int = 0, *, role: str = "admin", reason: str | None = "call back", subject: str = "") -> Client:
        return Asking(replicas[replica], channels[replica], role, reason, subject or request.node.name)

    return of


@pytest.fixture(scope="module")
def lead_id(replicas: Replicas, channels: list[grpc.Channel]) -> str:
    return str(Client(replicas[0], channels[0], "chatbot").create(somebody()).id)


@pytest.mark.parametrize(
    ("rpc", "message"),
    [
        ("GetLead", pb.GetLeadRequest(id="01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f")),
        ("GetLead", pb.GetLeadRequest(view=pb.LEAD_VIEW_FULL)),
        ("ListLeads", pb.ListLeadsRequest()),
        ("ListLeads", pb.ListLeadsRequest(phone="+8801712345678", view=pb.LEAD_VIEW_MASKED)),
        ("ListResubmissions", pb.ListResubmissionsRequest()),
        ("ListConflicts", pb.ListConflictsRequest()),
        ("GetLeadByConversation", pb.GetLeadByConversationRequest()),
        ("ResolveConflict", pb.ResolveConflictRequest(view=pb.LEAD_VIEW_FULL)),
        ("ResolveConflict", pb.ResolveConflictRequest(reveal=FieldMask(paths=["phone"]))),
        ("GetLead", pb.GetLeadRequest(reveal=FieldMask(paths=["phone"]))),
    ],
)
@pytest.mark.parametrize("reason", [None, "  "])
def test_who_does_not_say_why_is_refused(rpc: str, message: Message, reason: str | None, caller: Any) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "REASON_REQUIRED"):
        caller(reason=reason).call(rpc, message)


def test_what_shows_no_value_needs_no_reason(caller: Any, lead_id: str) -> None:
    silent = caller(reason=None)
    assert silent.get(lead_id, view=pb.LEAD_VIEW_MASKED).masked
    assert silent.status_changes(lead_id) == []
    assert silent.call("ListAccesses", pb.ListAccessesRequest()) is not None


def test_a_masked_search_by_a_conversation_that_may_be_a_phone_needs_no_reason(caller: Any) -> None:
    silent, person = caller(reason=None), somebody()
    person.conversation_id = f"whatsapp:{person.phone}"
    made = silent.create(person)
    listed = silent.list_leads(conversation_id=person.conversation_id, view=pb.LEAD_VIEW_MASKED)
    assert [(lead.id, lead.conversation_id) for lead in listed.leads] == [(made.id, MASK)]
    accesses = pb.ListAccessesRequest(lead_id=made.id)
    assert [list(each.fields) for each in silent.call("ListAccesses", accesses).accesses] == [["phone"]]


def test_a_change_without_a_reason_is_done_and_answered_masked(caller: Any) -> None:
    made = caller(reason=None).create(somebody())
    assert made.lead.masked
    assert not caller(subject="somebody who says why").get(made.id).masked


def test_the_limit_holds_for_both_replicas_and_all_calls_at_once(caller: Any, lead_id: str) -> None:
    def get(number: int) -> str:
        try:
            return "masked" if caller(number % 2).get(lead_id).masked else "shown"
        except grpc.RpcError as error:
            return str(error.code())

    with ThreadPoolExecutor(16) as threads:
        told = list(threads.map(get, range(40)))
    assert told.count("shown") == LIMIT
    assert told.count(str(StatusCode.RESOURCE_EXHAUSTED)) == 40 - LIMIT


def test_a_list_beyond_the_limit_is_refused_whole(caller: Any, lead_id: str) -> None:
    policy = "A long list"
    for _ in range(LIMIT + 1):
        caller(subject="creator", reason=None).create(somebody(interested_policy=policy))
    with refused(StatusCode.RESOURCE_EXHAUSTED, "UNMASK_LIMIT") as refusal:
        caller().list_leads(interested_policy=policy)
    assert refusal.metadata == {"limit": str(LIMIT)}
    assert len(caller().list_leads(interested_policy=policy, page_size=LIMIT).leads) == LIMIT
    assert caller().list_leads(interested_policy=policy, view=pb.LEAD_VIEW_MASKED).leads[0].masked


def test_who_is_beyond_the_limit_hears_when_to_come_again(caller: Any, lead_id: str) -> None:
    for _ in range(LIMIT):
        caller().get(lead_id)
    with pytest.raises(grpc.RpcError) as refusal:
        caller().get(lead_id)
    status = rpc_status.from_call(refusal.value)  # type: ignore[arg-type]
    assert status is not None
    assert "RetryInfo" in str(status)


def test_a_revealed_field_counts_and_an_agents_masked_lists_do_not(caller: Any, lead_id: str) -> None:
    agent = caller(role="agent")
    for _ in range(LIMIT):
        assert agent.list_leads(page_size=2).leads[0].masked
        assert agent.reveal(lead_id, "phone").masked_fields
    with refused(StatusCode.RESOURCE_EXHAUSTED, "UNMASK_LIMIT"):
        agent.reveal(lead_id, "phone")
    assert agent.get(lead_id).masked


def test_a_change_beyond_the_limit_is_done_and_answered_masked(caller: Any, lead_id: str) -> None:
    for _ in range(LIMIT):
        assert not caller().get(lead_id).masked
    lead = caller().assign(lead_id, "rahima")
    assert (lead.masked, lead.assignee) == (True, "rahima")


def test_a_command_obeys_the_same_rules(replicas: Replicas, caller: Any) -> None:
    policy = "Exported"
    for _ in range(LIMIT + 1):
        caller(reason=None).create(somebody(interested_policy=policy))
    token = {"LEADKEEP_TOKEN": replicas[0].token(subject="exporter")}
    silent = replicas[0].leadkeep_here("export", "--format", "json", "--unmask", env=token)
    assert (silent.returncode, silent.stdout) == (1, "")
    assert "say why" in silent.stderr
    beyond = replicas[0].leadkeep_here("export", "--format", "json", "--unmask", "--reason", "audit 7", env=token)
    assert (beyond.returncode, beyond.stdout) == (1, "")
    assert f"at most {LIMIT} leads" in beyond.stderr


def test_heads_are_logged_whatever_the_level(replicas: Replicas, caller: Any, lead_id: str) -> None:
    caller(1, subject="head").get(lead_id)
    assert '"event":"access head"' in replicas[1].log()
    assert '"event":"call"' not in replicas[1].log()


class TestGuesses:
    """A correction whose answer depends on what the lead holds is a look: with a reason, recorded, counted."""

    @pytest.fixture
    def person(self) -> pb.Lead:
        return somebody()

    @pytest.fixture
    def guessed_id(self, replicas: Replicas, channels: list[grpc.Channel], person: pb.Lead) -> str:
        return str(Client(replicas[0], channels[0], "chatbot").create(person).id)

    @pytest.fixture(params=["right", "wrong", "removal"])
    def guess(self, request: pytest.FixtureRequest, person: pb.Lead) -> pb.Lead:
        return {"right": person, "wrong": somebody(), "removal": pb.Lead()}[request.param]

    def looks(self, caller: Any, lead_id: str) -> list[tuple[str, list[str]]]:
        entries = caller(subject="auditor").call("ListAccesses", pb.ListAccessesRequest(lead_id=lead_id)).accesses
        return [(entry.operation, list(entry.fields)) for entry in entries]

    def guess_notes(self, client: Client, lead_id: str, guess: pb.Lead) -> str:
        try:
            client.correct(lead_id, ["notes"], notes=guess.notes, expected_version=10**9)
        except grpc.RpcError as error:
            return str(error.code())
        return "right"

    def test_a_wrong_guess_is_recorded_like_a_right_one(self, caller: Any, guessed_id: str, guess: pb.Lead) -> None:
        self.guess_notes(caller(), guessed_id, guess)
        [(operation, fields)] = self.looks(caller, guessed_id)
        assert operation == "UpdateLead"
        assert "notes" in fields

    def test_without_a_reason_every_guess_is_refused_alike(self, caller: Any, guessed_id: str, guess: pb.Lead) -> None:
        assert self.guess_notes(caller(reason=None), guessed_id, guess) == str(StatusCode.ABORTED)
        assert self.looks(caller, guessed_id) == []

    def test_beyond_the_limit_every_guess_is_refused_alike(
        self, caller: Any, guessed_id: str, lead_id: str, guess: pb.Lead
    ) -> None:
        for _ in range(LIMIT):
            caller().get(lead_id)
        assert self.guess_notes(caller(), guessed_id, guess) == str(StatusCode.ABORTED)
        assert self.looks(caller, guessed_id) == []

    def test_wrong_guesses_use_the_limit_up(self, caller: Any, guessed_id: str, lead_id: str) -> None:
        for _ in range(LIMIT):
            self.guess_notes(caller(), guessed_id, pb.Lead(notes="a guess"))
        with refused(StatusCode.RESOURCE_EXHAUSTED, "UNMASK_LIMIT"):
            caller().get(lead_id)

    def test_beyond_the_limit_a_right_guess_makes_a_version_like_a_wrong_one(
        self, caller: Any, guessed_id: str, lead_id: str, guess: pb.Lead
    ) -> None:
        for _ in range(LIMIT):
            caller().get(lead_id)
        lead = caller().correct(guessed_id, ["notes"], notes=guess.notes)
        assert (lead.masked, lead.version) == (True, 2)

    def test_beyond_the_limit_the_history_does_not_tell_a_right_guess(
        self, caller: Any, guessed_id: str, lead_id: str, guess: pb.Lead
    ) -> None:
        for _ in range(LIMIT):
            caller().get(lead_id)
        caller().correct(guessed_id, ["notes", "name", "source"], notes=guess.notes, name="Ada", source="fair")
        assert self.looks(caller, guessed_id) == []
        assert list(caller().events(guessed_id)[-1].fields) == ["name", "notes", "source"]

    def test_a_name_that_differs_is_no_look_of_its_own(self, caller: Any, guessed_id: str) -> None:
        with refused(StatusCode.ABORTED, "VERSION_MISMATCH"):
            caller().correct(guessed_id, name="Somebody Else", expected_version=10**9)
        assert self.looks(caller, guessed_id) == []

    def test_a_duplicate_is_recorded_beyond_the_limit_and_without_a_reason_too(
        self, caller: Any, guessed_id: str, lead_id: str, person: pb.Lead
    ) -> None:
        for _ in range(LIMIT):
            caller().get(lead_id)
        for guesser in (caller(), caller(reason=None)):
            with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
                guesser.correct(lead_id, phone=person.phone)
        assert self.looks(caller, guessed_id) == [("UpdateLead", ["phone"])] * 2


def looking(rpc: str) -> Call:
    """A call of somebody with every scope."""
    caller = Caller("nosy", frozenset(Scope))
    return Call(rpc=rpc, transport="grpc", peer="", metadata={}, deadline=time.monotonic() + 5, caller=caller)


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("ListLeads", pb.ListLeadsRequest(phone="+8801712345678", view=pb.LEAD_VIEW_MASKED)),
        ("GetLeadByConversation", pb.GetLeadByConversationRequest(conversation_id="whatsapp:+8801712345678")),
        ("FindPerson", pb.FindPersonRequest(nid="1234567890")),
    ],
)
async def test_beyond_the_limit_nothing_is_looked_up_whose_time_could_tell(rpc: str, request_: Message) -> None:
    async def look_up(_call: Call, _request: Message) -> Message:
        raise AssertionError("it was looked up")

    with pytest.raises(UnmaskLimitError):
        await unmasking_into(KeptRecord(full=True))(looking(rpc), request_, look_up)


@pytest.mark.parametrize("full", [False, True])
async def test_beyond_the_limit_a_correction_compares_nothing_whose_time_could_tell(full: bool) -> None:
    comparable: list[set[str]] = []

    async def correct(call: Call, _request: Message) -> Message:
        comparable.append(set(call.comparable))
        return pb.UpdateLeadResponse()

    request = pb.UpdateLeadRequest(lead=pb.Lead(phone="+8801712345678"))
    await unmasking_into(KeptRecord(full=full))(looking("UpdateLead"), request, correct)
    assert comparable == [set() if full else {"phone", "nid", "email", "address", "notes"}]
