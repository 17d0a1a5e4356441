"""The embedded PostgreSQL dies while the service runs: it is started again, no lead is lost, operators are told why."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import httpx
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.storage.postgres.embedded import EmbeddedPostgres
from tests.conftest import StartService
from tests.harness.processes import (
    children_running,
    embedded_home,
    eventually,
    family,
    postgres_pid,
    processes_in,
    remove_embedded_database,
)
from tests.harness.running_service import RunningService

NOT_RUNNING = "PostgreSQL of the running service (process {pid}) is not running, it is being restarted"


@pytest.fixture
def service(start_service: StartService) -> RunningService:
    return start_service()


def cluster(service: RunningService) -> Path:
    (data,) = (embedded_home(service.data_dir) / "postgres").glob("*/data")
    return data


def kill_postgres(service: RunningService) -> int:
    """kill -9 of the postmaster; its process id."""
    pid = postgres_pid(service.data_dir)
    os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def unable_to_start(service: RunningService) -> Iterator[None]:
    """PostgreSQL ends at each start, as after an operator's mistake in its configuration."""
    written = cluster(service) / "postgresql.auto.conf"
    before = written.read_bytes()
    written.write_bytes(before + b"no_such_setting = 1\n")
    try:
        yield
    finally:
        written.write_bytes(before)


def stored_ids(service: RunningService) -> set[str]:
    url = EmbeddedPostgres.running_url(service.data_dir, user="postgres", database="leadkeep")
    if url is None:
        return set()
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT id::text FROM lead")}


def restarts(service: RunningService) -> list[tuple[datetime, float]]:
    """When the log says that PostgreSQL ended and is started again, and after which pause."""
    lines = (json.loads(line) for line in service.log().splitlines() if line.startswith("{"))
    told = [line for line in lines if line["event"] == "PostgreSQL ended and is started again"]
    assert all(line["level"] == "error" for line in told)
    return [(datetime.fromisoformat(line["timestamp"]), line["pause_seconds"]) for line in told]


def test_a_killed_postgres_is_started_again_and_takes_leads(service: RunningService) -> None:
    killed = kill_postgres(service)
    assert service.create(timeout=10).id
    assert eventually(lambda: len(restarts(service)) > 0, within=30)
    assert eventually(lambda: service.create(timeout=10).state == pb.SAVE_STATE_SAVED, within=60)
    assert postgres_pid(service.data_dir) != killed
    assert len(restarts(service)) == 1
    assert eventually(lambda: service.readiness["reasons"] == [], within=30)


def test_leads_wait_in_the_spool_meanwhile_and_drain_by_themselves(service: RunningService) -> None:
    with unable_to_start(service):
        kill_postgres(service)
        # For some milliseconds its orphans still commit.
        assert eventually(lambda: len(restarts(service)) > 0, within=30)
        acknowledged = [service.create(timeout=10) for _ in range(3)]
        assert {answer.state for answer in acknowledged} == {pb.SAVE_STATE_DELAYED}
        assert eventually(lambda: service.readiness["reasons"] == ["database_away", "postgres_restarting"], within=30)
    assert eventually(lambda: {answer.id for answer in acknowledged} <= stored_ids(service), within=60)
    assert eventually(lambda: service.readiness["reasons"] == [], within=60)


def test_a_postgres_that_keeps_ending_is_started_with_growing_pauses(service: RunningService) -> None:
    with unable_to_start(service):
        kill_postgres(service)
        assert eventually(lambda: len(restarts(service)) >= 4, within=60)
        noted = restarts(service)
        pauses = [pause for _, pause in noted]
        assert pauses == sorted({*pauses})
        for (began, pause), (later, _) in itertools.pairwise(noted):
            assert (later - began).total_seconds() >= pause
        assert httpx.get(f"{service.http_url}/healthz").status_code == 200
        assert "no_such_setting" in service.log()


