"""More calls at once than gRPC's core lets wait by default: each gets an answer of the service."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.rpc.call import Call, chained
from service.rpc.server import GrpcServer
from tests.rpc.test_chain import standard

CONNECTIONS = 16
CALLS = 2000
"""gRPC's core resets some calls when more than 1,000 wait, and all beyond 3,000."""


class Leads:
    async def GetLead(self, _call: Call, _request: Message) -> Message:  # noqa: N802
        return pb.GetLeadResponse()

    def __getattr__(self, _name: str) -> object:
        return self.GetLead


def send(port: int) -> list[Any]:
    """Send all calls, each connection its part."""
    calls: list[Any] = []
    for _ in range(CONNECTIONS):
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        metadata = [("authorization", "Bearer anybody")]
        calls += [
            stub.GetLead.future(pb.GetLeadRequest(id="x"), metadata=metadata, timeout=60)
            for _ in range(CALLS // CONNECTIONS)
        ]
    return calls


async def test_no_call_of_a_burst_is_reset() -> None:
    server = GrpcServer(chained(standard(limit=10_000), Leads()), address="127.0.0.1:0", tls=None)
    await server.start()
    sending = asyncio.get_running_loop().run_in_executor(None, send, server.port)
    await asyncio.sleep(0.1)
    # The loop stands still while the burst arrives, as under a long garbage collection.
    time.sleep(2)  # noqa: ASYNC251
    calls = await sending
    codes = Counter(await asyncio.gather(*(asyncio.to_thread(call.code) for call in calls)))
    assert codes == {grpc.StatusCode.OK: CALLS}
    await server.stop(0)
