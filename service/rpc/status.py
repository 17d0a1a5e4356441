"""The status code of each error, and the gRPC status with its details.

The texts and metadata of domain errors hold no field's value, so they may leave the service. Of any other error only an
incident id leaves: the chain turns it into an InternalError.
"""

from __future__ import annotations

import math
from datetime import timedelta

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from service.errors import LeadkeepError, LeadValidationError, LocalizedText, Reason, RetryableError

DOMAIN = "leadkeep.v1"

PUSHBACK = "grpc-retry-pushback-ms"

CODES: dict[Reason, int] = {
    "LEAD_INVALID": code_pb2.INVALID_ARGUMENT,
    "DUPLICATE_PHONE": code_pb2.ALREADY_EXISTS,
    "DUPLICATE_NID": code_pb2.ALREADY_EXISTS,
    "REQUEST_ID_REUSED": code_pb2.ALREADY_EXISTS,
    "LEAD_NOT_FOUND": code_pb2.NOT_FOUND,
    "CONVERSATION_NOT_FOUND": code_pb2.NOT_FOUND,
    "CONFLICT_NOT_FOUND": code_pb2.NOT_FOUND,
    "LEAD_IN_CONFLICT": code_pb2.FAILED_PRECONDITION,
    "INDEX_INCOMPLETE": code_pb2.FAILED_PRECONDITION,
    "CONFLICT_RESOLVED": code_pb2.FAILED_PRECONDITION,
    "VERSION_MISMATCH": code_pb2.ABORTED,
    "STATUS_TRANSITION": code_pb2.FAILED_PRECONDITION,
    "TOKEN_MISSING": code_pb2.UNAUTHENTICATED,
    "TOKEN_INVALID": code_pb2.UNAUTHENTICATED,
    "TOKEN_EXPIRED": code_pb2.UNAUTHENTICATED,
    "SCOPE_MISSING": code_pb2.PERMISSION_DENIED,
    "PAGE_TOKEN_INVALID": code_pb2.INVALID_ARGUMENT,
    "REASON_REQUIRED": code_pb2.INVALID_ARGUMENT,
    "UNMASK_LIMIT": code_pb2.RESOURCE_EXHAUSTED,
    "DUPLICATE_LIMIT": code_pb2.RESOURCE_EXHAUSTED,
    "QUEUE_FULL": code_pb2.RESOURCE_EXHAUSTED,
    "DEADLINE_TOO_SHORT": code_pb2.DEADLINE_EXCEEDED,
    "QUERY_TIMEOUT": code_pb2.DEADLINE_EXCEEDED,
    "STORAGE_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "SERVICE_STOPPING": code_pb2.UNAVAILABLE,
    "KEYS_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "FIELD_UNREADABLE": code_pb2.DATA_LOSS,
    "INTERNAL": code_pb2.INTERNAL,
}


def status_of(error: LeadkeepError) -> status_pb2.Status:
    """The status of an error, with all its details."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if isinstance(error, LeadValidationError):
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(
                field=violation.field,
                description=violation.description,
                reason=violation.reason,
                localized_message=violation.localized and _localized_message(violation.localized),
            )
        details.append(bad_request)
    if isinstance(error, RetryableError):
        details.append(error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=error.retry_after)))
    if error.localized is not None:
        details.append(_localized_message(error.localized))
    status = status_pb2.Status(code=CODES[error.reason], message=error.text)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _localized_message(words: LocalizedText) -> error_details_pb2.LocalizedMessage:
    return error_details_pb2.LocalizedMessage(locale=words.locale, message=words.text)


def pushback(error: LeadkeepError, seconds_left: float) -> dict[str, str]:
    """Trailing metadata that tells gRPC libraries when to retry a call by themselves (gRFC A6); none without RetryInfo.

    It replaces their own backoff. -1 forbids the retry: it is not wanted, or would begin after the caller's deadline,
    `seconds_left` from now.
    """
    if not isinstance(error, RetryableError):
        return {}
    fits = error.retry_within_call and error.retry_after < seconds_left
    return {PUSHBACK: str(math.ceil(error.retry_after * 1000) if fits else -1)}
