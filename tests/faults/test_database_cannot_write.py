"""PostgreSQL answers that it cannot write now: its disk is full, it has no connection left, or it is a hot standby.

Leads are delayed, `/readyz` shows it, `doctor` names it, and all is stored when it is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import grpc
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.failures import reason_of
from tests.harness.faults import value_of
from tests.harness.postgres import TestDatabase, folder_for_postgres
from tests.harness.processes import eventually
from tests.harness.refusals import END_SESSIONS, RAISE, Refusal, refusing
from tests.harness.replication import ReplicatedServer
from tests.harness.running_service import RunningService

DISK_FULL = Refusal(
    [
        f"{RAISE} USING ERRCODE = '53100'; END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON lead FOR EACH ROW EXECUTE FUNCTION raise_on_purpose()",
    ],
    ["DROP TRIGGER full_disk ON lead", "DROP FUNCTION raise_on_purpose"],
    "the disk of the server is full",
)
LIMIT = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT {}', current_database()); END $$"
NO_CONNECTION = Refusal(
    [LIMIT.format(0), END_SESSIONS],
    [LIMIT.format(-1)],
    "it has no connection left: raise max_connections",
)
NOT_CHANGED = {"STORAGE_UNAVAILABLE", "DEADLINE_TOO_SHORT", "DEADLINE_EXCEEDED"}
"""The latter two where the call's own deadline ends its last attempt or the call, on a busy machine."""


def change(service: RunningService, lead_id: str) -> str:
    """The reason for which a lead cannot be changed, or the code of an answer without one; empty if it can."""
    request = pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED)
    with service.channel() as channel:
        try:
            service.stub(channel).UpdateStatus(request, timeout=5, metadata=service.metadata())
        except grpc.RpcError as error:
            return reason_of(error) or str(error.code().name)
    return ""


def stored(database: TestDatabase, lead_id: str) -> bool:
    return bool(value_of(database.admin_url, f"SELECT count(*) FROM lead WHERE id = '{lead_id}'"))


@pytest.mark.parametrize(
    ("refusal", "word"),
    [(DISK_FULL, "database_away"), (NO_CONNECTION, "connection_refused")],
    ids=["disk full", "no connection left"],
)
def test_leads_are_delayed_and_it_is_shown_and_named(
    database: TestDatabase, start_service: StartService, refusal: Refusal, word: str
) -> None:
    service = start_service(database_url=database.serve_url)
    before = service.create(timeout=10)
    assert before.state == pb.SAVE_STATE_SAVED
    with refusing(database, refusal):
        delayed = service.create(timeout=10)
        assert delayed.state == pb.SAVE_STATE_DELAYED
        shown = {"ready": True, "degraded": True, "reasons": [word]}
        assert eventually(lambda: service.readiness == shown, within=60), service.readiness
        assert change(service, before.id) in NOT_CHANGED
        doctor = service.leadkeep_here("doctor")
        assert doctor.returncode == 3
        assert refusal.named in doctor.stdout, doctor.stdout
    assert eventually(lambda: stored(database, delayed.id), within=60)
    assert eventually(lambda: service.is_well, within=60), service.readiness


@pytest.fixture(scope="module")
def primary() -> Iterator[ReplicatedServer]:
    with folder_for_postgres() as folder:
        server = ReplicatedServer(folder)
        server.standby.attach()
        yield server
        server.stop()


def test_a_service_at_a_hot_standby_delays_leads_until_it_is_promoted(
    primary: ReplicatedServer, start_service: StartService
) -> None:
    database = primary.fresh_database()
    service = start_service(database_url=database.serve_url)
    first = service.create(timeout=10)
    service.stop()
    assert eventually(primary.standby.holds, within=30)
    parts = urlsplit(database.serve_url)
    name = parts.path.removeprefix("/")
    assert parts.username is not None
    service.environment["LEADKEEP_DATABASE_URL"] = primary.standby.url(user=parts.username, database=name)
    service.start()
    delayed = service.create(timeout=10)
    assert delayed.state == pb.SAVE_STATE_DELAYED
    assert eventually(lambda: "database_away" in str(service.readiness["reasons"]), within=60), service.readiness
    assert change(service, first.id) in NOT_CHANGED
    doctor = service.leadkeep_here("doctor")
    assert doctor.returncode == 3
    assert "it is a standby" in doctor.stdout
    primary.standby.promote()
    found = f"SELECT count(*) FROM lead WHERE id = '{delayed.id}'"
    assert eventually(lambda: primary.standby.ask(found, database=name) == 1, within=60)
    assert eventually(lambda: service.is_well, within=60), service.readiness
