"""Submissions without a request_id that are sent again while the database is away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.faults import value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually, frozen
from tests.harness.running_service import RunningService

WELL_WITHIN = 60
"""Seconds: a drain looks for the database every second, but a test's machine may be busy."""


@pytest.fixture(scope="module")
def database(server: TestServer) -> TestDatabase:
    return server.fresh_database()


@pytest.fixture(scope="module")
def replicas(
    database: TestDatabase, shared_keyring: dict[str, str], start_shared: StartService
) -> list[RunningService]:
    """Two services with one keyring on one database."""
    return [
        start_shared(name, database_url=database.serve_url, settings=shared_keyring) for name in ("first", "second")
    ]


def create(service: RunningService, lead: pb.Lead, *, timeout: float = 3) -> pb.CreateLeadResponse:
    return service.create(lead, timeout=timeout)


def at_once(service: RunningService, lead: pb.Lead, times: int) -> list[pb.CreateLeadResponse]:
    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(lambda _: create(service, lead), range(times)))


def lead_of(service: RunningService, lead_id: str) -> str:
    """The id of the lead that an acknowledged id leads to."""
    return service.get(lead_id).id


def are_well(*services: RunningService) -> bool:
    """Whether the database is there, and nothing waits in a spool."""
    return all(
        not service.readiness["reasons"] and service.metric("leadkeep_spool_entries") == 0 for service in services
    )


def assert_one_lead(database: TestDatabase, service: RunningService, answers: list[pb.CreateLeadResponse]) -> None:
    leads = {lead_of(service, answer.id) for answer in answers}
    assert len(leads) == 1
    assert value_of(database.admin_url, "SELECT count(*) FROM lead_conflict") == 0
    assert value_of(database.admin_url, "SELECT count(*) FROM resubmission") == 0


@pytest.mark.parametrize("fault", ["stopped", "frozen"])
def test_five_at_once_are_acknowledged_under_one_id_and_become_one_lead(
    fault: str, server: TestServer, database: TestDatabase, replicas: list[RunningService]
) -> None:
    service, lead = replicas[0], somebody()
    if fault == "frozen":
        assert server.postgres.pid is not None
        with frozen(server.postgres.pid):
            answers = at_once(service, lead, 5)
    else:
        server.postgres.stop()
        answers = at_once(service, lead, 5)
        server.postgres.start()
    assert {answer.state for answer in answers} == {pb.SAVE_STATE_DELAYED}
    assert len({answer.id for answer in answers}) == 1
    assert sorted(answer.is_repeat for answer in answers) == [False, True, True, True, True]
    assert eventually(lambda: are_well(service), within=WELL_WITHIN)
    answers.append(create(service, lead, timeout=20))
    assert (answers[-1].state, answers[-1].is_repeat) == (pb.SAVE_STATE_SAVED, True)
    assert_one_lead(database, service, answers)


def test_a_copy_in_the_spool_of_each_replica_becomes_one_lead(
    server: TestServer, database: TestDatabase, replicas: list[RunningService]
) -> None:
    lead = somebody()
    server.postgres.stop()
    answers = [create(service, lead) for service in replicas]
    server.postgres.start()
    assert len({answer.id for answer in answers}) == 2
    assert eventually(lambda: are_well(*replicas), within=WELL_WITHIN)
    assert_one_lead(database, replicas[0], answers)


def test_a_saved_one_is_answered_with_its_lead_while_the_database_is_away(
    server: TestServer, database: TestDatabase, replicas: list[RunningService]
) -> None:
    service, lead = replicas[0], somebody()
    saved = create(service, lead, timeout=20)
    server.postgres.stop()
    again = create(service, lead)
    server.postgres.start()
    assert eventually(lambda: are_well(service), within=WELL_WITHIN)
    assert (again.id, again.state, again.is_repeat) == (saved.id, pb.SAVE_STATE_SAVED, True)
    assert_one_lead(database, service, [saved, again])
