"""The short reference of a lead, `LK-XXXX-XXXX`: how it is spelt, and how it is read.

It spells the last 40 bits of the id, the random end of a UUIDv7, in Crockford's base 32; being derived, it needs no
storage. Among a million leads two may share one: it finds a request together with the name, and is no identifier.
"""

from __future__ import annotations

import base64
import unicodedata
from uuid import UUID

from service.validation.text import ValueRefusedError, ascii_form, raw_limit

REFERENCE_BYTES = 5
"""The bytes at the end of an id that its reference spells."""

_LETTERS = 8
_PREFIX = "LK"

# Base 32 without I, L, O and U: nothing in it is misheard or misread for something else in it.
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_STANDARD = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
"""What ten bits spell: a reference is made twice in each CreateLead, and base64.b32encode takes four times as long."""
_READ = str.maketrans(_CROCKFORD, _STANDARD)
_MISREAD = str.maketrans("OIL", "011")
"""What a reader may take a digit for (Crockford)."""


def reference_of(lead_id: UUID) -> str:
    """The reference of the lead with this id."""
    bits = lead_id.int
    first, second, third, last = (_PAIRS[bits >> shift & 0x3FF] for shift in (30, 20, 10, 0))
    return f"{_PREFIX}-{first}{second}-{third}{last}"


def read_reference(text: str) -> bytes:
    """The bytes that a reference spells, however it is written: in lower case, without `LK`, dashes or spaces.

    Raises ValueRefusedError.
    """
    if len(text) <= raw_limit(_LETTERS):
        plain = "".join(ascii_form(each, ".") for each in unicodedata.normalize("NFKC", text))
        letters = plain.upper().translate(_MISREAD) if plain.isascii() else ""
        # By its length: a reference itself may begin with these two letters.
        if len(letters) == len(_PREFIX) + _LETTERS:
            letters = letters.removeprefix(_PREFIX.translate(_MISREAD))
        if len(letters) == _LETTERS and set(letters) <= set(_CROCKFORD):
            return base64.b32decode(letters.translate(_READ))
    raise ValueRefusedError("is not a reference as a confirmation names it, of the form LK-XXXX-XXXX")
