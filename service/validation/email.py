"""Which email addresses are accepted. Nothing asks the network: an address is a lead's word, not ours to probe.

The library email_validator judges. It takes 24 us, nearly all of them for the domain, and most customers share a few
domains: each domain that it accepted is remembered with its normal form. Nothing before the @ is.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from email_validator import EmailNotValidError, ValidatedEmail, validate_email

from service.validation.text import TextRule, ValueRefusedError

EMAIL_LIMIT = 254
"""The most characters of an address (RFC 5321)."""

_TEXT = TextRule(limit=EMAIL_LIMIT)
_NOT_AN_ADDRESS = "is not an email address of the form name@example.com"

_ATOM = r"[a-z0-9_!#$%&'*+\-/=?^`{|}~]+"
# Without capitals, because the library writes some names in lower case (Info@, Sales@): such addresses it sees whole.
# The domain has no second @, so that nothing of a name is remembered with it.
_PLAIN = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@([A-Za-z0-9.\-]+)")
# Japanese carriers handed out names with dots at the end and in a row. The standard has none, mail reaches them.
_DOTTED = re.compile(rf"({_ATOM}(?:\.+{_ATOM})*\.*)@([A-Za-z0-9.\-]+)", re.IGNORECASE)


def normalise_email(value: str) -> str | None:
    """The address with its domain in lower case (and IDNA decoded), or None when there is nothing to see in it.

    Raises ValueRefusedError. Internationalised addresses pass. Names that no mailbox can have (.local, .invalid, …)
    are refused, .test is not: integration tests of the callers use it.
    """
    text = _TEXT.normalise(value)
    if text is None:
        return None
    if "@" not in text:
        raise ValueRefusedError("has no @: it must be of the form name@example.com", "NOT_AN_EMAIL")
    try:
        normal = _accepted(text)
    except EmailNotValidError:
        normal = None  # the library's text would show parts of the address
    if normal is None:
        raise ValueRefusedError(_NOT_AN_ADDRESS, "NOT_AN_EMAIL")
    return normal


def email_key(email: str) -> str:
    """What the blind index of a kept address is computed of: equal for two that reach one mailbox.

    Their domains are in lower case and decoded already; what is before the @ is compared without case, as nearly every
    server does, though RFC 5321 lets it distinguish. Nothing else is guessed: dots and +tags make another address.
    """
    local, _, domain = email.rpartition("@")
    return f"{unicodedata.normalize('NFC', local.casefold())}@{domain}"


def _accepted(text: str) -> str | None:
    """The normal form of an address; None, or EmailNotValidError, when it is none."""
    plain = _PLAIN.fullmatch(text)
    if plain is None and (".." in text or ".@" in text):
        plain = _DOTTED.fullmatch(text)
    if plain is None:
        checked = _judged(text)
        return checked.normalized if "." in checked.ascii_domain else None
    local, given = plain.groups()
    domain, longest = _domain(given)
    if "." not in domain or len(local) + 1 + longest > EMAIL_LIMIT:
        return None
    return f"{local}@{domain}"


@lru_cache(maxsize=1024)
def _domain(given: str) -> tuple[str, int]:
    """The normal form of a domain, and the bytes of its longest form: the address must fit the limit in each.

    Raises EmailNotValidError; what is refused is not remembered.
    """
    # One letter before the @ is the shortest address, so a domain that is too long for it is too long for all.
    checked = _judged(f"a@{given}")
    return checked.domain, max(map(len, (given, checked.ascii_domain, checked.domain.encode())))


def _judged(text: str) -> ValidatedEmail:
    return validate_email(text, check_deliverability=False, test_environment=True)
