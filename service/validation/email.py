"""Which email addresses are accepted. Nothing asks the network: an address is a lead's word, not ours to probe."""

from __future__ import annotations

from email_validator import EmailNotValidError, validate_email

from service.validation.text import TextRule, ValueRefusedError

EMAIL_LIMIT = 254
"""The most characters of an address (RFC 5321)."""

_TEXT = TextRule(limit=EMAIL_LIMIT)
_NOT_AN_ADDRESS = "is not an email address of the form name@example.com"


def normalise_email(value: str) -> str | None:
    """The address with its domain in lower case (and IDNA decoded), or None when there is nothing to see in it.

    Raises ValueRefusedError. Internationalised addresses pass. Names that no mailbox can have (.local, .invalid, …)
    are refused, .test is not: integration tests of the callers use it.
    """
    text = _TEXT.normalise(value)
    if text is None:
        return None
    if "@" not in text:
        raise ValueRefusedError("has no @: it must be of the form name@example.com")
    try:
        checked = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        checked = None  # the library's text would tell parts of the address
    if checked is None or "." not in checked.ascii_domain:
        raise ValueRefusedError(_NOT_AN_ADDRESS)
    if len(checked.normalized) > EMAIL_LIMIT:
        raise ValueRefusedError(f"is too long: at most {EMAIL_LIMIT} characters")
    return checked.normalized
