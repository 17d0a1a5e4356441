"""The mask: which answers are masked, how each field is masked, and the access record of what is shown unmasked.

Promise: no value of a sensitive field leaves unmasked before its access is committed, whatever the method and the
endpoint. Which fields are sensitive is read from the contract (option `sensitive`), so no method can forget it; one
without a mask of its own is masked whole. Every mask contains `•••`, and no mask shows how long the value is. A
conversation id follows the phone: it is shown unless it holds one that the answer masks, and showing it is no look.

A method that only reads is refused when its access cannot be recorded. One that changes something has done so by then
and must not be reported as failed: it answers masked instead. Methods that only read are called Get… or List….

A correction reveals a value when its answer depends on what the lead holds: a version that does not match, values that
it has already. That is a look like any other. When it cannot be recorded, the correction is made again without
comparing, so that right and wrong guesses get the same answer. One that is refused as a duplicate reveals that another
lead has the value: an access of that lead is recorded, whoever asks and beyond the limit too, before the answer.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol
from uuid import UUID

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import options_pb2
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

from service.access import Caller, Scope
from service.errors import (
    ConversationNotFoundError,
    DuplicateLeadError,
    LeadInConflictError,
    LeadValidationError,
    ReasonRequiredError,
    ScopeMissingError,
    StorageUnavailableError,
    TooManyMatchesError,
    UnmaskLimitError,
    VersionMismatchError,
    Violation,
)
from service.lead import SENSITIVE_FIELDS
from service.rpc.call import SERVICE, Call, Handler, Interceptor
from service.storage.access.chain import Access
from service.storage.database.retry import LONGEST_RETRY
from service.validation import MASK

REASON = "leadkeep-reason"
"""The metadata, and header, with which callers give the reason for reading values."""

PATIENCE_AFTER_CHANGE = 1.0
"""Seconds for which the answer to a change waits for the record, half of the caller's time at most; then it is masked.
Its caller wants to know that the change is done, and a lead is taken while the database is away."""

VIEWS = frozenset(pb.LeadView.values())

HIDDEN_AT_LEAST = 4
"""Characters that a partial mask must hide. A value too short for that is masked whole: with fewer hidden, the rest
is quickly guessed."""

FOLLOWS_PHONE = frozenset({"conversation_id", "transcript_uri"})
"""Fields that may hold the phone, as `whatsapp:+880…` does. The address of a transcript holds the conversation id."""

PHONE_END = 8
"""Last digits of a phone by which it is recognised: the subscriber's number, however its beginning is written."""

_SENSITIVE: Any = options_pb2.sensitive

_LOOKS_LIKE_PHONE = re.compile(rf"\d{{{PHONE_END}}}")

COUNTRY_CODES = frozenset(map(str, COUNTRY_CODE_TO_REGION_CODE))


class Record(Protocol):
    """How accesses are recorded."""

    async def __call__(
        self, accesses: Sequence[Access], *, patience: float = LONGEST_RETRY, limited: bool = True
    ) -> None:
        """Must return only when all of them are committed, in `patience` seconds at most.

        Must raise StorageUnavailableError when they cannot be, and, if they are `limited`, UnmaskLimitError when they
        may not be.
        """


def only_reads(rpc: str) -> bool:
    """Whether a method changes nothing, so that refusing its answer undoes it."""
    return rpc.startswith(("Get", "List"))


