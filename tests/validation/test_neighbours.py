"""Different numbers stay different, and each number that the library writes is read as itself."""

from __future__ import annotations

from collections.abc import Iterator

import phonenumbers
import pytest
from phonenumbers import PhoneNumberFormat

from service.validation import IndexRule
from service.validation.phone import PhoneNormaliser, PhoneRule
from service.validation.text import PlaceholderError, ValueRefusedError
from tests.validation.neighbours_trial import collisions

NUMBERS = 2500
"""Of a million in neighbours_trial.py."""

SHORTEST = len("+1234567")

FORMATS = (PhoneNumberFormat.E164, PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.RFC3966)


def test_no_two_numbers_that_the_library_tells_apart_become_one() -> None:
    assert list(collisions(NUMBERS, seed=20260131)) == []


def examples(region: str) -> Iterator[phonenumbers.PhoneNumber]:
    for kind in phonenumbers.supported_types_for_region(region):
        number = phonenumbers.example_number_for_type(region, kind)
        if number is not None:
            yield number


def test_every_number_is_read_in_each_way_in_which_the_library_writes_it() -> None:
    misread = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        here, elsewhere = PhoneNormaliser(region, PhoneRule.E164), PhoneNormaliser(None, PhoneRule.E164)
        for number in examples(region):
            expected = phonenumbers.format_number(number, PhoneNumberFormat.E164)
            if len(expected) < SHORTEST:
                continue
            written = [(here, phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL))]
            written += [(elsewhere, phonenumbers.format_number(number, each)) for each in FORMATS]
            written += [(here, phonenumbers.format_out_of_country_calling_number(number, region))]
            for normaliser, text in written:
                try:
                    read = normaliser.canonical(text)
                except PlaceholderError:
                    continue  # some examples are one repeated digit
                except ValueRefusedError as refused:
                    read = refused.description
                if read != expected:
                    misread.append((region, text, expected, read))
    assert misread == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("+551132345678", "+5511932345678"),  # a landline, and a mobile number that always had nine digits
        ("+551152345678", "+5511952345678"),
        ("+541123456789", "+541123456780"),
        ("+525512345678", "+5215512345679"),
        ("+52155123456", "+5255123456"),  # too short for Mexico
        ("+5491234567", "+541234567"),
        ("+15512345678", "+5512345678"),
        ("+5611912345678", "+561112345678"),  # Chile
    ],
)
def test_what_is_written_in_two_ways_nowhere_stays_two(one: str, other: str) -> None:
    rule = IndexRule.of("2;region=-;phone=e164;nid=any")

    assert rule.phone_key(one) != rule.phone_key(other)
