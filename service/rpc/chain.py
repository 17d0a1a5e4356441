"""The chain of interceptors as grpc.aio sees it, and the one place where a gRPC call is aborted.

Requests arrive here as bytes: a message that cannot be decoded gets an answer like any other fault, after the caller
has been identified, instead of grpc's bare INTERNAL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import LeadkeepError, LeadValidationError, Violation
from service.rpc.call import Call, Handler, Interceptor, compose
from service.rpc.status import CallFailedError, failure_of_incident

SERVICE = pb.DESCRIPTOR.services_by_name["LeadService"]

PATIENCE = 30.0
"""Seconds for the call of a caller who sets no deadline: longer than any healthy answer takes, and short enough that
nobody waits for ever."""

ANSWER_MARGIN = 0.15
"""Seconds before the caller's deadline at which the service answers, so that the answer arrives in time even from a
busy process; never more than a tenth of the time that the caller gave."""

STATUS_DETAILS = "grpc-status-details-bin"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def chained(interceptors: Sequence[Interceptor], servicer: object) -> dict[str, Handler]:
    """Each method of the contract, by name, behind the chain. Every door takes its methods from here."""
    return {method.name: compose(interceptors, getattr(servicer, method.name)) for method in SERVICE.methods}


def answer_by(seconds: float | None) -> float:
    """When to answer, on the monotonic clock, given the seconds that the caller waits."""
    if seconds is None:
        return time.monotonic() + PATIENCE
    return time.monotonic() + seconds - min(ANSWER_MARGIN, seconds / 10)


def grpc_handler(methods: Mapping[str, Handler]) -> grpc.GenericRpcHandler:
    """The methods as a handler for grpc.aio."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: grpc.unary_unary_rpc_method_handler(_adapted(method, methods[method.name]))
        for method in SERVICE.methods
    }
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _adapted(method: MethodDescriptor, handle: Handler) -> Callable[[bytes, Any], Any]:
    request_class = message_factory.GetMessageClass(method.input_type)

    async def answer(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        request, fault = _decoded(request_class, raw)
        call = Call(
            rpc=method.name,
            door="grpc",
            peer=context.peer(),
            metadata=_metadata(context),
            deadline=answer_by(context.time_remaining()),
            fault=fault,
        )
        try:
            response = await handle(call, request)
            answered = response.SerializeToString()
        except CallFailedError as failed:
            failure = failed
        except Exception:  # noqa: BLE001 # grpc would send its text to the caller
            # The chain answers for everything behind it, so this is a fault of the chain itself.
            failure = failure_of_incident(call.id)
        else:
            context.set_trailing_metadata(_trailing(call))
            return answered
        details = (STATUS_DETAILS, failure.status.SerializeToString())
        await context.abort(_CODES[failure.status.code], failure.status.message, (*_trailing(call), details))
        raise AssertionError("abort returned")

    return answer


def _metadata(context: grpc.aio.ServicerContext[bytes, bytes]) -> dict[str, str]:
    """Text metadata; what comes twice is joined, as HTTP does, so that two tokens are none."""
    joined: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined


def _decoded(request_class: type[Message], raw: bytes) -> tuple[Message, LeadkeepError | None]:
    try:
        return request_class.FromString(raw), None
    except DecodeError:
        what = f"is not a {request_class.DESCRIPTOR.name}: damaged, or a text in it is not valid UTF-8"
        return request_class(), LeadValidationError([Violation("request", what)])


def _trailing(call: Call) -> tuple[tuple[str, str | bytes], ...]:
    return (*call.trailing.items(), ("leadkeep-retries", str(call.retries)))
