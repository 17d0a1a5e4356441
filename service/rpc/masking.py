"""The mask: how each sensitive field is masked, and what a message shows unmasked.

Promise: which fields are sensitive is read from the contract (option `sensitive`), so no method can forget it; one
without a mask of its own is masked whole. Every mask contains `•••`, and no mask shows how long the value is. A
conversation id follows the phone: it is shown unless it holds one that the answer masks, or may hold one that the
lead had before a correction. Showing it is no look.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from leadkeep.v1 import options_pb2
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

from service.lead import SENSITIVE_FIELDS
from service.validation import MASK

HIDDEN_AT_LEAST = 4
"""Characters that a partial mask must hide. A value too short for that is masked whole: with fewer hidden, the rest
is quickly guessed."""

FOLLOWS_PHONE = frozenset({"conversation_id", "transcript_uri"})
"""Fields that may hold the phone, as `whatsapp:+880…` does. The address of a transcript holds the conversation id."""

PHONE_END = 8
"""Last digits of a phone by which it is recognised: the subscriber's number, however its beginning is written. Where
all behind the country code are fewer, as in Iceland and the Maldives, by these."""

_SENSITIVE: Any = options_pb2.sensitive

_NO_DIGITS = re.compile(r"\D+")
_LOOKS_LIKE_PHONE = re.compile(rf"\d{{{PHONE_END}}}")
# ITU-T E.164 and national numbers: 7 digits at least, which people and programs group.
_MAY_BE_PHONE = re.compile(r"(?:\d[-./()]*){7}")

COUNTRY_CODES = frozenset(map(str, COUNTRY_CODE_TO_REGION_CODE))


def mask_phone(phone: str) -> str:
    """Country code and last 2 digits: `+880•••78`."""
    country, number = _parts_of(phone)
    if len(number) - 2 < HIDDEN_AT_LEAST:
        return MASK
    return f"+{country}{MASK}{number[-2:]}"


def _parts_of(phone: str) -> tuple[str, str]:
    """The country code of a phone, and the digits behind it."""
    digits = phone.removeprefix("+")
    # ITU-T E.164: a country code has at most 3 digits.
    length = next((length for length in (1, 2, 3) if digits[:length] in COUNTRY_CODES), 0)
    return digits[:length], digits[length:]


def mask_nid(nid: str) -> str:
    """The last 2 characters: `•••89`."""
    return MASK if len(nid) - 2 < HIDDEN_AT_LEAST else MASK + nid[-2:]


def mask_email(email: str) -> str:
    """First letter and domain: `j•••@example.com`. A local part of one letter would be shown whole: masked whole."""
    local, _, domain = email.rpartition("@")
    return MASK if len(local) < 2 else f"{local[0]}{MASK}@{domain}"


MASKS: dict[str, Callable[[str], str]] = {"phone": mask_phone, "nid": mask_nid, "email": mask_email}

HIDDEN_WHOLE = frozenset(SENSITIVE_FIELDS) - MASKS.keys() - FOLLOWS_PHONE


def mask_message(message: Message, *phones: str, shown: Collection[str] = ()) -> None:
    """Mask every sensitive field in a message and in the messages inside it, in place, but for those that are `shown`.

    Unless the phone is shown, a conversation id is masked if it holds one that is in the message, or one of `phones`;
    "" stands for any.
    """
    inside = list(_inside(message))
    answered = (each.phone for each, plan, _ in inside if "phone" in plan.masked and each.phone)
    phone_ends = [_parts_of(phone)[1][-PHONE_END:] for phone in (*phones, *answered)]
    for each, plan, _ in inside:
        masked = [name for name in plan.masked if name not in shown and getattr(each, name)]
        for name in masked:
            setattr(each, name, MASKS[name](getattr(each, name)) if name in MASKS else MASK)
        follows = [name for name in plan.follows_phone if getattr(each, name)]
        if follows and _holds_hidden_phone(each, phone_ends, shown):
            masked += follows
            for name in follows:
                setattr(each, name, MASK)
        if plan.says_masked and masked:
            each.masked = True
            each.masked_fields.extend(masked)


def _holds_hidden_phone(message: Any, phone_ends: Sequence[str], shown: Collection[str]) -> bool:
    """Whether the conversation id in a message may hold a phone that the answer masks."""
    if not getattr(message, "phone", ""):
        return True  # nobody knows whether it holds a phone that cannot be opened
    if "phone" in shown:
        return False
    digits = _NO_DIGITS.sub("", message.conversation_id)
    if not digits.isascii():
        digits = "".join(str(unicodedata.decimal(each)) for each in digits)
    return any(end in digits for end in phone_ends)


def with_former_phones(message: Message, shown_lead_id: str = "") -> set[str]:
    """The ids of leads whose former phones may still be seen in a masked answer: in a conversation id with as many
    digits as a phone, of a lead that was changed. A submission may hold those of each lead beside it."""
    inside = [(each, lead_id) for each, plan, lead_id in _inside(message, shown_lead_id) if plan.follows_phone]
    alike = [(each, lead_id) for each, lead_id in inside if _MAY_BE_PHONE.search(each.conversation_id)]
    if any(not each.id for each, _ in alike):
        alike = inside
    return {lead_id for each, lead_id in alike if lead_id and (not each.id or each.version > 1)}


def mask_former_phones(message: Message, lead_ids: Collection[str], shown_lead_id: str = "") -> None:
    """Mask the conversation ids that may hold a former phone of these leads, in place; see `with_former_phones`."""
    if not lead_ids:
        return
    for each, plan, lead_id in _inside(message, shown_lead_id):
        concerned = plan.follows_phone and (lead_id in lead_ids or not each.id)
        if concerned and _MAY_BE_PHONE.search(each.conversation_id):
            names = [name for name in plan.follows_phone if getattr(each, name)]
            for name in names:
                setattr(each, name, MASK)
            each.masked = True
            each.masked_fields.extend(names)


def clear_creators(message: Message) -> None:
    """Remove from a message, and from those inside it, who created the leads."""
    for each, plan, _ in _inside(message):
        if plan.has_creator:
            each.ClearField("created_by")


def searches_phone(request: Any) -> bool:
    """Whether a request looks for a conversation whose id may be a phone: it has as many digits in a row as one."""
    return "conversation_id" in _plan(request.DESCRIPTOR).follows_phone and bool(
        _LOOKS_LIKE_PHONE.search(request.conversation_id)
    )


def asked_by_value(request: Message) -> tuple[str, ...]:
    """The sensitive fields that a request filters by: even a masked answer reveals something about their values.

    The values of a lead inside the request are written, not searched.
    """
    return tuple(name for name in _plan(request.DESCRIPTOR).masked if getattr(request, name))


def shown_values(
    message: Message, shown: Collection[str], inherited_id: str = ""
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which of the fields that are `shown` are set in a message and in those inside it, and of which lead each time.

    A lead of which only other sensitive fields are set comes without any. One that is in a message more than once, as
    in a list of conflicts, comes once. A message without an id of its own belongs to the one around it, and at last to
    `inherited_id`; so do the resubmissions of a lead, each of which comes.
    """
    found: dict[object, tuple[str, dict[str, None]]] = {}
    for number, (each, plan, lead_id) in enumerate(_inside(message, inherited_id)):
        if values := [name for name in plan.masked if getattr(each, name)]:
            _, fields = found.setdefault(getattr(each, "id", "") or number, (lead_id, {}))
            fields |= dict.fromkeys(name for name in values if name in shown)
    for lead_id, fields in found.values():
        yield lead_id, tuple(fields)


def _inside(message: Any, inherited_id: str = "") -> Iterator[tuple[Any, _Plan, str]]:
    """A message and those in it that can hold values of sensitive fields, each with the id of what it belongs to."""
    plan = _plan(message.DESCRIPTOR)
    lead_id = getattr(message, "id", "") or inherited_id
    yield message, plan, lead_id
    for name in plan.single:
        if message.HasField(name):
            yield from _inside(getattr(message, name), lead_id)
    for name in plan.repeated:
        for each in getattr(message, name):
            yield from _inside(each, lead_id)


def _sensitive(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(field.name for field in descriptor.fields if field.GetOptions().Extensions[_SENSITIVE])


@dataclass(frozen=True, slots=True)
class _Plan:
    masked: tuple[str, ...]
    follows_phone: tuple[str, ...]
    says_masked: bool
    has_creator: bool
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
        has_creator="created_by" in descriptor.fields_by_name,
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
