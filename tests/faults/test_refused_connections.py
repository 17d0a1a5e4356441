"""A client with the settings of clients/policy, while nobody listens at the service's port: its lead survives that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import grpc
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.faults import times
from tests.harness import faults
from tests.harness.leads import somebody
from tests.harness.policy import PYTHON_OPTIONS
from tests.harness.postgres import TestDatabase
from tests.harness.refusing_proxy import RefusingProxy
from tests.harness.running_service import RunningService

DEADLINE = 15.0

ANSWERED_WITHIN = 4.0
"""Seconds after connections are accepted again: 1.2 until the next attempt, and a busy machine. Without `waitForReady`
the call of the short trial takes its next attempt 5 seconds after that, without the reconnect settings a long outage's
takes it 5 seconds after."""


@pytest.fixture(scope="module")
def proxy(service: RunningService) -> Iterator[RefusingProxy]:
    with RefusingProxy(service.grpc_address) as between:
        yield between


@pytest.mark.parametrize("seconds", [3, *[1, 6, 9][: times(0, whole=3)]])
def test_a_lead_is_saved_once_and_soon_after_connections_are_accepted_again(
    proxy: RefusingProxy, service: RunningService, service_database: TestDatabase, seconds: float
) -> None:
    # On a busy machine one of them may take longer; without the settings each does.
    tries = (seconds_until_saved(proxy, service, service_database, seconds) for _ in range(3))
    assert any(took < seconds + ANSWERED_WITHIN for took in tries)


def seconds_until_saved(
    proxy: RefusingProxy, service: RunningService, service_database: TestDatabase, seconds: float
) -> float:
    """Refuse connections for so long; how long a call takes that begins with that, and is saved once."""
    request_id = str(uuid4())
    with grpc.insecure_channel(proxy.address, options=PYTHON_OPTIONS) as channel:
        stub, metadata = service.stub(channel), service.metadata()
        grpc.channel_ready_future(channel).result(timeout=20)
        with proxy.refusing():
            began = time.monotonic()
            request = pb.CreateLeadRequest(lead=somebody(), request_id=request_id)
            call = stub.CreateLead.future(request, timeout=DEADLINE, metadata=metadata)
            time.sleep(seconds)
            assert not call.done(), call.code()
        answer = call.result()
        took = time.monotonic() - began
    print(f"refused for {seconds} s: {pb.SaveState.Name(answer.state)} after {took:.2f} s")  # noqa: T201 # with -s, the trial
    assert answer.state == pb.SAVE_STATE_SAVED
    # It waited for the connection: attempts that fail at once would be used up before a long restart is over. One may
    # have been under way when the old connection ended.
    assert dict(call.trailing_metadata())["leadkeep-retries"] in ("0", "1")
    kept = f"SELECT count(*) FROM lead WHERE request_id = '{request_id}'"
    assert faults.value_of(service_database.admin_url, kept) == 1
    return took
