"""The floor of the framework: a grpc.aio server that reads the same messages, does nothing, and answers with the same
messages. Prints its port."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from bench.samples import ANSWERED_LEAD, CREATED
from service.rpc.server import OPTIONS

GOT = pb.GetLeadResponse(lead=ANSWERED_LEAD)


class EmptyLeadService(lead_service_pb2_grpc.LeadServiceServicer):
    """Two methods that answer at once. The answers are serialised for each call, as ours are."""

    async def CreateLead(self, request: pb.CreateLeadRequest, context: Any) -> pb.CreateLeadResponse:  # noqa: ARG002, N802
        return CREATED

    async def GetLead(self, request: pb.GetLeadRequest, context: Any) -> pb.GetLeadResponse:  # noqa: ARG002, N802
        return GOT


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=OPTIONS)
    lead_service_pb2_grpc.add_LeadServiceServicer_to_server(EmptyLeadService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