def unmasking(record: Record, *, check_reason: Callable[[str, str], str | None], reason_required: bool) -> Interceptor:
    """Mask the answer unless the caller may see it unmasked and did not ask for a masked one; record what is shown.

    `check_reason` normalises a reason, given its name in errors, or raises LeadValidationError.
    """

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        view = getattr(request, "view", pb.LEAD_VIEW_UNSPECIFIED)
        if view not in VIEWS:
            raise LeadValidationError([Violation("view", f"must be one of: {', '.join(pb.LeadView.keys())}")])
        caller = call.caller
        if call.rpc == "UpdateLead" and caller is not None:
            proceed = _recording_duplicates(proceed, caller, check_reason(_reason(call), REASON), record)
        may_unmask = caller is not None and caller.may(Scope.UNMASK)
        if view == pb.LEAD_VIEW_FULL and not may_unmask:
            raise ScopeMissingError(Scope.UNMASK)
        shows = may_unmask and view != pb.LEAD_VIEW_MASKED
        asked = asked_by_value(request) if may_unmask else ()
        # No scope and no reason is needed to look for a conversation, but who looks for a phone by it is on record.
        searched = tuple(dict.fromkeys((*asked, "phone"))) if searches_phone(request) else asked
        if not shows:
            call.hidden = HIDDEN_WHOLE
        if caller is None or not (searched or shows):
            response = await proceed(call, request)
            mask_message(response, *call.phones)
            return response
        reason = check_reason(_reason(call), REASON)
        if (
            reason is None
            and reason_required
            and (asked or (shows and can_show_values(SERVICE.methods_by_name[call.rpc].output_type)))
        ):
            if only_reads(call.rpc) or view == pb.LEAD_VIEW_FULL:
                raise ReasonRequiredError
            shows = False
        call.may_compare = shows
        try:
            response = await proceed(call, request)
        except VersionMismatchError:
            if call.compared:
                # Not recorded, it still reveals nothing: without a record the right guess is refused in the same way.
                with suppress(StorageUnavailableError, UnmaskLimitError):
                    await record([_access(call, caller, *call.compared, reason)], patience=_patience(call))
            raise
        except (ConversationNotFoundError, LeadInConflictError, TooManyMatchesError, StorageUnavailableError):
            # That there is none, that there are many, or that one waits, says something about the value, too.
            if searched:
                await record([_access(call, caller, None, searched, reason)], patience=_patience(call))
            raise
        accesses = _accesses(call, caller, request, response, asked=searched, shows=shows, reason=reason)
        if accesses:
            try:
                await record(accesses, patience=_patience(call))
            except (StorageUnavailableError, UnmaskLimitError):
                if only_reads(call.rpc):
                    raise
                shows = False
                if call.compared:
                    call.may_compare = False
                    response = await proceed(call, request)
        if not shows:
            mask_message(response, *call.phones)
        return response

    return intercept


def _recording_duplicates(proceed: Handler, caller: Caller, reason: str | None, record: Record) -> Handler:
    async def correct(call: Call, request: Message) -> Message:
        try:
            return await proceed(call, request)
        except DuplicateLeadError as duplicate:
            found = duplicate.matched.items()
            await record([_access(call, caller, *matched, reason) for matched in found], limited=False)
            raise

    return correct


def accesses_to(
    message: Message, *, subject: str, operation: str, reason: str | None, request_id: str, lead_id: str = ""
) -> list[Access]:
    """What showing a message unmasked is: one access for each lead in it. `lead_id` serves those without an id."""
    return [
        Access(
            subject=subject,
            operation=operation,
            fields=fields,
            lead_id=UUID(shown_id) if shown_id else None,
            reason=reason,
            request_id=request_id,
        )
        for shown_id, fields in shown_values(message, lead_id)
    ]


def _accesses(
    call: Call,
    caller: Caller,
    request: Message,
    response: Message,
    *,
    asked: tuple[str, ...],
    shows: bool,
    reason: str | None,
) -> list[Access]:
    lead_id = call.shown_lead_id or getattr(request, "lead_id", "") or getattr(request, "id", "")
    accesses = accesses_to(
        response, subject=caller.subject, operation=call.rpc, reason=reason, request_id=call.id, lead_id=lead_id
    )
    if not asked:
        return accesses if shows else []
    # A caller who filters by a value learns whether somebody has it, also from a masked answer or an empty one.
    found = [(access.lead_id, tuple(access.fields) if shows else ()) for access in accesses] or [(None, ())]
    return [
        _access(call, caller, found_id, tuple(dict.fromkeys((*asked, *fields))), reason) for found_id, fields in found
    ]


def _access(call: Call, caller: Caller, lead_id: UUID | None, fields: tuple[str, ...], reason: str | None) -> Access:
    return Access(
        subject=caller.subject,
        operation=call.rpc,
        fields=fields,
        lead_id=lead_id,
        reason=reason,
        request_id=call.id,
    )


def _patience(call: Call) -> float:
    if only_reads(call.rpc):
        return LONGEST_RETRY
    return min(PATIENCE_AFTER_CHANGE, (call.deadline - time.monotonic()) / 2)


def _reason(call: Call) -> str:
    sent = call.metadata.get(REASON, "")
    if call.transport != "http":
        return sent
    try:
        # HTTP's headers are read as Latin-1; what people type into them is UTF-8.
        return sent.encode("latin-1").decode()
    except UnicodeError:
        return sent


def mask_phone(phone: str) -> str:
    """Country code and last 2 digits: `+880•••78`."""
    digits = phone.removeprefix("+")
    # ITU-T E.164: a country code has at most 3 digits.
    country = next((digits[:length] for length in (1, 2, 3) if digits[:length] in COUNTRY_CODES), "")
    if len(digits) - len(country) - 2 < HIDDEN_AT_LEAST:
        return MASK
    return f"+{country}{MASK}{digits[-2:]}"


def mask_nid(nid: str) -> str:
    """The last 2 characters: `•••89`."""
    return MASK if len(nid) - 2 < HIDDEN_AT_LEAST else MASK + nid[-2:]


