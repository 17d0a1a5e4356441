"""What a phone number dials, read from how people, platforms and address books write it.

A separator is passed over only where it separates digits of one number. Marks without width, which contact apps and
chats copy along, are no part of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from service.validation.text import REWRITTEN, PlaceholderError, ValueRefusedError, is_blank, is_date, refuse_mask

PLACEHOLDER = "is a placeholder, not a phone number: ask the customer for the number itself"
MORE_THAN_A_NUMBER = "holds more than one phone number, or more than the number: send one number alone"

# Full-width and small plus signs, which keyboards of East Asia type; minus sign, hyphen bullet, the Katakana long mark
# (typed as a dash), and the full-width forms of the ASCII separators.
_IN_ASCII = str.maketrans("＋﹢−⁃ー．（）／", "++---.()/")  # noqa: RUF001 # that they look alike is why they are read alike
_SPACES = str.maketrans("\t\n\v\f\r\x1c\x1d\x1e\x1f", " " * 9)

_SCHEME = re.compile(r"(tel|callto|sms|whatsapp):(?://)?", re.IGNORECASE)
# Behind the colon stands a device of the same person.
_WHATSAPP_ID = re.compile(r"([0-9]+)(?::[0-9]+)?@(?:c\.us|s\.whatsapp\.net)", re.IGNORECASE)
_WHATSAPP_LINK = re.compile(
    r"(?:(?:https?://)?(?:wa\.me/|(?:api|web)\.whatsapp\.com/send/?\?phone=)|whatsapp://send/?\?phone=)(?:\+|%2B)?"
    r"([0-9]+)/?(?:[?&#].*)?",
    re.IGNORECASE,
)

_REWRITTEN = re.compile(
    r"[+-]?(?:[0-9]+(?:[.,][0-9]+)?E[+-]?[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+,0+)", re.IGNORECASE
)
_WRITTEN = re.compile(r"[0-9+ ()./\-]*")
_TWO_NUMBERS = re.compile(r"(?:[ ()./+-]*[0-9]){7,}[ ()./-]*[^0-9 ()./-].*(?:[0-9][ ()./-]*){7,}", re.DOTALL)
_PART = re.compile(r"([^0-9]*)([0-9]+)")
_DIGIT = re.compile("[0-9]")

_SHORTEST_END = 4
"""Digits that a number has behind the slash after its area code; fewer are another ending, or no part of it."""
_SHORTEST_END_IN_PARENTHESES = 5
"""Digits from the last parenthesis on: those of an area code and a number. Fewer are an extension or a remark."""
_DECIMALS = 2


class Joint(NamedTuple):
    """A place between two groups of digits."""

    before: int
    """How many characters of what is dialled stand before it."""
    divides: bool
    """Whether it divides a number from another one, or from decimals, when what stands before it is a number."""


class Dialled(NamedTuple):
    """The digits in ASCII, behind a + if there is one, and the places where they are separated."""

    digits: str
    is_international: bool = False
    """Whether they begin with the country code although no + says so."""
    joints: tuple[Joint, ...] = ()


def dialled(value: str) -> Dialled | None:
    """What `value` dials; None when there is nothing to see in it. Raises ValueRefusedError, PlaceholderError."""
    if value.isascii():
        written = value.translate(_SPACES)
    else:
        refuse_mask(value)
        written = "".join(map(_character_in_ascii, value.translate(_IN_ASCII)))
    written, is_international = _without_scheme(written.strip())
    if _DIGIT.search(written) is None:
        if is_blank(value):
            return None
        raise PlaceholderError(PLACEHOLDER)
    if is_date(written):
        raise PlaceholderError("is a date, not a phone number: ask the customer for the number itself")
    if _WRITTEN.fullmatch(written) is None:
        if _REWRITTEN.fullmatch(written) is not None:
            raise ValueRefusedError(REWRITTEN, "REWRITTEN")
        if _TWO_NUMBERS.match(written) is not None:
            raise ValueRefusedError(MORE_THAN_A_NUMBER, "MORE_THAN_ONE")
        raise ValueRefusedError(
            "must hold digits only, after an optional +; extensions are not accepted", "INVALID_CHARACTERS"
        )
    parts: list[tuple[str, str]] = _PART.findall(written)
    plus = "+" if "+" in parts[0][0] else ""
    if written.count("+") > len(plus):
        raise ValueRefusedError("has a + that is not at the start", "MORE_THAN_ONE")
    # The only dot between digits stands before the last ones.
    has_decimals = parts[-1][0].strip() == "." and not any("." in separator for separator, _ in parts[1:-1])
    _refuse_what_follows(written, parts, has_decimals=has_decimals)
    joints = tuple(_joints(parts, at=len(plus), has_decimals=has_decimals))
    return Dialled(plus + "".join([group for _, group in parts]), is_international, joints)


def _character_in_ascii(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Pd":
        return "-"
    # Some invisible characters count as letters.
    return "" if category == "Cf" or is_blank(character) else character


def _without_scheme(written: str) -> tuple[str, bool]:
    """The number of a URI or of a WhatsApp address, and whether it begins with the country code even without a +."""
    if (address := _WHATSAPP_ID.fullmatch(written) or _WHATSAPP_LINK.fullmatch(written)) is not None:
        return address[1], True
    if (scheme := _SCHEME.match(written)) is not None:
        return written[scheme.end() :].strip(), scheme[1].lower() == "whatsapp"
    return written, False


def _refuse_what_follows(written: str, parts: list[tuple[str, str]], *, has_decimals: bool) -> None:
    """Raise ValueRefusedError when what stands at the end is set apart as no number sets its last digits apart."""
    separator, last = parts[-1]
    if len(parts) == 1 or (len(last) > _DECIMALS and "/" not in written and "(" not in written):
        return
    if (
        separator.strip() == "."
        and not last.strip("0")
        and (len(last) == 1 or (has_decimals and len(last) == _DECIMALS))
    ):
        raise ValueRefusedError(REWRITTEN, "REWRITTEN")
    is_alone = len(last) == 1 < len(parts[-2][1]) and separator.strip() != ""
    if is_alone or (has_decimals and len(last) <= _DECIMALS) or _ends_with_remark(written):
        raise ValueRefusedError(MORE_THAN_A_NUMBER, "MORE_THAN_ONE")


def _ends_with_remark(written: str) -> bool:
    """Whether too few digits for the end of a number stand behind the only slash, or from a parenthesis on."""
    if written.count("/") == 1 and _count_digits(written.partition("/")[2]) < _SHORTEST_END:
        return True
    before, _, inside = written.rpartition("(")
    return _DIGIT.search(before) is not None and _count_digits(inside) < _SHORTEST_END_IN_PARENTHESES


def _count_digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _joints(parts: list[tuple[str, str]], *, at: int, has_decimals: bool) -> Iterator[Joint]:
    for (_, group), (separator, following) in pairwise(parts):
        at += len(group)
        has_zeros = has_decimals and separator.strip() == "." and not following.strip("0")
        yield Joint(at, divides=has_zeros or "/" in separator)
