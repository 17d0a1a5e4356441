"""What a customer can be told when a request was not taken."""

from __future__ import annotations

from pathlib import Path
from typing import get_args
from uuid import UUID

import pytest
from google.rpc import error_details_pb2

from service.errors import (
    DeadlineTooShortError,
    DuplicateLeadError,
    InternalError,
    LeadkeepError,
    LeadValidationError,
    QueueFullError,
    RequestIdReusedError,
    ScopeMissingError,
    ServiceStoppingError,
    StartRefusedError,
    StorageUnavailableError,
    Violation,
    ViolationReason,
)
from service.lead import FIELD_RULES
from service.rpc.status import status_of
from service.use_cases.confirmation import ConfirmationService

LOCALES = ("en", "bn", "es")
REASONS = get_args(ViolationReason)
ENTERED = [name for name in FIELD_RULES if name not in ("conversation_id", "source")]
"""What a customer fills in; the others come from the chatbot."""

DUPLICATE = DuplicateLeadError(phone_lead_id=UUID(int=7), nid_lead_id=None, visible=frozenset({UUID(int=7)}))

TRAILERS = 8 * 1024
"""Bytes of metadata that clients accept (grpc-core, grpc-java). `-bin` metadata may be sent in base64."""


def told(error: LeadkeepError, locales: str = "en", service: ConfirmationService | None = None) -> tuple[str, str]:
    (service or ConfirmationService()).explain(error, locales)
    assert error.localized is not None
    return error.localized.locale, error.localized.text


def fault(field: str, reason: ViolationReason, locales: str, service: ConfirmationService | None = None) -> str:
    error = LeadValidationError([Violation(field, "is wrong", reason)])
    told(error, locales, service)
    (violation,) = error.violations
    assert violation.localized is not None
    assert violation.localized.locale == told(error, locales, service)[0]
    return violation.localized.text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DUPLICATE, "already have"),
        (RequestIdReusedError(), "already have"),
        (LeadValidationError([]), "check them"),
        (StorageUnavailableError(), "in a few minutes"),
        (QueueFullError(), "in a few minutes"),
        (ServiceStoppingError(), "in a few minutes"),
        (DeadlineTooShortError(), "in a few minutes"),
        (ScopeMissingError("leads:create"), "in a few minutes"),
        (InternalError("an-incident"), "in a few minutes"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
)
def test_the_customer_is_told_what_to_do(error: LeadkeepError, words: str) -> None:
    assert words in told(error)[1]


@pytest.mark.parametrize(
    ("locales", "used"), [("bn_BD", "bn"), ("es-419", "es"), ("fr, es;q=0.5", "es"), ("", "en"), ("xx", "en")]
)
def test_it_is_told_in_the_language_of_the_confirmation(locales: str, used: str) -> None:
    assert told(StorageUnavailableError(), locales) == told(StorageUnavailableError(), used)
    assert told(StorageUnavailableError(), locales)[0] == used


@pytest.mark.parametrize("field", ENTERED)
@pytest.mark.parametrize("locale", LOCALES)
def test_each_fault_of_each_field_has_words_of_its_own_that_name_the_field(locale: str, field: str) -> None:
    words = {fault(f"lead.{field}", reason, locale) for reason in REASONS}
    assert len(words) == len(REASONS)
    (label,) = {each.split(":")[0] for each in words}
    assert label != field


def test_no_locale_borrows_the_words_of_another() -> None:
    words = [fault("lead.phone", reason, locale) for reason in REASONS for locale in LOCALES]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("field", ["body", "request_id", "lead.conversation_id", "lead.source", "Request-Timeout"])
def test_a_fault_of_what_the_customer_did_not_enter_is_told_in_general(field: str) -> None:
    error = LeadValidationError([Violation(field, "is wrong")])
    assert fault(field, "INVALID", "es") == told(error, "es")[1]


@pytest.mark.parametrize("locale", LOCALES)
def test_with_every_field_at_fault_the_status_fits_into_a_clients_metadata(locale: str) -> None:
    longest = max(REASONS, key=lambda reason: len(fault("lead.preferred_contact_time", reason, locale)))
    error = LeadValidationError([Violation(f"lead.{name}", "x" * 80, longest) for name in FIELD_RULES])
    told(error, locale)
    assert len(status_of(error).SerializeToString()) * 4 / 3 < TRAILERS


def test_the_status_of_an_error_that_is_not_explained_has_no_words() -> None:
    error = LeadValidationError([Violation("lead.phone", "is wrong", "REQUIRED")])
    kinds = [each.TypeName() for each in status_of(error).details]
    assert kinds == ["google.rpc.ErrorInfo", "google.rpc.BadRequest"]
    bad_request = error_details_pb2.BadRequest()
    status_of(error).details[1].Unpack(bad_request)
    assert bad_request.field_violations[0].reason == "REQUIRED"
    assert not bad_request.field_violations[0].HasField("localized_message")


SAVED = """
[saved]
text = "{name}. {reference}"
[[saved.next_steps]]
text = "Soon."
"""
FAILED = """
[failed]
duplicate = "Two."
invalid = "Bad."
unavailable = "Away."
[failed.fields]
phone = "Fon"
[failed.violations]
""" + "".join(f'{reason} = "{{field}} {reason}"\n' for reason in REASONS)


def test_an_operators_own_words_are_used(tmp_path: Path) -> None:
    (tmp_path / "de.toml").write_text(SAVED + FAILED)
    service = ConfirmationService(override_dir=tmp_path)
    assert told(DUPLICATE, "de-AT", service) == ("de", "Two.")
    assert fault("lead.phone", "MASKED", "de", service) == "Fon MASKED"
    assert fault("lead.name", "MASKED", "de", service) == "Bad."


@pytest.mark.parametrize(("file", "told_in"), [("de.toml", "en"), ("es-MX.toml", "es"), ("bn.toml", "bn")])
def test_what_an_operators_file_leaves_out_is_told_as_shipped(tmp_path: Path, file: str, told_in: str) -> None:
    (tmp_path / file).write_text(SAVED)
    assert told(DUPLICATE, Path(file).stem, ConfirmationService(override_dir=tmp_path)) == told(DUPLICATE, told_in)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('MASKED = "{field} MASKED"', ""), "MASKED"),
        (('MASKED = "{field} MASKED"', 'MASKED = "{value}"'), "{field}"),
        (('MASKED = "{field} MASKED"', 'MASKED = "wrong"'), "{field}"),
        (('duplicate = "Two."', 'duplicate = "{name}"'), "failed.duplicate"),
        (('invalid = "Bad."', ""), "failed.invalid"),
        (('MASKED = "{field} MASKED"', 'MASKED = "{field}"\nMISSPELT = "{field}"'), "MISSPELT"),
    ],
)
def test_texts_that_cannot_be_used_stop_the_start(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    (tmp_path / "de.toml").write_text((SAVED + FAILED).replace(*change))
    with pytest.raises(StartRefusedError) as refused:
        ConfirmationService(override_dir=tmp_path)
    assert named in str(refused.value)
