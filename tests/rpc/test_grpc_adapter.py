"""What the gRPC adapter answers when the chain itself breaks."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.rpc.call import SERVICE, Call
from service.rpc.server import GrpcServer


async def test_an_error_of_the_chain_itself_reaches_no_caller() -> None:
    async def broken(_call: Call, _request: Message) -> Message:
        raise RuntimeError("+8801712345678")

    server = GrpcServer({method.name: broken for method in SERVICE.methods}, address="127.0.0.1:0", tls=None)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = lead_service_pb2_grpc.LeadServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.GetLead(pb.GetLeadRequest(), timeout=5)
    finally:
        await server.stop(0)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "8801712345678" not in (failed.value.details() or "")
