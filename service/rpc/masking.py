"""How sensitive fields are shown to those who may not see them.

Which fields are sensitive is read from the contract (`debug_redact`); a sensitive field without a rule of its own is
masked whole. Every mask contains `•••`, and no mask shows how long the value is. A field that is not set stays unset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

from service.validation import MASK

HIDDEN_AT_LEAST = 4
"""Characters that a partial mask must hide. A value too short for that is masked whole: with fewer hidden, the rest
is quickly guessed."""

COUNTRY_CODES = frozenset(map(str, COUNTRY_CODE_TO_REGION_CODE))


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


def mask_message(message: Message) -> None:
    """Mask every sensitive field in a message and in the messages inside it, in place."""
    plan = _plan(message.DESCRIPTOR)
    for name in plan.masked:
        if value := getattr(message, name):
            setattr(message, name, MASKS[name](value) if name in MASKS else MASK)
    if plan.says_masked:
        message.masked = True  # type: ignore[attr-defined]
    for name in plan.single:
        if message.HasField(name):
            mask_message(getattr(message, name))
    for name in plan.repeated:
        for item in getattr(message, name):
            mask_message(item)


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
    for name in plan.single:
        if message.HasField(name):
            yield from shown_values(getattr(message, name), lead_id)
    for name in plan.repeated:
        for item in getattr(message, name):
            yield from shown_values(item, lead_id)


def _sensitive(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(field.name for field in descriptor.fields if field.GetOptions().debug_redact)


@dataclass(frozen=True, slots=True)
class _Plan:
    masked: tuple[str, ...]
    says_masked: bool
    single: tuple[str, ...]
    repeated: tuple[str, ...]


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    names = _sensitive(descriptor)
    inner = [field for field in descriptor.fields if field.message_type and can_show_values(field.message_type)]
    return _Plan(
        masked=names,
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