@pytest.mark.parametrize("command", [("keys", "verify"), ("files", "verify"), ("erase", "--list")])
def test_a_command_says_that_postgres_does_not_run_and_is_restarted(
    down: RunningService, command: tuple[str, ...]
) -> None:
    refused = down.leadkeep(*command)
    assert refused.returncode == 1
    _says_what_is_so(down, refused.stderr)


@pytest.mark.parametrize("command", [("audit", "list"), ("conflicts", "list")])
def test_a_command_passes_on_that_the_service_has_no_storage(down: RunningService, command: tuple[str, ...]) -> None:
    refused = down.leadkeep(*command)
    assert refused.returncode == 1
    assert "the storage is not available now" in refused.stderr


def test_backup_says_it_too(down: RunningService) -> None:
    refused = down.leadkeep("backup", str(down.data_dir.with_name("backup")))
    assert refused.returncode == 1
    _says_what_is_so(down, refused.stderr)


def test_doctor_has_it_as_the_finding_of_the_database(down: RunningService) -> None:
    told = down.leadkeep("doctor", "--json")
    assert told.returncode == 3
    (finding,) = (check for check in json.loads(told.stdout)["checks"] if check["check"] == "database")
    assert not finding["ok"]
    _says_what_is_so(down, finding["detail"])


def test_a_second_serve_names_the_owner_of_the_folder(down: RunningService) -> None:
    refused = down.leadkeep("serve")
    assert refused.returncode == 1
    assert f"is in use by another Leadkeep (process {down.pid})" in refused.stderr


def _says_what_is_so(service: RunningService, text: str) -> None:
    assert NOT_RUNNING.format(pid=service.pid) in text
    assert "new leads wait in its spool" in text
    named = re.search(r"see (/\S+)", text)
    assert named is not None
    assert "no_such_setting" in Path(named[1]).read_text()


@pytest.fixture(scope="module")
def down(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A running service whose PostgreSQL does not start again."""
    service = RunningService(tmp_path_factory.mktemp("down") / "leadkeep").start()
    try:
        with unable_to_start(service):
            kill_postgres(service)
            assert eventually(lambda: len(restarts(service)) >= 2, within=60)
            yield service
    finally:
        service.stop()
        remove_embedded_database(service.data_dir)


def test_a_stop_while_postgres_is_down_waits_for_nothing(start_service: StartService) -> None:
    service = start_service(settings={"LEADKEEP_SHUTDOWN_GRACE": "60"})
    with unable_to_start(service):
        kill_postgres(service)
        service.create(timeout=10)
        assert eventually(lambda: len(restarts(service)) >= 2, within=60)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 20, "it waited for PostgreSQL: for half of the grace"


def test_a_stop_in_the_middle_of_a_restart_leaves_no_server(service: RunningService) -> None:
    kill_postgres(service)
    assert eventually(lambda: bool(children_running(service.pid, " -D ")), within=30)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 20
    assert not processes_in(embedded_home(service.data_dir))


def test_a_service_that_is_killed_takes_its_restarted_postgres_with_it(service: RunningService) -> None:
    killed = kill_postgres(service)
    # For some milliseconds its orphans still commit.
    assert eventually(lambda: len(restarts(service)) > 0, within=30)
    assert eventually(lambda: service.create(timeout=10).state == pb.SAVE_STATE_SAVED, within=60)
    assert postgres_pid(service.data_dir) != killed
    service.kill()
    assert eventually(lambda: not processes_in(embedded_home(service.data_dir)), within=30)


def test_postgres_recovers_a_killed_backend_by_itself(service: RunningService) -> None:
    postmaster = postgres_pid(service.data_dir)
    url = EmbeddedPostgres.running_url(service.data_dir, user="postgres", database="leadkeep")
    assert url is not None
    with psycopg.connect(url) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
    assert eventually(lambda: service.create(timeout=10).state == pb.SAVE_STATE_SAVED, within=60)
    assert postgres_pid(service.data_dir) == postmaster
    assert postmaster in family(service.pid)