def mask_email(email: str) -> str:
    """First letter and domain: `j•••@example.com`. A local part of one letter would be shown whole: masked whole."""
    local, _, domain = email.rpartition("@")
    return MASK if len(local) < 2 else f"{local[0]}{MASK}@{domain}"


MASKS: dict[str, Callable[[str], str]] = {"phone": mask_phone, "nid": mask_nid, "email": mask_email}

HIDDEN_WHOLE = frozenset(SENSITIVE_FIELDS) - MASKS.keys() - FOLLOWS_PHONE


def mask_message(message: Message, *phones: str) -> None:
    """Mask every sensitive field in a message and in the messages inside it, in place.

    A conversation id is masked if it holds a phone that is in the message, or one of `phones`; "" stands for any.
    """
    _mask(message, [phone.removeprefix("+")[-PHONE_END:] for phone in (*phones, *_phones(message))])


def _mask(message: Message, phone_ends: Sequence[str]) -> None:
    plan = _plan(message.DESCRIPTOR)
    if plan.follows_phone and (conversation_id := message.conversation_id):  # type: ignore[attr-defined]
        digits = "".join(str(unicodedata.decimal(each)) for each in conversation_id if each.isdecimal())
        # Whether it holds a phone that cannot be opened, nobody knows.
        if not getattr(message, "phone", "") or any(end in digits for end in phone_ends):
            for name in plan.follows_phone:
                if getattr(message, name):
                    setattr(message, name, MASK)
    for name in plan.masked:
        if value := getattr(message, name):
            setattr(message, name, MASKS[name](value) if name in MASKS else MASK)
    if plan.says_masked:
        message.masked = True  # type: ignore[attr-defined]
    for inner in _inside(message, plan):
        _mask(inner, phone_ends)


def _phones(message: Message) -> Iterator[str]:
    plan = _plan(message.DESCRIPTOR)
    if "phone" in plan.masked and (phone := message.phone):  # type: ignore[attr-defined]
        yield phone
    for inner in _inside(message, plan):
        yield from _phones(inner)


def searches_phone(request: Message) -> bool:
    """Whether a request looks for a conversation whose id may be a phone: it has as many digits in a row as one."""
    return "conversation_id" in _plan(request.DESCRIPTOR).follows_phone and bool(
        _LOOKS_LIKE_PHONE.search(request.conversation_id)  # type: ignore[attr-defined]
    )


def asked_by_value(request: Message) -> tuple[str, ...]:
    """The sensitive fields that a request filters by: even a masked answer reveals something about their values.

    The values of a lead inside the request are written, not searched.
    """
    return tuple(name for name in _plan(request.DESCRIPTOR).masked if getattr(request, name))


def shown_values(message: Message, inherited_id: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which sensitive fields are set in a message and the messages inside it, and of which lead each time.

    A message without an id of its own belongs to the one around it, and at last to `inherited_id`.
    """
    plan = _plan(message.DESCRIPTOR)
    lead_id = getattr(message, "id", "") or inherited_id
    if shown := tuple(name for name in plan.masked if getattr(message, name)):
        yield lead_id, shown
    for inner in _inside(message, plan):
        yield from shown_values(inner, lead_id)


def _inside(message: Message, plan: _Plan) -> Iterator[Message]:
    """The messages in a message that can hold values of sensitive fields."""
    for name in plan.single:
        if message.HasField(name):
            yield getattr(message, name)
    for name in plan.repeated:
        yield from getattr(message, name)


def _sensitive(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(field.name for field in descriptor.fields if field.GetOptions().Extensions[_SENSITIVE])


@dataclass(frozen=True, slots=True)
class _Plan:
    masked: tuple[str, ...]
    follows_phone: tuple[str, ...]
    says_masked: bool
    single: tuple[str, ...]
    repeated: tuple[str, ...]


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    names = _sensitive(descriptor)
    inner = [field for field in descriptor.fields if field.message_type and can_show_values(field.message_type)]
    return _Plan(
        masked=tuple(name for name in names if name not in FOLLOWS_PHONE),
        follows_phone=tuple(name for name in names if name in FOLLOWS_PHONE),
        says_masked=bool(names) and "masked" in descriptor.fields_by_name,
        single=tuple(field.name for field in inner if not field.is_repeated),
        repeated=tuple(field.name for field in inner if field.is_repeated),
    )


@cache
def can_show_values(descriptor: Descriptor) -> bool:
    """Whether a message of this kind, or one inside it, can hold values of sensitive fields."""
    # The contract's messages do not contain themselves, so this ends.
    return bool(_sensitive(descriptor)) or any(
        can_show_values(field.message_type) for field in descriptor.fields if field.message_type
    )
