"""kill -9 of a service that 64 callers read from, unmasked: what any of them received is on record."""

from __future__ import annotations

import asyncio
import itertools
import json
import random

import grpc
import psycopg
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from tests.conftest import StartService
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService

CALLERS = 64
KILLS = 2


async def read_until_killed(service: RunningService, numbers: itertools.count[int]) -> set[str]:
    """Keep 64 callers reading, kill the service while they are; the names of the calls that were answered in clear."""
    received: set[str] = set()
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        made = await stub.CreateLead(
            pb.CreateLeadRequest(lead=somebody()), metadata=service.metadata("chatbot"), timeout=20
        )
        token, killed, enough = service.metadata("admin"), False, asyncio.Event()

        async def caller() -> None:
            while not killed:
                name = f"call-{next(numbers)}"
                metadata = (*token, ("x-request-id", name))
                try:
                    answer = await stub.GetLead(pb.GetLeadRequest(id=made.id), metadata=metadata, timeout=20)
                except grpc.RpcError:
                    if not killed:
                        raise
                else:
                    assert not answer.lead.masked
                    received.add(name)
                    if len(received) == 5 * CALLERS:
                        enough.set()

        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        await asyncio.wait({asyncio.create_task(enough.wait()), *callers}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(random.uniform(0, 0.02))
        killed = True
        service.kill()
        await asyncio.gather(*callers)
    return received


def test_every_value_that_was_received_is_on_record(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    numbers = itertools.count(1)
    received: set[str] = set()
    for _ in range(KILLS):
        received |= asyncio.run(read_until_killed(service, numbers))
        service.start()
    with psycopg.connect(database.admin_url) as connection:
        recorded = {row[0] for row in connection.execute("SELECT request_id FROM access_record")}
    assert received - recorded == set()

    service.stop()
    verified = service.leadkeep("audit", "verify", "--json", "--heads", str(service.log_path))
    assert verified.returncode == 0, verified.stdout
    found = json.loads(verified.stdout)
    assert (found["faults"], found["chains"]) == ([], KILLS)
