"""What happens when a lead is created, read, found, moved, corrected and assigned.

Every method takes the caller and answers only what that caller may see; a lead that the caller may not read does not
exist for it. Whether sensitive fields are shown unmasked is not decided here but once, at the door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote
from uuid import UUID

from service.access import Caller, Scope
from service.confirmation import Confirmation, ConfirmationService
from service.encryption import EncryptionService
from service.errors import (
    ConversationNotFoundError,
    DuplicateLeadError,
    FieldUnreadableError,
    LeadNotFoundError,
    LeadValidationError,
    RequestIdReusedError,
    ScopeMissingError,
    StatusTransitionError,
    VersionMismatchError,
    Violation,
)
from service.lead import (
    CUSTOMER_FIELDS,
    AssignmentChange,
    CustomerDetails,
    Lead,
    LeadStatus,
    Resubmission,
    SealedLead,
    SealedResubmission,
    SealedSubmission,
    StatusChange,
)
from service.page_token import make_page_token, read_page_token
from service.storage.repository import LeadRepository
from service.storage.requests import (
    AssignmentStep,
    Correction,
    DuplicateFoundError,
    LeadFilter,
    Position,
    StatusStep,
)
from service.storage.submissions import Created, Met, RequestIdReused
from service.validation import ValidationService

DEFAULT_PAGE = 50
LARGEST_PAGE = 100
"""A page of 100 is about what a person scrolls through, and one answer of bounded size."""


@dataclass(frozen=True, slots=True)
class CreatedLead:
    """An acknowledged lead and what to tell its customer."""

    lead: Lead
    confirmation: Confirmation


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What a caller wants listed, as it was asked; empty means any."""

    page_size: int = 0
    page_token: str = ""
    statuses: Sequence[LeadStatus] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    assignee: str = ""
    interested_policy: str = ""
    conversation_id: str = ""
    phone: str = field(default="", repr=False)
    nid: str = field(default="", repr=False)


