"""A synchronous standby goes away: commits hang, and the service shows it within seconds, with or without calls."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, folder_for_postgres
from tests.harness.processes import eventually, frozen
from tests.harness.replication import ReplicatedServer
from tests.harness.running_service import RunningService

NOTICED_WITHIN = 3.0
"""Seconds in which `/readyz` must show it."""

GAUGE = "leadkeep_commits_wait_for"


@pytest.fixture(scope="module")
def primary() -> Iterator[ReplicatedServer]:
    """A primary with two standbys, s1 and s2."""
    with folder_for_postgres() as folder:
        server = ReplicatedServer(folder)
        server.standby.attach()
        server.second.attach()
        yield server
        server.stop()


@pytest.fixture
def database(primary: ReplicatedServer) -> Iterator[TestDatabase]:
    primary.release_commits()
    yield primary.fresh_database()
    primary.release_commits()


@pytest.fixture
def service(database: TestDatabase, start_service: StartService) -> RunningService:
    return start_service(database_url=database.serve_url)


def noticed(service: RunningService, word: str) -> bool:
    """Whether it shows this word alone, in time."""
    began = time.monotonic()
    return (
        eventually(lambda: service.readiness["reasons"] == [word], within=20)
        and time.monotonic() - began < NOTICED_WITHIN
    )


def create(service: RunningService, timeout: float = 8) -> int:
    """The state in which a new lead is kept."""
    return int(service.create(timeout=timeout).state)


@pytest.mark.parametrize(
    ("names", "wait_for", "hangs_without_one"),
    [("s1", 1, True), ("ANY 1 (s1, s2)", 1, False), ("FIRST 2 (s1, s2)", 2, True), ("2 (s1, s2)", 2, True)],
)
def test_a_standby_that_is_missed_is_noticed_without_any_call(
    names: str, wait_for: int, hangs_without_one: bool, primary: ReplicatedServer, service: RunningService
) -> None:
    primary.require_standby(names)
    assert eventually(lambda: service.metric(GAUGE) == wait_for, within=30)
    primary.standby.detach()
    try:
        if hangs_without_one:
            assert noticed(service, "commits_hang")
            assert service.metric("leadkeep_degraded") == 1
            assert "commits do not end: is a synchronous standby away?" in service.leadkeep("doctor").stdout
            assert create(service) == pb.SAVE_STATE_DELAYED
        else:
            assert create(service) == pb.SAVE_STATE_SAVED
            assert service.readiness["reasons"] == []
    finally:
        primary.standby.attach()
    assert eventually(lambda: service.readiness["reasons"] == [], within=60)
    assert eventually(lambda: service.metric("leadkeep_spool_entries") == 0, within=60)
    assert create(service) == pb.SAVE_STATE_SAVED


def test_with_both_standbys_away_commits_hang(primary: ReplicatedServer, service: RunningService) -> None:
    primary.require_standby("ANY 1 (s1, s2)")
    primary.standby.detach()
    primary.second.detach()
    try:
        assert noticed(service, "commits_hang")
    finally:
        primary.standby.attach()
        primary.second.attach()
    assert eventually(lambda: service.readiness["reasons"] == [], within=60)


@pytest.mark.parametrize("monitors", [True, False])
def test_a_frozen_standby_is_noticed_by_the_first_commit_that_hangs(
    monitors: bool, primary: ReplicatedServer, database: TestDatabase, start_service: StartService
) -> None:
    if not monitors:
        primary.ask("REVOKE pg_monitor FROM leadkeep_app")
    service = start_service(database_url=database.serve_url)
    try:
        primary.require_standby()
        assert eventually(lambda: service.metric(GAUGE) == 1, within=30)
        with frozen(primary.standby.pid), service.channel() as channel:
            request = pb.CreateLeadRequest(lead=somebody())
            call = service.stub(channel).CreateLead.future(request, timeout=10, metadata=service.metadata("chatbot"))
            assert noticed(service, "commits_hang")
            assert call.result().state == pb.SAVE_STATE_DELAYED
        assert eventually(lambda: service.readiness["reasons"] == [], within=60)
    finally:
        primary.ask("GRANT pg_monitor TO leadkeep_app")


def test_when_the_list_of_standbys_is_emptied_the_gauge_shows_it(
    primary: ReplicatedServer, service: RunningService
) -> None:
    primary.require_standby()
    assert eventually(lambda: service.metric(GAUGE) == 1, within=30)
    primary.release_commits()
    assert eventually(lambda: service.metric(GAUGE) == 0, within=30)
    assert create(service) == pb.SAVE_STATE_SAVED


def test_a_service_that_requires_a_standby_delays_leads_while_commits_wait_for_none(
    primary: ReplicatedServer, database: TestDatabase, start_service: StartService
) -> None:
    primary.require_standby()
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_REQUIRE_STANDBY": "1"})
    assert create(service) == pb.SAVE_STATE_SAVED
    primary.release_commits()
    assert noticed(service, "standby_missing")
    assert {create(service) for _ in range(3)} == {pb.SAVE_STATE_DELAYED}
    time.sleep(1)  # the drain looks every quarter of a second
    assert service.metric("leadkeep_spool_entries") == 3
    assert "LEADKEEP_REQUIRE_STANDBY is set" in service.leadkeep("doctor").stdout
    primary.require_standby()
    assert eventually(lambda: service.metric("leadkeep_spool_entries") == 0, within=60)
    assert eventually(lambda: service.readiness["reasons"] == [], within=30)
    assert create(service) == pb.SAVE_STATE_SAVED
