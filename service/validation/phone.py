"""Which phone numbers are accepted, and the one form in which each is kept: `+` and 7 to 15 digits.

What a number dials (dialled.py) is brought into its form. Two ways to write one number must give one form, because
duplicates are found by it. The forms are those of the phonenumbers library, which knows the trunk prefixes
("+44 (0)20 …") and the exit codes of each country.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

import phonenumbers

from service.validation.dialled import MORE_THAN_A_NUMBER, PLACEHOLDER, Dialled, dialled
from service.validation.text import PlaceholderError, ValueRefusedError, raw_limit


class PhoneRule(StrEnum):
    """How strictly a phone number is checked."""

    E164 = "e164"
    """Any `+` with 7 to 15 digits."""
    VALID = "valid"
    """A number that phonenumbers calls valid: its country hands out such numbers."""


ANY_COUNTRY = "001"
"""In place of a region: digits begin with the country code, as in WhatsApp's wa_id."""

_MAX_DIGITS = 15
# An exit code (up to 5 digits, "00880…") and a trunk prefix ("(0)") may stand before what is kept.
_MAX_DIALLED = _MAX_DIGITS + 8
_MAX_RAW = raw_limit(_MAX_DIGITS)
_CANONICAL = re.compile(r"\+[1-9][0-9]{6,14}")
_SHORTEST_WHOLE = 8
"""Characters of what is dialled that can be a whole number: the + and 7 digits, or a trunk prefix and a number."""
_FEWEST_REPEATED = 7
"""How often a digit is repeated in a placeholder at least. Small countries have numbers of four digits."""

_FORMER_FORMS = (
    (re.compile(r"(\+52)1([0-9]{10})"), r"\1\2"),
    (re.compile(r"(\+55[1-9]{2})([6-9][0-9]{7})"), r"\g<1>9\2"),
)
"""Mobile numbers of Mexico and Brazil from before their plans changed, and what has become of them."""

_PASSES = 16
"""More than the trunk zeros that fit into a number: of millions of random numbers none needed more than seven."""

_DIGIT_COUNT = "must have 7 to 15 digits, country code included"


def region_of(value: str) -> str:
    """The region of a request: an ISO country code with phone numbers, or ANY_COUNTRY. Raises ValueRefusedError."""
    region = value.strip().upper()
    if region != ANY_COUNTRY and region not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueRefusedError(
            f"must be the ISO code of a country, such as BD, or {ANY_COUNTRY}: digits begin with the country code"
        )
    return region


class PhoneNormaliser:
    """Reads phone numbers as people write them. Raises ValueError for a region that phonenumbers does not know."""

    def __init__(self, region: str | None, rule: PhoneRule) -> None:
        if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError("the default region must be the ISO code of a country that has phone numbers, such as BD")
        self._region = region
        self._rule = rule

    def canonical(self, value: str, region: str | None = None) -> str | None:
        """`+` and 7 to 15 digits, or None when there is nothing to see in `value`.

        Args:
            value: the number as it is written.
            region: the region of digits without +, in place of the own one; ANY_COUNTRY for none.

        Raises ValueRefusedError. The canonical form of a canonical form is itself.
        """
        if len(value) > _MAX_RAW:
            raise ValueRefusedError(_DIGIT_COUNT, "WRONG_LENGTH")
        if _is_settled(value):
            number = value
        else:
            written = dialled(value)
            if written is None:
                return None
            number = self._read(written, ANY_COUNTRY if written.is_international else region or self._region)
        _refuse_repeated_digit(number)
        if self._rule is PhoneRule.VALID and not _exists(number):
            raise ValueRefusedError(
                "is not a phone number that exists in its country's numbering plan", "UNKNOWN_NUMBER"
            )
        return number

    def _read(self, written: Dialled, region: str | None) -> str:
        # Before trunk zeros go, which may be all of it.
        _refuse_repeated_digit(written.digits)
        try:
            number = _with_country_code(written.digits, region)
            _require_form(number)
        except ValueRefusedError:
            # Two numbers are none, and then a country code would not help.
            _refuse_second_number(written, "", region)
            raise
        _refuse_second_number(written, number, region)
        return number


def _require_form(number: str) -> None:
    """Raise ValueRefusedError unless it is `+` and 7 to 15 digits."""
    if number.startswith("+0"):
        raise ValueRefusedError(
            "has no country code after the + or 00: no country code begins with 0", "NO_COUNTRY_CODE"
        )
    if _CANONICAL.fullmatch(number) is None:
        raise ValueRefusedError(_DIGIT_COUNT, "WRONG_LENGTH")