class LeadService:
    """The use cases. Everything that it needs is handed in; it holds no state of its own."""

    def __init__(
        self,
        *,
        repository: LeadRepository,
        encryption: EncryptionService,
        validation: ValidationService,
        confirmation: ConfirmationService,
        sensitive_fields: Sequence[str],
        new_id: Callable[[], UUID],
        transcript_url: str | None = None,
    ) -> None:
        self._repository = repository
        self._encryption = encryption
        self._validation = validation
        self._confirmation = confirmation
        self._sensitive = tuple(sensitive_fields)
        self._new_id = new_id
        self._transcript_url = transcript_url

    async def create_lead(
        self, caller: Caller, fields: Mapping[str, str], *, request_id: str = "", locale: str = ""
    ) -> CreatedLead:
        """Store a new lead. Raises LeadValidationError, DuplicateLeadError, RequestIdReusedError."""
        details, request = self._validated(fields, request_id)
        submission = self._seal(details, caller, request)
        outcome = await self._repository.create(submission)
        match outcome:
            case Created(sealed):
                lead = self._open(sealed)
                confirmation = self._confirmation.confirm(
                    lead_id=lead.id,
                    name=lead.name,
                    locales=locale,
                    preferred_contact_time=lead.preferred_contact_time,
                )
                return CreatedLead(lead, confirmation)
            case RequestIdReused():
                raise RequestIdReusedError
            case Met():
                raise _duplicate(outcome, caller)

    async def get_lead(self, caller: Caller, lead_id: UUID) -> Lead:
        """One lead. Raises LeadNotFoundError, FieldUnreadableError."""
        return self._open(await self._readable(caller, lead_id))

    async def get_lead_by_conversation(self, caller: Caller, conversation_id: str) -> tuple[Lead, list[UUID]]:
        """The newest lead of a conversation and the ids of the others. Raises ConversationNotFoundError."""
        wanted = self._validation.conversation_id(conversation_id)
        if wanted is None:
            raise LeadValidationError([Violation("conversation_id", "is required")])
        newest, others = await self._repository.find_by_conversation(wanted, created_by=_own_only(caller))
        if newest is None:
            raise ConversationNotFoundError
        return self._open(newest), others

    async def list_leads(self, caller: Caller, query: ListQuery) -> tuple[list[Lead], str]:
        """One page of leads and the token of the next, empty on the last.

        A field that cannot be opened is left out and named in its lead, so that the others stay visible. Raises
        LeadValidationError, PageTokenInvalidError, ScopeMissingError.
        """
        if (query.phone or query.nid) and not caller.may(Scope.UNMASK):
            raise ScopeMissingError(Scope.UNMASK)
        if query.page_size < 0:
            raise LeadValidationError([Violation("page_size", "must not be negative")])
        wanted = self._filter(caller, query)
        identity = repr(wanted) + (wanted.phone_index or b"").hex() + "/" + (wanted.nid_index or b"").hex()
        sign = self._encryption.sign_page_token
        after = None
        if query.page_token:
            after = Position(*read_page_token(query.page_token, list_identity=identity, sign=sign))
        limit = min(query.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        found = await self._repository.list_leads(wanted, after=after, limit=limit + 1)
        page, more = found[:limit], len(found) > limit
        token = ""
        if more:
            token = make_page_token(page[-1].created_at, page[-1].id, list_identity=identity, sign=sign)
        return [self._open(sealed, flag_unreadable=True) for sealed in page], token

    async def update_status(
        self, caller: Caller, lead_id: UUID, to_status: LeadStatus, *, reason: str = "", expected_version: int = 0
    ) -> Lead:
        """Move a lead on. Raises LeadNotFoundError, VersionMismatchError, StatusTransitionError."""
        why = self._validation.reason(reason)

        def decide(current: SealedLead) -> StatusStep | None:
            if current.status is to_status:
                return None
            _require_version(current, expected_version)
            if to_status is LeadStatus.NEW:
                raise StatusTransitionError(current.status, to_status)
            return StatusStep(to_status=to_status, actor=caller.subject, reason=why)

        return self._open(await self._repository.change(lead_id, decide))

    async def assign_lead(
        self, caller: Caller, lead_id: UUID, assignee: str, *, reason: str = "", expected_version: int = 0
    ) -> Lead:
        """Give a lead to somebody, or to nobody. Raises LeadNotFoundError, VersionMismatchError."""
        to_assignee, why = self._validation.assignee(assignee), self._validation.reason(reason)

        def decide(current: SealedLead) -> AssignmentStep | None:
            if current.assignee == to_assignee:
                return None
            _require_version(current, expected_version)
            return AssignmentStep(to_assignee=to_assignee, actor=caller.subject, reason=why)

        return self._open(await self._repository.change(lead_id, decide))

    async def correct_lead(
        self, caller: Caller, lead_id: UUID, fields: Mapping[str, str], *, expected_version: int = 0
    ) -> Lead:
        """Set customer fields; an empty value removes an optional one.

        Raises LeadValidationError, LeadNotFoundError, VersionMismatchError, DuplicateLeadError.
        """
        accepted = self._validation.correction(fields)

        def decide(current: SealedLead) -> Correction | None:
            changed = {name: value for name, value in accepted.items() if value != self._value_of(current, name)}
            if not changed:
                return None
            _require_version(current, expected_version)
            return self._correction(lead_id, changed)

        try:
            return self._open(await self._repository.correct(lead_id, decide))
        except DuplicateFoundError as found:
            raise _duplicate(found.met, caller) from None

    async def status_changes(self, caller: Caller, lead_id: UUID) -> list[StatusChange]:
        """A lead's status history, oldest first. Raises LeadNotFoundError."""
        await self._readable(caller, lead_id)
        return await self._repository.status_changes(lead_id)

    async def assignments(self, caller: Caller, lead_id: UUID) -> list[AssignmentChange]:
        """A lead's assignment history, oldest first. Raises LeadNotFoundError."""
        await self._readable(caller, lead_id)
        return await self._repository.assignments(lead_id)

    async def resubmissions(self, caller: Caller, lead_id: UUID) -> list[Resubmission]:
        """What was refused as a duplicate of a lead, newest first. Raises LeadNotFoundError."""
        await self._readable(caller, lead_id)
        return [self._open_resubmission(sealed) for sealed in await self._repository.resubmissions(lead_id)]

    async def _readable(self, caller: Caller, lead_id: UUID) -> SealedLead:
        sealed = await self._repository.get(lead_id)
        if sealed is None or not caller.may_read_lead_created_by(sealed.created_by):
            raise LeadNotFoundError
        return sealed

    def _validated(self, fields: Mapping[str, str], request_id: str) -> tuple[CustomerDetails, str | None]:
        violations: list[Violation] = []
        details = request = None
        try:
            details = self._validation.submission(fields)
        except LeadValidationError as error:
            violations += error.violations
        try:
            request = self._validation.request_id(request_id)
        except LeadValidationError as error:
            violations += error.violations
        if details is None or violations:
            raise LeadValidationError(violations)
        return details, request

    def _seal(self, details: CustomerDetails, caller: Caller, request_id: str | None) -> SealedSubmission:
        lead_id = self._new_id()
        values: dict[str, str | None] = {name: getattr(details, name) for name in CUSTOMER_FIELDS}
        sealed = {
            name: self._encryption.seal(lead_id, name, value)
            for name in self._sensitive
            if (value := values[name]) is not None
        }
        return SealedSubmission(
            id=lead_id,
            name=details.name,
            interested_policy=details.interested_policy,
            preferred_contact_time=details.preferred_contact_time,
            conversation_id=details.conversation_id,
            created_by=caller.subject,
            request_id=request_id,
            content_digest=self._encryption.content_digest(values.values()),
            phone_index=self._encryption.blind_index("phone", details.phone),
            nid_index=self._nid_index(details.nid),
            sealed=sealed,
        )

    def _nid_index(self, nid: str) -> bytes:
        return self._encryption.blind_index("nid", self._validation.nid_identity(nid))

    def _correction(self, lead_id: UUID, changed: Mapping[str, str | None]) -> Correction:
        columns: dict[str, str | bytes | None] = {}
        for name, value in changed.items():
            is_sealed = name in self._sensitive and value is not None
            columns[name] = self._encryption.seal(lead_id, name, value or "") if is_sealed else value
        if phone := changed.get("phone"):
            columns["phone_index"] = self._encryption.blind_index("phone", phone)
        if nid := changed.get("nid"):
            columns["nid_index"] = self._nid_index(nid)
        return Correction(columns=columns)

    def _value_of(self, sealed: SealedLead, name: str) -> str | None:
        """The present value of a customer field; a correction also mends a field that cannot be opened."""
        if name not in self._sensitive:
            value: str | None = getattr(sealed, name)
            return value
        return self._open_fields(sealed.id, sealed.sealed)[0].get(name)

    def _filter(self, caller: Caller, query: ListQuery) -> LeadFilter:
        violations: list[Violation] = []

        def checked(check: Callable[[str], str | None], value: str) -> str | None:
            try:
                return check(value) if value else None
            except LeadValidationError as error:
                violations.extend(error.violations)
                return None

        phone = checked(self._validation.phone_key, query.phone)
        nid = checked(self._validation.nid_key, query.nid)
        wanted = LeadFilter(
            statuses=tuple(sorted(set(query.statuses))),
            created_after=query.created_after,
            created_before=query.created_before,
            assignee=checked(self._validation.assignee, query.assignee),
            interested_policy=checked(self._validation.policy_key, query.interested_policy),
            conversation_id=checked(self._validation.conversation_id, query.conversation_id),
            phone_index=self._encryption.blind_index("phone", phone) if phone else None,
            nid_index=self._nid_index(nid) if nid else None,
            created_by=_own_only(caller),
        )
        if violations:
            raise LeadValidationError(violations)
        return wanted

    def _open_fields(
        self, sealed_for: UUID, tokens: Mapping[str, str]
    ) -> tuple[dict[str, str | None], tuple[str, ...]]:
        values: dict[str, str | None] = dict.fromkeys(self._sensitive)
        unreadable: list[str] = []
        for name, token in tokens.items():
            try:
                values[name] = self._encryption.open(sealed_for, name, token)
            except FieldUnreadableError:
                unreadable.append(name)
        return values, tuple(unreadable)

    def _open(self, sealed: SealedLead, *, flag_unreadable: bool = False) -> Lead:
        """A lead in clear. Raises FieldUnreadableError unless such fields are to be left out and named."""
        values, unreadable = self._open_fields(sealed.id, sealed.sealed)
        if unreadable and not flag_unreadable:
            raise FieldUnreadableError(unreadable)
        return Lead(
            id=sealed.id,
            name=sealed.name,
            interested_policy=sealed.interested_policy,
            preferred_contact_time=sealed.preferred_contact_time,
            conversation_id=sealed.conversation_id,
            status=sealed.status,
            created_at=sealed.created_at,
            updated_at=sealed.updated_at,
            version=sealed.version,
            assignee=sealed.assignee,
            transcript_uri=self._transcript_uri(sealed.conversation_id),
            resubmissions=sealed.resubmissions,
            unreadable_fields=unreadable,
            **values,
        )

    def _open_resubmission(self, sealed: SealedResubmission) -> Resubmission:
        values, unreadable = self._open_fields(sealed.submission_id, sealed.sealed)
        return Resubmission(
            name=sealed.name,
            interested_policy=sealed.interested_policy,
            preferred_contact_time=sealed.preferred_contact_time,
            conversation_id=sealed.conversation_id,
            transcript_uri=self._transcript_uri(sealed.conversation_id),
            submitted_at=sealed.submitted_at,
            actor=sealed.actor,
            verified=sealed.verified,
            unreadable_fields=unreadable,
            **values,
        )

    def _transcript_uri(self, conversation_id: str | None) -> str | None:
        if self._transcript_url is None or conversation_id is None:
            return None
        return self._transcript_url.replace("{conversation_id}", quote(conversation_id, safe=""))


def _own_only(caller: Caller) -> str | None:
    """The subject whose leads alone the caller may read; None for a caller who may read all."""
    return None if caller.may(Scope.READ) else caller.subject


def _require_version(current: SealedLead, expected_version: int) -> None:
    if expected_version and expected_version != current.version:
        raise VersionMismatchError(current.version)


def _duplicate(met: Met, caller: Caller) -> DuplicateLeadError:
    return DuplicateLeadError(
        phone_lead_id=met.phone.id if met.phone else None,
        nid_lead_id=met.nid.id if met.nid else None,
        visible=frozenset(lead.id for lead in met.leads if caller.may_read_lead_created_by(lead.created_by)),
    )
