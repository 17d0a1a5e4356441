"""Conversion between the contract's messages and the domain's types, without any other decision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.timestamp_pb2 import Timestamp
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import Violation, invalid
from service.lead import (
    CORRECTABLE_FIELDS,
    CUSTOMER_FIELDS,
    ConflictResolution,
    Lead,
    LeadEvent,
    LeadEventType,
    LeadGroup,
    LeadOrder,
    LeadStatus,
    Resubmission,
)
from service.scopes import MAX_SUBJECT_CHARACTERS
from service.storage.access.record import AccessFilter, RecordedAccess
from service.storage.leads.persons import MatchKind, Ref
from service.use_cases.confirmation import Confirmation
from service.use_cases.conflict_service import Conflict
from service.use_cases.person_service import FoundMatch, Part
from service.use_cases.summary_service import Summary
from service.validation.reference import reference_of

E = TypeVar("E", bound=Enum)

_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


def _reader(numbers: EnumTypeWrapper, members: type[E], unspecified: E | None = None) -> Callable[[int, str], E]:
    """Make the reader of an enum of the contract; `unspecified` is what its number 0 means, None: nothing."""
    names = numbers.keys()
    prefix = names[0].removesuffix("UNSPECIFIED")
    by_number = {numbers.Value(name): members[name.removeprefix(prefix)] for name in names[1:]}
    if unspecified is not None:
        by_number[0] = unspecified
    wanted = f"must be one of: {', '.join(name for name in names if numbers.Value(name) in by_number)}"

    def read(number: int, path: str) -> E:
        if number not in by_number:
            raise invalid(path, wanted)
        return by_number[number]

    return read


status_of = _reader(pb.LeadStatus, LeadStatus)
"""A status to set or to filter by. Raises LeadValidationError, as those below do."""

group_of = _reader(pb.LeadGroup, LeadGroup)
"""What leads are to be counted by."""

order_of = _reader(pb.LeadOrder, LeadOrder, LeadOrder.CREATED_DESC)
"""The order of a list."""

resolution_of = _reader(pb.ConflictResolution, ConflictResolution)
"""How a conflict is to be resolved."""

_NO_FILTERS = frozenset({"page_size", "page_token", "view", "order_by", "reveal"})
"""Fields of ListLeadsRequest; every other one is a filter."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEAD_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def lead_id_of(text: str, path: str) -> UUID:
    """A lead's id. Raises LeadValidationError."""
    if not _LEAD_ID.fullmatch(text):
        raise invalid(path, "is required: a lead's id, as CreateLead answered it")
    return UUID(text)


def customer_fields(lead: pb.Lead) -> dict[str, str]:
    """The customer fields of a submission, without those that are empty."""
    return {name: value for name in CUSTOMER_FIELDS if (value := getattr(lead, name))}


def corrected_fields(request: pb.UpdateLeadRequest) -> dict[str, str]:
    """The fields that an update sets, empty ones for removal (AIP-134). Raises LeadValidationError."""
    lead, paths = request.lead, list(request.update_mask.paths)
    if paths == ["*"]:
        paths = list(CORRECTABLE_FIELDS)
    elif not paths:
        paths = [name for name in CORRECTABLE_FIELDS if getattr(lead, name)]
        if not paths:
            raise invalid("update_mask", "names no field, and lead holds none to set")
    if not set(paths) <= set(CORRECTABLE_FIELDS):
        raise invalid("update_mask", f"may name only: {', '.join(CORRECTABLE_FIELDS)}")
    return {name: getattr(lead, name) for name in paths}


def expected_version_of(number: int) -> int:
    """The version that the caller has seen, 0 for any. Raises LeadValidationError."""
    if number < 0:
        raise invalid("expected_version", "must not be negative; 0 means any version")
    return number


def moment_of(
    request: pb.ListLeadsRequest | pb.ListAccessesRequest | pb.SummarizeLeadsRequest, name: str
) -> datetime | None:
    """The moment in a field of a request, None where it is not set. Raises LeadValidationError.

    Rounded up to microseconds, in which everything is dated: as much is at or after it, or before it, as of the moment.
    """
    if not request.HasField(name):
        return None
    sent: Timestamp = getattr(request, name)
    try:
        moment: datetime = sent.ToDatetime(tzinfo=UTC)
        if sent.nanos % 1000 and moment < _LAST_MOMENT:
            moment += timedelta.resolution
    except (ValueError, OverflowError):
        raise invalid(name, "is not a moment between the years 1 and 9999") from None
    return moment


