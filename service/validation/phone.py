"""Which phone numbers are accepted, and the one form in which each is kept: `+` and 7 to 15 digits.

Two ways to write one number must give one form, because duplicates are found by it. The forms are those of the
phonenumbers library, which knows the trunk prefixes ("+44 (0)20 …") and the exit codes of each country.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

import phonenumbers

from service.validation.text import ValueRefusedError, ascii_form, is_blank, raw_limit, refuse_mask


class PhoneRule(StrEnum):
    """How strictly a phone number is checked."""

    E164 = "e164"
    """Any `+` with 7 to 15 digits."""
    VALID = "valid"
    """A number that phonenumbers calls valid: its country hands out such numbers."""


_MAX_DIGITS = 15
# An exit code (up to 5 digits, "00880…") and a trunk prefix ("(0)") may stand before what is kept.
_MAX_DIALLED = _MAX_DIGITS + 8
_MAX_RAW = raw_limit(_MAX_DIGITS)

_CANONICAL = re.compile(r"\+[1-9][0-9]{6,14}")
_DIALLED = re.compile("[0-9+]*")
_ZERO = re.compile("0")
_ENDS_OF_COUNTRY_CODES = (2, 3, 4)
"""Where the digits behind the + and a country code begin: it has one to three digits, and none begins another."""
_ASCII_SEPARATORS = str.maketrans("", "", "\t\n\v\f\r\x1c\x1d\x1e\x1f -.()/")
_PLUS_SIGNS = "+＋﹢"  # noqa: RUF001 # full-width and small: keyboards of East Asia type them
# Minus sign, hyphen bullet, Katakana long mark (typed as a dash), and the full-width forms of the ASCII ones.
_SEPARATORS = "−⁃ー．（）／-.()/"  # noqa: RUF001 # that they look alike is why they are read alike

_PASSES = 16
"""More than the trunk zeros that fit into a number: of millions of random numbers none needed more than seven."""

_DIGIT_COUNT = "must have 7 to 15 digits, country code included"


class PhoneNormaliser:
    """Reads phone numbers as people write them. Raises ValueError for a region that phonenumbers does not know."""

    def __init__(self, region: str | None, rule: PhoneRule) -> None:
        if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError("the default region must be the ISO code of a country that has phone numbers, such as BD")
        self._region = region
        self._rule = rule
        self._exit_code: re.Pattern[str] | None = None
        if region is not None:
            metadata = phonenumbers.PhoneMetadata.metadata_for_region(region, None)
            if metadata is not None and metadata.international_prefix is not None:
                self._exit_code = re.compile(metadata.international_prefix)

    def canonical(self, value: str) -> str | None:
        """`+` and 7 to 15 digits, or None when there is nothing to see in `value`. Raises ValueRefusedError.

        The canonical form of a canonical form is itself.
        """
        if len(value) > _MAX_RAW:
            raise ValueRefusedError(_DIGIT_COUNT)
        dialled = _dialled(value)
        if not dialled:
            if is_blank(value):
                return None
            raise ValueRefusedError(_DIGIT_COUNT)
        if "+" in dialled[1:]:
            raise ValueRefusedError("has a + that is not at the start")
        if len(dialled) > _MAX_DIALLED:
            raise ValueRefusedError(_DIGIT_COUNT)
        number = _settled(self._with_country_code(dialled))
        if _CANONICAL.fullmatch(number) is None:
            if number.startswith("+0"):
                raise ValueRefusedError("has no country code after the + or 00: no country code begins with 0")
            raise ValueRefusedError(_DIGIT_COUNT)
        if self._rule is PhoneRule.VALID and not _is_valid(number):
            raise ValueRefusedError("is not a phone number that exists in its country's numbering plan")
        return number

    def _with_country_code(self, dialled: str) -> str:
        if dialled.startswith("+"):
            return dialled
        if self._region is None:
            raise ValueRefusedError("has no country code: write the number with + and the country code")
        # The region's own exit code comes first: 0011 in Australia is not 00 and the country code 11.
        exit_code = self._exit_code.match(dialled) if self._exit_code is not None else None
        if exit_code is not None and not dialled.startswith("0", exit_code.end()):
            return "+" + dialled[exit_code.end() :]
        if dialled.startswith("00"):
            return "+" + dialled[2:]
        number = _parsed(dialled, self._region)
        if number is None:
            raise ValueRefusedError(
                f"cannot be read as a number of the region {self._region}: write it with + and the country code"
            )
        return _e164(number)


def _dialled(value: str) -> str:
    """The digits in ASCII and the plus signs of `value`, without separators."""
    kept = value.translate(_ASCII_SEPARATORS)
    if not kept.isascii():
        refuse_mask(value)
        kept = "".join("+" if each in _PLUS_SIGNS else ascii_form(each, _SEPARATORS) for each in kept)
    if _DIALLED.fullmatch(kept) is None:
        raise ValueRefusedError("must hold digits only, after an optional +; extensions are not accepted")
    return kept


def _settled(number: str) -> str:
    """`number` without trunk prefixes.

    One pass takes one prefix, so an odd number ("+66 03 …") may need several until a further pass changes nothing;
    otherwise the stored form, sent again, would become another one.
    """
    for _ in range(_PASSES):
        if _is_settled(number):
            return number
        parsed = _parsed(number, None)
        # A country code that the library does not know (yet) is no fault of the customer's: the digits stand.
        settled = number if parsed is None else _e164(parsed)
        if settled == number:
            return number
        number = settled
    raise ValueRefusedError("cannot be read as one phone number: write it with + and the country code")


def _is_settled(number: str) -> bool:
    """Whether reading and formatting `number` surely gives it back; False: it may, or may not.

    Reading takes 15 us, this a tenth. Behind a country code the library changes nothing but a trunk prefix or zeros at
    the beginning, so a number that begins with neither is its own E.164 form.
    """
    if _CANONICAL.fullmatch(number) is None:
        return False
    for end in _ENDS_OF_COUNTRY_CODES:
        trunk_prefix = _trunk_prefix(number[1:end])
        if trunk_prefix is not None:
            return trunk_prefix.match(number[end:]) is None
    return False


@lru_cache(maxsize=1110)  # of 1 to 3 digits there are no more
def _trunk_prefix(country_code: str) -> re.Pattern[str] | None:
    """What may begin a number of the country without belonging to it; None: the library knows no such country code."""
    regions = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(country_code))
    if regions is None:
        return None
    # The first region of a shared country code stands for all of them when a number is read.
    metadata = phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(int(country_code), regions[0])
    if metadata is None or not metadata.national_prefix_for_parsing:
        return _ZERO
    return re.compile(f"0|{metadata.national_prefix_for_parsing}")


def _parsed(number: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None


def _e164(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _is_valid(number: str) -> bool:
    parsed = _parsed(number, None)
    return parsed is not None and phonenumbers.is_valid_number(parsed)
