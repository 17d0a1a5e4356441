"""From an error to a status: one pure function, and the numbers that both doors need.

The texts and metadata of domain errors hold no field's value, so they may leave. Of any other error only an incident
id leaves.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from service.errors import LeadkeepError, LeadValidationError, Reason, RetryableError

DOMAIN = "leadkeep.v1"

CODES: dict[Reason, int] = {
    "LEAD_INVALID": code_pb2.INVALID_ARGUMENT,
    "DUPLICATE_PHONE": code_pb2.ALREADY_EXISTS,
    "DUPLICATE_NID": code_pb2.ALREADY_EXISTS,
    "REQUEST_ID_REUSED": code_pb2.ALREADY_EXISTS,
    "LEAD_NOT_FOUND": code_pb2.NOT_FOUND,
    "CONVERSATION_NOT_FOUND": code_pb2.NOT_FOUND,
    "CONFLICT_NOT_FOUND": code_pb2.NOT_FOUND,
    "LEAD_IN_CONFLICT": code_pb2.FAILED_PRECONDITION,
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
    "QUEUE_FULL": code_pb2.RESOURCE_EXHAUSTED,
    "DEADLINE_TOO_SHORT": code_pb2.DEADLINE_EXCEEDED,
    "STORAGE_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "KEYS_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "FIELD_UNREADABLE": code_pb2.DATA_LOSS,
    "INTERNAL": code_pb2.INTERNAL,
}


class CallFailedError(Exception):
    """A call that ends with this status; what a door shows to its caller."""

    def __init__(self, status: status_pb2.Status, reason: Reason, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def code_name(self) -> str:
        """The status code's name, such as `NOT_FOUND`."""
        name: str = code_pb2.Code.Name(self.status.code)
        return name


def failure_of(error: LeadkeepError) -> CallFailedError:
    """The status of a domain error, with all its details."""
    details: list[Message] = [_error_info(error.reason, error.metadata)]
    retry_after = None
    if isinstance(error, LeadValidationError):
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(field=violation.field, description=violation.description)
        details.append(bad_request)
    if isinstance(error, RetryableError):
        retry_after = error.retry_after
        delay = Duration()
        delay.FromNanoseconds(int(retry_after * 1_000_000_000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return CallFailedError(_status(error.reason, error.text, details), error.reason, retry_after)


def failure_of_incident(incident_id: str) -> CallFailedError:
    """The status of an error that nobody foresaw: an id to ask the operator about, and nothing more."""
    details = [_error_info("INTERNAL", {"incident_id": incident_id})]
    text = f"an unexpected error; tell the operator this incident id: {incident_id}"
    return CallFailedError(_status("INTERNAL", text, details), "INTERNAL")


def _error_info(reason: Reason, metadata: dict[str, str]) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _status(reason: Reason, text: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=CODES[reason], message=text)
    for detail in details:
        status.details.add().Pack(detail)
    return status