def _with_country_code(digits: str, region: str | None) -> str:
    """`+`, country code and number, without trunk prefixes. Raises ValueRefusedError."""
    if len(digits) > _MAX_DIALLED:
        raise ValueRefusedError(_DIGIT_COUNT, "WRONG_LENGTH")
    if digits.startswith("+"):
        return _settled(digits)
    if region is None:
        raise ValueRefusedError("has no country code: write the number with + and the country code", "NO_COUNTRY_CODE")
    # The region's own exit code comes first: 0011 in Australia is not 00 and the country code 11.
    exit_code = _exit_code(region)
    leaves = exit_code.match(digits) if exit_code is not None else None
    if leaves is not None and not digits.startswith("0", leaves.end()):
        return _settled("+" + digits[leaves.end() :])
    if digits.startswith("00"):
        return _settled("+" + digits[2:])
    if region == ANY_COUNTRY:
        return _settled("+" + digits)
    number = _parsed(digits, region)
    if number is not None and phonenumbers.is_valid_number(number):
        return _settled(_e164(number))
    if _exists("+" + digits):
        if _country_code(digits[:3]) == str(phonenumbers.country_code_for_region(region)):
            return _settled("+" + digits)
        raise ValueRefusedError(
            f"is no number of the region {region}, and would be one of another country behind a +: write it with +, or "
            f"send phone_region {ANY_COUNTRY} if its digits begin with the country code",
            "AMBIGUOUS",
        )
    raise ValueRefusedError(
        f"cannot be read as a number of the region {region}: write it with + and the country code", "NO_COUNTRY_CODE"
    )


@lru_cache
def _exit_code(region: str) -> re.Pattern[str] | None:
    metadata = None if region == ANY_COUNTRY else phonenumbers.PhoneMetadata.metadata_for_region(region, None)
    if metadata is None or metadata.international_prefix is None:
        return None
    return re.compile(metadata.international_prefix)


def _refuse_second_number(written: Dialled, number: str, region: str | None) -> None:
    """Raise ValueRefusedError when digits before a separator are a valid number already, and all of them are none."""
    is_valid: bool | None = None
    for joint in written.joints:
        is_as_long = _SHORTEST_WHOLE <= joint.before <= _MAX_DIALLED
        before = _number_of(written.digits[: joint.before], region) if is_as_long else None
        if before is None or not _has_possible_length(before):
            continue
        if is_valid is None and not joint.divides:
            is_valid = _is_valid(number)
        if (joint.divides or not is_valid) and _is_valid(before):
            raise ValueRefusedError(MORE_THAN_A_NUMBER, "MORE_THAN_ONE")


def _number_of(digits: str, region: str | None) -> str | None:
    """The number of digits before a separator; None when they are none."""
    if not digits.startswith(("+", "00")) and region is not None and region != ANY_COUNTRY:
        number = _parsed(digits, region)
        return None if number is None else _e164(number)
    try:
        return _with_country_code(digits, region)
    except ValueRefusedError:
        return None


def _has_possible_length(number: str) -> bool:
    """Whether a number of its country can be as long. A hundredth of the time of asking whether it is valid."""
    code = _country_code(number[1:4])
    return len(number) - 1 - len(code) in _possible_lengths(code)


@lru_cache(maxsize=1110)  # of 1 to 3 digits there are no more
def _country_code(begin: str) -> str:
    """The country code of a number with these digits behind the +; empty: none that the library knows.

    It has one to three digits, and none begins another.
    """
    known = phonenumbers.COUNTRY_CODE_TO_REGION_CODE
    return next((begin[:length] for length in (1, 2, 3) if int(begin[:length]) in known), "")


@lru_cache(maxsize=1110)
def _possible_lengths(country_code: str) -> frozenset[int]:
    """How many digits the numbers of a country code have behind it; none without a country code."""
    regions = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(country_code or "0"), ())
    lengths: set[int] = set()
    for region in regions:
        metadata = phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(int(country_code), region)
        if metadata is not None and metadata.general_desc is not None:
            lengths.update(metadata.general_desc.possible_length)
    return frozenset(lengths)


def _refuse_repeated_digit(number: str) -> None:
    """Raise PlaceholderError when a number, or all behind its country code, is one digit.

    Some are in service, and their owners are far fewer than those who press one key until a form is content.
    """
    if not number.endswith(number[-1] * _FEWEST_REPEATED):
        return
    before = number.rstrip(number[-1]).removeprefix("+")
    # The last digit of the country code may be the repeated one, too.
    codes = {int(before or "0"), int(before + number[-1])} & phonenumbers.COUNTRY_CODE_TO_REGION_CODE.keys()
    if codes or not before.strip("0"):
        raise PlaceholderError(PLACEHOLDER)


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
    raise ValueRefusedError(
        "cannot be read as one phone number: write it with + and the country code", "UNKNOWN_NUMBER"
    )


def _is_settled(number: str) -> bool:
    """Whether reading and formatting `number` surely gives it back; False: it may, or may not.

    Reading takes 15 us, this a tenth. Behind a country code the library changes nothing but a trunk prefix or zeros at
    the beginning, so a number that begins with neither is its own E.164 form.
    """
    if _CANONICAL.fullmatch(number) is None:
        return False
    code = _country_code(number[1:4])
    return code != "" and _trunk_prefix(code).match(number, 1 + len(code)) is None


@lru_cache(maxsize=1110)
def _trunk_prefix(country_code: str) -> re.Pattern[str]:
    """What may begin a number of the country without belonging to it."""
    # The first region of a shared country code stands for all of them when a number is read.
    region = phonenumbers.COUNTRY_CODE_TO_REGION_CODE[int(country_code)][0]
    metadata = phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(int(country_code), region)
    prefix = None if metadata is None else metadata.national_prefix_for_parsing
    return re.compile(f"0|{prefix}" if prefix else "0")


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


def _exists(number: str) -> bool:
    """Whether a country hands out `number`, or did in a form in which WhatsApp still writes it."""
    return _is_valid(number) or any(
        _is_valid(former.sub(today, number)) for former, today in _FORMER_FORMS if former.fullmatch(number)
    )