def filters_of(request: pb.ListLeadsRequest) -> dict[str, Any]:
    """The filters that a request sets, by name. Raises LeadValidationError."""
    found: dict[str, Any] = {}
    for field, value in request.ListFields():
        if field.name == "statuses":
            found[field.name] = tuple(sorted({status_of(number, field.name) for number in value}))
        elif field.name not in _NO_FILTERS:
            found[field.name] = moment_of(request, field.name) if field.message_type is not None else value
    return found


def lead_message(lead: Lead) -> pb.Lead:
    """A lead, unmasked."""
    return pb.Lead(
        **lead.values(),
        id=str(lead.id),
        status=_status(lead.status),
        created_at=_timestamp(lead.created_at),
        updated_at=_timestamp(lead.updated_at),
        version=lead.version,
        assignee=lead.assignee,
        transcript_uri=lead.transcript_uri,
        resubmissions=lead.resubmissions,
        unreadable_fields=lead.unreadable_fields,
        reference=reference_of(lead.id),
        created_by=lead.created_by,
    )


def _submission_message(submission: Lead | Resubmission) -> pb.Lead:
    """What somebody submitted, without what the service made of it."""
    return pb.Lead(
        **submission.values(),
        transcript_uri=submission.transcript_uri,
        unreadable_fields=submission.unreadable_fields,
    )


def violation_messages(violations: Iterable[Violation]) -> list[pb.Violation]:
    """Violations, in the customer's words."""
    return [
        pb.Violation(field=each.field, reason=each.reason, text=each.localized.text if each.localized else None)
        for each in violations
    ]


def confirmation_message(confirmation: Confirmation) -> pb.Confirmation:
    """The confirmation for the customer."""
    return pb.Confirmation(
        text=confirmation.text,
        next_steps=confirmation.next_steps,
        reference=confirmation.reference,
        locale=confirmation.locale,
    )


def summary_message(summary: Summary, group: LeadGroup) -> pb.SummarizeLeadsResponse:
    """A summary by this group."""
    return pb.SummarizeLeadsResponse(
        groups=[
            pb.LeadCount(
                key=_status(LeadStatus(each.key)) if group is LeadGroup.STATUS else each.key,
                count=each.count,
                is_other=each.is_other,
            )
            for each in summary.groups
        ],
        total=summary.total,
    )


def status_change_messages(changes: Iterable[LeadEvent]) -> list[pb.StatusChange]:
    """A status history."""
    return [
        pb.StatusChange(
            from_status=_status(change.from_status),
            to_status=_status(change.to_status),
            actor=change.actor,
            reason=change.reason,
            changed_at=_timestamp(change.at),
            version=change.version,
        )
        for change in changes
    ]


def assignment_messages(changes: Iterable[LeadEvent]) -> list[pb.Assignment]:
    """An assignment history."""
    return [
        pb.Assignment(
            from_assignee=change.from_assignee,
            to_assignee=change.to_assignee,
            actor=change.actor,
            reason=change.reason,
            changed_at=_timestamp(change.at),
            version=change.version,
        )
        for change in changes
    ]


def event_messages(events: Iterable[LeadEvent]) -> list[pb.LeadEvent]:
    """A history. Accesses have numbers of their own, so theirs are marked."""
    return [
        pb.LeadEvent(
            id=f"access-{event.id}" if event.type is LeadEventType.REVEALED else str(event.id),
            type=f"LEAD_EVENT_TYPE_{event.type.name}",
            lead_id=str(event.lead_id),
            version=event.version,
            fields=event.fields,
            from_status=_status(event.from_status),
            to_status=_status(event.to_status),
            from_assignee=event.from_assignee,
            to_assignee=event.to_assignee,
            actor=event.actor,
            reason=event.reason,
            at=_timestamp(event.at),
        )
        for event in events
    ]


def resubmission_messages(resubmissions: Iterable[Resubmission]) -> list[pb.Resubmission]:
    """Refused duplicates, unmasked."""
    return [
        pb.Resubmission(
            lead=_submission_message(kept),
            submitted_at=_timestamp(kept.submitted_at),
            actor=kept.actor,
            verified=kept.verified,
        )
        for kept in resubmissions
    ]


