"""Which national identity numbers are accepted, and the one form in which each is kept.

Without a country's rule an NID is 4 to 32 letters or digits. Letters of any script pass as they are: a Cyrillic
letter is not the Latin one that looks like it, because some countries print the one and some the other.

By a placeholder or a damaged number strangers would become one person, so both are refused, each with its reason.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum

from service.validation.text import (
    REWRITTEN,
    PlaceholderError,
    ValueRefusedError,
    ascii_form,
    is_blank,
    is_date,
    raw_limit,
    refuse_mask,
)


class NidRule(StrEnum):
    """Which country's form an NID must have."""

    ANY = "any"
    """4 to 32 letters or digits."""
    BD = "BD"
    """Bangladesh: 10, 13 or 17 digits, where 17 are the year of birth and the same person's 13."""


_MIN_CHARACTERS = 4
_MAX_CHARACTERS = 32
_MAX_RAW = raw_limit(_MAX_CHARACTERS)

_ASCII_SEPARATORS = str.maketrans("", "", "\t\n\v\f\r\x1c\x1d\x1e\x1f -./_:()")
_ASCII = re.compile(r"[0-9A-Z]+")
# Minus sign and hyphen bullet; NFKC has made ASCII of the full-width forms.
_SEPARATORS = "−⁃-./_:()"  # noqa: RUF001 # that they look alike is why they are read alike

_PLACEHOLDER = re.compile(r"[^1-9]*|(.)\1*|X{3,}[0-9]{1,6}|[0-9A-Z]{0,4}X{4,}[0-9A-Z]{0,6}")
"""No digit between 1 and 9, or one character only: every national ID has such a digit, and no word of any language.
Or the few digits that another program left when it masked the others, which strangers share."""

# A decimal mark or a sign distinguishes 1.2E12 from an NID that has an E between digits, as Finland's do.
_REWRITTEN = re.compile(
    r"[+-]?(?:[0-9][.,][0-9]+E[+ -]?[0-9]+|[0-9]+E[+-][0-9]+"
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[^.,]*[0-9]{3}[.,]0+)",
    re.IGNORECASE,
)
_WHOLE_NUMBER = 9
"""Digits that are a whole NID. Fewer may have another part, as Macau's 1234567(8) or a Czech 850730/123."""
_FOLLOWED = re.compile(
    rf"(?:[^0-9A-Z]*[0-9]){{{_WHOLE_NUMBER},}}"
    r"(?:[^0-9A-Z]*\(\s*[0-9]{1,3}\s*\)|\s*/\s*[0-9]{1,2}|\s+/\s+[0-9]{1,3}|\s*(?:X|EXT\.?)\s*[0-9]+"
    rf"|\s*[/|]\s*(?:[^0-9A-Z]*[0-9]){{{_WHOLE_NUMBER},}})"
    rf"|[0-9]{{{_WHOLE_NUMBER},}}\.[0-9]{{1,2}}",
    re.IGNORECASE,
)
"""A whole NID and something behind it: an extension, decimals, a second NID."""
_TWO = re.compile(rf"[0-9]{{{_WHOLE_NUMBER}}}[^0-9]+[0-9]{{{_WHOLE_NUMBER}}}")
_WORD = re.compile(r"[^\W\d_]{2}")

_LABEL = re.compile(r"[^0-9:]*?[^\W\d_][^0-9:]*:")
"""What a form or a chat puts before the number: `NID: …`, in any language."""
_NAMED = re.compile(r"(?:NID|NATIONALID|IDNO|IDNUMBER|IDCARD|PASSPORT)(?:NO|NUMBER|CARD|IS)*[A-Z]?[0-9]{6}")
"""The same without a colon, once separators are gone."""

_MORE_THAN_A_NID = "holds more than a national ID: send the number alone, without what stands beside it"

