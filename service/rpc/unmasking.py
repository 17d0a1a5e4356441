"""Who is shown which fields unmasked, and the access record of that.

Promise: no value of a sensitive field leaves unmasked before its access is committed, whatever the method and the
endpoint.

A method that only reads is refused when its access cannot be recorded. One that changes something has done so by then
and must not be reported as failed: it answers masked instead.

A correction reveals a value when its answer depends on what the lead holds: a version that does not match, values that
it has already. That is a look like any other. When it cannot be recorded, the correction is made again without
comparing, so that right and wrong guesses get the same answer. One that is refused as a duplicate reveals that another
lead has the value: an access of that lead is recorded, whoever asks and beyond the limit too, before the answer.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import (
    ConversationNotFoundError,
    DuplicateLeadError,
    FieldUnreadableError,
    LeadInConflictError,
    LeadkeepError,
    LeadValidationError,
    ReasonNotAcceptedError,
    ReasonRequiredError,
    ScopeMissingError,
    StorageUnavailableError,
    TooManyMatchesError,
    UnmaskLimitError,
    VersionMismatchError,
    Violation,
    invalid,
)
from service.rpc.call import REASON, REASON_BIN, SERVICE, Call, Handler, Interceptor
from service.rpc.masking import (
    HIDDEN_WHOLE,
    asked_by_value,
    can_show_values,
    clear_creators,
    mask_former_phones,
    mask_message,
    searches_phone,
    shown_values,
    with_former_phones,
)
from service.scopes import READ_SCOPES, UNMASK_SCOPES, Caller, Scope
from service.storage.access.record import Access
from service.storage.database.failures import LONGEST_RETRY, StorageFaultError

PATIENCE_AFTER_CHANGE = 1.0
"""Seconds for which the answer to a change waits for the record, half of the caller's time at most; then it is masked.
Its caller wants to know that the change is done, and a lead is taken while the database is away."""

_MASKED_ONLY = {"FindPerson": pb.LEAD_VIEW_MASKED}
"""Rpcs that show nothing unmasked, whoever calls."""

VIEWS = frozenset(pb.LeadView.values())

NOTHING: frozenset[str] = frozenset()
EVERYTHING = frozenset(UNMASK_SCOPES)

NOBODY = Caller("", frozenset())


class Record(Protocol):
    """How accesses are recorded."""

    async def require_room(self, subject: str, leads: int) -> None:
        """Must raise UnmaskLimitError when this subject may not look at so many more leads now."""

    async def record(
        self, accesses: Sequence[Access], *, patience: float = LONGEST_RETRY, limited: bool = True
    ) -> None:
        """Must return only when all of them are committed, in `patience` seconds at most.

        Must raise StorageUnavailableError when they cannot be, and, if they are `limited`, UnmaskLimitError when they
        may not be.
        """


HadOtherPhones = Callable[[Collection[UUID]], Awaitable[Collection[UUID]]]
"""Must return which of these leads had another phone before a correction."""


def unmasking(record: Record, reasons: ReasonRules, had_other_phones: HadOtherPhones) -> Interceptor:
    """Mask the answer but for the fields that the caller may and wants to see; record what is shown or searched."""

    async def masked(call: Call, caller: Caller, response: Message, shown: frozenset[str]) -> Message:
        if shown != EVERYTHING:
            mask_message(response, *call.phones, shown=shown)
            if "phone" not in shown and (suspects := with_former_phones(response, call.shown_lead_id)):
                # Else whoever may correct the phone would read the one that it replaces.
                with suppress(LeadkeepError, StorageFaultError, TimeoutError):
                    async with asyncio.timeout(_patience(call)):
                        suspects = set(map(str, await had_other_phones(list(map(UUID, suspects)))))
                mask_former_phones(response, suspects, call.shown_lead_id)
        if not caller.may(Scope.READ):
            clear_creators(response)
        return response

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        caller = call.caller or NOBODY
        view = _MASKED_ONLY.get(call.rpc, getattr(request, "view", pb.LEAD_VIEW_UNSPECIFIED))
        revealed = tuple(request.reveal.paths) if "reveal" in request.DESCRIPTOR.fields_by_name else ()  # type: ignore[attr-defined]
        shown = shown_to(caller, view, revealed)
        asked = asked_by_value(request)
        for field in asked:
            _require(caller, field)
        # No scope and no reason is needed to look for a conversation, but who looks for a phone by it is on record.
        searched = tuple(dict.fromkeys((*asked, "phone"))) if searches_phone(request) else asked
        corrects = call.rpc == "UpdateLead"
        if not (searched or shown or corrects):
            call.hidden = HIDDEN_WHOLE
            return await masked(call, caller, await proceed(call, request), NOTHING)
        reason = reasons.sent_with(call)
        comparable = frozenset(filter(caller.may_unmask, EVERYTHING)) if corrects else NOTHING
        shows = shown and can_show_values(SERVICE.methods_by_name[call.rpc].output_type)
        if (asked or comparable or shows) and (fault := reasons.fault_of(reason)) is not None:
            if call.rpc in READ_SCOPES or revealed or view == pb.LEAD_VIEW_FULL:
                raise fault
            shown = comparable = NOTHING
        call.hidden, call.comparable = HIDDEN_WHOLE - shown, comparable
        look = _Look(call, caller, shown, searched, reason, record, proceed)
        response = await look.response(request)
        return await masked(call, caller, response, look.shown)

    return intercept


@dataclass(frozen=True, slots=True)
class ReasonRules:
    """What is asked of the reason for reading values."""

    check: Callable[[str, str, str], str | None]
    """Normalises a text by name, given its path in errors, or raises LeadValidationError; None: it is empty."""
    required: bool = False
    purposes: tuple[str, ...] = ()
    """The words of which it must be one, or begin with as in `WORD: text`; none: any reason will do."""

    def sent_with(self, call: Call) -> str | None:
        """The reason of a call, normalised; None: it has none. Raises LeadValidationError."""
        encoded = call.metadata.get(REASON_BIN)
        if encoded is None:
            return self.check("reason", _text(call), REASON)
        if REASON in call.metadata:
            raise invalid(REASON_BIN, f"must not be sent together with {REASON}")
        return self.check("reason", _decoded(encoded), REASON_BIN)

    def fault_of(self, reason: str | None) -> LeadkeepError | None:
        """Why nothing is shown for this reason; None: it is accepted."""
        if reason is None:
            return ReasonRequiredError(self.purposes) if self.required or self.purposes else None
        if not self.purposes or any(reason == word or reason.startswith(f"{word}: ") for word in self.purposes):
            return None
        return ReasonNotAcceptedError(self.purposes)


@dataclass(slots=True)
class _Look:
    """A call that shows, searches or compares values, which is recorded before its answer leaves."""

    call: Call
    caller: Caller
    shown: frozenset[str]
    """The fields that are shown unmasked; none when the record of a change failed."""
    searched: tuple[str, ...]
    reason: str | None
    writer: Record
    proceed: Handler

    async def response(self, request: Message) -> Message:
        """The unmasked response, recorded."""
        call = self.call
        failure: LeadkeepError | None = None
        if self.searched or call.comparable:
            # Before anything is looked up: else the time until the refusal would tell a right guess from a wrong one.
            try:
                await self.writer.require_room(self.caller.subject, 1)
            except (StorageUnavailableError, UnmaskLimitError):
                if self.searched:
                    raise
                call.comparable = NOTHING
        try:
            response = await self._answer(request)
            accesses = self._accesses(request, response)
        except (ConversationNotFoundError, LeadInConflictError, TooManyMatchesError, StorageUnavailableError) as error:
            # That there is none, that there are many, or that one waits, says something about the value, too.
            failure, accesses = error, self._accesses_without_lead()
        except (VersionMismatchError, FieldUnreadableError) as error:
            failure = error
            accesses = [self._access(*call.compared)] if call.compared else self._accesses_without_lead()
        if accesses:
            try:
                await self.writer.record(accesses, patience=_patience(call))
            except (StorageUnavailableError, UnmaskLimitError):
                if call.rpc in READ_SCOPES:
                    raise
                self.shown = NOTHING
                if call.compared:
                    call.compared, call.comparable = None, NOTHING
                    failure, response = None, await self._answer(request)
        if failure is not None:
            raise failure
        return response

    async def _answer(self, request: Message) -> Message:
        """The answer of the method. A duplicate that a correction finds is recorded."""
        try:
            return await self.proceed(self.call, request)
        except DuplicateLeadError as duplicate:
            if self.call.rpc == "UpdateLead":
                matched = [self._access(*each) for each in duplicate.matched.items()]
                await self.writer.record(matched, limited=False)
            raise

    def _accesses(self, request: Message, response: Message) -> list[Access]:
        call = self.call
        found = accesses_to(
            response,
            self.shown,
            # A caller who filters by a value, or corrects to it, learns whether somebody has it, also from a masked
            # answer or an empty one.
            looked_for=(*self.searched, *(call.compared[1] if call.compared else ())),
            subject=self.caller.subject,
            operation=call.rpc,
            reason=self.reason,
            request_id=call.id,
            lead_id=call.shown_lead_id or getattr(request, "lead_id", "") or getattr(request, "id", ""),
        )
        seen = {access.lead_id for access in found}
        found += (self._access(each, self.searched) for each in dict.fromkeys(call.found) if each not in seen)
        return found or self._accesses_without_lead()

    def _accesses_without_lead(self) -> list[Access]:
        return [self._access(None, self.searched)] if self.searched else []

    def _access(self, lead_id: UUID | None, fields: tuple[str, ...]) -> Access:
        return Access(
            subject=self.caller.subject,
            operation=self.call.rpc,
            fields=fields,
            lead_id=lead_id,
            reason=self.reason,
            request_id=self.call.id,
        )


def accesses_to(
    message: Message,
    shown: Collection[str],
    *,
    looked_for: Sequence[str] = (),
    subject: str,
    operation: str,
    reason: str | None,
    request_id: str,
    lead_id: str = "",
) -> list[Access]:
    """What showing these fields of a message is: one access for each lead in it. `lead_id` serves those without an id.

    `looked_for` are fields of each lead that the message says something about though they are not shown.
    """
    return [
        Access(
            subject=subject,
            operation=operation,
            fields=fields,
            lead_id=UUID(found_id) if found_id else None,
            reason=reason,
            request_id=request_id,
        )
        for found_id, values in shown_values(message, shown, lead_id)
        if (fields := tuple(dict.fromkeys((*looked_for, *values))))
    ]


def shown_to(caller: Caller, view: int, revealed: Sequence[str] = ()) -> frozenset[str]:
    """The fields that are shown unmasked on request. Raises LeadValidationError, ScopeMissingError."""
    if not revealed:
        if view not in VIEWS:
            raise invalid("view", f"must be one of: {', '.join(pb.LeadView.keys())}")
        if caller.may(Scope.UNMASK):
            return NOTHING if view == pb.LEAD_VIEW_MASKED else EVERYTHING
        if view == pb.LEAD_VIEW_FULL:
            raise ScopeMissingError(Scope.UNMASK)
        return NOTHING
    violations = []
    if view != pb.LEAD_VIEW_UNSPECIFIED:
        violations.append(Violation("reveal", "must not be sent together with view"))
    if not EVERYTHING.issuperset(revealed):
        violations.append(Violation("reveal", f"may name only: {', '.join(UNMASK_SCOPES)}"))
    if violations:
        raise LeadValidationError(violations)
    for field in revealed:
        _require(caller, field)
    return frozenset(revealed)


def _require(caller: Caller, field: str) -> None:
    if not caller.may_unmask(field):
        raise ScopeMissingError(UNMASK_SCOPES[field])


def _patience(call: Call) -> float:
    if call.rpc in READ_SCOPES:
        return LONGEST_RETRY
    return min(PATIENCE_AFTER_CHANGE, (call.deadline - time.monotonic()) / 2)


def _text(call: Call) -> str:
    sent = call.metadata.get(REASON, "")
    if call.transport != "http":
        return sent
    try:
        # HTTP's headers are read as Latin-1; what people type into them is UTF-8.
        return sent.encode("latin-1").decode()
    except UnicodeError:
        return sent


def _decoded(encoded: str) -> str:
    try:
        # gRPC's own libraries leave the padding out.
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise invalid(REASON_BIN, "must be base64 of UTF-8 text, once") from None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise invalid(REASON_BIN, "must be UTF-8 text") from None
