"""The use cases of leads: create, validate, read, list, change the status, correct, assign, and show their history.

Every method takes the caller and answers only what that caller may see; a lead that the caller may not read does not
exist for it. Whether sensitive fields are shown unmasked is decided once, in the interceptor rpc/unmasking.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from service.errors import (
    CorrectionClosedError,
    LeadNotFoundError,
    RequestIdReusedError,
    ScopeMissingError,
    StatusTransitionError,
    VersionMismatchError,
    invalid,
)
from service.lead import (
    SENSITIVE_FIELDS,
    Lead,
    LeadEvent,
    LeadEventType,
    LeadOrder,
    LeadStatus,
    Resubmission,
    SealedLead,
)
from service.lead_sealer import LeadSealer
from service.scopes import Caller, Scope
from service.storage.leads.changes import Correction, LeadHistory, Place, Step
from service.storage.leads.decision import (
    Aliased,
    Created,
    Delayed,
    DuplicateMatch,
    Erased,
    InConflict,
    RequestIdReused,
)
from service.storage.leads.queries import Filters
from service.storage.leads.repository import LeadRepository
from service.use_cases.confirmation import Confirmation, ConfirmationService
from service.use_cases.page_token import Tags, read_page
from service.validation import Faults, ValidationService

DEFAULT_RESUBMISSIONS = 20
"""Resubmissions of a page when the caller names no size."""


@dataclass(frozen=True, slots=True)
class CreatedLead:
    """An acknowledged lead and the confirmation for its customer."""

    lead: Lead
    confirmation: Confirmation
    delayed: bool
    """Whether it waits in the spool and reaches the database later."""
    ignored: tuple[str, ...]
    """The optional fields that could not be read and were left out."""
    is_repeat: bool
    """Whether an earlier submission is acknowledged once more."""


class LeadService:
    """The use cases. Everything that it needs is handed in; it holds no state of its own."""

    def __init__(
        self,
        *,
        repository: LeadRepository,
        history: LeadHistory,
        sealer: LeadSealer,
        validation: ValidationService,
        confirmation: ConfirmationService,
        page_token_tags: Tags,
        new_id: Callable[[], UUID],
    ) -> None:
        self._repository = repository
        self._history = history
        self._sealer = sealer
        self._validation = validation
        self._confirmation = confirmation
        self._page_token_tags = page_token_tags
        self._new_id = new_id
        self._sought: Mapping[str, Callable[[str], object]] = {
            "phone": partial(sealer.identifier_indexes, "phone"),
            "nid": partial(sealer.identifier_indexes, "nid"),
            "email": sealer.email_indexes,
            "conversation_id": lambda talk: (talk, sealer.conversation_indexes(talk)),
        }

    async def create_lead(
        self,
        caller: Caller,
        fields: Mapping[str, str],
        *,
        request_id: str = "",
        locale: str = "",
        phone_region: str = "",
    ) -> CreatedLead:
        """Make a new lead durable; `phone_region` stands in for the default region.

        Raises LeadValidationError, DuplicateLeadError, RequestIdReusedError, StorageUnavailableError.
        """
        details, ignored, request = self._validation.submission(
            fields, request_id=request_id, phone_region=phone_region
        )
        lead_id = self._new_id()
        seal = partial(self._sealer.seal, lead_id, details, created_by=caller.subject, request_id=request)
        outcome = await self._repository.create(seal)
        # The fields of a new lead need not be opened to be known.
        acknowledged = partial(self._sealer.acknowledged, entered=details, created_by=caller.subject)
        delayed = False
        match outcome:
            case Created(sealed, is_new):
                lead = acknowledged(sealed.id, accepted_at=sealed.created_at) if is_new else self._sealer.open(sealed)
            case Delayed(delayed_id, accepted_at, decided):
                lead, delayed = acknowledged(delayed_id, accepted_at=accepted_at), not decided
            case Erased(created_at):
                # Stored by an attempt whose answer was lost, and erased before this one. An error would be repeated,
                # and the repeat would bring the person back.
                lead = acknowledged(lead_id, accepted_at=created_at)
            case RequestIdReused():
                raise RequestIdReusedError
            case DuplicateMatch():
                raise outcome.error(caller.may_read_lead_created_by)
            case Aliased() | InConflict():
                raise AssertionError("only what was acknowledged before becomes an alias or a conflict")
        confirmation = self._confirmation.confirm(
            lead_id=lead.id,
            name=lead.name,
            locales=locale,
            preferred_contact_time=lead.preferred_contact_time,
            delayed=delayed,
        )
        return CreatedLead(lead, confirmation, delayed, ignored, is_repeat=lead.id != lead_id)

    def validate_lead(self, fields: Mapping[str, str], *, locale: str = "", phone_region: str = "") -> Faults:
        """What `create_lead` would refuse of these fields, in words for the customer, and what it would leave out."""
        violations, ignored = self._validation.faults(fields, phone_region=phone_region)
        return Faults(self._confirmation.explained(violations, locale), ignored)

    async def get_lead(self, caller: Caller, lead_id: UUID, *, hidden: Collection[str] = ()) -> Lead:
        """One lead; `hidden` fields are not opened. Raises LeadNotFoundError, FieldUnreadableError."""
        lead = await self._repository.get(lead_id, caller.may_read_lead_created_by)
        return self._sealer.open(lead, hidden=hidden)

    async def get_lead_by_conversation(
        self, caller: Caller, conversation_id: str, *, hidden: Collection[str] = ()
    ) -> tuple[Lead, list[UUID]]:
        """The newest lead of a conversation and the ids of the others; `hidden` fields are not opened.

        Raises ConversationNotFoundError, FieldUnreadableError.
        """
        wanted = self._validation.text("conversation_id", conversation_id)
        if wanted is None:
            raise invalid("conversation_id", "is required", "REQUIRED")
        indexes = self._sealer.conversation_indexes(wanted)
        newest, others = await self._repository.find_by_conversation(wanted, indexes, created_by=caller.own_only)
        return self._sealer.open(newest, hidden=hidden), others

    async def list_leads(
        self,
        caller: Caller,
        filters: Filters,
        *,
        order: LeadOrder,
        page_size: int,
        page_token: str,
        hidden: Collection[str],
    ) -> tuple[list[Lead], str]:
        """One page of leads and the token of the next, empty on the last.

        `filters` as the caller sent them. `hidden` fields are not opened; a field that cannot be opened is named in its
        lead. Raises LeadValidationError, PageTokenInvalidError, TooManyMatchesError, IndexIncompleteError,
        QueryTimeoutError, and, of a reference that no lead has, StorageUnavailableError and LeadInConflictError.
        """
        wanted = self._validation.filters(filters)
        if caller.own_only is not None:
            wanted["reader"] = caller.own_only
        sought = {name: self._sought[name](value) if name in self._sought else value for name, value in wanted.items()}

        page, token = await read_page(
            partial(self._repository.list_leads, sought, order),
            lambda row: (row[0], row[1].id),
            UUID,
            size=page_size,
            token=page_token,
            # A token holds a keyed digest of it only. Not the blind indexes: those change while a caller leafs through.
            list_identity=f"leads/{order.name}/{sorted(wanted.items())!r}",
            tags=self._page_token_tags,
        )
        return [self._sealer.open(sealed, hidden=hidden, flag_unreadable=True) for _, sealed in page], token

    async def update_status(
        self,
        caller: Caller,
        lead_id: UUID,
        to_status: LeadStatus,
        *,
        reason: str = "",
        expected_version: int = 0,
        hidden: Collection[str] = (),
    ) -> Lead:
        """Change a lead's status; `hidden` fields are not opened.

        Raises LeadNotFoundError, VersionMismatchError, StatusTransitionError, FieldUnreadableError.
        """
        why = self._validation.text("reason", reason)

        def decide(current: SealedLead) -> Step | None:
            if current.status is to_status:
                return None
            _require_version(current, expected_version)
            if to_status is LeadStatus.NEW:
                raise StatusTransitionError(current.status, to_status)
            return Step(column="status", to=to_status.value, actor=caller.subject, reason=why)

        moved = await self._repository.change(lead_id, decide, caller.may_read_lead_created_by)
        return self._sealer.open(moved, hidden=hidden)

    async def assign_lead(
        self,
        caller: Caller,
        lead_id: UUID,
        assignee: str,
        *,
        reason: str = "",
        expected_version: int = 0,
        hidden: Collection[str] = (),
    ) -> Lead:
        """Assign a lead to somebody, or to nobody; `hidden` fields are not opened.

        Raises LeadNotFoundError, VersionMismatchError, FieldUnreadableError.
        """
        to_assignee, why = self._validation.text("assignee", assignee), self._validation.text("reason", reason)

        def decide(current: SealedLead) -> Step | None:
            if current.assignee == to_assignee:
                return None
            _require_version(current, expected_version)
            return Step(column="assignee", to=to_assignee, actor=caller.subject, reason=why)

        assigned = await self._repository.change(lead_id, decide, caller.may_read_lead_created_by)
        return self._sealer.open(assigned, hidden=hidden)

    async def correct_lead(
        self,
        caller: Caller,
        lead_id: UUID,
        fields: Mapping[str, str],
        *,
        reason: str = "",
        phone_region: str = "",
        expected_version: int = 0,
        compared: Callable[[UUID | None], None] | None = None,
    ) -> Lead:
        """Set customer fields; an empty value removes an optional one. `phone_region` stands in for the default region.

        With `compared`, a correction to the values that the lead holds changes nothing and succeeds at any version;
        `compared` gets the lead's id when its values decided the answer, else None. Without it the answer is the same
        whatever the lead holds, so that nobody can test guesses of what they see masked.

        Raises LeadValidationError, LeadNotFoundError, CorrectionClosedError, VersionMismatchError, DuplicateLeadError.
        """
        accepted = self._validation.correction(fields, phone_region=phone_region)
        is_creator = not caller.may(Scope.UPDATE)
        if is_creator and not expected_version:
            needed = f"is required with {Scope.UPDATE_OWN}: the version that you have read"
            raise invalid("expected_version", needed, "REQUIRED")

        def admit(current: SealedLead, creators_alone: bool) -> None:
            if not caller.may_correct_lead_created_by(current.created_by):
                raise LeadNotFoundError
            if current.status is not LeadStatus.NEW or not creators_alone:
                raise CorrectionClosedError

        why = self._validation.text("reason", reason)
        corrected_to = partial(self._sealer.correction, actor=caller.subject, reason=why)

        def decide(current: SealedLead) -> Correction | None:
            if compared is None:
                _require_version(current, expected_version)
                return corrected_to(current.id, accepted)
            changed = {name: value for name, value in accepted.items() if not self._sealer.holds(current, name, value)}
            stale = expected_version not in (0, current.version)
            compared(current.id if stale or not changed else None)
            if not changed:
                return None
            _require_version(current, expected_version)
            # The history names each sensitive field that is set: of several, it would show which had another value,
            # also to a caller who may see them, and whose look is not recorded because it is beyond the limit.
            if not caller.may(Scope.UNMASK):
                return corrected_to(current.id, accepted)
            return corrected_to(current.id, changed, also_named=accepted.keys() & SENSITIVE_FIELDS)

        corrected = await self._repository.correct(
            lead_id, decide, caller.may_correct_lead_created_by, admit=admit if is_creator else None
        )
        if isinstance(corrected, DuplicateMatch):
            raise corrected.error(caller.may_read_lead_created_by)
        return self._sealer.open(corrected)

    async def resubmissions(
        self, caller: Caller, lead_id: UUID, *, page_size: int, page_token: str, hidden: Collection[str]
    ) -> tuple[UUID, str | None, list[Resubmission], str]:
        """The lead's own id and phone, a page of what was refused as its duplicate, newest first, and the next token.

        `hidden` fields are not opened; the phone is None if it cannot be.

        Raises LeadNotFoundError, LeadValidationError, PageTokenInvalidError.
        """
        lead = await self._repository.get(lead_id, caller.may_read_lead_created_by)

        page, token = await read_page(
            partial(self._repository.resubmissions, lead.id),
            lambda sealed: (sealed.submitted_at, sealed.submission_id),
            UUID,
            size=page_size,
            token=page_token,
            list_identity=f"resubmissions/{lead.id}",
            tags=self._page_token_tags,
            default=DEFAULT_RESUBMISSIONS,
        )
        opened = [self._sealer.open_resubmission(sealed, hidden=hidden) for sealed in page]
        phone = self._sealer.open(lead, hidden=frozenset(SENSITIVE_FIELDS) - {"phone"}, flag_unreadable=True).phone
        return lead.id, phone, opened, token

    async def events_of_type(self, caller: Caller, lead_id: UUID, event_type: LeadEventType) -> list[LeadEvent]:
        """All events of one type of a lead, oldest first. Raises LeadNotFoundError."""
        lead = await self._repository.get(lead_id, caller.may_read_lead_created_by)
        return await self._history.of_type(lead.id, event_type)

    async def events(
        self,
        caller: Caller,
        lead_id: UUID,
        *,
        page_size: int,
        page_token: str,
        newest_first: bool,
        include_accesses: bool,
    ) -> tuple[list[LeadEvent], str]:
        """One page of a lead's history and the token of the next, empty on the last.

        Raises ScopeMissingError, LeadNotFoundError, LeadValidationError, PageTokenInvalidError.
        """
        if include_accesses and not caller.may(Scope.OPERATE):
            raise ScopeMissingError(Scope.OPERATE)
        lead = await self._repository.get(lead_id, caller.may_read_lead_created_by)

        async def find(after: tuple[datetime, str] | None, limit: int) -> list[tuple[LeadEvent, Place]]:
            place = Place(after[0], *map(int, after[1].split("/"))) if after else None
            return await self._history.page(
                lead.id, after=place, limit=limit, newest_first=newest_first, with_accesses=include_accesses
            )

        page, token = await read_page(
            find,
            lambda row: (row[1].at, "/".join(map(str, row[1][1:]))),
            str,
            size=page_size,
            token=page_token,
            list_identity=f"events/{lead.id}/{newest_first}/{include_accesses}",
            tags=self._page_token_tags,
        )
        return [event for event, _ in page], token


def _require_version(current: SealedLead, expected_version: int) -> None:
    if expected_version and expected_version != current.version:
        raise VersionMismatchError(current.version)