_BD = re.compile(r"[0-9]{10}|[0-9]{13}|[0-9]{17}")
_BD_BIRTH_YEAR_DIGITS = 4
_BD_WITH_BIRTH_YEAR = 17

_LENGTH = f"must have {_MIN_CHARACTERS} to {_MAX_CHARACTERS} letters or digits"


class NidNormaliser:
    """Reads NIDs as people write them."""

    def __init__(self, rule: NidRule) -> None:
        self._rule = rule

    def canonical(self, value: str) -> str | None:
        """The NID in upper case without separators, or None when there is nothing to see in `value`.

        Raises ValueRefusedError, and PlaceholderError for what stands for no NID. The canonical form of a canonical
        form is itself.
        """
        if len(value) > _MAX_RAW:
            raise ValueRefusedError(_LENGTH, "WRONG_LENGTH")
        written = value if value.isascii() else _with_ascii_digits(value)
        nid = written.translate(_ASCII_SEPARATORS).upper() if value.isascii() else _without_separators(written)
        if not nid and is_blank(value):
            return None
        if _PLACEHOLDER.fullmatch(nid) is not None:
            raise PlaceholderError("is a placeholder, not a national ID: ask the customer for the number itself")
        if not (written.isascii() and written.isdigit()):
            _refuse_what_is_no_part(written.strip())
            if _NAMED.search(nid) is not None:
                raise ValueRefusedError(_MORE_THAN_A_NID, "MORE_THAN_ONE")
        if _ASCII.fullmatch(nid) is None and not all(map(_belongs, nid)):
            raise ValueRefusedError("must hold letters and digits only", "INVALID_CHARACTERS")
        if not _MIN_CHARACTERS <= len(nid) <= _MAX_CHARACTERS:
            raise ValueRefusedError(_LENGTH, "WRONG_LENGTH")
        if self._rule is NidRule.BD and _BD.fullmatch(nid) is None:
            raise ValueRefusedError("must have 10, 13 or 17 digits", "WRONG_LENGTH")
        return nid

    def identity(self, nid: str) -> str:
        """The part of the canonical `nid` that identifies the person: equal for two NIDs of one person.

        BD's 10 digits of a smart card and the 13 of the older paper cannot be computed from each other, so they count
        as different.
        """
        if self._rule is NidRule.BD and len(nid) == _BD_WITH_BIRTH_YEAR:
            return nid[_BD_BIRTH_YEAR_DIGITS:]
        return nid


def _with_ascii_digits(value: str) -> str:
    refuse_mask(value)
    normal = unicodedata.normalize("NFKC", value)
    return "".join(str(unicodedata.decimal(each, each)) for each in normal)


def _without_separators(written: str) -> str:
    kept = "".join(ascii_form(each, _SEPARATORS) for each in written)
    # Once more: a mark may have come beside its letter, and upper case may be written in another way.
    return unicodedata.normalize("NFKC", kept.upper())


def _refuse_what_is_no_part(written: str) -> None:
    """Raise ValueRefusedError when a separator does not separate parts of one NID."""
    if _REWRITTEN.fullmatch(written) is not None:
        raise ValueRefusedError(REWRITTEN, "REWRITTEN")
    if is_date(written):
        raise PlaceholderError("is a date, not a national ID: ask the customer for the number itself")
    if any((_FOLLOWED.fullmatch(written), _LABEL.match(written), _TWO.search(written), _ends_with_remark(written))):
        raise ValueRefusedError(_MORE_THAN_A_NID, "MORE_THAN_ONE")


def _ends_with_remark(written: str) -> bool:
    """Whether a word stands in parentheses at the end, as in `1990123456789 (old)`."""
    before, _, inside = written.rpartition("(")
    return inside.endswith(")") and before != "" and _WORD.search(inside) is not None


def _belongs(character: str) -> bool:
    """Combining marks do not: what NFKC could not compose to a letter is no part of an NID."""
    return character.isalpha() or character in "0123456789"
