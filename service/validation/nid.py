"""Which national identity numbers are accepted, and the one form in which each is kept.

Without a country's rule an NID is 4 to 32 letters or digits. Letters of any script pass as they are: a Cyrillic
letter is not the Latin one that looks like it, because some countries print the one and some the other.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum

from service.validation.text import ValueRefusedError, ascii_form, is_blank, raw_limit, refuse_mask


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

        Raises ValueRefusedError. The canonical form of a canonical form is itself.
        """
        if len(value) > _MAX_RAW:
            raise ValueRefusedError(_LENGTH)
        nid = value.translate(_ASCII_SEPARATORS).upper() if value.isascii() else _from_unicode(value)
        if not nid and is_blank(value):
            return None
        if _ASCII.fullmatch(nid) is None and not all(map(_belongs, nid)):
            raise ValueRefusedError("must hold letters and digits only")
        if not _MIN_CHARACTERS <= len(nid) <= _MAX_CHARACTERS:
            raise ValueRefusedError(_LENGTH)
        if self._rule is NidRule.BD and _BD.fullmatch(nid) is None:
            raise ValueRefusedError("must have 10, 13 or 17 digits")
        return nid

    def identity(self, nid: str) -> str:
        """The part of the canonical `nid` that identifies the person: equal for two NIDs of one person.

        BD's 10 digits of a smart card and the 13 of the older paper cannot be computed from each other, so they count
        as different.
        """
        if self._rule is NidRule.BD and len(nid) == _BD_WITH_BIRTH_YEAR:
            return nid[_BD_BIRTH_YEAR_DIGITS:]
        return nid


def _from_unicode(value: str) -> str:
    refuse_mask(value)
    kept = "".join(ascii_form(each, _SEPARATORS) for each in unicodedata.normalize("NFKC", value))
    # Once more: a mark may have come beside its letter, and upper case may be written in another way.
    return unicodedata.normalize("NFKC", kept.upper())


def _belongs(character: str) -> bool:
    """Combining marks do not: what NFKC could not compose to a letter is no part of an NID."""
    return character.isalpha() or character in "0123456789"
