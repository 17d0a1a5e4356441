from __future__ import annotations

import pytest

from service.errors import LeadValidationError, Violation
from service.lead import CORRECTABLE_FIELDS, CUSTOMER_FIELDS, REQUIRED_FIELDS, CustomerFields
from service.validation import MASK, NidRule, PhoneRule, ValidationService

CATALOGUE = ["Health Insurance", "Straße Kasko"]


def violations_of(service: ValidationService, fields: dict[str, str]) -> dict[str, str]:
    with pytest.raises(LeadValidationError) as refused:
        service.submission(fields)
    return {violation.field: violation.description for violation in refused.value.violations}


def test_the_storys_example_is_accepted_as_it_is(service: ValidationService, fields: dict[str, str]) -> None:
    submission = service.submission(fields)

    assert submission == (CustomerFields(**fields), (), None)


@pytest.mark.parametrize("given", ["", " ", "\u200b", "\u00a0\n", None])
def test_an_optional_field_that_shows_nothing_is_none(
    service: ValidationService, fields: dict[str, str], given: str | None
) -> None:
    for name in set(CUSTOMER_FIELDS) - REQUIRED_FIELDS:
        del fields[name]
        if given is not None:
            fields[name] = given

    details, ignored, _ = service.submission(fields)

    assert ignored == ()
    assert {name for name, value in details.values().items() if value is not None} == REQUIRED_FIELDS


@pytest.mark.parametrize("given", ["", "\t ", "\u200b\ufeff", "\u3164", "\u2800", "\u200e"])
def test_a_required_field_that_shows_nothing_is_missing(service: ValidationService, given: str) -> None:
    found = violations_of(service, dict.fromkeys(REQUIRED_FIELDS, given))

    assert found == {f"lead.{name}": "is required" for name in REQUIRED_FIELDS}


def test_all_violations_are_named_at_once(service: ValidationService) -> None:
    found = violations_of(service, dict.fromkeys(CUSTOMER_FIELDS, "\x00"))

    assert list(found) == [f"lead.{name}" for name in CUSTOMER_FIELDS]


@pytest.mark.parametrize("name", CUSTOMER_FIELDS)
@pytest.mark.parametrize("masked", [MASK, f"+880{MASK}78", f"j{MASK}@example.com", f"{MASK}89"])
def test_a_masked_value_is_refused_in_every_field(
    service: ValidationService, fields: dict[str, str], name: str, masked: str
) -> None:
    found = violations_of(service, {**fields, name: masked})

    assert found == {f"lead.{name}": "looks like a masked value; send the real one"}


@pytest.mark.parametrize("name", CORRECTABLE_FIELDS)
@pytest.mark.parametrize("filling", ["x", "é", " ", "\u0301", "1", "•"])
def test_ten_megabytes_are_refused_unread(service: ValidationService, name: str, filling: str) -> None:
    with pytest.raises(LeadValidationError) as refused:
        service.correction({name: filling * 10_000_000})
    found = {violation.field: violation.description for violation in refused.value.violations}

    assert "at most" in found[f"lead.{name}"] or "must have" in found[f"lead.{name}"]


def test_a_field_that_customers_do_not_have_is_the_programs_fault(service: ValidationService) -> None:
    with pytest.raises(ValueError, match="customers do not have"):
        service.submission({"status": "new"})


def test_a_correction_touches_only_the_fields_that_it_names(service: ValidationService) -> None:
    assert service.correction({"phone": "+880 1712-345678", "email": ""}) == {
        "phone": "+8801712345678",
        "email": None,
    }


@pytest.mark.parametrize("name", sorted(REQUIRED_FIELDS))
def test_a_correction_cannot_empty_a_required_field(service: ValidationService, name: str) -> None:
    with pytest.raises(LeadValidationError) as refused:
        service.correction({name: " "})

    assert refused.value.violations == (Violation(f"lead.{name}", "is required and cannot be emptied", "REQUIRED"),)


def test_a_correction_cannot_change_the_conversation(service: ValidationService) -> None:
    with pytest.raises(LeadValidationError) as refused:
        service.correction({"conversation_id": "conv-2", "nid": "1"})

    assert [violation.field for violation in refused.value.violations] == ["lead.conversation_id", "lead.nid"]


def test_every_correctable_field_can_be_corrected(service: ValidationService, fields: dict[str, str]) -> None:
    named = {name: fields[name] for name in CORRECTABLE_FIELDS}

    assert service.correction(named) == named


@pytest.mark.parametrize("given", ["health insurance", "  HEALTH \u00a0 Insurance "])
def test_a_policy_is_kept_in_the_catalogues_spelling(fields: dict[str, str], given: str) -> None:
    service = ValidationService(policies=CATALOGUE)

    assert service.submission({**fields, "interested_policy": given}).fields.interested_policy == "Health Insurance"


