"""What a refused call says: its reason and its details."""

from __future__ import annotations

from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

M = TypeVar("M", bound=Message)


def detail(error: grpc.RpcError, kind: type[M]) -> M | None:
    """The status detail of this kind; None when there is none."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    for packed in status.details if status is not None else ():
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def reason_of(error: grpc.RpcError) -> str:
    """The reason in the ErrorInfo; empty when the server said nothing, as when it is gone."""
    info = detail(error, error_details_pb2.ErrorInfo)
    return str(info.reason) if info is not None else ""
