"""Strangers of each kind beside an honest caller, where the service may open 1,024 files: it lives, and serves."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.conftest import StartService
from tests.faults.strangers import Target, strangers
from tests.harness.nginx import INSTALLED, Nginx
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.harness.strangers import kinds

REFUSED = {
    "half-sent messages": ("grpc", "messages_arriving"),
    "watches": ("grpc", "streams"),
    "half-closed calls": ("grpc", "message_missing"),
    "idle": ("grpc", "connections_of_peer"),
    "mute": ("grpc", "connections_of_peer"),
    "slow heads": ("http", "connections"),
    "slow bodies": ("http", "messages_arriving"),
    "idle at HTTP": ("http", "connections"),
    "pipelines nobody reads": ("http", "connections"),
}
"""Where and why each kind is refused within seconds. Unread lists are small here, and gRPC closes garbage by itself.
An address may have all connections here: at HTTP, where each is counted when it comes, it reaches the limit for all."""


@pytest.fixture(scope="module")
def besieged(service_database: TestDatabase, start_shared: StartService) -> RunningService:
    return start_shared(
        database_url=service_database.serve_url,
        settings={"LEADKEEP_OPS_ADDRESS": "127.0.0.1:0"},
        module="tests.faults.few_files",
    )


@pytest.mark.parametrize("kind", kinds())
async def test_a_kind_of_stranger_takes_nothing_from_others(besieged: RunningService, kind: str) -> None:
    target = Target(besieged, besieged.grpc_address, besieged.http_address, probe_seconds=20)
    endpoint, reason = REFUSED.get(kind, ("", ""))
    before = _refusals(besieged, endpoint, reason)
    for _ in range(5):  # on a busy machine few strangers come in four seconds
        async with strangers(kind, target, 4):
            seen = await target.watch(2)
        assert set(seen.probes) == {"200"}
        assert not seen.failures
        assert seen.megabytes < 300
        if not reason or (refused := _refusals(besieged, endpoint, reason) > before):
            break
    if reason:
        assert refused
        assert eventually(lambda: reason in besieged.log(), within=60)


def test_few_open_files_bound_the_connections_with_a_word(besieged: RunningService) -> None:
    assert '"connections":337' in besieged.log().replace(" ", "")


@pytest.mark.skipif(INSTALLED is None, reason="nginx is not installed")
async def test_through_one_nginx_half_sent_messages_take_nothing_from_others(
    start_service: StartService, database: TestDatabase, tmp_path: Path
) -> None:
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_OPS_ADDRESS": "127.0.0.1:0"})
    with Nginx(tmp_path, service.grpc_address, service.http_address) as nginx:
        target = Target(service, nginx.grpc_address, nginx.http_address, probe_seconds=20)
        async with strangers("half-sent messages", target, 4):
            seen = await target.watch(2)
    assert set(seen.probes) == {"200"}
    assert not seen.failures
    assert seen.megabytes < 300


def test_the_service_is_quiet_again_when_the_strangers_have_gone(besieged: RunningService) -> None:
    assert eventually(lambda: besieged.metric("leadkeep_tasks") < 100, within=30)
    assert eventually(lambda: besieged.metric("process_open_fds") < 150, within=30)


def _refusals(service: RunningService, endpoint: str, reason: str) -> float:
    """How often something was refused at an endpoint for a reason, as a probe reads it."""
    lines = httpx.get(f"{service.ops_url}/metrics", timeout=20).text.splitlines()
    labels = (f'="{endpoint}"', f'="{reason}"')
    counters = [line for line in lines if line.startswith("leadkeep_refusals_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in counters if all(label in line for label in labels))
