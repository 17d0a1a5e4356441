"""The short cuts of validation change no verdict: each is held against the library's whole way."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import phonenumbers
import pytest
from email_validator import EmailNotValidError, ValidatedEmail, validate_email
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.validation import email
from service.validation.email import EMAIL_LIMIT, normalise_email
from service.validation.phone import PhoneNormaliser, PhoneRule
from service.validation.text import PlaceholderError, TextRule, ValueRefusedError

LOCALS = st.one_of(
    st.text("abzAZ019._!#$%&'*+-/=?^`{|}~", max_size=70),
    st.text('aA."\\@ <>(),:;[]\u00fc\u0301\u2126\uff0e', max_size=12),
    st.sampled_from(
        ["", "info", "Info", "POSTMASTER", "sales", "a", "a..b", ".a", "a.", '"a b"', '"a"', "a\n", "ü", "𐐀"]
    ),
    st.integers(60, 68).map(lambda n: "a" * n),
    st.integers(200, EMAIL_LIMIT).map(lambda n: "a" * n),
)
LABELS = st.one_of(
    st.text("abzAZ09-", min_size=1, max_size=8),
    st.sampled_from(
        ["xn--bcher-kva", "XN--BCHER-KVA", "xn--", "xn--a", "xn--4dbc", "bücher", "Bücher", "ab--c", "ß", "א"]
    ),
    st.sampled_from(["", "-", "1", "@", "_", " ", "\u0301", "\uff0e", "\u3002", "\u200d", "\n", "٣"]),
    st.integers(60, 66).map(lambda n: "a" * n),
)
ENDS = st.sampled_from(
    [
        "com",
        "COM",
        "example",
        "local",
        "LOCAL",
        "invalid",
        "test",
        "localhost",
        "onion",
        "arpa",
        "1",
        "c",
        "com.",
        "xn--p1ai",
    ]
)
DOMAINS = st.one_of(
    st.builds(lambda labels, end: ".".join((*labels, end)), st.lists(LABELS, max_size=5), ENDS),
    st.sampled_from(
        ["", "test", "[192.0.2.1]", "[IPv6:::1]", "[x]", "gmail.com", "gmail.com>", "@gmail.com", "a@b.com"]
    ),
    st.integers(225, EMAIL_LIMIT).map(
        lambda n: ("a" * 49 + ".") * 4 + "b" * 40 + "." + "c" * (n - 241 if n > 241 else 2)
    ),
)
LONGER_IN_UTF8 = ("ü" * 30).encode("idna").decode() + ".com"
"""Punycode writes a repeated letter in one byte."""

ADDRESSES = st.builds("{}@{}".format, LOCALS, DOMAINS) | st.emails() | st.builds("{}{}".format, LOCALS, DOMAINS)


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


@settings(max_examples=3000, deadline=None)
@given(ADDRESSES)
@example("a@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 63 + "." + "e" * 60 + ".de")
@example("a" * 191 + "@" + "b" * 59 + ".de")
@example("a" * 192 + "@" + "b" * 59 + ".de")
@example("a" * 230 + "@xn--bcher-kva.example")
@example("a@test")
@example("a@b.test")
def test_an_email_address_is_judged_as_the_library_judges_it(address: str) -> None:
    text = cleaned(address)
    if text is not None:
        assert by_us(text) == by_the_library(text)
        assert by_us(text) == by_the_library(text), "a remembered domain is judged otherwise"


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
