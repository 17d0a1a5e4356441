"""Pages of a list, and the opaque page tokens that lead from one to the next.

A token holds the place of a row, bound to the list, its filter and its reader. It is not secret, it is signed: a caller
can neither make one nor use one with another filter.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import TypeVar
from uuid import UUID

from service.errors import PageTokenInvalidError, invalid

Tags = Callable[[bytes], Sequence[bytes]]
"""Every keyed tag that a payload may bear; a new token bears the first one."""

Row = TypeVar("Row")
RowId = TypeVar("RowId", UUID, int, str)

DEFAULT_PAGE = 50
LARGEST_PAGE = 100
"""A page of 100 is about what a person scrolls through, and one answer of bounded size."""

_TAG_BYTES = 16
"""Half of an HMAC-SHA256: 128 bits cannot be guessed, and the token stays short."""


async def read_page(
    find: Callable[..., Awaitable[Sequence[Row]]],
    place_of: Callable[[Row], tuple[datetime, RowId]],
    id_type: type[RowId],
    *,
    size: int,
    token: str,
    list_identity: str,
    tags: Tags,
    default: int = DEFAULT_PAGE,
    largest: int = LARGEST_PAGE,
) -> tuple[Sequence[Row], str]:
    """One page of a list, and the token of the next page: empty on the last one.

    `find` gets the place `after` which the page begins, None for the first one, and returns `limit` rows at most.
    Raises LeadValidationError, PageTokenInvalidError.
    """
    if size < 0:
        raise invalid("page_size", "must not be negative")
    after = read_page_token(token, id_type, list_identity=list_identity, tags=tags) if token else None
    limit = min(size or default, largest)
    found = await find(after=after, limit=limit + 1)
    page = found[:limit]
    if len(found) == len(page):
        return page, ""
    return page, make_page_token(*place_of(page[-1]), list_identity=list_identity, tags=tags)


def make_page_token(moment: datetime, row_id: UUID | int | str, *, list_identity: str, tags: Tags) -> str:
    """The token of the page behind a row. `list_identity` names the list, its filter and the reader."""
    place = f"{moment.astimezone(UTC).isoformat()} {row_id}".encode()
    return base64.urlsafe_b64encode(_tags(place, list_identity, tags)[0] + place).rstrip(b"=").decode()


def read_page_token(token: str, id_type: type[RowId], *, list_identity: str, tags: Tags) -> tuple[datetime, RowId]:
    """The row behind which the page begins, in a list whose rows have ids of this type.

    Raises PageTokenInvalidError, also for a token of another list or filter.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        tag, place = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if any(hmac.compare_digest(tag, known) for known in _tags(place, list_identity, tags)):
            moment, row_id = place.decode().split(" ")
            return datetime.fromisoformat(moment), id_type(row_id)
    except ValueError:
        pass
    raise PageTokenInvalidError


def _tags(place: bytes, list_identity: str, tags: Tags) -> list[bytes]:
    return [tag[:_TAG_BYTES] for tag in tags(place + sha256(list_identity.encode()).digest())]
