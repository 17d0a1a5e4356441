"""Opaque page tokens: a place in a list, bound to the list's filter and to whom it is for.

A token is not secret, it is signed: a caller can neither make one nor use one with another filter.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

from service.errors import PageTokenInvalidError

Tags = Callable[[bytes], Sequence[bytes]]
"""Every keyed tag that a payload may bear; a new token bears the first one."""

_PLACE = struct.Struct(">q16s")  # microseconds since 1970, lead id
_TAG_BYTES = 16
"""Half of an HMAC-SHA256: 128 bits cannot be guessed, and the token stays short."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_page_token(created_at: datetime, lead_id: UUID, *, list_identity: str, tags: Tags) -> str:
    """The token of the page behind a lead. `list_identity` names the filter and the reader."""
    place = _PLACE.pack((created_at - _EPOCH) // timedelta(microseconds=1), lead_id.bytes)
    return base64.urlsafe_b64encode(place + _tags(place, list_identity, tags)[0]).rstrip(b"=").decode()


def read_page_token(token: str, *, list_identity: str, tags: Tags) -> tuple[datetime, UUID]:
    """The lead behind which the page begins. Raises PageTokenInvalidError, also for a token of another filter."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise PageTokenInvalidError from None
    place, tag = raw[: _PLACE.size], raw[_PLACE.size :]
    if len(place) != _PLACE.size:
        raise PageTokenInvalidError
    if not any(hmac.compare_digest(tag, known) for known in _tags(place, list_identity, tags)):
        raise PageTokenInvalidError
    microseconds, lead_id = _PLACE.unpack(place)
    return _EPOCH + timedelta(microseconds=microseconds), UUID(bytes=lead_id)


def _tags(place: bytes, list_identity: str, tags: Tags) -> list[bytes]:
    return [tag[:_TAG_BYTES] for tag in tags(place + sha256(list_identity.encode()).digest())]
