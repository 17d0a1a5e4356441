"""What text is accepted, and in which form it is kept.

Text is kept in Unicode NFC, trimmed. Letters of every script, emoji, private use characters and the joiners that real
scripts need pass. Marks that only set the direction of text are removed: contact apps and chats copy them along, and
they can make a screen show something else than what is stored. What is refused can damage a store: control characters,
lone surrogates, noncharacters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from service.errors import Violation, ViolationReason

MASK = "•••"
"""Every masked value contains it, so a write that contains it would replace a real value by its mask."""

_WHITESPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_JOINERS = "\u200c\u200d"
_DIRECTION_MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_TRIMMED = _WHITESPACE + "\u200b\u2060\ufeff" + _JOINERS + _DIRECTION_MARKS
"""Whitespace, and the marks without width that copy and paste leaves at the ends."""
_DIRECTING = re.compile(f"[{_DIRECTION_MARKS}]+")
_VIRAMA = 9
"""Unicode's combining class of the signs behind which a joiner is spelling: Malayalam ends words with one."""

# The vertical tab is FileMaker's line break, the form feed and U+0085 are those of old systems.
_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")

_SURROGATES = "\ud800-\udfff"
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
# Unassigned code points are not refused: the next Unicode version makes letters of some of them.
_NEVER = f"{_SURROGATES}{_NONCHARACTERS}"
_REFUSED_IN_A_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_NEVER}]")
_REFUSED_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_NEVER}]")

# Unicode's Default_Ignorable_Code_Point, the annotation marks, the empty Braille cell and whitespace.
_INVISIBLE = (
    rf"{_WHITESPACE}\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
_VISIBLE_CHARACTER = re.compile(f"[^{_INVISIBLE}]")

_MARKS_IN_A_ROW = 30
"""The bound of Unicode's Stream-Safe Text Format (UAX #15). Normalising sorts the marks of one letter in quadratic
time: 32,000 of them cost 0.8 s."""
_PERHAPS_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MARKS_IN_A_ROW + 1}}}")


class ValueRefusedError(Exception):
    """One value is not accepted. `description` is fixed text: it never holds the value or a part of it."""

    def __init__(self, description: str, reason: ViolationReason = "INVALID") -> None:
        super().__init__(description)
        self.description = description
        self.reason = reason

    def at(self, path: str) -> Violation:
        """The violation that it is in the field of a request."""
        return Violation(path, self.description, self.reason)


class MaskedValueError(ValueRefusedError):
    """The value is a mask of the service's own: a fault of the caller, not of the customer."""

    def __init__(self) -> None:
        super().__init__("looks like a masked value; send the real one", "MASKED")


class PlaceholderError(ValueRefusedError):
    """The value stands for one that was not given, such as `none` or `0000000000`."""

    def __init__(self, description: str) -> None:
        super().__init__(description, "PLACEHOLDER")


REWRITTEN = (
    "was rewritten by a spreadsheet, as in 1.2E+12 or 123.0, and digits may be lost: format the column as text and "
    "send what was entered"
)


_DATE = re.compile(
    r"(?:(?:(?:19|20)[0-9]{2}([-/.])[0-3]?[0-9]\1[0-3]?[0-9]|[0-3]?[0-9]([-/.])[0-3]?[0-9]\2(?:19|20)[0-9]{2})"
    r"|[0-3]?[0-9]/[0-3]?[0-9]/[0-9]{2}"
    r"|[0-3]?[0-9][-/. ](?:JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)[A-Z]*(?:[-/. ][0-9]{2,4})?)"
    r"(?:[T ]+[0-9]{1,2}:.*)?",
    re.IGNORECASE,
)
"""Dates and times of day as forms, spreadsheets and databases write them. Digits without separators are none."""


def is_date(text: str) -> bool:
    """Whether `text`, with digits in ASCII, is a date: no number of a person, and shared by strangers."""
    return _DATE.fullmatch(text) is not None


def is_blank(value: str) -> bool:
    """Whether nothing in `value` can be seen: it is empty, or holds only whitespace and invisible characters."""
    return _VISIBLE_CHARACTER.search(value) is None


def ascii_form(character: str, separators: str) -> str:
    """The ASCII digit that `character` stands for, nothing for a separator, else the character itself."""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    # Cf: the marks without width that contact apps and chats copy along. Some invisible characters count as letters.
    separates = character in separators or unicodedata.category(character) in {"Cf", "Pd"}
    return "" if separates or is_blank(character) else character


