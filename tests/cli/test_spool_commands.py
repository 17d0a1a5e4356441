"""`leadkeep spool`, and what `doctor` says of it, with the service running and without."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService


@pytest.fixture
def database(server: TestServer) -> Iterator[TestDatabase]:
    yield server.fresh_database()
    if not server.postgres.running:
        server.postgres.start()


@pytest.fixture
def waiting(server: TestServer, database: TestDatabase, start_service: StartService) -> RunningService:
    """A running service without its database; three leads wait in its spool."""
    service = start_service(database_url=database.serve_url)
    server.postgres.stop()
    for _ in range(3):
        assert service.create(timeout=20).state == pb.SAVE_STATE_DELAYED
    return service


def status(service: RunningService) -> dict[str, object]:
    shown: dict[str, object] = json.loads(service.leadkeep("spool", "status", "--json").stdout)
    return shown


def entries(service: RunningService) -> list[dict[str, str]]:
    shown: list[dict[str, str]] = json.loads(service.leadkeep("spool", "list", "--json").stdout)
    return shown


def damage_one(service: RunningService) -> None:
    with sqlite3.connect(service.data_dir / "spool" / "spool.sqlite") as connection:
        connection.execute(
            "UPDATE entry SET payload = substr(payload, 1, 200) || iif(substr(payload, 201, 1) = 'x', 'y', 'x')"
            " || substr(payload, 202) WHERE seq = 2"
        )
    connection.close()


def test_status_and_list_tell_what_waits_and_no_value(waiting: RunningService) -> None:
    assert status(waiting)["waiting"] == 3
    assert [entry["state"] for entry in entries(waiting)] == ["waits"] * 3
    said = waiting.leadkeep("spool", "list").stdout + waiting.leadkeep("spool", "status").stdout
    assert "Person" not in said
    assert "+880" not in said


def test_an_empty_spool_is_told_as_such(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    assert "empty" in service.leadkeep("spool", "list").stdout
    assert status(service)["oldest"] is None


def test_drain_waits_for_the_running_service(server: TestServer, waiting: RunningService) -> None:
    server.postgres.start()
    done = waiting.leadkeep("spool", "drain")
    assert done.returncode == 0, done.stderr
    assert status(waiting)["waiting"] == 0


def test_drain_does_it_itself_when_no_service_runs(server: TestServer, waiting: RunningService) -> None:
    waiting.kill()
    server.postgres.start()
    done = waiting.leadkeep("spool", "drain")
    assert done.returncode == 0, done.stderr
    assert "The spool is empty" in done.stdout
    assert status(waiting)["waiting"] == 0


def test_what_is_damaged_is_set_aside_and_reported_and_the_rest_drains(
    server: TestServer, waiting: RunningService
) -> None:
    waiting.kill()
    damage_one(waiting)
    waiting.start()
    server.postgres.start()
    assert eventually(lambda: status(waiting)["waiting"] == 0, within=30)
    assert [(entry["state"], entry["why"]) for entry in entries(waiting)] == [("set aside", "cannot be opened")]
    diagnosed = waiting.leadkeep("doctor", "--json")
    assert diagnosed.returncode == 3
    (spool,) = [check for check in json.loads(diagnosed.stdout)["checks"] if check["check"] == "spool"]
    assert not spool["ok"]
    assert "degraded: 1 spooled leads were set aside" in spool["detail"]


def test_doctor_finds_leads_that_have_waited_too_long(waiting: RunningService) -> None:
    def checks() -> dict[str, dict[str, str]]:
        diagnosed = waiting.leadkeep("doctor", "--json", env={"LEADKEEP_SPOOL_ALARM_AGE": "1"})
        return {check["check"]: check for check in json.loads(diagnosed.stdout)["checks"]}

    # The leads of a fast machine are younger than a second, the smallest age that can be set, at the first look.
    assert eventually(lambda: "have waited in the spool" in checks()["spool"]["detail"], within=30)
    assert "degraded" in checks()["database"]["detail"]
