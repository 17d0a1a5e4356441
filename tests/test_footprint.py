"""How fast the service starts, and how much memory it holds when nobody calls."""

from __future__ import annotations

import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.conftest import StartService
from tests.harness.answers import health_of
from tests.harness.processes import eventually, resident_megabytes
from tests.harness.running_service import RunningService

START_SECONDS = 3.0
"""On a machine whose imports alone take more than half of that: twice as long as they do."""

IDLE_MEGABYTES = 150.0

STARTS = 5
"""The fastest counts: other work on the machine only ever makes a start slower."""


@pytest.fixture(scope="module")
def service(start_shared: StartService) -> RunningService:
    """An embedded service that has been started before."""
    return start_shared(forked=False)


def is_serving(service: RunningService) -> bool:
    with service.channel() as channel:
        try:
            return health_of(channel) == health_pb2.HealthCheckResponse.SERVING
        except grpc.RpcError:
            return False


def seconds_to_serving(service: RunningService) -> float:
    service.stop()
    began = time.monotonic()
    service.start(forked=False)
    assert eventually(lambda: is_serving(service), within=30)
    return time.monotonic() - began


def seconds_to_import() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import service.serving, service.cli.main"], check=True)
    return time.monotonic() - began


def test_a_start_on_an_existing_data_folder_is_serving_in_three_seconds(service: RunningService) -> None:
    starts: list[float] = []
    while len(starts) < STARTS and min(starts, default=START_SECONDS) >= START_SECONDS:
        starts.append(seconds_to_serving(service))
    assert min(starts) < max(START_SECONDS, 2 * seconds_to_import()), starts


def test_an_idle_service_holds_less_than_150_megabytes(service: RunningService) -> None:
    assert is_serving(service)
    assert resident_megabytes(service.pid) < IDLE_MEGABYTES