def refuse_mask(value: str) -> None:
    """Raises MaskedValueError when `value` contains the mask."""
    if MASK in value:
        raise MaskedValueError


def raw_limit(limit: int) -> int:
    """How many characters of input are looked at for a value of at most `limit` characters after normalisation.

    Composing takes up to four characters to one and a CRLF is two, so eight times leaves room; the rest is for blanks
    around a short value. What is longer is refused unread, so 10 MB cost nothing.
    """
    return 8 * limit + 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRule:
    """What one text field accepts."""

    limit: int
    """The most characters (code points) after normalisation."""
    lines: bool = False
    """Whether newlines and tabs belong to it. Every kind of line break becomes a newline."""
    spaces: bool = True
    """False for identifiers: visible characters only, no whitespace and nothing invisible in between."""

    def normalise(self, value: str) -> str | None:
        """The text as it is kept, or None when there is nothing to see in it. Raises ValueRefusedError."""
        if len(value) > raw_limit(self.limit):
            raise self._too_long()
        # Nearly every value is plain ASCII: it needs none of the checks below, and a blank is its only whitespace.
        text = value.strip(" ") if value.isascii() and value.isprintable() else self._normalise_unicode(value)
        if len(text) > self.limit:
            raise self._too_long()
        if not self.spaces and not (text.isprintable() and " " not in text):
            raise ValueRefusedError("must hold visible characters only, without spaces", "INVALID_CHARACTERS")
        return text or None

    def _normalise_unicode(self, value: str) -> str:
        # Inside an identifier such a mark is a fault: without it the identifier would be another one.
        text = _DIRECTING.sub("", value) if self.spaces else value
        refuse_mask(text)
        text = _trimmed(text)
        if self.lines:
            text = _LINE_BREAK.sub("\n", text)
        refused = (_REFUSED_IN_LINES if self.lines else _REFUSED_IN_A_LINE).search(text)
        if refused is not None:
            raise ValueRefusedError(_why_refused(refused[0]), "INVALID_CHARACTERS")
        if is_blank(text):
            return ""
        if _PERHAPS_MARKS.search(text) is not None:
            _refuse_piled_marks(text)
        return unicodedata.normalize("NFC", text)

    def _too_long(self) -> ValueRefusedError:
        return ValueRefusedError(f"is too long: at most {self.limit} characters", "TOO_LONG")


def _trimmed(text: str) -> str:
    trimmed = text.strip(_TRIMMED)
    if trimmed and unicodedata.combining(trimmed[-1]) == _VIRAMA:
        end = len(text) - len(text.lstrip(_TRIMMED)) + len(trimmed)
        return trimmed + (text[end] if text[end : end + 1] in (*_JOINERS,) else "")
    return trimmed


def _why_refused(character: str) -> str:
    """The reason for a refusal. Such characters are no part of what the customer wrote, so it may name them."""
    if character in "\n\r\v\f\x85\u2028\u2029":
        return "must be one line, without line breaks"
    if character == "\t":
        return "must not contain a tab"
    if "\ud800" <= character <= "\udfff":
        return "is not valid Unicode: it contains half of a surrogate pair"
    code_point = f"U+{ord(character):04X}"
    if unicodedata.category(character) == "Cc":
        return f"contains the control character {code_point}"
    return f"contains {code_point}, which is not a character"


def _refuse_piled_marks(text: str) -> None:
    in_a_row = 0
    for character in text:
        in_a_row = in_a_row + 1 if unicodedata.combining(character) else 0
        if in_a_row > _MARKS_IN_A_ROW:
            raise ValueRefusedError(f"has more than {_MARKS_IN_A_ROW} combining marks in a row", "INVALID_CHARACTERS")


UNREADABLE = "\ufffe"
"""Stands for an optional JSON value that is no text: a noncharacter, which no field accepts."""

_NUMBERS_IN_NAME_ONLY = {"phone", "nid"}
"""Fields whose values are digits, and not quantities."""
_EXACT = 2**53
"""Integers below it survive every reader and writer of JSON (RFC 8259)."""


def text_of(field: str, value: object) -> str:
    """The text of a field that a JSON value stands for, in a request or in a file. Raises ValueRefusedError."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and field in _NUMBERS_IN_NAME_ONLY:
        raise ValueRefusedError(
            "must be a string, in quotes: a number loses leading zeros and digits beyond 2^53 before it arrives"
        )
    if is_number and isinstance(value, int) and abs(value) < _EXACT:
        return str(value)
    raise ValueRefusedError("must be a string")
