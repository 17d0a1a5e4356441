"""What happens when a lead is created, read, found, moved, corrected and assigned.

Every method takes the caller and answers only what that caller may see; a lead that the caller may not read does not
exist for it. Whether sensitive fields are shown unmasked is not decided here but once, at the door.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from uuid import UUID

from service.access import Caller, Scope
from service.confirmation import Confirmation, ConfirmationService
from service.errors import (
    ConversationNotFoundError,
    DuplicateLeadError,
    LeadInConflictError,
    LeadkeepError,
    LeadNotFoundError,
    LeadValidationError,
    RequestIdReusedError,
    ScopeMissingError,
    StatusTransitionError,
    StorageUnavailableError,
    VersionMismatchError,
    Violation,
)
from service.lead import (
    AssignmentChange,
    CustomerFields,
    Lead,
    LeadStatus,
    Resubmission,
    SealedLead,
    StatusChange,
)
from service.page_token import make_page_token, read_page_token
from service.sealing import LeadSealer
from service.storage.outcomes import Aliased, Created, Erased, InConflict, Met, RequestIdReused, Waiting
from service.storage.repository import LeadRepository
from service.storage.requests import (
    AssignmentStep,
    Correction,
    DuplicateFoundError,
    LeadFilter,
    Position,
    StatusStep,
)
from service.storage.spool import Spool
from service.storage.spool_file import SpoolError
from service.storage.writer import LeadWriter
from service.validation import ValidationService

DEFAULT_PAGE = 50
LARGEST_PAGE = 100
"""A page of 100 is about what a person scrolls through, and one answer of bounded size."""


@dataclass(frozen=True, slots=True)
class CreatedLead:
    """An acknowledged lead and what to tell its customer."""

    lead: Lead
    confirmation: Confirmation
    delayed: bool
    """Whether it lies in the spool and reaches the database later."""


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
        writer: LeadWriter,
        spool: Spool,
        sealer: LeadSealer,
        validation: ValidationService,
        confirmation: ConfirmationService,
        page_token_tags: Callable[[bytes], Sequence[bytes]],
        new_id: Callable[[], UUID],
    ) -> None:
        self._repository = repository
        self._writer = writer
        self._spool = spool
        self._sealer = sealer
        self._validation = validation
        self._confirmation = confirmation
        self._page_token_tags = page_token_tags
        self._new_id = new_id

    async def create_lead(
        self, caller: Caller, fields: Mapping[str, str], *, request_id: str = "", locale: str = ""
    ) -> CreatedLead:
        """Make a new lead durable.

        Raises LeadValidationError, DuplicateLeadError, RequestIdReusedError, StorageUnavailableError.
        """
        details, request = self._validated(fields, request_id)
        lead_id = self._new_id()
        seal = cache(partial(self._sealer.seal, lead_id, details, created_by=caller.subject, request_id=request))
        outcome = await self._writer.create(seal)
        match outcome:
            case Created(sealed) if sealed.fields is seal().fields:
                # The new lead itself, whose fields need not be opened to be known.
                lead = self._sealer.acknowledged(sealed.id, details, sealed.created_at)
                return self._created(lead, locale, delayed=False)
            case Created(sealed):
                return self._created(self._sealer.open(sealed), locale, delayed=False)
            case Waiting(waiting_id, accepted_at, decided):
                lead = self._sealer.acknowledged(waiting_id, details, accepted_at)
                return self._created(lead, locale, delayed=not decided)
            case Erased(created_at):
                # Stored by an attempt whose answer was lost, and erased before this one. An error would be repeated,
                # and the repeat would bring the person back.
                return self._created(self._sealer.acknowledged(lead_id, details, created_at), locale, delayed=False)
            case RequestIdReused():
                raise RequestIdReusedError
            case Met():
                raise _duplicate(outcome, caller)
            case Aliased() | InConflict():
                raise AssertionError("only what was acknowledged before becomes an alias or a conflict")

    def _created(self, lead: Lead, locale: str, *, delayed: bool) -> CreatedLead:
        confirmation = self._confirmation.confirm(
            lead_id=lead.id,
            name=lead.name,
            locales=locale,
            preferred_contact_time=lead.preferred_contact_time,
            delayed=delayed,
        )
        return CreatedLead(lead, confirmation, delayed)

    async def get_lead(self, caller: Caller, lead_id: UUID, *, hidden: Collection[str] = ()) -> Lead:
        """One lead; `hidden` fields are not opened. Raises LeadNotFoundError, FieldUnreadableError."""
        return self._sealer.open(await self._readable(caller, lead_id), hidden=hidden)

    async def get_lead_by_conversation(
        self, caller: Caller, conversation_id: str, *, hidden: Collection[str] = ()
    ) -> tuple[Lead, list[UUID]]:
        """The newest lead of a conversation and the ids of the others; `hidden` fields are not opened.

        Raises ConversationNotFoundError, FieldUnreadableError.
        """
        wanted = self._validation.conversation_id(conversation_id)
        if wanted is None:
            raise LeadValidationError([Violation("conversation_id", "is required")])
        try:
            waits = await self._spool.holds_conversation(wanted)
        except SpoolError:
            waits = True
        newest, others = await self._repository.find_by_conversation(wanted, created_by=_own_only(caller))
        if newest is None and waits:
            raise StorageUnavailableError
        if newest is None:
            raise ConversationNotFoundError
        return self._sealer.open(newest, hidden=hidden), others

    async def list_leads(
        self, caller: Caller, query: ListQuery, *, hidden: Collection[str] = ()
    ) -> tuple[list[Lead], str]:
        """One page of leads and the token of the next, empty on the last.

        A field that cannot be opened is left out and named in its lead, so that the others stay visible; `hidden`
        fields are not opened. Raises LeadValidationError, PageTokenInvalidError, ScopeMissingError.
        """
        if (query.phone or query.nid) and not caller.may(Scope.UNMASK):
            raise ScopeMissingError(Scope.UNMASK)
        if query.page_size < 0:
            raise LeadValidationError([Violation("page_size", "must not be negative")])
        wanted, phone, nid = self._filter(caller, query)
        # The token holds a keyed digest of it only. Not the blind indexes: those change while a caller leafs through.
        identity = f"{wanted!r}{phone or ''}/{nid or ''}"
        tags = self._page_token_tags
        after = None
        if query.page_token:
            after = Position(*read_page_token(query.page_token, UUID, list_identity=identity, tags=tags))
        limit = min(query.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        found = await self._repository.list_leads(wanted, after=after, limit=limit + 1)
        page, more = found[:limit], len(found) > limit
        token = ""
        if more:
            token = make_page_token(page[-1].created_at, page[-1].id, list_identity=identity, tags=tags)
        return [self._sealer.open(sealed, hidden=hidden, flag_unreadable=True) for sealed in page], token

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

        await self._require_not_waiting(lead_id)
        return self._sealer.open(await self._change(caller, lead_id, decide))

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

        await self._require_not_waiting(lead_id)
        return self._sealer.open(await self._change(caller, lead_id, decide))

    async def correct_lead(
        self, caller: Caller, lead_id: UUID, fields: Mapping[str, str], *, expected_version: int = 0
    ) -> Lead:
        """Set customer fields; an empty value removes an optional one.

        Raises LeadValidationError, LeadNotFoundError, VersionMismatchError, DuplicateLeadError.
        """
        accepted = self._validation.correction(fields)

        def decide(current: SealedLead) -> Correction | None:
            if not caller.may(Scope.UNMASK):
                # Before the values are compared: who sees masks could test guesses with a version that never matches.
                _require_version(current, expected_version)
            changed = {name: value for name, value in accepted.items() if value != self._sealer.value_of(current, name)}
            if not changed:
                return None
            _require_version(current, expected_version)
            return self._sealer.correction(current.id, changed)

        await self._require_not_waiting(lead_id)
        try:
            return self._sealer.open(await self._repository.correct(lead_id, decide))
        except LeadNotFoundError:
            raise await self._not_found(caller, lead_id) from None
        except DuplicateFoundError as found:
            raise _duplicate(found.met, caller) from None

    async def status_changes(self, caller: Caller, lead_id: UUID) -> list[StatusChange]:
        """A lead's status history, oldest first. Raises LeadNotFoundError."""
        return await self._repository.status_changes((await self._readable(caller, lead_id)).id)

    async def assignments(self, caller: Caller, lead_id: UUID) -> list[AssignmentChange]:
        """A lead's assignment history, oldest first. Raises LeadNotFoundError."""
        return await self._repository.assignments((await self._readable(caller, lead_id)).id)

    async def resubmissions(self, caller: Caller, lead_id: UUID) -> tuple[UUID, list[Resubmission]]:
        """The lead's own id, and what was refused as a duplicate of it, newest first. Raises LeadNotFoundError."""
        lead = await self._readable(caller, lead_id)
        kept = await self._repository.resubmissions(lead.id)
        return lead.id, [self._sealer.open_resubmission(sealed) for sealed in kept]

    async def _readable(self, caller: Caller, lead_id: UUID) -> SealedLead:
        await self._require_not_waiting(lead_id)
        sealed = await self._repository.get(lead_id)
        if sealed is None:
            raise await self._not_found(caller, lead_id)
        if not caller.may_read_lead_created_by(sealed.created_by):
            known = await self._repository.acknowledged(lead_id) if sealed.id != lead_id else None
            # The caller was given this id; that it leads to somebody else's lead is no reason to deny it.
            raise ScopeMissingError(Scope.READ) if known and known.created_by == caller.subject else LeadNotFoundError()
        return sealed

    async def _change(
        self, caller: Caller, lead_id: UUID, decide: Callable[[SealedLead], StatusStep | AssignmentStep | None]
    ) -> SealedLead:
        try:
            return await self._repository.change(lead_id, decide)
        except LeadNotFoundError:
            raise await self._not_found(caller, lead_id) from None

    async def _require_not_waiting(self, lead_id: UUID) -> None:
        """To be called before the database is read: what is drained meanwhile is found there.

        Raises StorageUnavailableError.
        """
        with suppress(SpoolError):  # what the database has can be read without the spool
            if await self._spool.holds(lead_id):
                raise StorageUnavailableError

    async def _not_found(self, caller: Caller, lead_id: UUID) -> LeadkeepError:
        try:
            await self._spool.holds(lead_id)
        except SpoolError:
            # No acknowledged lead is called missing because the spool cannot be read.
            return StorageUnavailableError()
        known = await self._repository.acknowledged(lead_id)
        if known is not None and known.conflict_id and caller.may_read_lead_created_by(known.created_by):
            return LeadInConflictError(known.conflict_id)
        return LeadNotFoundError()

    def _validated(self, fields: Mapping[str, str], request_id: str) -> tuple[CustomerFields, str | None]:
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

    def _filter(self, caller: Caller, query: ListQuery) -> tuple[LeadFilter, str | None, str | None]:
        """The filter, and the normalised phone and nid that are looked for."""
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
            phone_indexes=self._sealer.phone_indexes(phone) if phone else None,
            nid_indexes=self._sealer.nid_indexes(nid) if nid else None,
            created_by=_own_only(caller),
        )
        if violations:
            raise LeadValidationError(violations)
        return wanted, phone, nid


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
