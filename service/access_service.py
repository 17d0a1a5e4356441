"""What an operator may know of the looks at values in clear: who, when, at which lead, and why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from service.errors import LeadValidationError, Violation
from service.page_token import Tags, read_page
from service.storage.access_chain import RecordedAccess
from service.storage.access_records import AccessFilter, AccessRecords

LONGEST_SUBJECT = 200
"""As a token's `sub`."""


class AccessService:
    """The use cases around the access record."""

    def __init__(self, *, records: AccessRecords, page_token_tags: Tags) -> None:
        self._records = records
        self._page_token_tags = page_token_tags

    async def list_accesses(
        self, wanted: AccessFilter, *, page_size: int = 0, page_token: str = ""
    ) -> tuple[Sequence[RecordedAccess], str]:
        """One page of entries, newest first, and the token of the next.

        Raises LeadValidationError, PageTokenInvalidError.
        """
        if wanted.subject and (len(wanted.subject) > LONGEST_SUBJECT or not wanted.subject.isprintable()):
            raise LeadValidationError([Violation("subject", f"must be at most {LONGEST_SUBJECT} visible characters")])

        async def find(after: tuple[datetime, int] | None, limit: int) -> list[RecordedAccess]:
            return await self._records.find(wanted, after=after, limit=limit)

        return await read_page(
            find,
            lambda access: (access.recorded_at, access.id),
            int,
            size=page_size,
            token=page_token,
            list_identity=f"accesses/{wanted!r}",
            tags=self._page_token_tags,
        )
