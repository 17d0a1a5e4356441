"""kill -9 of a service with its own PostgreSQL, again and again, in the middle of a busy moment."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psycopg
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.storage.postgres.embedded import EmbeddedPostgres
from tests.conftest import StartService
from tests.faults import times
from tests.harness import histories
from tests.harness.faults import value_of
from tests.harness.leads import somebody
from tests.harness.processes import embedded_home, eventually, postgres_pid, processes_in
from tests.harness.running_service import RunningService

KILLS = times(5, whole=20)
CALLERS = 64
START_SECONDS = 15
"""A start after a kill includes a crash recovery; on a quiet machine it takes two seconds."""


@dataclass
class Submissions:
    """What was sent, by request_id, and the ids that were answered."""

    sent: dict[str, pb.Lead] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)

    @property
    def unanswered(self) -> list[str]:
        return [request_id for request_id in self.sent if request_id not in self.acknowledged]


async def send(stub: lead_service_pb2_grpc.LeadServiceStub, token: object, request_id: str, lead: pb.Lead) -> str:
    request = pb.CreateLeadRequest(lead=lead, request_id=request_id)
    response = await stub.CreateLead(request, metadata=token, timeout=20)
    return str(response.id)


async def load_until_killed(service: RunningService, submissions: Submissions, seconds: float) -> None:
    """Keep 64 callers busy, kill the service while they are, and note what they were told."""
    token = service.metadata("chatbot")
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        killed = False

        async def caller() -> None:
            while not killed:
                request_id = f"request-{len(submissions.sent)}"
                submissions.sent[request_id] = lead = somebody()
                try:
                    submissions.acknowledged[request_id] = await send(stub, token, request_id, lead)
                except grpc.RpcError:
                    if not killed:
                        raise
                    return

        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        await asyncio.sleep(seconds)
        killed = True
        service.kill()
        await asyncio.gather(*callers)


async def repeat(service: RunningService, submissions: Submissions, request_ids: list[str]) -> dict[str, str]:
    """Send these again, and return the ids that are answered."""
    token = service.metadata("chatbot")
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        answers = (send(stub, token, request_id, submissions.sent[request_id]) for request_id in request_ids)
        return dict(zip(request_ids, await asyncio.gather(*answers), strict=True))


def stored(data_dir: Path) -> list[tuple[str, str]]:
    """Request and lead of every row; each has the event of its creation."""
    url = EmbeddedPostgres.running_url(data_dir, user="postgres", database="leadkeep")
    assert url is not None
    assert value_of(url, histories.WRONG) == 0
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT request_id, id::text FROM lead ORDER BY request_id").fetchall()


def test_every_acknowledged_lead_survives_kills_exactly_once(start_service: StartService) -> None:
    rng = random.Random(20)
    submissions = Submissions()
    service = start_service()
    starts, kills_with_calls_in_flight = [], 0
    for _ in range(KILLS):
        asyncio.run(load_until_killed(service, submissions, rng.uniform(0.3, 1.0)))
        kills_with_calls_in_flight += bool(submissions.unanswered)

        began = time.monotonic()
        service.start()
        starts.append(time.monotonic() - began)

        acknowledged = submissions.acknowledged
        earlier = rng.sample(sorted(acknowledged), min(20, len(acknowledged)))
        answers = asyncio.run(repeat(service, submissions, [*submissions.unanswered, *earlier]))
        assert {request_id: answers[request_id] for request_id in earlier}.items() <= acknowledged.items()
        acknowledged |= answers
        assert stored(service.data_dir) == sorted(acknowledged.items())
    assert max(starts) < START_SECONDS
    # A kill now and then falls between a batch that was answered and the callers' next calls.
    assert kills_with_calls_in_flight > KILLS / 2


def test_a_killed_service_leaves_no_postgres_behind(start_service: StartService) -> None:
    service = start_service()
    folder = embedded_home(service.data_dir) / "postgres"
    assert postgres_pid(service.data_dir) in processes_in(folder)
    service.kill()
    assert eventually(lambda: not processes_in(folder), within=30)
