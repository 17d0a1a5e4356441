"""How long the real service takes to stop on SIGTERM, and what it does before it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.storage.postgres.folders import SOCKET_NAME
from service.storage.spool.rows import peek
from tests.conftest import StartService
from tests.faults.chaos.background import Background
from tests.faults.chaos.proxy import Mode, PostgresProxy
from tests.harness.answers import failure_of
from tests.harness.daily_files import file_of, today
from tests.harness.faults import value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually, frozen
from tests.harness.running_service import RunningService
from tests.rpc.tokens.signing import AUDIENCE, ISSUER, signed


@pytest.fixture
def database(server: TestServer) -> TestDatabase:
    return server.fresh_database()


STALLED_NAME = """
import socket, time
found = socket.getaddrinfo
def look_up(host, *rest, **more):
    if host == "stalled.test":
        time.sleep(60)
    return found(host, *rest, **more)
socket.getaddrinfo = look_up
"""
"""A module for Python's start: the look-up of this name takes a minute, as with resolvers that do not answer."""


def test_a_name_that_is_looked_up_for_long_holds_up_nobody(
    database: TestDatabase, start_service: StartService, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STALLED_NAME)
    settings = {
        "PYTHONPATH": str(tmp_path),
        "LEADKEEP_AUTH_JWKS": "https://stalled.test/jwks",
        "LEADKEEP_AUTH_ISSUER": ISSUER,
        "LEADKEEP_AUTH_AUDIENCE": AUDIENCE,
    }
    service = start_service(database_url=database.serve_url, settings=settings, forked=False)
    metadata = [("authorization", f"Bearer {signed()}")]
    with service.channel() as channel, pytest.raises(grpc.RpcError) as refused:
        service.stub(channel).ListLeads(pb.ListLeadsRequest(), metadata=metadata, timeout=15)
    assert failure_of(refused.value).reason == "KEYS_UNAVAILABLE"
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 10


class Network:
    """The way from the service to its database, which may be cut."""

    def __init__(self, server: TestServer, database: TestDatabase, background: Background) -> None:
        parts = urlsplit(database.serve_url)
        self._server = server
        self._background = background
        self._proxy = PostgresProxy(Path(parse_qs(parts.query)["host"][0]) / SOCKET_NAME)
        background.run(self._proxy.start())
        self.url = f"postgresql://{parts.username}@127.0.0.1:{self._proxy.port}{parts.path}"

    @contextmanager
    def in_mode(self, mode: Mode) -> Iterator[None]:
        self._background.run(self._proxy.set_mode(mode))
        yield
        self._background.run(self._proxy.set_mode(Mode.FORWARD))

    def cut(self, how: str) -> AbstractContextManager[None]:
        """The database refuses connections, stands still, or its network swallows everything."""
        if how == "frozen":
            assert self._server.postgres.pid is not None
            return frozen(self._server.postgres.pid)
        return self.in_mode(Mode.REFUSE if how == "refused" else Mode.SILENT)


@pytest.fixture
def network(server: TestServer, database: TestDatabase) -> Iterator[Network]:
    with Background() as background:
        yield Network(server, database, background)


def create(service: RunningService, channel: grpc.Channel, timeout: float = 5) -> pb.CreateLeadResponse:
    answer: pb.CreateLeadResponse = service.stub(channel).CreateLead(
        pb.CreateLeadRequest(lead=somebody()), timeout=timeout, metadata=service.metadata("chatbot")
    )
    return answer


def used(start_service: StartService, url: str, **settings: str) -> RunningService:
    """A service that has saved and shown a lead, so that each of its tasks has had something to do."""
    service = start_service(database_url=url, settings=settings)
    assert eventually(lambda: service.is_well, within=60)
    with service.channel() as channel:
        lead_id = create(service, channel, timeout=20).id
        shown = service.stub(channel).GetLead
        shown(pb.GetLeadRequest(id=lead_id), timeout=20, metadata=service.metadata("admin"))
    return service


def seconds_to_stop(service: RunningService) -> float:
    began = time.monotonic()
    assert service.stop() == 0
    return time.monotonic() - began


def heads(service: RunningService) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in service.log().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == "access head"]


