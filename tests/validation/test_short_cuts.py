"""The short cuts of validation change no verdict: each is held against the library's whole way."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import phonenumbers
import pytest
from email_validator import EmailNotValidError, ValidatedEmail, validate_email

from service.validation import email
from service.validation.email import EMAIL_LIMIT, normalise_email
from service.validation.phone import PhoneNormaliser, PhoneRule
from service.validation.text import PlaceholderError, TextRule, ValueRefusedError

LOCALS = ["", "info", "Info", "POSTMASTER", "sales", "a", "a..b", ".a", "a.", '"a b"', '"a"', "a\n", "ü", "𐐀"]
LABELS = [
    *("xn--bcher-kva", "XN--BCHER-KVA", "xn--", "xn--a", "xn--4dbc", "bücher", "Bücher", "ab--c", "ß", "א"),
    *("", "-", "1", "@", "_", " ", "\u0301", "\uff0e", "\u3002", "\u200d", "\n", "٣"),
]
ENDS = [
    *("com", "COM", "example", "local", "LOCAL", "invalid", "test", "localhost", "onion", "arpa", "1", "c", "com."),
    "xn--p1ai",
]
DOMAINS = ["", "test", "[192.0.2.1]", "[IPv6:::1]", "[x]", "gmail.com", "gmail.com>", "@gmail.com", "a@b.com"]
LONGER_IN_UTF8 = ("ü" * 30).encode("idna").decode() + ".com"
"""Punycode writes a repeated letter in one byte."""


class Drawn:
    """Addresses near the borders of the short cut, drawn from a seed: the same ones in every run."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def address(self) -> str:
        draw = self._draw
        return f"{self._local()}{draw.choices(('@', ''), (9, 1))[0]}{self._domain()}"

    def _local(self) -> str:
        draw = self._draw
        return draw.choice(
            [
                self._text("abzAZ019", 1, 12),
                self._text("abzAZ019._!#$%&'*+-/=?^`{|}~", 0, draw.choice((4, 12, 70))),
                self._text('aA."\\@ <>(),:;[]\u00fc\u0301\u2126\uff0e', 0, 12),
                draw.choice(LOCALS),
                "a" * draw.randint(60, 68),
                "a" * draw.randint(200, EMAIL_LIMIT),
            ]
        )

    def _domain(self) -> str:
        draw = self._draw
        if draw.random() < 0.1:
            return draw.choice(DOMAINS)
        if (length := draw.randint(225, EMAIL_LIMIT)) % 10 == 0:
            return ("a" * 49 + ".") * 4 + "b" * 40 + "." + "c" * (length - 241 if length > 241 else 2)
        odd = draw.choice((0, 0, 0.2, 1))
        labels = [
            self._label() if draw.random() < odd else self._text("abzAZ09-", 1, 8) for _ in range(draw.randint(0, 5))
        ]
        return ".".join([*labels, draw.choice(ENDS)])

    def _label(self) -> str:
        return self._draw.choice([*LABELS, "a" * self._draw.randint(60, 66)])

    def _text(self, characters: str, fewest: int, most: int) -> str:
        return "".join(self._draw.choices(characters, k=self._draw.randint(fewest, most)))


DOTTED = re.compile(r"(?!\.)[A-Za-z0-9._!#$%&'*+\-/=?^`{|}~]+")
"""Names that Japanese carriers handed out are judged as if their dots at the end and in a row were other characters."""


def by_the_library(text: str) -> str:
    """What `normalise_email` gives for text that needs no cleaning, without its short cut."""
    if "@" not in text:
        return "has no @: it must be of the form name@example.com"
    local, _, domain = text.rpartition("@")
    if DOTTED.fullmatch(local) and (".." in local or local.endswith(".")) and domain.isascii():
        judged = by_the_library(f"x{'_' * (len(local) - 1)}@{domain}")
        return f"{local}@{judged.rpartition('@')[2]}" if "_@" in judged or judged.startswith("x@") else judged
    try:
        checked = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return "is not an email address of the form name@example.com"
    if "." not in checked.ascii_domain:
        return "is not an email address of the form name@example.com"
    if len(checked.normalized) > EMAIL_LIMIT:
        return f"is too long: at most {EMAIL_LIMIT} characters"
    return checked.normalized


