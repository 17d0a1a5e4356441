"""What each reason means to programs, and the gRPC status with its details.

The texts and metadata of domain errors hold no field's value, so they may leave the service. Of any other error only an
incident id leaves: the chain turns it into an InternalError.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import NamedTuple

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from service.errors import LeadkeepError, LeadValidationError, LocalizedText, Reason, RetryableError

DOMAIN = "leadkeep.v1"

PUSHBACK = "grpc-retry-pushback-ms"

_DUPLICATE = ("fields", "lead_id", "phone_lead_id", "nid_lead_id")


class ReasonRule(NamedTuple):
    """What a reason means to the caller's program."""

    code: int
    repeat: bool = False
    """Whether the same request, with the same request_id, may succeed later."""
    metadata: tuple[str, ...] = ()
    """The names of ErrorInfo's metadata, those that not every caller gets included."""


REASONS: dict[Reason, ReasonRule] = {
    "LEAD_INVALID": ReasonRule(code_pb2.INVALID_ARGUMENT),
    "DUPLICATE_PHONE": ReasonRule(code_pb2.ALREADY_EXISTS, metadata=_DUPLICATE),
    "DUPLICATE_NID": ReasonRule(code_pb2.ALREADY_EXISTS, metadata=_DUPLICATE),
    "REQUEST_ID_REUSED": ReasonRule(code_pb2.ALREADY_EXISTS),
    "LEAD_NOT_FOUND": ReasonRule(code_pb2.NOT_FOUND),
    "CONVERSATION_NOT_FOUND": ReasonRule(code_pb2.NOT_FOUND),
    "CONFLICT_NOT_FOUND": ReasonRule(code_pb2.NOT_FOUND),
    "LEAD_IN_CONFLICT": ReasonRule(code_pb2.FAILED_PRECONDITION, metadata=("conflict_id",)),
    "INDEX_INCOMPLETE": ReasonRule(code_pb2.FAILED_PRECONDITION),
    "CONFLICT_RESOLVED": ReasonRule(code_pb2.FAILED_PRECONDITION, metadata=("resolution",)),
    "VERSION_MISMATCH": ReasonRule(code_pb2.ABORTED, metadata=("current_version",)),
    "STATUS_TRANSITION": ReasonRule(code_pb2.FAILED_PRECONDITION, metadata=("from", "to")),
    "CORRECTION_CLOSED": ReasonRule(code_pb2.FAILED_PRECONDITION),
    "TOKEN_MISSING": ReasonRule(code_pb2.UNAUTHENTICATED),
    "TOKEN_INVALID": ReasonRule(code_pb2.UNAUTHENTICATED),
    "TOKEN_EXPIRED": ReasonRule(code_pb2.UNAUTHENTICATED),
    "SCOPE_MISSING": ReasonRule(code_pb2.PERMISSION_DENIED, metadata=("scope",)),
    "PAGE_TOKEN_INVALID": ReasonRule(code_pb2.INVALID_ARGUMENT),
    "REASON_REQUIRED": ReasonRule(code_pb2.INVALID_ARGUMENT, metadata=("purposes",)),
    "REASON_NOT_ACCEPTED": ReasonRule(code_pb2.INVALID_ARGUMENT, metadata=("purposes",)),
    "UNMASK_LIMIT": ReasonRule(code_pb2.RESOURCE_EXHAUSTED, repeat=True, metadata=("limit",)),
    "DUPLICATE_LIMIT": ReasonRule(code_pb2.RESOURCE_EXHAUSTED, repeat=True, metadata=("limit",)),
    "QUEUE_FULL": ReasonRule(code_pb2.RESOURCE_EXHAUSTED, repeat=True),
    "DEADLINE_TOO_SHORT": ReasonRule(code_pb2.DEADLINE_EXCEEDED, repeat=True),
    "QUERY_TIMEOUT": ReasonRule(code_pb2.DEADLINE_EXCEEDED),
    "STORAGE_UNAVAILABLE": ReasonRule(code_pb2.UNAVAILABLE, repeat=True),
    "SERVICE_STOPPING": ReasonRule(code_pb2.UNAVAILABLE, repeat=True),
    "KEYS_UNAVAILABLE": ReasonRule(code_pb2.UNAVAILABLE, repeat=True),
    "FIELD_UNREADABLE": ReasonRule(code_pb2.DATA_LOSS, metadata=("fields",)),
    "INTERNAL": ReasonRule(code_pb2.INTERNAL, metadata=("incident_id",)),
}
"""Every reason. `clients/policy/reasons.json` is generated from it (`make generate`)."""

CODES: dict[Reason, int] = {reason: rule.code for reason, rule in REASONS.items()}


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
