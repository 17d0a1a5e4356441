"""`leads:update-own`: a subject corrects what it created, for a while, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused

Connect = Callable[..., Client]


@pytest.fixture
def mine(chatbot: Client) -> pb.Lead:
    """A lead that the chatbot has just created."""
    return chatbot.create(somebody()).lead


def test_a_chatbot_corrects_its_own_lead_and_again(chatbot: Client, admin: Client, mine: pb.Lead) -> None:
    phone = somebody().phone
    corrected = chatbot.correct(mine.id, phone=phone, expected_version=1)
    assert (corrected.version, corrected.masked) == (2, True)
    assert phone not in str(corrected)
    assert chatbot.correct(mine.id, name="Another Name", expected_version=2).version == 3
    stored = admin.get(mine.id)
    assert (stored.phone, stored.name) == (phone, "Another Name")


def test_a_repeat_of_a_correction_of_what_nobody_sees_masked_changes_nothing(chatbot: Client, mine: pb.Lead) -> None:
    for _ in range(2):
        corrected = chatbot.correct(mine.id, name="Another Name", source="fair", expected_version=1)
        assert corrected.version == 2


def test_the_version_is_required(chatbot: Client, admin: Client, mine: pb.Lead) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
        chatbot.correct(mine.id, name="Another Name")
    assert refusal.violations.keys() == {"expected_version"}
    with refused(StatusCode.ABORTED, "VERSION_MISMATCH"):
        chatbot.correct(mine.id, name="Another Name", expected_version=7)
    assert admin.get(mine.id).version == 1


def test_anothers_lead_does_not_exist(connect: Connect, admin: Client, mine: pb.Lead) -> None:
    for caller in (connect("chatbot", subject="another-bot"), connect(scopes={Scope.UPDATE_OWN, Scope.READ})):
        for version in (1, 7):
            with refused(StatusCode.NOT_FOUND, "LEAD_NOT_FOUND"):
                caller.correct(mine.id, name="Another Name", expected_version=version)
    assert admin.get(mine.id).version == 1


def test_without_the_scope_nothing_is_corrected(connect: Connect, mine: pb.Lead) -> None:
    caller = connect(subject="chatbot", scopes={Scope.CREATE, Scope.READ_OWN})
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
        caller.correct(mine.id, name="Another Name", expected_version=1)
    assert refusal.metadata["scope"] == "leads:update"


def test_it_allows_no_other_change(chatbot: Client, mine: pb.Lead) -> None:
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
        chatbot.move(mine.id, pb.LEAD_STATUS_CONTACTED)
    with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"):
        chatbot.assign(mine.id, "sam")


TOUCHES: dict[str, Callable[[Client, str], object]] = {
    "moved": lambda admin, lead_id: admin.move(lead_id, pb.LEAD_STATUS_CONTACTED),
    "assigned": lambda admin, lead_id: admin.assign(lead_id, "sam"),
    "corrected": lambda admin, lead_id: admin.correct(lead_id, notes="Called once"),
}


@pytest.mark.parametrize("touched", TOUCHES)
def test_what_somebody_else_has_changed_is_closed(chatbot: Client, admin: Client, mine: pb.Lead, touched: str) -> None:
    chatbot.correct(mine.id, name="Own Change", expected_version=1)
    TOUCHES[touched](admin, mine.id)
    with refused(StatusCode.FAILED_PRECONDITION, "CORRECTION_CLOSED"):
        chatbot.correct(mine.id, name="Too Late", expected_version=3)
    assert admin.get(mine.id).name == "Own Change"


def test_a_change_without_an_event_counts_as_somebody_elses(
    chatbot: Client, mine: pb.Lead, service: RunningService
) -> None:
    execute(service, "UPDATE lead SET version = 2 WHERE id = %(id)s", id=mine.id)
    with refused(StatusCode.FAILED_PRECONDITION, "CORRECTION_CLOSED"):
        chatbot.correct(mine.id, name="Too Late", expected_version=2)


def test_a_resubmission_of_another_subject_closes_nothing(connect: Connect, chatbot: Client, admin: Client) -> None:
    person = somebody()
    lead_id = chatbot.create(person).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        connect("chatbot", subject="another-bot").create(somebody(phone=person.phone))
    assert chatbot.correct(lead_id, name="Another Name", expected_version=admin.get(lead_id).version).name


@pytest.mark.parametrize(("hours", "open_"), [(23.9, True), (24.1, False)])
def test_a_day_later_it_is_closed(
    chatbot: Client, service: RunningService, mine: pb.Lead, hours: float, open_: bool
) -> None:
    age = "UPDATE lead SET created_at = created_at - CAST(%(age)s AS interval) WHERE id = %(id)s"
    execute(service, age, age=f"{hours} hours", id=mine.id)
    if open_:
        assert chatbot.correct(mine.id, name="In Time", expected_version=1).version == 2
    else:
        with refused(StatusCode.FAILED_PRECONDITION, "CORRECTION_CLOSED"):
            chatbot.correct(mine.id, name="Too Late", expected_version=1)


@pytest.mark.parametrize("field", ["phone", "nid", "email"])
def test_right_and_wrong_guesses_get_the_same_answer(chatbot: Client, field: str) -> None:
    person = somebody(email="anika@example.com")
    guesses = {"right": getattr(person, field), "wrong": getattr(somebody(email="other@example.com"), field)}
    answers = []
    for guess in guesses.values():
        lead_id = chatbot.create(person if guess == getattr(person, field) else somebody()).id
        answers.append(chatbot.correct(lead_id, expected_version=1, **{field: guess}).version)
        with refused(StatusCode.ABORTED, "VERSION_MISMATCH"):
            chatbot.correct(lead_id, expected_version=1, **{field: guess})
    assert answers == [2, 2]


def test_a_duplicate_is_decided_and_recorded_as_of_any_correction(
    connect: Connect, chatbot: Client, admin: Client, mine: pb.Lead
) -> None:
    other = somebody()
    other_id = connect("chatbot", subject="another-bot").create(other).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
        chatbot.correct(mine.id, phone=other.phone, expected_version=1)
    assert refusal.metadata == {"fields": "phone"}
    request = pb.ListAccessesRequest(lead_id=other_id, subject="chatbot")
    assert [each.operation for each in admin.call("ListAccesses", request).accesses] == ["UpdateLead"]
