"""The machine-readable reason of each refused value."""

from __future__ import annotations

import pytest

from service.errors import LeadValidationError
from service.validation import ValidationService

GOOD = {
    "name": "Rahima Begum",
    "phone": "+8801711000001",
    "nid": "1985000000001",
    "address": "1 Lake Road",
    "interested_policy": "Term Life",
}

REFUSED = [
    ("name", "", "REQUIRED"),
    ("name", " \u200b ", "REQUIRED"),
    ("name", "x" * 201, "TOO_LONG"),
    ("name", "x" * 100_000, "TOO_LONG"),
    ("name", "Ra\nhima", "INVALID_CHARACTERS"),
    ("name", "Ra\x00hima", "INVALID_CHARACTERS"),
    ("name", "Ra\ufffehima", "INVALID_CHARACTERS"),
    ("name", "a" + "\u0301" * 40, "INVALID_CHARACTERS"),
    ("address", "•••", "MASKED"),
    ("phone", "", "REQUIRED"),
    ("phone", "+880 •••01", "MASKED"),
    ("phone", "none", "PLACEHOLDER"),
    ("phone", "+8800000000000", "PLACEHOLDER"),
    ("phone", "8.80E+12", "REWRITTEN"),
    ("phone", "+8801711222336.0", "REWRITTEN"),
    ("phone", "+8801712345601 (1)", "MORE_THAN_ONE"),
    ("phone", "+12015550123 / +12015550124", "MORE_THAN_ONE"),
    ("phone", "+880171100000x1", "INVALID_CHARACTERS"),
    ("phone", "+123", "WRONG_LENGTH"),
    ("phone", "+12345678901234567", "WRONG_LENGTH"),
    ("phone", "+0171100000", "NO_COUNTRY_CODE"),
    ("phone", "01711000001", "NO_COUNTRY_CODE"),
    ("nid", "none", "PLACEHOLDER"),
    ("nid", "0000000000", "PLACEHOLDER"),
    ("nid", "1.2E12", "REWRITTEN"),
    ("nid", "1234567890.0", "REWRITTEN"),
    ("nid", "1985000000001 (2)", "MORE_THAN_ONE"),
    ("nid", "123", "WRONG_LENGTH"),
    ("nid", "1" * 20 + "2" * 20, "WRONG_LENGTH"),
    ("nid", "1985#0000001", "INVALID_CHARACTERS"),
    ("interested_policy", "x" * 201, "TOO_LONG"),
]


def reasons(service: ValidationService, fields: dict[str, str], **options: str) -> list[tuple[str, str]]:
    with pytest.raises(LeadValidationError) as refused:
        service.submission(fields, **options)
    return [(violation.field, violation.reason) for violation in refused.value.violations]


@pytest.mark.parametrize(("field", "value", "reason"), REFUSED)
def test_a_refused_value_has_its_reason(field: str, value: str, reason: str) -> None:
    assert reasons(ValidationService(), GOOD | {field: value}) == [(f"lead.{field}", reason)]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("phone", "447911123456", "AMBIGUOUS"),
        ("phone", "12345", "NO_COUNTRY_CODE"),
        ("phone", "+880171100000", "UNKNOWN_NUMBER"),
        ("nid", "12345678901", "WRONG_LENGTH"),
        ("interested_policy", "Whole Life", "NOT_ON_OFFER"),
    ],
)
def test_what_an_operators_rules_refuse_has_its_reason(field: str, value: str, reason: str) -> None:
    service = ValidationService(default_region="BD", phone_rule="valid", nid_rule="BD", policies=["Term Life"])
    assert reasons(service, GOOD | {field: value}) == [(f"lead.{field}", reason)]


@pytest.mark.parametrize("value", ["nobody", "nobody@", "a@b", "a b@example.com"])
def test_an_address_that_is_none_has_its_reason(value: str) -> None:
    with pytest.raises(LeadValidationError) as refused:
        ValidationService().correction({"email": value})
    assert [violation.reason for violation in refused.value.violations] == ["NOT_AN_EMAIL"]


def test_a_fault_of_the_calling_program_is_only_invalid() -> None:
    assert reasons(ValidationService(), GOOD, phone_region="XX") == [("phone_region", "INVALID")]
