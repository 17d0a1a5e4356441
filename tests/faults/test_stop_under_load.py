"""Stops under callers: each call is answered, or refused with what the retry policy repeats; nobody holds the stop up.

FAULTS=whole restarts 50 times.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from leadkeep.v1 import lead_service_pb2 as pb

from service.rpc.call import QUIET_SECONDS
from tests.conftest import StartService
from tests.harness.answers import failure_of
from tests.harness.faults import value_of
from tests.harness.leads import somebody
from tests.harness.ports import free_port
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

RESTARTS = 50 if os.environ.get("FAULTS") == "whole" else 4
CALLERS = 24

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@pytest.fixture
def database(server: TestServer) -> TestDatabase:
    return server.fresh_database()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">BHBBL", 0, len(payload), kind, flags, stream) + payload


def watch_without_window() -> bytes:
    """What a caller of Health.Watch sends that will take no byte of the answer: SETTINGS_INITIAL_WINDOW_SIZE is 0."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Watch",
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    # Literals without indexing and without Huffman coding (RFC 7541, 6.2.2).
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, struct.pack(">HL", 4, 0))
        + frame(1, 0x4, 1, block)
        + frame(0, 0x1, 1, bytes(5))
    )


class Callers:
    """Callers that create leads one after the other, without retries, whatever they are answered."""

    def __init__(self, service: RunningService) -> None:
        self._service, self._metadata = service, service.metadata("chatbot")
        self._over = threading.Event()
        self.held = 0.0
        """Seconds that the longest held one of the calls which came too late was held."""
        self.answers: Counter[str] = Counter()
        """Code and reason; the reason is empty when the answer was not made by the service's chain."""

    def run(self, number: int) -> None:
        with grpc.insecure_channel(self._service.grpc_address, options=[*CHANNEL, ("number", number)]) as channel:
            create = self._service.stub(channel).CreateLead
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    create(pb.CreateLeadRequest(lead=somebody()), timeout=15, metadata=self._metadata)
                except grpc.RpcError as error:
                    failure = failure_of(error)
                    self.answers[f"{failure.code.name} {failure.reason}".strip()] += 1
                    if failure.reason == "SERVICE_STOPPING":
                        self.held = max(self.held, time.monotonic() - began)
                    if not failure.reason:
                        time.sleep(0.05)
                else:
                    self.answers["OK"] += 1

    def wait_for(self, more: int) -> None:
        """Wait until so many more were saved."""
        wanted = self.answers["OK"] + more
        assert eventually(lambda: self.answers["OK"] >= wanted, within=60)

    def end(self) -> None:
        self._over.set()


@pytest.mark.parametrize("delay", ["0", "0.5"])
def test_no_caller_gets_cancelled_when_the_service_restarts(
    database: TestDatabase, start_service: StartService, delay: str
) -> None:
    settings = {"LEADKEEP_GRPC_ADDRESS": f"127.0.0.1:{free_port()}", "LEADKEEP_SHUTDOWN_DELAY": delay}
    service = start_service(database_url=database.serve_url, settings=settings)
    callers = Callers(service)
    with ThreadPoolExecutor(CALLERS) as threads:
        running = [threads.submit(callers.run, number) for number in range(CALLERS)]
        for _ in range(RESTARTS // 2):
            callers.wait_for(2 * CALLERS)
            assert service.stop() == 0
            service.start()
        callers.end()
        for each in running:
            each.result()
    assert callers.answers.keys() <= {"OK", "UNAVAILABLE SERVICE_STOPPING", "UNAVAILABLE"}, callers.answers
    # Answered sooner, a call may be followed by one that is still on its way when the endpoint closes.
    assert callers.held >= QUIET_SECONDS, callers.answers
    stored = value_of(database.admin_url, "SELECT count(*) FROM lead")
    assert isinstance(stored, int)
    assert stored >= callers.answers["OK"]


def test_calls_are_answered_for_the_delay_while_health_says_not_serving(
    database: TestDatabase, start_service: StartService
) -> None:
    # Longer than by default: on a busy machine two seconds may be over before the last of these calls.
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_SHUTDOWN_DELAY": "8"})
    assert service.process is not None
    with service.channel() as channel:
        create, metadata = service.stub(channel).CreateLead, service.metadata("chatbot")
        create(pb.CreateLeadRequest(lead=somebody()), timeout=15, metadata=metadata)
        anything = health_pb2.HealthCheckRequest()
        health: Any = health_pb2_grpc.HealthStub(channel)
        service.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: health.Check(anything, timeout=5).status == NOT_SERVING, within=5)
        assert httpx.get(f"{service.http_url}/readyz").status_code == 503
        answer = create(pb.CreateLeadRequest(lead=somebody()), timeout=15, metadata=metadata)
        assert answer.state == pb.SAVE_STATE_SAVED
        assert service.stop() == 0


def test_without_a_terminal_the_delay_is_two_seconds(database: TestDatabase, start_service: StartService) -> None:
    # The harness sets it to 0 for all other tests.
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_SHUTDOWN_DELAY": ""})
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began >= 2


def test_whoever_does_not_read_is_cut_at_the_end_of_the_grace(
    database: TestDatabase, start_service: StartService
) -> None:
    settings = {"LEADKEEP_SHUTDOWN_GRACE": "2"}
    service = start_service(database_url=database.serve_url, settings=settings)
    with service.channel() as channel:
        lead = service.stub(channel).CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=service.metadata())
        service.stub(channel).GetLead(pb.GetLeadRequest(id=lead.id), metadata=service.metadata())
    host, port = service.http_address.rsplit(":", 1)
    with socket.socket() as pipelining, socket.socket() as watching:
        for unread in (pipelining, watching):
            # Little fits between both ends.
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        pipelining.connect((host, int(port)))
        # Without an accepted token the connection would be closed behind its first answer.
        head = f"GET /api/leads/{lead.id} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.token()}\r\n\r\n"
        pipelining.sendall(head.encode())
        pipelining.setblocking(False)
        request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
        sent = 0
        try:
            while sent < 1000:
                pipelining.send(request)
                sent += 1
        except BlockingIOError:
            pass
        host, port = service.grpc_address.rsplit(":", 1)
        watching.connect((host, int(port)))
        watching.sendall(watch_without_window())
        # The frames of the server's side; the watch was taken when it answers the settings.
        watching.recv(9)
        time.sleep(0.5)
        began = time.monotonic()
        assert service.stop() == 0
        # The delay, which is 0, the grace, and five seconds.
        assert time.monotonic() - began < 7
    assert value_of(database.admin_url, "SELECT string_agg(state, ',') FROM replica") == "stopped"
    assert value_of(database.admin_url, "SELECT bool_and(ended) FROM access_head WHERE ended") is True