def arrived(service: RunningService) -> float:
    """How many creates without the database wait or were answered."""
    return service.metric("leadkeep_calls_in_flight") + service.metric("leadkeep_delayed_total")


GRACE = "60"
AT_ONCE = 10
"""Seconds: a stop takes 0.3 s, more on a busy machine; one that waits for a database which does not answer, 15 s."""

AWAY = ["refused", "frozen", "black hole"]


@pytest.mark.parametrize("how", AWAY)
@pytest.mark.parametrize("noticed", [False, True], ids=["just now", "for a while"])
def test_without_the_database_and_with_nothing_in_flight_a_stop_waits_for_nothing(
    network: Network, start_service: StartService, how: str, noticed: bool
) -> None:
    service = used(start_service, network.url, LEADKEEP_SHUTDOWN_GRACE=GRACE)
    with network.cut(how):
        if noticed:
            assert eventually(lambda: '"event":"degraded"' in service.log(), within=30)
        assert seconds_to_stop(service) < AT_ONCE


def test_a_stop_without_the_database_leaves_the_last_head_of_the_access_record_in_the_log(
    network: Network, start_service: StartService
) -> None:
    service = used(start_service, network.url)
    with network.cut("refused"):
        service.stop()
    assert (heads(service)[-1]["number"], heads(service)[-1]["ended"]) == (1, False)
    assert len(heads(service)) == 2, "one when the chain began, one at the stop"


@pytest.mark.parametrize("how", AWAY)
def test_calls_that_wait_for_the_database_are_spooled_within_the_grace(
    network: Network, start_service: StartService, how: str
) -> None:
    service = used(start_service, network.url, LEADKEEP_SHUTDOWN_GRACE="3")
    with service.channel() as channel, ThreadPoolExecutor(20) as threads:

        def state(_: int) -> str:
            try:
                return pb.SaveState.Name(create(service, channel, timeout=20).state)
            except grpc.RpcError as error:
                return str(error.code())

        with network.cut(how):
            states = threads.map(state, range(20))
            assert eventually(lambda: arrived(service) == 20, within=30)
            assert seconds_to_stop(service) < 10
            # Answered, or refused at the end of the grace: each lead is on the disk.
            assert set(states) <= {"SAVE_STATE_DELAYED", "StatusCode.UNAVAILABLE"}
            assert peek(service.data_dir / "spool")[0].waiting == 20


def test_reads_that_wait_for_the_database_hold_up_no_stop_beyond_the_grace(
    network: Network, start_service: StartService
) -> None:
    service = used(start_service, network.url, LEADKEEP_SHUTDOWN_GRACE="2")
    request = pb.GetLeadRequest(id="01890a5d-ac96-774b-bcce-b302099a8057")
    with service.channel() as channel, network.cut("black hole"):
        read, metadata = service.stub(channel).GetLead, service.metadata("admin")
        calls = [read.future(request, timeout=20, metadata=metadata) for _ in range(20)]
        assert eventually(lambda: service.metric("leadkeep_calls_in_flight") == 20, within=30)
        assert seconds_to_stop(service) < 10
        reasons = {failure_of(call.exception()).reason for call in calls}
        assert reasons == {"SERVICE_STOPPING"}


def test_with_the_database_everything_is_finished_in_order(database: TestDatabase, start_service: StartService) -> None:
    service = used(start_service, database.serve_url)
    with service.channel() as channel:
        assert eventually(lambda: file_of(service, today()).exists(), within=30)
        lead = create(service, channel)
    assert seconds_to_stop(service) < 10
    assert lead.id in file_of(service, today()).read_text(), "the last render is missing"
    assert heads(service)[-1]["ended"]
    assert value_of(database.admin_url, "SELECT bool_and(ended) FROM access_head WHERE ended") is True
    assert value_of(database.admin_url, "SELECT string_agg(state, ',') FROM replica") == "stopped"


def test_a_service_that_never_reached_its_database_stops_at_once(network: Network, start_service: StartService) -> None:
    with network.cut("black hole"):
        service = start_service(database_url=network.url, settings={"LEADKEEP_SHUTDOWN_GRACE": GRACE})
        assert seconds_to_stop(service) < AT_ONCE
