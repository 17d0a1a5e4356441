"""An old primary comes back after a standby was promoted: nothing that it confirms is acknowledged.

The second standby still follows the old primary and confirms its commits, as with `ANY 1 (s1, s2)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from leadkeep.v1 import lead_service_pb2 as pb
from psycopg.conninfo import conninfo_to_dict

from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, folder_for_postgres
from tests.harness.processes import eventually, frozen
from tests.harness.replication import ReplicatedServer
from tests.harness.running_service import RunningService

CREATES = 40


class Cluster:
    """A primary with two standbys, of which one is promoted while the primary is frozen."""

    def __init__(self, server: ReplicatedServer, database: TestDatabase, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.url = server.url_of_all(database.serve_url)
        self.database = database
        self._running: list[RunningService] = []

    def service(self, name: str, url: str | None = None) -> RunningService:
        """A replica that knows all hosts, unless it is given a URL."""
        settings = {}
        if self._running and name != "service":
            settings["LEADKEEP_KEYRING"] = str(self._running[0].data_dir / "keyring.json")
        running = RunningService(self.folder / name, database_url=url or self.url, settings=settings).start()
        self._running.append(running)
        return running

    def stored_at_the_promoted(self, ids: list[str]) -> int:
        """How many of these leads the promoted standby holds."""
        name = conninfo_to_dict(self.database.serve_url)["dbname"]
        count: int = self.server.standby.ask(
            "SELECT count(*) FROM lead WHERE id = ANY(%s::uuid[])", ids, database=str(name)
        )
        return count

    def stop(self) -> None:
        for running in self._running:
            running.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with folder_for_postgres() as folder, ExitStack() as stack:
        server = ReplicatedServer(folder)
        stack.callback(server.stop)
        server.standby.attach()
        server.second.attach()
        server.require_standby("ANY 1 (s1, s2)")
        made = Cluster(server, server.fresh_database(), tmp_path)
        stack.callback(made.stop)
        yield made


def created(service: RunningService, count: int = CREATES) -> list[str]:
    """The ids of the leads that were answered SAVED."""
    saved = []
    with service.channel() as channel:
        for _ in range(count):
            request = pb.CreateLeadRequest(lead=somebody())
            answer = service.stub(channel).CreateLead(request, timeout=5, metadata=service.metadata("chatbot"))
            if answer.state == pb.SAVE_STATE_SAVED:
                saved.append(answer.id)
    return saved


def test_a_thawed_primary_is_used_by_no_replica(cluster: Cluster) -> None:
    busy, idle = cluster.service("busy"), cluster.service("idle")
    assert len(created(busy, 3) + created(idle, 3)) == 6
    pid = cluster.server.postgres.pid
    assert pid is not None
    with frozen(pid):
        cluster.server.standby.promote()
        assert eventually(lambda: len(created(busy, 1)) == 1, within=30)
        # It has had no call; only its looks at all hosts can have noticed the promotion.
        remembered = cluster.folder / "idle" / "spool" / "timelines.json"
        assert eventually(lambda: 2 in json.loads(remembered.read_text()).values(), within=30)
    newcomer = cluster.service("newcomer")
    busy.stop()
    busy.start()
    saved = [lead_id for service in (busy, idle, newcomer) for lead_id in created(service)]
    assert len(saved) == 3 * CREATES
    assert cluster.stored_at_the_promoted(saved) == len(saved)


def test_with_the_old_primary_alone_leads_wait_in_the_spool_and_it_is_reported(cluster: Cluster) -> None:
    service = cluster.service("service")
    cluster.server.standby.promote()
    assert eventually(lambda: cluster.stored_at_the_promoted(created(service, 1)) == 1, within=30)
    service.stop()
    only_old = cluster.service("service", url=cluster.database.serve_url)
    assert created(only_old, 3) == []
    assert only_old.readiness["reasons"] == ["server_superseded"]
    assert "a standby was promoted in its place" in only_old.leadkeep("doctor").stdout