def test_a_policy_is_compared_without_case_in_every_script(fields: dict[str, str]) -> None:
    service = ValidationService(policies=CATALOGUE)

    kept = service.submission({**fields, "interested_policy": "STRASSE KASKO"}).fields.interested_policy

    assert kept == "Straße Kasko"


def test_a_policy_that_is_not_on_offer_is_refused_with_the_offer(fields: dict[str, str]) -> None:
    service = ValidationService(policies=CATALOGUE)

    found = violations_of(service, {**fields, "interested_policy": "Yacht"})

    assert found == {"lead.interested_policy": "is not one of the policies on offer: Health Insurance, Straße Kasko"}


def test_a_violation_lists_at_most_ten_policies(fields: dict[str, str]) -> None:
    service = ValidationService(policies=[f"P{number}" for number in range(11)])

    found = violations_of(service, fields)

    assert found["lead.interested_policy"].endswith("P8, P9, …")


def test_a_policy_no_longer_on_offer_can_still_be_looked_for() -> None:
    service = ValidationService(policies=CATALOGUE)

    assert service.filters({"interested_policy": "yacht"}) == {"interested_policy": "yacht"}
    assert service.filters({"interested_policy": "health insurance"}) == {"interested_policy": "Health Insurance"}


def test_each_filter_that_cannot_be_looked_for_is_named(service: ValidationService) -> None:
    with pytest.raises(LeadValidationError) as refused:
        service.filters({"phone": "", "nid": "1", "name_prefix": "a", "assignee": "agent-7", "unassigned": True})

    assert [(each.field, each.reason) for each in refused.value.violations] == [
        ("phone", "REQUIRED"),
        ("nid", "PLACEHOLDER"),
        ("name_prefix", "INVALID"),
        ("unassigned", "INVALID"),
    ]


@pytest.mark.parametrize("name", ["phone", "nid", "email", "interested_policy", "name_prefix"])
def test_a_filter_by_what_a_lead_must_have_is_not_blank(service: ValidationService, name: str) -> None:
    with pytest.raises(LeadValidationError) as refused:
        service.filters({name: " "})

    assert refused.value.violations == (Violation(name, "is required", "REQUIRED"),)


@pytest.mark.parametrize("name", ["assignee", "conversation_id", "source"])
def test_a_blank_filter_by_what_a_lead_may_lack_is_left_out(service: ValidationService, name: str) -> None:
    assert service.filters({name: " "}) == {}


def test_a_reason_may_have_lines_and_an_assignee_may_not(service: ValidationService) -> None:
    assert service.text("reason", "called\r\nback\tlater") == "called\nback\tlater"
    with pytest.raises(LeadValidationError, match="assignee"):
        service.text("assignee", "agent\n7")


@pytest.mark.parametrize(
    ("name", "limit"), [("reason", 500), ("assignee", 200), ("request_id", 128), ("conversation_id", 200)]
)
def test_the_texts_of_a_request_have_limits(service: ValidationService, name: str, limit: int) -> None:
    assert service.text(name, "x" * limit) == "x" * limit
    assert service.text(name, "") is None
    with pytest.raises(LeadValidationError) as refused:
        service.text(name, "x" * (limit + 1))
    assert refused.value.violations == (Violation(name, f"is too long: at most {limit} characters", "TOO_LONG"),)


def test_a_request_id_is_checked_with_the_fields(service: ValidationService, fields: dict[str, str]) -> None:
    assert service.submission(fields, request_id=" r-1 ").request_id == "r-1"
    with pytest.raises(LeadValidationError) as refused:
        service.submission({**fields, "name": ""}, request_id="a b")
    assert [each.field for each in refused.value.violations] == ["lead.name", "request_id"]


@pytest.mark.parametrize("given", ["a b", "a\u00a0b", "a\u200bb", "a\u200db", "a\tb", "a\u2028b"])
def test_an_identifier_holds_visible_characters_only(service: ValidationService, given: str) -> None:
    for name in ("request_id", "conversation_id"):
        with pytest.raises(LeadValidationError):
            service.text(name, given)


def test_the_identity_tells_what_decides_about_equals() -> None:
    service = ValidationService(default_region="BD", phone_rule=PhoneRule.VALID, nid_rule=NidRule.BD)

    assert service.normaliser_identity == "2;region=BD;phone=valid;nid=BD"
    assert ValidationService().normaliser_identity == "2;region=-;phone=e164;nid=any"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"default_region": "XX"}, "default region"),
        ({"default_region": ""}, "default region"),
        ({"phone_rule": "strict"}, "not a valid PhoneRule"),
        ({"nid_rule": "XX"}, "not a valid NidRule"),
        ({"policies": ["Health", " "]}, "is empty"),
        ({"policies": ["Health", "HEALTH"]}, "on offer twice"),
        ({"policies": ["x" * 201]}, "too long"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ValidationService(**settings)
