"""PostgreSQL goes away, freezes or cuts connections under a running service."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import httpx
import psycopg
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from leadkeep.v1 import lead_service_pb2 as pb

from service.storage.database.failures import LONGEST_RETRY
from tests.conftest import StartService
from tests.harness.answers import fails, health_of
from tests.harness.faults import locked_lead
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually, frozen
from tests.harness.running_service import RunningService

NOTICED_WITHIN = 20
"""Seconds: readiness asks every second and waits a second for the answer, but a test's machine may be busy."""

WELL_WITHIN = 60
"""Seconds: a drain looks for the database every second, but a test's machine may be busy."""


@pytest.fixture(scope="module")
def service_database(server: TestServer) -> TestDatabase:
    return server.fresh_database()


@pytest.fixture
def channel(service: RunningService) -> Iterator[grpc.Channel]:
    with service.channel() as channel:
        assert eventually(lambda: is_well(service), within=WELL_WITHIN)
        yield channel


@pytest.fixture
def outage(server: TestServer, channel: grpc.Channel) -> Iterator[None]:
    """PostgreSQL is stopped; it is back after the test."""
    server.postgres.stop()
    yield
    if not server.postgres.running:
        server.postgres.start()


def create(
    service: RunningService, channel: grpc.Channel, *, lead: pb.Lead | None = None, request_id: str = "", timeout: float
) -> pb.CreateLeadResponse:
    request = pb.CreateLeadRequest(lead=lead or somebody(), request_id=request_id)
    response: pb.CreateLeadResponse = service.stub(channel).CreateLead(
        request, timeout=timeout, metadata=service.metadata("admin")
    )
    return response


def is_well(service: RunningService) -> bool:
    """Ready, with nothing in the spool."""
    return service.is_well and service.metric("leadkeep_spool_entries") == 0


def is_degraded(service: RunningService) -> bool:
    state = httpx.get(f"{service.http_url}/readyz")
    return state.status_code == 200 and bool(state.json()["degraded"])


def rows(database: TestDatabase, request_id: str) -> list[str]:
    with psycopg.connect(database.admin_url) as connection:
        found = connection.execute("SELECT id::text FROM lead WHERE request_id = %s", [request_id]).fetchall()
        return [row[0] for row in found]


