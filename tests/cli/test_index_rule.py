"""A database of index rule 1 is served as it is, and moved to rule 2 by `keys reindex`. One life, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService

WRITTEN_IN_TWO_WAYS = {
    "Mexico": ("+5215512345678", "+525512345678"),
    "Brazil": ("+5582999448232", "+558299448232"),
    "Argentina": ("+5491123456789", "+541123456789"),
}


class Service(RunningService):
    """A service, and what it answers about phones."""

    def created(self, phone: str) -> str:
        """The id of a new lead, or the reason of a refusal."""
        try:
            return str(self.create(somebody(phone=phone)).id)
        except grpc.RpcError as refused:
            return str(refused.code().name)

    def ids_with(self, phone: str) -> list[str]:
        page = self.call("ListLeads", pb.ListLeadsRequest(phone=phone, view=pb.LEAD_VIEW_FULL))
        return [lead.id for lead in page.leads]


@pytest.fixture(scope="module")
def database(postgres_server: TestServer) -> TestDatabase:
    return postgres_server.fresh_database()


@pytest.fixture(scope="module")
def service(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("rule") / "leadkeep", database_url=database.serve_url)
    service.start()
    yield service
    service.stop()


@pytest.mark.parametrize("country", WRITTEN_IN_TWO_WAYS)
def test_a_new_database_takes_both_forms_for_one_person_and_keeps_the_first(country: str, service: Service) -> None:
    first, other = WRITTEN_IN_TWO_WAYS[country]
    lead_id = service.created(first)

    assert service.created(other) == "ALREADY_EXISTS"
    assert service.ids_with(first) == service.ids_with(other) == [lead_id]


def test_the_form_that_was_written_is_kept(service: Service) -> None:
    [lead_id] = service.ids_with("+525512345678")
    assert service.get(lead_id).phone == "+5215512345678"


def test_a_database_of_rule_1_is_served_by_rule_1(service: Service, database: TestDatabase) -> None:
    service.stop()
    # As a release left it that knew no other rule; its leads are indexed as they are written.
    execute(database.admin_url, "TRUNCATE lead CASCADE")
    execute(database.admin_url, "UPDATE key_canary SET normaliser = '1;region=-;phone=e164;nid=any'")
    service.start()

    ids = [service.created(phone) for phone in WRITTEN_IN_TWO_WAYS["Mexico"]]

    assert [service.ids_with(phone) for phone in WRITTEN_IN_TWO_WAYS["Mexico"]] == [[each] for each in ids]
    assert "an earlier index rule: leadkeep keys reindex" in service.leadkeep("doctor").stdout
    assert service.leadkeep("keys", "verify").returncode == 0


def test_it_is_not_moved_while_a_replica_of_an_earlier_release_runs(service: Service, database: TestDatabase) -> None:
    execute(
        database.admin_url,
        "INSERT INTO replica (name, state, epoch, opens, seals, spool_keys)"
        " SELECT 'early', 'running', 1, array_remove(opens, 'index-rule-2'), seals, '{}' FROM replica",
    )

    refused = service.leadkeep("keys", "reindex", "--timeout", "1s")

    assert refused.returncode == 1
    assert "in vain for early" in refused.stderr
    assert "its release does not know index-rule-2" in refused.stderr
    assert value_of(database.admin_url, "SELECT next_normaliser FROM key_canary") is None


def test_it_is_moved_and_names_the_leads_that_are_one_person(service: Service, database: TestDatabase) -> None:
    first, other = (service.ids_with(phone)[0] for phone in WRITTEN_IN_TWO_WAYS["Mexico"])

    done = service.leadkeep("keys", "reindex", "--timeout", "20s", "--forget", "early", "--json")

    assert json.loads(done.stdout)["beside"] == [{"lead": other, "beside": first, "field": "phone"}]
    assert set(service.ids_with("+525512345678")) == {first, other}
    assert service.created("+52 55 1234 5678") == "ALREADY_EXISTS"
    assert str(value_of(database.admin_url, "SELECT normaliser FROM key_canary")).startswith("2;")
    assert service.leadkeep("keys", "verify").returncode == 0
    again = service.leadkeep("keys", "reindex", "--json")
    assert json.loads(again.stdout)["needed"] is False


def test_a_rotation_that_began_under_rule_1_ends_under_it_and_the_next_reindex_moves_on(
    service: Service, database: TestDatabase
) -> None:
    service.stop()
    execute(database.admin_url, "TRUNCATE lead CASCADE")
    execute(
        database.admin_url,
        "UPDATE key_canary SET normaliser = '1;region=BD;phone=e164;nid=any', next_digest = digest,"
        " next_normaliser = '1;region=-;phone=e164;nid=any', epoch = epoch + 1",
    )
    service.start()

    moved = [json.loads(service.leadkeep("keys", "reindex", "--json").stdout)["needed"] for _ in range(3)]

    assert moved == [True, True, False]
    assert value_of(database.admin_url, "SELECT normaliser FROM key_canary") == "2;region=-;phone=e164;nid=any"
