"""Two replicas whose clocks are wrong by five minutes, in both directions, while PostgreSQL's is right.

Nothing that was acknowledged is lost, and nobody who was erased returns. The clocks are those of real services, set by
libfaketime. tests/storage/leads/test_wrong_clocks.py has the same in one process, with clocks of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import grpc
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import ROLES
from service.storage.postgres.folders import SOCKET_NAME
from tests.faults import times
from tests.faults.chaos.background import Background
from tests.faults.chaos.proxy import Mode, PostgresProxy
from tests.harness.failures import reason_of
from tests.harness.leads import somebody
from tests.harness.policy import RETRY_POLICY
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
SKEW = 300
"""Seconds."""

PEOPLE = times(3, whole=30)

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")


class Replica:
    """A service whose clock is wrong by `skew` seconds, with a way to the database of its own."""

    def __init__(self, folder: Path, database: TestDatabase, background: Background, skew: int) -> None:
        self._background, self._skew = background, skew
        parts = urlsplit(database.serve_url)
        self._proxy = PostgresProxy(Path(parse_qs(parts.query)["host"][0]) / SOCKET_NAME)
        background.run(self._proxy.start())
        self.service = RunningService(
            folder / f"clock{skew:+}",
            database_url=f"postgresql://{parts.username}@127.0.0.1:{self._proxy.port}{parts.path}",
            settings={
                "LEADKEEP_KEYRING": str(folder / "keyring.json"),
                "LD_PRELOAD": str(LIBRARY),
                "FAKETIME": f"{skew:+}s",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )
        self.service.start(forked=False)
        key = LocalSigningKey.load_or_create(self.service.data_dir / "signing-key.pem")
        token = key.issue("bot", ROLES["admin"], timedelta(hours=1), now=time.time() + skew)
        self._metadata = [("authorization", f"Bearer {token}")]
        # As clients call: on a busy machine a statement takes longer than the service waits, and is to be repeated.
        options = [("grpc.service_config", RETRY_POLICY)]
        self._channel = grpc.insecure_channel(self.service.grpc_address, options=options)
        self._stub = self.service.stub(self._channel)

    def stop(self) -> None:
        """End it."""
        self._channel.close()
        self.service.stop()

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Without the database for a while; when this ends, all that waited is drained, and calls are served."""
        self._background.run(self._proxy.set_mode(Mode.REFUSE))
        yield
        self._background.run(self._proxy.set_mode(Mode.FORWARD))
        self.drained()
        assert eventually(lambda: self.service.is_well, within=120)

    def drained(self) -> None:
        """Wait until nothing is in the spool. On a busy machine leads wait there also with the database at hand."""
        assert eventually(lambda: self.service.metric("leadkeep_spool_entries") == 0, within=120)

    def call(self, rpc: str, request: Any) -> Any:
        """The answer to a call."""
        return getattr(self._stub, rpc)(request, timeout=20, metadata=self._metadata)

    def created(self, requests: list[pb.CreateLeadRequest]) -> list[str]:
        """The ids of submissions that are acknowledged."""
        return [self.call("CreateLead", request).id for request in requests]

    def erase(self, ids: list[str]) -> None:
        """Erase leads."""
        for lead_id in ids:
            self.call("EraseLead", pb.EraseLeadRequest(id=lead_id, reason="asked for it"))

    def found(self, lead_id: str) -> str:
        """OK where an id leads to a lead, else why it does not."""
        try:
            self.call("GetLead", pb.GetLeadRequest(id=lead_id))
        except grpc.RpcError as error:
            return reason_of(error)
        return "OK"


@pytest.fixture(scope="module")
def replicas(server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Replica]]:
    database, folder = server.fresh_database(), tmp_path_factory.mktemp("clocks")
    with Background() as background:
        made = {skew: Replica(folder, database, background, skew) for skew in (SKEW, -SKEW)}
        yield made
        for each in made.values():
            each.stop()


def submissions() -> list[pb.CreateLeadRequest]:
    return [pb.CreateLeadRequest(lead=somebody(), request_id=str(uuid4())) for _ in range(PEOPLE)]


@pytest.mark.parametrize("skew", [SKEW, -SKEW])
def test_the_clock_is_wrong(replicas: dict[int, Replica], skew: int) -> None:
    with replicas[skew].cut_off():
        (lead_id,) = replicas[skew].created(submissions()[:1])
    created_at = replicas[skew].call("GetLead", pb.GetLeadRequest(id=lead_id)).lead.created_at.seconds
    # `created_at` of what was delayed is the replica's own.
    assert abs(created_at - time.time() - skew) < SKEW / 2


@pytest.mark.parametrize("skew", [SKEW, -SKEW])
def test_a_copy_that_was_accepted_before_the_erasure_does_not_return(replicas: dict[int, Replica], skew: int) -> None:
    here, there = replicas[skew], replicas[-skew]
    erased, kept = submissions(), submissions()
    with here.cut_off():
        waiting = here.created(erased)
        others = here.created(kept)
        saved = there.created(erased)
        there.drained()
        there.erase(saved)
    assert {there.found(each) for each in (*waiting, *saved)} == {"LEAD_NOT_FOUND"}
    assert {there.found(each) for each in others} == {"OK"}


@pytest.mark.parametrize("skew", [SKEW, -SKEW])
def test_what_was_accepted_after_the_erasure_is_not_lost(replicas: dict[int, Replica], skew: int) -> None:
    here, there = replicas[skew], replicas[-skew]
    requests = submissions()
    saved = there.created(requests)
    there.drained()
    there.erase(saved)
    with here.cut_off():
        again = here.created(requests)
    assert {there.found(each) for each in again} <= {"OK", "LEAD_IN_CONFLICT"}
