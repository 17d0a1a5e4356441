"""Checking fields of a new lead, with nothing at hand to look up or to store in."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from service.use_cases.confirmation import ConfirmationService
from service.use_cases.lead_service import LeadService
from service.validation import Faults, ValidationService


class Untouchable:
    """Its methods must not be called."""

    def __getattribute__(self, name: str) -> Any:
        def used(*_: object, **__: object) -> None:
            raise AssertionError(f"{name} was used")

        return used


def faults(*required: str, **fields: str) -> Faults:
    nothing: Any = Untouchable()
    leads = LeadService(
        repository=nothing,
        history=nothing,
        sealer=nothing,
        validation=ValidationService(default_region="BD", required=required or ("name", "phone", "nid")),
        confirmation=ConfirmationService(),
        page_token_tags=nothing,
        new_id=uuid4,
    )
    return leads.validate_lead(fields)


def found(**fields: str) -> list[tuple[str, str]]:
    return [(each.field, each.reason) for each in faults(**fields).violations]


def test_required_fields_that_are_not_set_are_no_fault() -> None:
    assert faults() == Faults((), ())
    assert faults(name="", phone="01712345678", nid="") == Faults((), ())


def test_every_fault_is_named_in_the_order_of_the_request() -> None:
    assert found(nid="1.2E12", phone="none", name="x" * 201) == [
        ("lead.nid", "REWRITTEN"),
        ("lead.phone", "PLACEHOLDER"),
        ("lead.name", "TOO_LONG"),
    ]


def test_a_required_field_of_blanks_is_one_that_create_lead_would_refuse() -> None:
    assert found(name="   ") == [("lead.name", "REQUIRED")]
    assert found(notes="   ") == []


@pytest.mark.parametrize(("field", "value"), [("email", "N/A"), ("notes", "x" * 5001), ("source", "x" * 101)])
def test_an_optional_field_that_cannot_be_read_would_be_left_out(field: str, value: str) -> None:
    assert faults(**{field: value, "phone": "+12"}).ignored == (field,)
    assert found(**{field: value, "phone": "+12"}) == [("lead.phone", "WRONG_LENGTH")]


def test_an_optional_nid_is_left_out_as_a_placeholder_and_refused_when_misspelt() -> None:
    assert faults("name", "phone", nid="N/A") == Faults((), ("nid",))
    assert [each.field for each in faults("name", "phone", nid="1.2E12").violations] == ["lead.nid"]


def test_a_masked_value_is_refused_in_any_field() -> None:
    assert found(email="j•••@example.com", phone="+880•••78") == [("lead.email", "MASKED"), ("lead.phone", "MASKED")]
