"""The errors of the domain.

Every error's text is fixed or built from names, never from a field's value: it may be shown to any caller and
written to any log. `reason` is the stable word for programs (google.rpc.ErrorInfo); `rpc/status.py` gives each
error its status.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Reason = Literal[
    "LEAD_INVALID",
    "DUPLICATE_PHONE",
    "DUPLICATE_NID",
    "REQUEST_ID_REUSED",
    "LEAD_NOT_FOUND",
    "CONVERSATION_NOT_FOUND",
    "CONFLICT_NOT_FOUND",
    "LEAD_IN_CONFLICT",
    "INDEX_INCOMPLETE",
    "CONFLICT_RESOLVED",
    "VERSION_MISMATCH",
    "STATUS_TRANSITION",
    "CORRECTION_CLOSED",
    "TOKEN_MISSING",
    "TOKEN_INVALID",
    "TOKEN_EXPIRED",
    "SCOPE_MISSING",
    "PAGE_TOKEN_INVALID",
    "REASON_REQUIRED",
    "REASON_NOT_ACCEPTED",
    "QUEUE_FULL",
    "UNMASK_LIMIT",
    "DUPLICATE_LIMIT",
    "DEADLINE_TOO_SHORT",
    "QUERY_TIMEOUT",
    "STORAGE_UNAVAILABLE",
    "SERVICE_STOPPING",
    "KEYS_UNAVAILABLE",
    "FIELD_UNREADABLE",
    "INTERNAL",
]
"""The stable, machine-readable reasons of the contract."""

ViolationReason = Literal[
    "INVALID",
    "REQUIRED",
    "MASKED",
    "PLACEHOLDER",
    "REWRITTEN",
    "TOO_LONG",
    "WRONG_LENGTH",
    "INVALID_CHARACTERS",
    "NO_COUNTRY_CODE",
    "AMBIGUOUS",
    "UNKNOWN_NUMBER",
    "MORE_THAN_ONE",
    "NOT_AN_EMAIL",
    "NOT_ON_OFFER",
]
"""The stable, machine-readable reasons of violations; INVALID: any other fault, mostly of the calling program."""


@dataclass(frozen=True, slots=True)
class LocalizedText:
    """Words for a customer, and their locale. None in place of it: the call was not for a customer."""

    text: str
    locale: str


class LeadkeepError(Exception):
    """The root of every error that the domain raises on purpose. `text` is the class's own, or the given one."""

    reason: Reason
    text: str
    localized: LocalizedText | None = None

    def __init_subclass__(cls, *, reason: Reason | None = None, text: str = "") -> None:
        if reason is not None:
            cls.reason, cls.text = reason, text

    def __init__(self, text: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        self.text = text or self.text
        super().__init__(self.text)
        self.metadata: dict[str, str] = dict(metadata or {})


class RetryableError(LeadkeepError):
    """The same call may succeed later."""

    retry_after: float
    """Seconds before it."""

    def __init__(
        self,
        retry_after: float | None = None,
        text: str | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        retry_within_call: bool = True,
    ) -> None:
        super().__init__(text, metadata)
        self.retry_after = retry_after or self.retry_after
        self.retry_within_call = retry_within_call
        """Whether a gRPC library should retry it by itself, before the caller's deadline."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of one field: its path in the request (`lead.phone`) and what to do about it."""

    field: str
    description: str
    reason: ViolationReason = "INVALID"
    localized: LocalizedText | None = None


class LeadValidationError(LeadkeepError, reason="LEAD_INVALID"):
    """The request holds fields that are not accepted; `violations` names all of them at once."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        fields = ", ".join(dict.fromkeys(violation.field for violation in self.violations))
        super().__init__(f"the request is not valid, see the violations of: {fields}")


def invalid(field: str, description: str, reason: ViolationReason = "INVALID") -> LeadValidationError:
    """The error about one fault of one field."""
    return LeadValidationError([Violation(field, description, reason)])


class TooManyMatchesError(LeadValidationError):
    """More leads match a filter than are fetched to be sorted."""

    def __init__(self, filters: Sequence[str], limit: int) -> None:
        wanted = f"matches more than {limit:,} leads: set more filters, such as created_after and created_before"
        super().__init__([Violation(name, wanted) for name in filters])


class DuplicateLeadError(LeadkeepError):
    """The submission matches an existing lead by phone, by nid, or by both (perhaps two different leads)."""

    def __init__(self, *, phone_lead_id: UUID | None, nid_lead_id: UUID | None, visible: frozenset[UUID]) -> None:
        """`visible` holds the ids of the matched leads that the caller may read; other ids are left out."""
        found = (("phone", phone_lead_id), ("nid", nid_lead_id))
        matched = {name: lead_id for name, lead_id in found if lead_id is not None}
        metadata = {"fields": ",".join(matched)}
        for name, lead_id in matched.items():
            if lead_id in visible:
                metadata.setdefault("lead_id", str(lead_id))
                metadata[f"{name}_lead_id"] = str(lead_id)
        super().__init__(f"a lead with this {' and this '.join(matched)} exists already", metadata)
        self.reason = "DUPLICATE_PHONE" if "phone" in matched else "DUPLICATE_NID"
        # For the access record; none of it is shown.
        self.matched = {
            lead_id: tuple(name for name in matched if matched[name] == lead_id) for lead_id in matched.values()
        }


class RequestIdReusedError(
    LeadkeepError,
    reason="REQUEST_ID_REUSED",
    text="this request_id was used before with other content; use a new one for a new submission",
):
    """The subject used this request_id before, for other content; the first result stays."""


class LeadNotFoundError(
    LeadkeepError, reason="LEAD_NOT_FOUND", text="there is no lead with this id, or it is not yours to read"
):
    """There is no lead with this id that the caller may read."""


class ConversationNotFoundError(
    LeadkeepError,
    reason="CONVERSATION_NOT_FOUND",
    text="no lead is linked to this conversation, or it is not yours to read",
):
    """No lead that the caller may read is linked to this conversation."""


class LeadInConflictError(LeadkeepError, reason="LEAD_IN_CONFLICT"):
    """The id was acknowledged while the database was away, and the submission matched a lead when it was drained."""

    def __init__(self, conflict_id: UUID) -> None:
        super().__init__(
            "this submission met an existing lead after it was acknowledged; it is kept, and a person decides what "
            "becomes of it (ResolveConflict)",
            {"conflict_id": str(conflict_id)},
        )


class IndexIncompleteError(
    LeadkeepError,
    reason="INDEX_INCOMPLETE",
    text="not everything can be found by this search yet: the operator runs 'leadkeep keys reseal'; then ask again",
):
    """What was stored before there was a search cannot be found by it yet, so that its answer would be incomplete."""


class ConflictNotFoundError(
    LeadkeepError,
    reason="CONFLICT_NOT_FOUND",
    text="there is no conflict with this id; ListConflicts names those that wait",
):
    """There is no conflict with this id."""


class ConflictResolvedError(LeadkeepError, reason="CONFLICT_RESOLVED"):
    """The conflict was decided before, in another way; the first decision stays."""

    def __init__(self, resolution: str) -> None:
        super().__init__(f"this conflict was resolved before, as {resolution}", {"resolution": resolution})


class VersionMismatchError(LeadkeepError, reason="VERSION_MISMATCH"):
    """The lead was changed since the caller read it."""

    def __init__(self, current_version: int) -> None:
        super().__init__(
            f"the lead is at version {current_version}; read it again and repeat with that expected_version",
            {"current_version": str(current_version)},
        )


class StatusTransitionError(LeadkeepError, reason="STATUS_TRANSITION"):
    """The status cannot be changed in this way: nothing goes back to NEW."""

    def __init__(self, from_status: str, to_status: str) -> None:
        super().__init__(
            f"a lead that is {from_status} cannot become {to_status}", {"from": from_status, "to": to_status}
        )


class CorrectionClosedError(
    LeadkeepError,
    reason="CORRECTION_CLOSED",
    text="who created this lead can correct it no longer: a day is over, its status is not NEW, or somebody else has "
    "changed it",
):
    """Who created the lead may correct it no longer."""


class TokenMissingError(
    LeadkeepError, reason="TOKEN_MISSING", text="send a token: metadata or header 'authorization: Bearer TOKEN'"
):
    """The call carries no bearer token."""


class TokenInvalidError(LeadkeepError, reason="TOKEN_INVALID", text="the token is not valid here"):
    """The token is not one that this service accepts."""


class TokenExpiredError(LeadkeepError, reason="TOKEN_EXPIRED", text="the token has expired; get a new one"):
    """The token's time is over."""


class ScopeMissingError(LeadkeepError, reason="SCOPE_MISSING"):
    """The token does not allow this call."""

    def __init__(self, needed: str) -> None:
        super().__init__(f"the token lacks the scope {needed}", {"scope": needed})


class PageTokenInvalidError(
    LeadkeepError,
    reason="PAGE_TOKEN_INVALID",
    text="this page_token belongs to another list or filter; start again without one",
):
    """The page token was not made by this service for this filter."""


class ReasonRequiredError(
    LeadkeepError,
    reason="REASON_REQUIRED",
    text="say why: metadata or header 'leadkeep-reason', or --reason of a command",
):
    """Values are shown unmasked only with a reason, and this caller gave none."""

    def __init__(self, purposes: Sequence[str] = ()) -> None:
        super().__init__(metadata={"purposes": ",".join(purposes)} if purposes else None)


class ReasonNotAcceptedError(LeadkeepError, reason="REASON_NOT_ACCEPTED"):
    """The reason is none of those for which the operator lets values be shown."""

    def __init__(self, purposes: Sequence[str]) -> None:
        super().__init__(
            f"the reason must be one of these words, or begin with it as in 'WORD: text': {', '.join(purposes)}",
            {"purposes": ",".join(purposes)},
        )


class UnmaskLimitError(RetryableError, reason="UNMASK_LIMIT"):
    """The subject was shown as many leads unmasked within an hour as it may be; this answer would go beyond."""

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(
            retry_after,
            f"within an hour at most {limit} leads are shown unmasked to one subject, and this answer would go beyond; "
            "ask for fewer, ask masked, or come again later",
            {"limit": str(limit)},
        )


class DuplicateLimitError(RetryableError, reason="DUPLICATE_LIMIT"):
    """The subject found as many duplicates within an hour as it may; nothing was looked up, and nothing is kept."""

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(
            retry_after,
            f"within an hour one subject finds at most {limit} duplicates; nothing was stored, come again later",
            {"limit": str(limit)},
            retry_within_call=False,
        )


class QueueFullError(
    RetryableError, reason="QUEUE_FULL", text="the service is at its limit of concurrent calls; try again shortly"
):
    """The service has as much work in hand as it accepts."""

    def __init__(self, retry_after: float | None = None) -> None:
        # gRPC libraries wait exactly as long, in place of their own jittered backoff: not all may come back at once.
        super().__init__(retry_after or random.uniform(0.5, 1.5))  # noqa: S311 # no secret


class DeadlineTooShortError(
    LeadkeepError,
    reason="DEADLINE_TOO_SHORT",
    text="the deadline is over before the outcome is known; repeat with the same request_id and more time",
):
    """The caller's deadline leaves no time for an answer; what was begun may still complete."""


class QueryTimeoutError(
    LeadkeepError,
    reason="QUERY_TIMEOUT",
    text="the database takes too long to find this; ask for less: a shorter span, or another filter",
):
    """The database takes longer to find the answer than it may for one call."""


class StorageUnavailableError(
    RetryableError,
    reason="STORAGE_UNAVAILABLE",
    text="the storage is not available now; nothing was confirmed, try again",
):
    """The database cannot be reached, or cannot make anything durable now."""

    retry_after = 2.0


class ServiceStoppingError(
    RetryableError,
    reason="SERVICE_STOPPING",
    text="the service is stopping; repeat, with the same request_id, and another replica or the next process answers",
):
    """The service ends: it takes no new calls, and what it has begun it can no longer wait for."""

    retry_after = 0.5


class KeysUnavailableError(
    RetryableError,
    reason="KEYS_UNAVAILABLE",
    text="tokens cannot be verified now: their issuer's keys cannot be fetched; try again",
):
    """The issuer's public keys are not known yet and cannot be fetched now, so no token can be verified."""

    retry_after = 5.0


class FieldUnreadableError(LeadkeepError, reason="FIELD_UNREADABLE"):
    """A sealed field cannot be opened: wrong key, damage, or a token that belongs to another lead or field."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__(
            f"stored fields cannot be opened: {', '.join(fields)}; tell the operator",
            {"fields": ",".join(fields)},
        )


class InternalError(LeadkeepError, reason="INTERNAL"):
    """An unforeseen failure: its caller gets an incident id to ask the operator about, and nothing more."""

    def __init__(self, incident_id: str) -> None:
        super().__init__(
            f"an unexpected error; tell the operator this incident id: {incident_id}", {"incident_id": incident_id}
        )


class StartRefusedError(Exception):
    """The service must not start like this; the text tells the operator what to do."""
