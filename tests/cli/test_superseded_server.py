"""Commands that write refuse a server whose place a promoted standby has taken, by the memory in the spool's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import StartService
from tests.harness.daily_files import file_of, today
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client

SUPERSEDED = "a standby was promoted in its place"


@pytest.fixture
def stopped(database: TestDatabase, start_service: StartService) -> RunningService:
    """A service that has saved a lead and seen the timeline of its database."""
    service = start_service(
        database_url=database.serve_url,
        settings={"LEADKEEP_ADMIN_DATABASE_URL": database.admin_url, "LEADKEEP_RETENTION": "not_interested=90d"},
    )
    with service.channel() as channel:
        lead_id = Client(service, channel).create(somebody()).id
    written = file_of(service, today())
    assert eventually(lambda: written.exists() and lead_id in written.read_text(), within=20)
    service.stop()
    return service


def run(service: RunningService, commands: Sequence[Sequence[str]]) -> list[CompletedProcess[str]]:
    """All at once: each one retries for ten seconds."""
    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(lambda command: service.leadkeep(*command), commands))


def test_commands_that_write_refuse_an_older_timeline_than_the_service_has_seen(
    stopped: RunningService, tmp_path: Path
) -> None:
    tombstones = tmp_path / "tombstones.json"
    tombstones.write_text(stopped.leadkeep("erase", "--list", "--json").stdout)
    commands = [
        ["import", str(file_of(stopped, today()))],
        ["erase", "--from", str(tombstones)],
        ["retention"],
        ["keys", "reseal"],
    ]
    memory = stopped.data_dir / "spool" / "timelines.json"
    seen = memory.read_text()
    memory.write_text(json.dumps({cluster: number + 1 for cluster, number in json.loads(seen).items()}))
    for done in run(stopped, commands):
        assert done.returncode != 0, done
        assert SUPERSEDED in done.stderr, done
    memory.write_text(seen)
    (done,) = run(stopped, commands[:1])
    assert done.returncode == 0, done
    assert memory.read_text() == seen
