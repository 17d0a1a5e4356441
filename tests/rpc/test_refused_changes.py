"""A change that PostgreSQL refuses is answered UNAVAILABLE, whatever the SQLSTATE, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.refusals import RAISE, Refusal, dropping, refusing
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused

CHANGES: dict[str, Callable[[Client, str, str], object]] = {
    "UpdateStatus": lambda admin, lead_id, _: admin.move(lead_id, pb.LEAD_STATUS_CONTACTED),
    "UpdateLead": lambda admin, lead_id, _: admin.correct(lead_id, name="Somebody Else"),
    "UpdateLead's phone": lambda admin, lead_id, _: admin.correct(lead_id, phone=somebody().phone),
    "AssignLead": lambda admin, lead_id, _: admin.assign(lead_id, "agent-7"),
    "EraseLead": lambda admin, lead_id, _: admin.call("EraseLead", pb.EraseLeadRequest(id=lead_id, reason="asked")),
    "ResolveConflict": lambda admin, _, conflict_id: admin.call(
        "ResolveConflict", pb.ResolveConflictRequest(id=conflict_id, resolution=pb.CONFLICT_RESOLUTION_TAKE_NEW)
    ),
}

SQLSTATES = {"a value out of range": "22003", "a constraint": "23514", "a right": "42501", "no reason": "P0001"}


def raising(sqlstate: str) -> Refusal:
    return Refusal(
        [
            f"{RAISE} USING ERRCODE = '{sqlstate}'; END $$",
            "CREATE TRIGGER auditor BEFORE UPDATE OR DELETE ON lead FOR EACH ROW EXECUTE FUNCTION raise_on_purpose()",
        ],
        ["DROP TRIGGER auditor ON lead", "DROP FUNCTION raise_on_purpose"],
        "",
    )


@pytest.mark.parametrize("sqlstate", SQLSTATES.values(), ids=SQLSTATES.keys())
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_refused_change_is_unavailable_and_changes_nothing(
    service: RunningService,
    service_database: TestDatabase,
    admin: Client,
    change: Callable[[Client, str, str], object],
    sqlstate: str,
) -> None:
    person = somebody()
    lead_id = admin.create(person).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.create(somebody(phone=person.phone, nid=person.nid))
    conflict_id = conflict_with(service_database.admin_url, lead_id)
    before = admin.get(lead_id)
    with refusing(service_database, raising(sqlstate)), refused(StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"):
        change(admin, lead_id, conflict_id)
    assert admin.get(lead_id) == before
    assert f'"cause":"{sqlstate}"' in service.log()


def test_it_shows_for_a_while_that_a_change_was_refused(
    service: RunningService, service_database: TestDatabase, admin: Client
) -> None:
    lead_id = admin.create(somebody()).id
    assert eventually(lambda: service.is_well, within=30)
    drops = dropping("DELETE", "lead")
    with refusing(service_database, drops), refused(StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"):
        admin.call("EraseLead", pb.EraseLeadRequest(id=lead_id, reason="asked"))
    assert eventually(lambda: service.readiness["reasons"] == ["statements_refused"], within=30)
    assert admin.get(lead_id).id == lead_id
    assert eventually(lambda: service.is_well, within=20)
