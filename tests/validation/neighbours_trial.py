"""Phone numbers against their one-edit neighbours: `python -m tests.validation.neighbours_trial [NUMBERS] [SEED]`.

Two numbers that libphonenumber tells apart must never become one, but for the equivalences that the contract names: the
trunk prefixes that may stand behind a country code, and Brazil's ninth digit, Argentina's 9, Mexico's 1. Each number is
written in one of many ways, one character of it is put in, taken out or replaced, and what both become is compared. It
prints the pairs that became one and should not have, which should be none. A million numbers take twenty minutes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from functools import cache

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumberFormat

from service.validation import IndexRule
from service.validation.phone import ANY_COUNTRY, PhoneNormaliser, PhoneRule
from service.validation.text import ValueRefusedError

REGION = "BD"
EDITS_OF_A_NUMBER = 4
WRITTEN = "0123456789+-./() xe,#*\u00a0\u09e6"
"""What an edit puts into a number: digits, separators, and what stands in extensions, exponents and lists."""

Pair = tuple[str, str, str]

_normaliser = PhoneNormaliser(REGION, PhoneRule.E164)
_rule = IndexRule.of(f"2;region={REGION};phone=e164;nid=any")


def samples(count: int, seed: int) -> Iterator[str]:
    """Numbers of every country, each written in a way that people have."""
    draw = random.Random(seed)
    regions = sorted(phonenumbers.SUPPORTED_REGIONS)
    for _ in range(count):
        region = draw.choice([*regions, "BD", "BR", "AR", "MX", "US", "DE"])
        number = _of(region, draw)
        yield _written(number, region, draw)


def _of(region: str, draw: random.Random) -> phonenumbers.PhoneNumber:
    example = phonenumbers.example_number_for_type(region, draw.choice(_kinds(region)))
    assert example is not None
    national = phonenumbers.national_significant_number(example)
    kept = draw.randint(0, len(national))
    digits = national[:kept] + "".join(draw.choices("0123456789", k=len(national) - kept))
    code = example.country_code
    return phonenumbers.PhoneNumber(
        country_code=code,
        national_number=int(digits),
        italian_leading_zero=digits.startswith("0") or None,
        number_of_leading_zeros=len(digits) - len(digits.lstrip("0")) or None,
    )


@cache
def _kinds(region: str) -> list[int]:
    return [
        kind
        for kind in phonenumbers.PhoneNumberType.values()
        if kind in phonenumbers.supported_types_for_region(region)
        and phonenumbers.example_number_for_type(region, kind) is not None
    ]


def _written(number: phonenumbers.PhoneNumber, region: str, draw: random.Random) -> str:
    way = draw.choice(["e164", "international", "uri", "grouped", "digits", "national"])
    e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    match way:
        case "international":
            return phonenumbers.format_number(number, PhoneNumberFormat.INTERNATIONAL)
        case "uri":
            return phonenumbers.format_number(number, PhoneNumberFormat.RFC3966)
        case "national" if region == REGION:
            return phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
        case "digits":
            return e164[1:]
        case "grouped":
            separator, size = draw.choice([" ", "-", ".", " / "]), draw.randint(2, 5)
            return separator.join(e164[at : at + size] for at in range(0, len(e164), size))
        case _:
            return e164


def neighbours(written: str, draw: random.Random) -> Iterator[str]:
    """What is one edit away."""
    for _ in range(EDITS_OF_A_NUMBER):
        at = draw.randrange(len(written) + 1)
        match draw.choice(["put in", "take out", "replace", "append"]):
            case "put in":
                yield written[:at] + draw.choice(WRITTEN) + written[at:]
            case "take out":
                yield written[:at] + written[at + 1 :]
            case "replace":
                yield written[:at] + draw.choice(WRITTEN) + written[at + 1 :]
            case _:
                yield written + draw.choice(["0", " 1", ".0", "-0", "/2", " (1)", "x1", " 24", "\u09e7"])


def become_one(written: str, edited: str) -> bool:
    """Whether both are accepted and count as one person's. Raises AssertionError for a form that is not stable."""
    keys = {_key(written), _key(edited)}
    return len(keys) == 1 and None not in keys


def _key(written: str) -> str | None:
    for region in (None, ANY_COUNTRY):
        try:
            canonical = _normaliser.canonical(written, region)
        except ValueRefusedError:
            continue
        assert canonical is None or _normaliser.canonical(canonical) == canonical, written
        return None if canonical is None else _rule.phone_key(canonical)
    return None


def are_told_apart(written: str, edited: str) -> bool:
    """Whether libphonenumber reads two numbers that no equivalence of the contract makes one."""
    return _by_the_library(written) != _by_the_library(edited)


def _by_the_library(written: str) -> str | None:
    digits = written.removeprefix("tel:")
    if "+" not in digits:
        digits = _with_plus_if_foreign(digits)
    for _ in range(16):
        try:
            number = phonenumbers.parse(digits, REGION)
        except phonenumbers.NumberParseException:
            return digits
        settled = phonenumbers.format_number(number, PhoneNumberFormat.E164) + (number.extension or "")
        if settled == digits:
            break
        digits = settled
    return _folded(digits)


def _with_plus_if_foreign(written: str) -> str:
    """Digits that are no number of the region are read as beginning with the country code, as the trial asks us to."""
    try:
        number = phonenumbers.parse(written, REGION)
    except phonenumbers.NumberParseException:
        return written
    return written if phonenumbers.is_valid_number(number) else f"+{written}"


def _folded(e164: str) -> str:
    """The equivalences of the contract, said once more."""
    if e164.startswith("+521") and len(e164) == len("+5215512345678"):
        return "+52" + e164[4:]
    if e164.startswith("+549") and len(e164) == len("+5491123456789"):
        return "+54" + e164[4:]
    if e164.startswith("+55") and len(e164) == len("+5511987654321") and e164[5] == "9" and e164[6] in "6789":
        return e164[:5] + e164[6:]
    return e164


def collisions(count: int, seed: int) -> Iterator[Pair]:
    """Pairs that became one, and what they became."""
    draw = random.Random(seed)
    for written in samples(count, seed):
        for edited in neighbours(written, draw):
            if become_one(written, edited) and are_told_apart(written, edited):
                yield written, edited, str(_key(written))


def main() -> None:
    """Print every pair that became one and should not have; exit code 1 if there is any."""
    count, seed = (int(given) for given in (*sys.argv[1:3], *("1000000", "1")[len(sys.argv) - 1 :]))
    PhoneMetadata.load_all()
    found = list(collisions(count, seed))
    for pair in found:
        print(*map(repr, pair))
    print(f"{count} numbers, {count * EDITS_OF_A_NUMBER} neighbours, {len(found)} wrongly one")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
