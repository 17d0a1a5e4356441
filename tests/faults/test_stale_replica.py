"""A replica that slept through a rotation of the index key, was forgotten, and comes back: it lets no duplicate in."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness import faults
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService


@contextmanager
def asleep(service: RunningService) -> Iterator[None]:
    os.kill(service.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(service.pid, signal.SIGCONT)


def create(service: RunningService, lead: pb.Lead) -> str:
    with service.channel() as channel:
        try:
            request = pb.CreateLeadRequest(lead=lead)
            answer = service.stub(channel).CreateLead(request, metadata=service.metadata("admin"), timeout=60)
            return str(answer.id)
        except grpc.RpcError as error:
            return str(error.code().name)


def test_what_it_was_asked_in_its_sleep_is_decided_by_the_new_indexes(
    database: TestDatabase, start_service: StartService, tmp_path: Path
) -> None:
    shared = {"LEADKEEP_KEYRING": str(tmp_path / "keyring.json")}
    awake = start_service("awake", database_url=database.serve_url, settings=shared)
    sleeper = start_service("sleeper", database_url=database.serve_url, settings=shared)
    made = json.loads(awake.leadkeep("keys", "add", "--purpose", "index", "--json").stdout)["id"]
    for service in (awake, sleeper):
        os.kill(service.pid, signal.SIGHUP)
    loaded = f"SELECT count(*) FROM replica WHERE '{made}' = ANY(opens)"
    assert eventually(lambda: faults.value_of(database.admin_url, loaded) == 2, within=20)
    assert awake.leadkeep("keys", "promote", made, "--timeout", "20s").returncode == 0
    name = (sleeper.data_dir / "spool" / "replica-name").read_text().strip()
    person, stranger = somebody(), somebody()
    with ThreadPoolExecutor(2) as callers:
        with asleep(sleeper):
            waited = awake.leadkeep("keys", "reindex", "--timeout", "2s")
            assert f"in vain for {name}" in waited.stderr
            done = awake.leadkeep("keys", "reindex", "--timeout", "30s", "--forget", name)
            assert done.returncode == 0, done.stderr
            create(awake, person)
            again = callers.submit(create, sleeper, pb.Lead.FromString(person.SerializeToString()))
            new = callers.submit(create, sleeper, stranger)
        lead_id = new.result()
        assert again.result() in ("ALREADY_EXISTS", "UNAVAILABLE") or eventually(
            lambda: faults.value_of(database.admin_url, "SELECT count(*) FROM lead_conflict") == 1, within=30
        )
    stored = f"SELECT count(*) FROM lead WHERE id = '{lead_id}' AND phone_index IS NULL AND phone_index_2 IS NOT NULL"
    assert eventually(lambda: faults.value_of(database.admin_url, stored) == 1, within=30)
    assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead") == 2
