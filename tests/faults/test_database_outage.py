"""PostgreSQL goes away, freezes or cuts connections under a running service."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.failures import detail, reason_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer, folder_for_postgres
from tests.harness.processes import eventually, frozen
from tests.harness.running_service import RunningService

NOTICED_WITHIN = 6
"""Seconds until health says what is so: it asks every second and waits a second for the answer."""


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    """A PostgreSQL that no other module uses."""
    with folder_for_postgres() as folder:
        server = TestServer(folder / "data")
        yield server
        server.stop()


@pytest.fixture(scope="module")
def database(server: TestServer) -> TestDatabase:
    return server.fresh_database()


@pytest.fixture(scope="module")
def service(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = RunningService(tmp_path_factory.mktemp("service") / "leadkeep", database_url=database.serve_url)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def channel(service: RunningService) -> Iterator[grpc.Channel]:
    with service.channel() as channel:
        assert eventually(lambda: health(channel) == health_pb2.HealthCheckResponse.SERVING, within=10)
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


def health(channel: grpc.Channel) -> int:
    ask = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return int(ask(health_pb2.HealthCheckRequest(), timeout=5).status)


def is_ready(service: RunningService) -> bool:
    return httpx.get(f"{service.http_url}/readyz").status_code == 200


def rows(database: TestDatabase, request_id: str) -> list[str]:
    with psycopg.connect(database.admin_url) as connection:
        found = connection.execute("SELECT id::text FROM lead WHERE request_id = %s", [request_id]).fetchall()
        return [row[0] for row in found]


def test_without_a_database_a_create_is_unavailable_and_says_when_to_try_again(
    service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as refused:
        create(service, channel, timeout=2)
    assert time.monotonic() - began < 2
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(refused.value) == "STORAGE_UNAVAILABLE"
    retry = detail(refused.value, error_details_pb2.RetryInfo)
    assert retry is not None
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0


def test_without_a_database_a_read_is_unavailable_not_missing(
    service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    request = pb.GetLeadRequest(id="01890a5d-ac96-774b-bcce-b302099a8057")
    with pytest.raises(grpc.RpcError) as refused:
        service.stub(channel).GetLead(request, timeout=2, metadata=service.metadata("admin"))
    assert reason_of(refused.value) == "STORAGE_UNAVAILABLE"


def test_health_and_readiness_follow_the_database(
    server: TestServer, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    stub_says = health_pb2.HealthCheckResponse
    assert eventually(lambda: health(channel) == stub_says.NOT_SERVING, within=NOTICED_WITHIN)
    assert not is_ready(service)
    server.postgres.start()
    assert eventually(lambda: health(channel) == stub_says.SERVING, within=NOTICED_WITHIN)
    assert is_ready(service)


def test_a_create_outlasts_a_restart_of_the_database(
    server: TestServer, database: TestDatabase, service: RunningService, channel: grpc.Channel, outage: None
) -> None:
    with ThreadPoolExecutor(1) as threads:
        created = threads.submit(lambda: create(service, channel, request_id="restart", timeout=8))
        time.sleep(0.3)
        server.postgres.start()
        answered = created.result().id
    assert rows(database, "restart") == [answered]


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
def gate(database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A closed gate before the commit."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(GATE)
        connection.execute("SELECT pg_advisory_lock(1)")
        yield connection
        connection.execute("SELECT pg_advisory_unlock_all()")
        connection.execute("DROP TRIGGER gate ON lead; DROP FUNCTION wait_at_gate")


def at_the_gate(connection: psycopg.Connection) -> list[int]:
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND application_name = 'leadkeep'"
    return [row[0] for row in connection.execute(waiting)]


def test_a_connection_killed_in_mid_transaction_is_retried_unseen(
    service: RunningService, channel: grpc.Channel, database: TestDatabase, gate: psycopg.Connection
) -> None:
    with ThreadPoolExecutor(1) as threads:
        created = threads.submit(lambda: create(service, channel, request_id="killed", timeout=10))
        assert eventually(lambda: bool(at_the_gate(gate)), within=5)
        (backend,) = at_the_gate(gate)
        gate.execute("SELECT pg_terminate_backend(%s)", [backend])
        assert eventually(lambda: at_the_gate(gate) not in ([], [backend]), within=5), "it was not tried again"
        gate.execute("SELECT pg_advisory_unlock(1)")
        answered = created.result().id
    assert rows(database, "killed") == [answered]


def test_a_retry_is_told_in_the_trailing_metadata(
    service: RunningService, channel: grpc.Channel, gate: psycopg.Connection
) -> None:
    call = service.stub(channel).CreateLead.future(
        pb.CreateLeadRequest(lead=somebody()), timeout=10, metadata=service.metadata("chatbot")
    )
    assert eventually(lambda: bool(at_the_gate(gate)), within=5)
    (backend,) = at_the_gate(gate)
    gate.execute("SELECT pg_terminate_backend(%s)", [backend])
    gate.execute("SELECT pg_advisory_unlock(1)")
    call.result()
    assert int(dict(call.trailing_metadata())["leadkeep-retries"]) >= 1


def test_a_caller_of_a_frozen_database_hears_so_before_its_own_deadline(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None
    with frozen(server.postgres.pid), pytest.raises(grpc.RpcError) as refused:
        create(service, channel, timeout=1.5)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(refused.value) == "DEADLINE_TOO_SHORT", "the client's own deadline was first"


def test_a_lead_that_met_a_frozen_database_is_there_once_when_it_is_sent_again(
    server: TestServer, database: TestDatabase, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None
    lead = somebody()
    with frozen(server.postgres.pid):
        for _ in range(3):
            with pytest.raises(grpc.RpcError):
                create(service, channel, lead=lead, request_id="frozen", timeout=0.5)
    again = create(service, channel, lead=lead, request_id="frozen", timeout=10)
    assert rows(database, "frozen") == [again.id]


def test_a_frozen_database_makes_the_service_not_ready_until_it_goes_on(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None
    with frozen(server.postgres.pid):
        assert eventually(lambda: not is_ready(service), within=NOTICED_WITHIN)
    assert eventually(lambda: is_ready(service), within=NOTICED_WITHIN)


def test_a_full_pool_of_frozen_calls_recovers_by_itself(
    server: TestServer, service: RunningService, channel: grpc.Channel
) -> None:
    assert server.postgres.pid is not None

    def refused(_: int) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as failed:
            create(service, channel, timeout=1)
        code: grpc.StatusCode = failed.value.code()
        return code

    with ThreadPoolExecutor(40) as threads, frozen(server.postgres.pid):
        assert set(threads.map(refused, range(40))) <= {
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.UNAVAILABLE,
        }
    create(service, channel, timeout=10)


def test_a_crash_of_the_database_is_survived(
    server: TestServer, database: TestDatabase, service: RunningService, channel: grpc.Channel
) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        # One backend that dies of SIGKILL makes PostgreSQL end all others and recover.
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGKILL)
    created = create(service, channel, request_id="crash", timeout=10)
    assert rows(database, "crash") == [created.id]
