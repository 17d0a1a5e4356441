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
from typing import Any, TypeVar
from uuid import UUID

from service.errors import PageTokenInvalidError

Tags = Callable[[bytes], Sequence[bytes]]
"""Every keyed tag that a payload may bear; a new token bears the first one."""

RowId = TypeVar("RowId", UUID, int)

_MOMENT = struct.Struct(">q")  # microseconds since 1970
_NUMBER = struct.Struct(">q")
_TAG_BYTES = 16
"""Half of an HMAC-SHA256: 128 bits cannot be guessed, and the token stays short."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_page_token(moment: datetime, row_id: UUID | int, *, list_identity: str, tags: Tags) -> str:
    """The token of the page behind a row. `list_identity` names the list, its filter and the reader."""
    number = row_id.bytes if isinstance(row_id, UUID) else _NUMBER.pack(row_id)
    place = _MOMENT.pack((moment - _EPOCH) // timedelta(microseconds=1)) + number
    return base64.urlsafe_b64encode(place + _tags(place, list_identity, tags)[0]).rstrip(b"=").decode()


def read_page_token(token: str, id_type: type[RowId], *, list_identity: str, tags: Tags) -> tuple[datetime, RowId]:
    """The row behind which the page begins, in a list whose rows have ids of this type.

    Raises PageTokenInvalidError, also for a token of another list or filter.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise PageTokenInvalidError from None
    place, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
    moment, row_id = place[: _MOMENT.size], place[_MOMENT.size :]
    if len(row_id) != (16 if id_type is UUID else _NUMBER.size):
        raise PageTokenInvalidError
    if not any(hmac.compare_digest(tag, known) for known in _tags(place, list_identity, tags)):
        raise PageTokenInvalidError
    (microseconds,) = _MOMENT.unpack(moment)
    found: Any = UUID(bytes=row_id) if id_type is UUID else _NUMBER.unpack(row_id)[0]
    return _EPOCH + timedelta(microseconds=microseconds), found


def _tags(place: bytes, list_identity: str, tags: Tags) -> list[bytes]:
    return [tag[:_TAG_BYTES] for tag in tags(place + sha256(list_identity.encode()).digest())]
