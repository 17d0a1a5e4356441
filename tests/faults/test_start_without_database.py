"""The service starts without its database, takes leads if it knows whose they are, and becomes whole by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime

import grpc
import httpx
import psycopg
import pytest
from grpc_health.v1 import health_pb2
from leadkeep.v1 import lead_service_pb2 as pb

from service.keys.keyring import create_keyring
from tests.conftest import StartService
from tests.harness.answers import fails, health_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService


@pytest.fixture
def database(server: TestServer) -> Iterator[TestDatabase]:
    """A database that is there when the test begins, and whose server runs again after it."""
    yield server.fresh_database()
    if not server.postgres.running:
        server.postgres.start()


def spooled(service: RunningService) -> int:
    waiting: int = json.loads(service.leadkeep("spool", "status", "--json").stdout)["waiting"]
    return waiting


def stored_ids(database: TestDatabase) -> set[str]:
    with psycopg.connect(database.admin_url) as connection:
        return {row[0] for row in connection.execute("SELECT id::text FROM lead")}


def test_a_service_that_knows_its_database_takes_leads_without_it_and_becomes_whole_by_itself(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    service = start_service(database_url=database.serve_url)
    service.stop()
    server.postgres.stop()
    service.start()
    delayed = service.create(timeout=20)
    assert delayed.state == pb.SAVE_STATE_DELAYED
    assert service.readiness["degraded"]
    server.postgres.start()
    assert eventually(lambda: delayed.id in stored_ids(database), within=60)
    assert eventually(lambda: service.is_well, within=60)
    assert eventually(lambda: service.create(timeout=20).state == pb.SAVE_STATE_SAVED, within=60)


def test_spooled_leads_outlive_kills_of_the_service(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    service = start_service(database_url=database.serve_url)
    server.postgres.stop()
    acknowledged = set()
    for _ in range(3):
        acknowledged.add(service.create(timeout=20).id)
        service.kill()
        service.start()
    server.postgres.start()
    assert eventually(lambda: acknowledged <= stored_ids(database), within=60)


def test_a_service_that_never_saw_its_database_refuses_leads_until_it_does(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    server.postgres.stop()
    service = start_service(database_url=database.serve_url)
    assert fails(lambda: service.create(timeout=10)).reason == "STORAGE_UNAVAILABLE"
    with service.channel() as channel:
        assert health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert httpx.get(f"{service.http_url}/readyz").status_code == 503
    assert spooled(service) == 0
    server.postgres.start()
    assert eventually(lambda: service.is_well, within=60)
    assert eventually(lambda: service.create(timeout=20).state == pb.SAVE_STATE_SAVED, within=60)


def test_a_database_of_another_keyring_is_not_written_to_and_nothing_is_thrown_away(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    service = start_service("ours", database_url=database.serve_url)
    service.stop()
    stranger = start_service("stranger", database_url=server.fresh_database().serve_url)
    other_url = stranger.environment["LEADKEEP_DATABASE_URL"]
    stranger.stop()
    server.postgres.stop()
    service.environment["LEADKEEP_DATABASE_URL"] = other_url
    service.start()
    delayed = service.create(timeout=20)
    server.postgres.start()
    assert eventually(lambda: service.readiness["reasons"] == ["database_refused"], within=60)
    assert service.create(timeout=20).state == pb.SAVE_STATE_DELAYED
    assert spooled(service) == 2
    with psycopg.connect(other_url) as connection:
        assert connection.execute("SELECT count(*) FROM lead").fetchone() == (0,)
    # Put right, it drains.
    service.stop()
    service.environment["LEADKEEP_DATABASE_URL"] = database.serve_url
    service.start()
    assert eventually(lambda: delayed.id in stored_ids(database), within=60)


def test_a_spool_of_another_keyring_stops_the_start(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    service = start_service(database_url=database.serve_url)
    server.postgres.stop()
    service.create(timeout=20)
    service.stop()
    keyring = service.data_dir / "keyring.json"
    keyring.rename(service.data_dir / "kept.json")
    create_keyring(keyring, now=datetime.now(UTC))
    refused = service.leadkeep("serve")
    assert refused.returncode == 1
    assert "belongs to another keyring" in refused.stderr


def test_another_normaliser_stops_a_start_without_the_database(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    service = start_service(database_url=database.serve_url)
    service.stop()
    server.postgres.stop()
    refused = service.leadkeep("serve", env={"LEADKEEP_NID_RULE": "BD"})
    assert refused.returncode == 1
    assert "normalised" in refused.stderr


def test_two_services_cannot_share_a_spool(database: TestDatabase, start_service: StartService) -> None:
    first = start_service("first", database_url=database.serve_url)
    shutil.copy(first.data_dir / "keyring.json", first.data_dir.with_name("keyring.json"))
    second = RunningService(
        first.data_dir.with_name("second"),
        database_url=database.serve_url,
        settings={
            "LEADKEEP_SPOOL_DIR": str(first.data_dir / "spool"),
            "LEADKEEP_KEYRING": str(first.data_dir / "keyring.json"),
        },
    )
    second.data_dir.mkdir(mode=0o700)
    refused = second.leadkeep("serve")
    assert refused.returncode == 1
    assert "LEADKEEP_SPOOL_DIR" in refused.stderr


def replicas(database: TestDatabase, start: StartService) -> tuple[RunningService, RunningService]:
    first = start("first", database_url=database.serve_url)
    keyring = {"LEADKEEP_KEYRING": str(first.data_dir / "keyring.json")}
    return first, start("second", database_url=database.serve_url, settings=keyring)


def test_a_request_that_one_replica_spooled_and_another_saved_is_one_lead_under_both_ids(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    first, second = replicas(database, start_service)
    lead = somebody()
    server.postgres.stop()
    delayed = first.create(lead, request_id="once", timeout=20)
    first.kill()
    server.postgres.start()
    assert eventually(lambda: second.is_well, within=60)
    assert eventually(lambda: second.create(timeout=20).state == pb.SAVE_STATE_SAVED, within=60)
    saved = second.create(lead, request_id="once", timeout=20)
    first.start()
    assert eventually(lambda: spooled(first) == 0, within=60)
    assert first.get(delayed.id, pb.LEAD_VIEW_UNSPECIFIED, "chatbot").id == saved.id
    assert saved.id in stored_ids(database)
    assert delayed.id not in stored_ids(database)


def test_a_spooled_lead_that_another_replica_has_saved_meanwhile_waits_for_a_person(
    server: TestServer, database: TestDatabase, start_service: StartService
) -> None:
    first, second = replicas(database, start_service)
    late = somebody()
    server.postgres.stop()
    delayed = first.create(late, request_id="late", timeout=20)
    first.kill()
    server.postgres.start()
    assert eventually(lambda: second.is_well, within=60)
    assert eventually(lambda: second.create(timeout=20).state == pb.SAVE_STATE_SAVED, within=60)
    saved = second.create(somebody(phone=late.phone), timeout=20)
    first.start()
    assert eventually(lambda: spooled(first) == 0, within=60)
    (conflict,) = json.loads(first.leadkeep("conflicts", "list", "--json").stdout)
    assert (conflict["id"], conflict["leads"][0]["id"]) == (delayed.id, saved.id)
    with first.channel() as channel:
        stub, metadata = first.stub(channel), first.metadata("admin")
        failure = fails(lambda: stub.GetLead(pb.GetLeadRequest(id=delayed.id), timeout=5, metadata=metadata))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEAD_IN_CONFLICT")
        found = stub.ListConflicts(pb.ListConflictsRequest(), timeout=5, metadata=metadata).conflicts
        assert (found[0].submission.nid, found[0].submission.address) == (late.nid, late.address)
    again = first.create(late, request_id="late", timeout=20)
    assert (again.id, again.state) == (delayed.id, pb.SAVE_STATE_DELAYED)