def conflict_messages(conflicts: Iterable[Conflict]) -> list[pb.Conflict]:
    """Conflicts, unmasked."""
    return [
        pb.Conflict(
            id=str(conflict.sealed.id),
            submission=_submission_message(conflict.submission),
            leads=[lead_message(lead) for lead in conflict.leads],
            met_fields=conflict.sealed.met_fields,
            accepted_at=_timestamp(conflict.sealed.accepted_at),
            found_at=_timestamp(conflict.sealed.found_at),
            resolution=f"CONFLICT_RESOLUTION_{conflict.sealed.resolution.name}" if conflict.sealed.resolution else None,
            resolved_by=conflict.sealed.resolved_by,
            resolved_at=_timestamp(conflict.sealed.resolved_at) if conflict.sealed.resolved_at else None,
            reason=conflict.sealed.reason,
        )
        for conflict in conflicts
    ]


def access_filter(request: pb.ListAccessesRequest) -> AccessFilter:
    """Which accesses a caller wants listed. Raises LeadValidationError."""
    if len(request.subject) > MAX_SUBJECT_CHARACTERS or not request.subject.isprintable():
        raise invalid("subject", f"must be at most {MAX_SUBJECT_CHARACTERS} visible characters")
    return AccessFilter(
        lead_id=lead_id_of(request.lead_id, "lead_id") if request.lead_id else None,
        subject=request.subject or None,
        recorded_after=moment_of(request, "recorded_after"),
        recorded_before=moment_of(request, "recorded_before"),
    )


def access_messages(accesses: Iterable[RecordedAccess]) -> list[pb.Access]:
    """Entries of the access record."""
    return [
        pb.Access(
            lead_id=str(each.access.lead_id) if each.access.lead_id else "",
            subject=each.access.subject,
            operation=each.access.operation,
            fields=each.access.fields,
            reason=each.access.reason,
            request_id=each.access.request_id,
            recorded_at=_timestamp(each.recorded_at),
            chain_id=str(each.chain_id) if each.chain_id else "",
            number=each.number,
        )
        for each in accesses
    ]


def identifiers_of(request: pb.FindPersonRequest) -> dict[str, str]:
    """What a person is looked for by, by field."""
    return {name: value for name in ("phone", "nid", "email") if (value := getattr(request, name))}


def refs_of(refs: Iterable[pb.PersonRef]) -> list[Ref]:
    """Chosen matches. Raises LeadValidationError."""
    if not {int(ref.kind) for ref in refs} <= {*MatchKind}:
        raise invalid("refs.kind", f"must be one of: {', '.join(pb.PersonMatchKind.keys()[1:])}")
    return [Ref(MatchKind(ref.kind), lead_id_of(ref.id, "refs.id")) for ref in refs]


def ref_messages(refs: Iterable[Ref]) -> list[pb.PersonRef]:
    """Chosen matches."""
    return [pb.PersonRef(kind=_match_kind(ref.kind), id=str(ref.id)) for ref in refs]


def match_messages(found: Iterable[FoundMatch]) -> list[pb.PersonMatch]:
    """Matches, with their leads unmasked."""
    return [
        pb.PersonMatch(
            kind=_match_kind(each.match.kind),
            id=str(each.match.id),
            lead_id=str(each.match.lead_id) if each.match.lead_id else "",
            matched_fields=each.match.fields,
            lead=lead_message(each.lead) if each.lead else None,
        )
        for each in found
    ]


def record_message(part: Part) -> pb.PersonRecord:
    """A part of an export, unmasked."""
    [ref] = ref_messages([part.ref])
    why = "CHOSEN" if part.item.is_chosen else "SAME_PERSON"
    lead_id = str(part.item.lead_id) if part.item.lead_id else ""
    record = partial(pb.PersonRecord, ref=ref, part=f"PERSON_PART_{why}", id=str(part.item.id), lead_id=lead_id)
    match part.content:
        case Resubmission():
            return record(resubmission=resubmission_messages([part.content])[0])
        case Conflict():
            [conflict] = conflict_messages([part.content])
            conflict.leads.extend(pb.Lead(id=str(lead_id)) for lead_id in part.content.sealed.lead_ids)
            return record(conflict=conflict)
        case LeadEvent():
            return record(part=pb.PERSON_PART_HISTORY, event=event_messages([part.content])[0])
        case lead:
            return record(lead=lead_message(lead))


def _match_kind(kind: MatchKind) -> str:
    return f"PERSON_MATCH_KIND_{kind.name}"


def _status(status: LeadStatus | None) -> str | None:
    return f"LEAD_STATUS_{status.name}" if status else None


def _timestamp(moment: datetime) -> Timestamp:
    # What FromDatetime does for a moment with a time zone, in a third of its time.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)
