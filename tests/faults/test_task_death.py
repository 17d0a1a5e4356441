"""A background task of the real service dies: the service ends or goes on, and nobody hangs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.storage.spool.rows import peek
from tests.conftest import StartService
from tests.faults.faulty_service import VALUE
from tests.harness.faults import value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

StartFaulty = Callable[[str], RunningService]


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    """The file that begins the fault."""
    return tmp_path / "fault"


@pytest.fixture
def start_faulty(database: TestDatabase, start_service: StartService, fault: Path) -> StartFaulty:
    def start(faults: str) -> RunningService:
        # The module is found beside the service, which runs in a folder of its own.
        root = str(Path(__file__).parents[2])
        settings = {"FAULTS": faults, "FAULT_FILE": str(fault), "PYTHONPATH": root}
        return start_service(database_url=database.serve_url, settings=settings, module="tests.faults.faulty_service")

    return start


def outcome(call: Callable[[], Any]) -> str:
    """The state of a lead, or the status of a call that failed."""
    try:
        answer = call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name
    return pb.SaveState.Name(answer.state) if isinstance(answer, pb.CreateLeadResponse) else "OK"


def create(service: RunningService, channel: grpc.Channel) -> pb.CreateLeadResponse:
    answer: pb.CreateLeadResponse = service.stub(channel).CreateLead(
        pb.CreateLeadRequest(lead=somebody()), timeout=20, metadata=service.metadata("chatbot")
    )
    return answer


def ended(service: RunningService) -> int:
    assert service.process is not None
    return service.process.wait(timeout=60)


def stored(database: TestDatabase) -> set[str]:
    return set(str(value_of(database.admin_url, "SELECT string_agg(id::text, ',') FROM lead")).split(","))


def lines(service: RunningService, event: str) -> list[dict[str, Any]]:
    found = (json.loads(line) for line in service.log().splitlines() if line.startswith("{"))
    return [line for line in found if line["event"] == event]


def arrived(service: RunningService) -> float:
    """How many creates without the database wait or were answered."""
    return service.metric("leadkeep_calls_in_flight") + service.metric("leadkeep_delayed_total")


def ten_that_wait(service: RunningService, fault: Path, database: TestDatabase) -> list[str]:
    """What callers get who wait for the database when the fault begins; the last one calls just then."""
    with (
        service.channel() as channel,
        ThreadPoolExecutor(11) as threads,
        psycopg.connect(database.admin_url) as holder,
    ):
        create(service, channel)
        holder.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
        waiting = [threads.submit(outcome, lambda: create(service, channel)) for _ in range(10)]
        assert eventually(lambda: arrived(service) >= 10, within=30)
        fault.touch()
        began = time.monotonic()
        waiting.append(threads.submit(outcome, lambda: create(service, channel)))
        outcomes = [each.result() for each in waiting]
        assert time.monotonic() - began < 12, "a caller waited to its deadline"
        holder.rollback()
    return outcomes


def test_a_lead_writer_that_dies_ends_the_process_and_what_waits_is_spooled(
    start_faulty: StartFaulty, fault: Path, database: TestDatabase
) -> None:
    service = start_faulty("lead writer")
    outcomes = ten_that_wait(service, fault, database)
    assert ended(service) == 1
    assert outcomes == ["SAVE_STATE_DELAYED"] * 11
    # The drain goes on to the end: what it saved may still lie in the spool, too.
    assert len(stored(database) | {str(row.id) for row in peek(service.data_dir / "spool")[1]}) == 1 + 11
    (died,) = lines(service, "a vital task ended: the service stops")
    assert (died["task"], died["error"]) == ("lead writer", "KeyError")
    assert VALUE not in service.log()


def test_a_spool_writer_that_dies_ends_the_process_and_what_waits_is_spooled(
    start_faulty: StartFaulty, fault: Path, database: TestDatabase
) -> None:
    service = start_faulty("spool writer")
    with service.channel() as channel:
        create(service, channel)
        with psycopg.connect(database.admin_url) as holder:
            holder.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
            fault.touch()
            assert outcome(lambda: create(service, channel)) in {"SAVE_STATE_DELAYED", "UNAVAILABLE"}
            assert ended(service) == 1
            holder.rollback()
    (died,) = lines(service, "a vital task ended: the service stops")
    assert died["task"] == "spool writer"


def test_a_spool_that_fails_by_our_fault_refuses_and_hangs_nobody(
    start_faulty: StartFaulty, fault: Path, database: TestDatabase
) -> None:
    service = start_faulty("lead writer,spool")
    outcomes = ten_that_wait(service, fault, database)
    assert ended(service) == 1
    assert outcomes == ["UNAVAILABLE"] * 11


def test_an_access_writer_that_dies_ends_the_process_and_shows_nothing(start_faulty: StartFaulty, fault: Path) -> None:
    service = start_faulty("access writer")
    with service.channel() as channel:
        lead_id = create(service, channel).id
        fault.touch()
        began = time.monotonic()
        unmasked = pb.GetLeadRequest(id=lead_id)
        look = service.stub(channel).GetLead
        assert outcome(lambda: look(unmasked, timeout=20, metadata=service.metadata("admin"))) == "UNAVAILABLE"
        assert time.monotonic() - began < 12
    assert ended(service) == 1


def test_a_listener_that_accepts_nothing_ends_the_process(start_faulty: StartFaulty, fault: Path) -> None:
    service = start_faulty("gRPC listener")
    with service.channel() as channel:
        create(service, channel)
    fault.touch()
    assert ended(service) == 1
    (died,) = lines(service, "a vital task ended: the service stops")
    assert (died["task"], died["error"]) == ("gRPC listener", "ListenerEndedError")


@pytest.mark.parametrize("task", ["drain", "readiness"])
def test_a_task_that_fails_is_restarted_counted_and_makes_the_service_degraded(
    start_faulty: StartFaulty, fault: Path, task: str
) -> None:
    service = start_faulty(task)
    assert not service.readiness["degraded"]
    fault.touch()
    assert eventually(lambda: len(lines(service, "a background task failed")) >= 2, within=30)
    fault.unlink()
    assert eventually(lambda: service.readiness["degraded"], within=30)
    assert service.readiness["ready"]
    assert service.readiness["reasons"] == ["tasks_failing"]
    assert f"restarted: {task}" in lines(service, "degraded")[-1]["detail"]
    counted = f'leadkeep_task_failures_total{{task="{task}"}} '
    (line,) = [line for line in httpx.get(f"{service.http_url}/metrics").text.splitlines() if line.startswith(counted)]
    assert float(line.removeprefix(counted)) >= 2
    assert {each["error"] for each in lines(service, "a background task failed")} == {"KeyError"}
    assert VALUE not in service.log()
    assert service.stop() == 0
