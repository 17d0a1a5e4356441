"""A submission that is sent again without a request_id, because a platform retries or a customer presses twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused

Connect = Callable[..., Client]


def age(database: TestDatabase, lead_id: str, by: str) -> None:
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE lead SET created_at = created_at - %s::interval WHERE id = %s", [by, lead_id])


def test_five_at_once_and_one_an_hour_later_are_one_lead(
    service_database: TestDatabase, chatbot: Client, admin: Client
) -> None:
    lead = somebody(conversation_id="five-at-once")
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(chatbot.create, [lead] * 5))
    lead_id = answers[0].id
    age(service_database, lead_id, "1 hour")
    answers.append(chatbot.create(lead))
    assert {answer.id for answer in answers} == {lead_id}
    assert sorted(answer.is_repeat for answer in answers) == [False, *[True] * 5]
    assert {answer.state for answer in answers} == {pb.SAVE_STATE_SAVED}
    assert {answer.confirmation.reference for answer in answers} == {answers[0].confirmation.reference}
    [found] = admin.list_leads(conversation_id="five-at-once").leads
    assert (found.id, found.resubmissions) == (lead_id, 0)
    assert admin.resubmissions(lead_id) == []


def test_a_day_later_it_is_a_duplicate(service_database: TestDatabase, chatbot: Client, admin: Client) -> None:
    lead = somebody()
    lead_id = chatbot.create(lead).id
    age(service_database, lead_id, "24 hours")
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        chatbot.create(lead)
    assert len(admin.resubmissions(lead_id)) == 1


def test_another_subject_is_refused_and_gets_no_id(connect: Connect, chatbot: Client, admin: Client) -> None:
    lead = somebody()
    lead_id = chatbot.create(lead).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE") as refusal:
        connect("chatbot", subject="another").create(lead)
    assert refusal.metadata == {"fields": "phone,nid"}
    assert lead_id not in refusal.text
    assert len(admin.resubmissions(lead_id)) == 1


@pytest.mark.parametrize("changed", ["name", "address", "email", "notes", "interested_policy", "conversation_id"])
def test_other_content_is_a_duplicate(changed: str, chatbot: Client) -> None:
    lead = somebody()
    chatbot.create(lead)
    setattr(lead, changed, "changed@example.com")
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        chatbot.create(lead)


def test_the_same_content_written_in_another_way_is_a_repeat(chatbot: Client) -> None:
    lead = somebody(phone="+8801711999001", nid="7001000000001")
    lead_id = chatbot.create(lead).id
    lead.phone, lead.nid, lead.name = "+880 1711-999001", "7001 0000 00001", f" {lead.name} "
    again = chatbot.create(lead)
    assert (again.id, again.is_repeat) == (lead_id, True)


def test_with_a_request_id_of_its_own_it_is_a_duplicate(chatbot: Client) -> None:
    lead = somebody()
    chatbot.create(lead)
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        chatbot.create(lead, request_id="its-own")


def test_a_repeated_request_id_is_a_repeat_however_late(service_database: TestDatabase, chatbot: Client) -> None:
    lead = somebody()
    first = chatbot.create(lead, request_id="kept")
    age(service_database, first.id, "90 days")
    again = chatbot.create(lead, request_id="kept")
    assert (first.is_repeat, again.is_repeat, again.id) == (False, True, first.id)


def test_a_corrected_lead_answers_the_submission_that_made_it(chatbot: Client, admin: Client) -> None:
    lead = somebody()
    lead_id = chatbot.create(lead).id
    admin.correct(lead_id, notes="call after six")
    again = chatbot.create(lead)
    assert (again.id, again.is_repeat, again.lead.version) == (lead_id, True, 2)


def test_a_lead_whose_phone_was_corrected_is_another_persons_answer(chatbot: Client, admin: Client) -> None:
    lead = somebody()
    admin.correct(chatbot.create(lead).id, phone="+8801711999002")
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_NID"):
        chatbot.create(lead)


def test_an_erased_lead_is_not_repeated(chatbot: Client, admin: Client) -> None:
    lead = somebody()
    erased = chatbot.create(lead).id
    admin.call("EraseLead", pb.EraseLeadRequest(id=erased, reason="asked"))
    fresh = chatbot.create(lead)
    assert (fresh.id != erased, fresh.is_repeat) == (True, False)


def test_the_json_endpoint_answers_201_to_a_repeat(service: RunningService) -> None:
    def post() -> httpx.Response:
        return httpx.post(f"{service.http_url}/api/leads", json=body, headers=headers, timeout=10)

    body = MessageToDict(somebody(), preserving_proto_field_name=True)
    headers = {"authorization": f"Bearer {service.token('chatbot')}"}
    first, again = post(), post()
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["location"] == first.headers["location"]
    assert (first.json()["is_repeat"], again.json()["is_repeat"]) == (False, True)
    assert again.json()["id"] == first.json()["id"]


def test_it_is_a_repeat_after_a_restart_and_none_where_the_operator_wants_none(
    start_service: Callable[..., RunningService], database: TestDatabase
) -> None:
    lead = somebody()

    def created(service: RunningService) -> pb.CreateLeadResponse:
        with service.channel() as channel:
            return Client(service, channel, "chatbot").create(lead)

    first = start_service(database_url=database.serve_url)
    lead_id = created(first).id
    first.stop()
    again = created(start_service(database_url=database.serve_url))
    assert (again.id, again.is_repeat) == (lead_id, True)
    strict = start_service(
        "strict",
        database_url=database.serve_url,
        settings={"LEADKEEP_REPEAT_WINDOW": "0", "LEADKEEP_KEYRING": str(first.data_dir / "keyring.json")},
    )
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        created(strict)