def test_without_a_database_a_create_is_delayed_in_time_and_its_customer_is_told(
    service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    delayed = create(service, channel, timeout=20)
    assert delayed.state == pb.SAVE_STATE_DELAYED
    assert "longer than usual" in delayed.confirmation.text
    assert delayed.confirmation.reference in delayed.confirmation.text


def test_after_a_while_without_a_database_a_create_is_delayed_at_once(
    service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    create(service, channel, timeout=4)
    began = time.monotonic()
    assert create(service, channel, timeout=20).state == pb.SAVE_STATE_DELAYED
    assert time.monotonic() - began < 10


def test_a_delayed_lead_is_not_missing_and_is_there_when_the_database_is_back(
    server: TestServer, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    sent = somebody(conversation_id="delayed-conversation")
    delayed = create(service, channel, lead=sent, timeout=20)
    stub, metadata = service.stub(channel), service.metadata("admin")
    by_id = pb.GetLeadRequest(id=delayed.id)
    by_conversation = pb.GetLeadByConversationRequest(conversation_id="delayed-conversation")
    for read, request in ((stub.GetLead, by_id), (stub.GetLeadByConversation, by_conversation)):
        assert fails(partial(read, request, timeout=20, metadata=metadata)).reason == "STORAGE_UNAVAILABLE"
    server.postgres.start()
    assert eventually(lambda: is_well(service), within=WELL_WITHIN)
    shown = stub.GetLead(by_id, timeout=5, metadata=metadata).lead
    assert (shown.nid, shown.created_at) == (sent.nid, delayed.lead.created_at)
    assert stub.GetLeadByConversation(by_conversation, timeout=5, metadata=metadata).lead.id == delayed.id


def test_a_repeat_of_a_delayed_request_answers_the_same_lead_then_and_later(
    server: TestServer, service_database: TestDatabase, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    lead = somebody()
    first = create(service, channel, lead=lead, request_id="delayed", timeout=20)
    again = create(service, channel, lead=lead, request_id="delayed", timeout=20)
    assert (again.id, again.state, again.lead) == (first.id, pb.SAVE_STATE_DELAYED, first.lead)
    server.postgres.start()
    assert eventually(lambda: is_well(service), within=WELL_WITHIN)
    later = create(service, channel, lead=lead, request_id="delayed", timeout=20)
    assert (later.id, later.state) == (first.id, pb.SAVE_STATE_SAVED)
    assert rows(service_database, "delayed") == [first.id]


def test_a_duplicate_of_a_delayed_lead_is_refused_and_kept(
    server: TestServer, service_database: TestDatabase, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    lead = somebody()
    first = create(service, channel, lead=lead, request_id="first", timeout=20)
    duplicate = fails(lambda: create(service, channel, lead=somebody(phone=lead.phone), timeout=20))
    assert (duplicate.reason, duplicate.metadata["lead_id"]) == ("DUPLICATE_PHONE", first.id)
    reused = fails(lambda: create(service, channel, request_id="first", timeout=20))
    assert reused.reason == "REQUEST_ID_REUSED"
    server.postgres.start()
    assert eventually(lambda: is_well(service), within=WELL_WITHIN)
    with psycopg.connect(service_database.admin_url) as connection:
        kept = connection.execute("SELECT count(*) FROM resubmission WHERE lead_id = %s", [first.id]).fetchone()
        assert connection.execute("SELECT count(*) FROM lead_conflict").fetchone() == (0,)
    assert kept == (1,)


def test_the_json_endpoint_answers_202_when_delayed(
    service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    lead = {field.name: value for field, value in somebody().ListFields()}
    answer = httpx.post(
        f"{service.http_url}/api/leads/",
        json=lead,
        headers={"authorization": f"Bearer {service.token()}", "request-timeout": "20"},
        timeout=30,
    )
    assert answer.status_code == 202
    assert answer.json()["state"] == "SAVE_STATE_DELAYED"


LEAD_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("GetLead", pb.GetLeadRequest(id=LEAD_ID)),
        ("GetLeadByConversation", pb.GetLeadByConversationRequest(conversation_id="nobody")),
        ("ListLeads", pb.ListLeadsRequest()),
        ("UpdateStatus", pb.UpdateStatusRequest(id=LEAD_ID, status=pb.LEAD_STATUS_CONTACTED)),
        ("AssignLead", pb.AssignLeadRequest(id=LEAD_ID, assignee="rahima")),
        ("EraseLead", pb.EraseLeadRequest(id=LEAD_ID, reason="asked")),
        ("ListConflicts", pb.ListConflictsRequest()),
    ],
)
def test_without_a_database_a_read_or_a_change_fails_at_once_and_says_when_to_try_again(
    rpc: str, request_: Message, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    assert eventually(lambda: is_degraded(service), within=NOTICED_WITHIN)
    call = getattr(service.stub(channel), rpc)
    began = time.monotonic()
    refused = [fails(lambda: call(request_, timeout=30, metadata=service.metadata("admin"))) for _ in range(3)]
    assert time.monotonic() - began < 10, "one that waits takes its 30 s"
    assert {(each.code, each.reason) for each in refused} == {(grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")}
    assert all(each.retry_after for each in refused)
    assert {each.trailing.get("grpc-retry-pushback-ms") for each in refused} == {"-1"}


def test_without_a_database_http_refuses_reads_and_changes_at_once_and_says_when_to_try_again(
    service: RunningService, outage: None
) -> None:
    assert eventually(lambda: is_degraded(service), within=NOTICED_WITHIN)
    headers = {"authorization": f"Bearer {service.token()}", "request-timeout": "30"}
    began = time.monotonic()
    with httpx.Client(base_url=f"{service.http_url}/api", headers=headers, timeout=40) as http:
        answers = [
            http.get("/leads"),
            http.get(f"/leads/{LEAD_ID}"),
            http.get("/accesses"),
            http.post(f"/leads/{LEAD_ID}/status", json={"status": "contacted"}),
            http.delete(f"/leads/{LEAD_ID}"),
        ]
    assert time.monotonic() - began < 10, "one that waits takes its 30 s"
    assert {(each.status_code, each.json()["reason"]) for each in answers} == {(503, "STORAGE_UNAVAILABLE")}
    assert all(int(each.headers["retry-after"]) > 0 for each in answers)


def test_without_a_database_fields_are_validated(service: RunningService, channel: grpc.Channel, outage: None) -> None:
    assert eventually(lambda: is_degraded(service), within=NOTICED_WITHIN)
    request = pb.ValidateLeadRequest(lead=pb.Lead(phone="12"))
    answer = service.stub(channel).ValidateLead(request, timeout=5, metadata=service.metadata("chatbot"))
    assert [each.field for each in answer.violations] == ["lead.phone"]


def test_with_the_database_frozen_a_create_is_delayed_in_time(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None
    with frozen(server.postgres.pid):
        delayed = create(service, channel, timeout=8)
    assert delayed.state == pb.SAVE_STATE_DELAYED
    assert delayed.lead.masked, "an access cannot have been recorded"


def test_who_sets_no_deadline_waits_for_the_database_as_long_as_the_operator_says(
    server: TestServer, start_service: StartService
) -> None:
    database = server.fresh_database()
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_DEFAULT_DEADLINE": "1"})
    with service.channel() as channel:
        lead_id = create(service, channel, timeout=20).id
        move = partial(service.stub(channel).UpdateStatus, metadata=service.metadata("admin"))
        with locked_lead(database.admin_url, lead_id):
            began = time.monotonic()
            failure = fails(lambda: move(pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED)))
            took = time.monotonic() - began
    assert failure.reason == "STORAGE_UNAVAILABLE"
    assert took < LONGEST_RETRY - 2, "it waited as long as storage is retried without a deadline"


def test_with_the_database_frozen_a_read_fails_at_once(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    read = service.stub(channel).GetLead
    assert server.postgres.pid is not None
    with frozen(server.postgres.pid):
        assert eventually(lambda: is_degraded(service), within=NOTICED_WITHIN)
        began = time.monotonic()
        refused = fails(lambda: read(pb.GetLeadRequest(id=LEAD_ID), timeout=30, metadata=service.metadata("admin")))
        assert refused.reason == "STORAGE_UNAVAILABLE"
        assert time.monotonic() - began < LONGEST_RETRY - 2, "the database was asked"


def test_a_read_succeeds_soon_after_the_database_is_back(
    server: TestServer, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    assert eventually(lambda: is_degraded(service), within=NOTICED_WITHIN)
    server.postgres.start()

    def read() -> bool:
        with contextlib.suppress(grpc.RpcError):
            service.stub(channel).ListLeads(pb.ListLeadsRequest(), timeout=5, metadata=service.metadata("admin"))
            return True
        return False

    assert eventually(read, within=30)


def test_readiness_follows_the_database_and_health_stays_serving(
    server: TestServer, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    assert eventually(lambda: is_degraded(service), within=NOTICED_WITHIN)
    assert health_of(channel) == health_pb2.HealthCheckResponse.SERVING
    server.postgres.start()
    assert eventually(lambda: is_well(service), within=WELL_WITHIN)
    assert health_of(channel) == health_pb2.HealthCheckResponse.SERVING


def test_a_create_outlasts_a_restart_of_the_database(
    server: TestServer, service_database: TestDatabase, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    with ThreadPoolExecutor(1) as threads:
        created = threads.submit(lambda: create(service, channel, request_id="restart", timeout=8))
        time.sleep(0.3)
        server.postgres.start()
        answered = created.result().id
    assert eventually(lambda: rows(service_database, "restart") == [answered], within=30)


def test_after_a_restart_of_the_database_every_pooled_connection_works_again(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: create(service, channel, timeout=10), range(32)))
        server.postgres.stop()
        server.postgres.start()
        list(threads.map(lambda _: create(service, channel, timeout=10), range(32)))


GATE = """
    CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
    BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON lead DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait_at_gate()
"""
"""While somebody holds the lock exclusively, every commit of a new lead stands still."""


@pytest.fixture
def gate(service_database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A closed gate before the commit."""
    with psycopg.connect(service_database.admin_url, autocommit=True) as connection:
        connection.execute(GATE)
        connection.execute("SELECT pg_advisory_lock(1)")
        yield connection
        connection.execute("SELECT pg_advisory_unlock_all()")
        connection.execute("DROP TRIGGER gate ON lead; DROP FUNCTION wait_at_gate")


def at_the_gate(connection: psycopg.Connection) -> list[int]:
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND application_name = 'leadkeep'"
    return [row[0] for row in connection.execute(waiting)]


def test_a_connection_killed_in_mid_transaction_is_retried_unseen(
    service: RunningService, channel: grpc.Channel, service_database: TestDatabase, gate: psycopg.Connection
) -> None:
    with ThreadPoolExecutor(1) as threads:
        created = threads.submit(lambda: create(service, channel, request_id="killed", timeout=20))
        assert eventually(lambda: bool(at_the_gate(gate)), within=30)
        killed = at_the_gate(gate)
        for backend in killed:
            gate.execute("SELECT pg_terminate_backend(%s)", [backend])
        assert eventually(lambda: not {*at_the_gate(gate)} <= {*killed}, within=30), "it was not tried again"
        gate.execute("SELECT pg_advisory_unlock(1)")
        answered = created.result().id
    # On a busy machine its attempts take so long that it goes through the spool.
    assert eventually(lambda: rows(service_database, "killed") == [answered], within=WELL_WITHIN)


def test_a_retry_is_told_in_the_trailing_metadata(
    service: RunningService, channel: grpc.Channel, gate: psycopg.Connection
) -> None:
    call = service.stub(channel).CreateLead.future(
        pb.CreateLeadRequest(lead=somebody()), timeout=10, metadata=service.metadata("chatbot")
    )
    assert eventually(lambda: bool(at_the_gate(gate)), within=30)
    for backend in at_the_gate(gate):
        gate.execute("SELECT pg_terminate_backend(%s)", [backend])
    gate.execute("SELECT pg_advisory_unlock(1)")
    call.result()
    assert int(dict(call.trailing_metadata())["leadkeep-retries"]) >= 1


def test_a_lead_that_met_a_frozen_database_is_there_once_however_often_it_is_sent(
    server: TestServer, service_database: TestDatabase, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None
    lead = somebody()
    with frozen(server.postgres.pid):
        delayed = {create(service, channel, lead=lead, request_id="frozen", timeout=20).id for _ in range(3)}
    again = create(service, channel, lead=lead, request_id="frozen", timeout=20)
    assert delayed == {again.id}
    assert eventually(lambda: rows(service_database, "frozen") == [again.id], within=60)


def test_a_frozen_database_makes_the_service_degraded_until_it_goes_on(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None
    with frozen(server.postgres.pid):
        assert eventually(lambda: is_degraded(service), within=NOTICED_WITHIN)
    assert eventually(lambda: is_well(service), within=WELL_WITHIN)


def test_readers_that_fill_the_pool_of_a_frozen_database_hold_up_nobody_after_it(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None
    lead_id = create(service, channel, timeout=10).id

    def refused(_: int) -> str:
        request = pb.GetLeadRequest(id=lead_id)
        read = service.stub(channel).GetLead
        return fails(lambda: read(request, timeout=2, metadata=service.metadata("admin"))).reason

    with ThreadPoolExecutor(40) as threads, frozen(server.postgres.pid):
        # Without a reason where its own deadline ended a call, before the service's answer on a busy machine.
        assert set(threads.map(refused, range(40))) <= {"DEADLINE_TOO_SHORT", "STORAGE_UNAVAILABLE", ""}
    assert create(service, channel, timeout=20).id


def test_a_crash_of_the_database_is_survived(
    server: TestServer, service_database: TestDatabase, service: RunningService, channel: grpc.Channel
) -> None:
    with psycopg.connect(service_database.admin_url, autocommit=True) as connection:
        # One backend that dies of SIGKILL makes PostgreSQL end all others and recover.
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGKILL)
    created = create(service, channel, request_id="crash", timeout=10)

    def is_stored() -> bool:
        with contextlib.suppress(psycopg.OperationalError):  # PostgreSQL may not have recovered yet
            return rows(service_database, "crash") == [created.id]
        return False

    assert eventually(is_stored, within=30)