def by_us(text: str) -> str:
    try:
        return normalise_email(text) or ""
    except ValueRefusedError as refused:
        return refused.description


def cleaned(text: str) -> str | None:
    """`text` as the rule for text leaves it; None: it is refused before anybody reads an address in it."""
    try:
        return TextRule(limit=EMAIL_LIMIT).normalise(text)
    except ValueRefusedError:
        return None


LONGEST_AND_SHORTEST = [
    "a@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 63 + "." + "e" * 60 + ".de",
    "a" * 191 + "@" + "b" * 59 + ".de",
    "a" * 192 + "@" + "b" * 59 + ".de",
    "a" * 230 + "@xn--bcher-kva.example",
    "a@test",
    "a@b.test",
]


def test_an_email_address_is_judged_as_the_library_judges_it() -> None:
    drawn, accepted = Drawn(20260131), 0
    for address in [*LONGEST_AND_SHORTEST, *(drawn.address() for _ in range(6000))]:
        if (text := cleaned(address)) is not None:
            expected = by_the_library(text)
            assert by_us(text) == expected, text
            assert by_us(text) == expected, f"a remembered domain is judged otherwise: {text}"
            accepted += "@" in expected and " " not in expected
    assert 500 < accepted < 5000, "of each verdict there are enough"


@pytest.mark.parametrize("length", range(EMAIL_LIMIT - 30, EMAIL_LIMIT + 3))
@pytest.mark.parametrize(
    "domain", ["example.com", "XN--BCHER-KVA.example", LONGER_IN_UTF8, ".".join(["a" * 60] * 4) + ".de"]
)
def test_the_longest_email_addresses_are_judged_as_the_library_judges_them(length: int, domain: str) -> None:
    address = f"{'a' * (length - 1 - len(domain))}@{domain}"

    if cleaned(address) is not None:
        assert by_us(address) == by_the_library(address)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the library was asked about."""
    asked: list[str] = []

    def judge(text: str, **how: bool) -> ValidatedEmail:
        asked.append(text)
        return validate_email(text, **how)  # type: ignore[arg-type] # flags

    monkeypatch.setattr(email, "validate_email", judge)
    return asked


@pytest.mark.parametrize(
    "refused", ["secret@nothing", "secret@b@c.com", "a@b.local", "secret@-.com", '"secret"@x.com', "Secret@x.com"]
)
def test_of_what_is_no_plain_accepted_address_nothing_is_remembered(refused: str, judged: list[str]) -> None:
    for _ in range(2):
        by_us(refused)
    assert len(judged) == 2


def test_accepted_domains_are_remembered_and_no_more_than_have_room(judged: list[str]) -> None:
    for number in range(1025):
        normalise_email(f"somebody@host{number}.com")
    judged.clear()
    normalise_email("somebody@host1024.com")
    assert judged == []
    normalise_email("somebody@host0.com")
    assert judged == ["a@host0.com"]


def settled_by_the_library(number: str) -> str | None:
    """The number read and formatted until nothing changes any more; None if it never does."""
    for _ in range(16):
        try:
            parsed = phonenumbers.parse(number, None)
        except phonenumbers.NumberParseException:
            return number
        settled = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
        if settled == number:
            return number
        number = settled
    return None


def numbers() -> Iterator[str]:
    """Numbers of every country code, those that no country has too: many with zeros, or with a trunk prefix."""
    draw = random.Random(20260131)  # the same numbers in every run
    for code in range(1, 1000):
        yield f"+{code}{'0' * 7}"
        for weights in ((1,) * 10, (9, 3, 1, 1, 1, 1, 1, 1, 3, 2)):
            for _ in range(8 if code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE else 1):
                digits = draw.randint(7, 15) - len(str(code))
                yield f"+{code}{''.join(draw.choices('0123456789', weights, k=digits))}"


def test_a_phone_number_is_settled_as_the_library_settles_it() -> None:
    normaliser = PhoneNormaliser(None, PhoneRule.E164)

    for number in numbers():
        expected = settled_by_the_library(number)
        try:
            canonical = normaliser.canonical(number)
        except PlaceholderError:
            assert len(set(number[-7:])) == 1
        except ValueRefusedError:
            assert expected is None or not 8 <= len(expected) <= 16
        else:
            assert canonical == expected
