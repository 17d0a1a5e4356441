from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import LeadValidationError
from service.lead import CUSTOMER_FIELDS
from service.validation import MASK, ValidationService
from service.validation.text import TextRule, ValueRefusedError

SERVICES = [
    ValidationService(),
    ValidationService(default_region="BD", phone_rule="valid", nid_rule="BD"),
    ValidationService(default_region="AR", policies=["Health Insurance"]),
]

any_text = st.text(st.characters(exclude_categories=()), max_size=300)  # with lone surrogates
phone_like = st.from_regex(r"\+?[0-9\u09e6-\u09ef ().\-\u202a]{5,24}", fullmatch=True)
nid_like = st.text(st.characters(categories=("L", "N", "Zs", "Pd", "Cf")), max_size=40)
email_like = st.builds("{}@{}.com".format, any_text, any_text) | st.emails()


@pytest.mark.parametrize("service", SERVICES)
@given(value=phone_like | any_text)
def test_the_canonical_form_of_a_phone_number_is_its_own(service: ValidationService, value: str) -> None:
    try:
        found = service.filters({"phone": value})
    except LeadValidationError:
        return
    assert service.filters(found) == found


@pytest.mark.parametrize("service", SERVICES)
@given(value=nid_like | any_text)
def test_the_canonical_form_of_an_nid_is_its_own(service: ValidationService, value: str) -> None:
    try:
        found = service.filters({"nid": value})
    except LeadValidationError:
        return
    assert service.filters(found) == found


@pytest.mark.parametrize("rule", [TextRule(limit=300), TextRule(limit=300, lines=True)])
@given(value=any_text)
def test_normalised_text_is_its_own_normal_form(rule: TextRule, value: str) -> None:
    try:
        text = rule.normalise(value)
    except ValueRefusedError:
        return
    if text is not None:
        assert MASK not in text
        assert rule.normalise(text) == text


@given(value=email_like | any_text)
def test_a_normalised_email_address_is_its_own_normal_form(value: str) -> None:
    try:
        email = SERVICES[0].correction({"email": value})["email"]
    except LeadValidationError:
        return
    assert email is None or SERVICES[0].correction({"email": email}) == {"email": email}


@given(fields=st.dictionaries(st.sampled_from(CUSTOMER_FIELDS), any_text | phone_like | email_like))
def test_arbitrary_text_raises_nothing_but_a_validation_error(fields: dict[str, str]) -> None:
    for service in SERVICES:
        for check in (service.submission, service.correction):
            with contextlib.suppress(LeadValidationError):
                check(fields)


def told_about(service: ValidationService, name: str, value: str) -> str:
    try:
        service.correction({name: value})
    except LeadValidationError as refused:
        return f"{refused} {refused.violations!r}"
    return ""


@pytest.mark.parametrize("name", CUSTOMER_FIELDS)
@given(secret=st.text("ZQXzqx98765ঙÅ", min_size=4, max_size=20), rest=any_text)
def test_no_violation_tells_a_part_of_the_value(name: str, secret: str, rest: str) -> None:
    for service in SERVICES:
        for value in (secret + rest, rest + secret, f"{secret}\x00", f"{secret}@{secret}..com"):
            assert secret not in told_about(service, name, value)
