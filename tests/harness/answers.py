"""What a caller gets when a call fails: the status with its details, read as a client in any language would read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status


@dataclass(frozen=True)
class Failure:
    """A failed call."""

    code: grpc.StatusCode
    text: str
    domain: str
    reason: str
    """Empty when the status carries no ErrorInfo: then it was not made by the service's chain."""
    metadata: Mapping[str, str]
    violations: Mapping[str, str]
    retry_after: float | None
    trailing: Mapping[str, str | bytes]


def failure_of(error: grpc.RpcError) -> Failure:
    """What an error of a channel, stub or future tells."""
    info, bad_request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        retry_info = error_details_pb2.RetryInfo()
        detail.Unpack(info)
        detail.Unpack(bad_request)
        if detail.Unpack(retry_info):
            retry = retry_info.retry_delay.ToTimedelta().total_seconds()
    return Failure(
        code=error.code(),
        text=error.details() or "",
        domain=info.domain,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations={violation.field: violation.description for violation in bad_request.field_violations},
        retry_after=retry,
        trailing=dict(error.trailing_metadata() or ()),
    )


def fails(call: Callable[[], object]) -> Failure:
    """The failure of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return failure_of(caught.value)


def health_of(channel: grpc.Channel, service: str = "") -> int:
    """What the health service answers about a service, by default about all."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)
