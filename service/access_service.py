"""What an operator may know of the looks at values in clear: who, when, at which lead, and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.errors import LeadValidationError, Violation
from service.page_token import Tags, make_page_token, read_page_token
from service.storage.access_records import AccessFilter, AccessRecords, RecordedAccess

DEFAULT_PAGE = 50
LARGEST_PAGE = 100
LONGEST_SUBJECT = 200
"""As a token's `sub`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessQuery:
    """What is wanted, as it was asked; empty means any."""

    page_size: int = 0
    page_token: str = ""
    lead_id: UUID | None = None
    subject: str = ""
    recorded_after: datetime | None = None
    recorded_before: datetime | None = None


class AccessService:
    """The use cases around the access record."""

    def __init__(self, *, records: AccessRecords, page_token_tags: Tags) -> None:
        self._records = records
        self._page_token_tags = page_token_tags

    async def list_accesses(self, query: AccessQuery) -> tuple[list[RecordedAccess], str]:
        """One page of entries, newest first, and the token of the next.

        Raises LeadValidationError, PageTokenInvalidError.
        """
        violations = []
        if query.page_size < 0:
            violations.append(Violation("page_size", "must not be negative"))
        if len(query.subject) > LONGEST_SUBJECT or not query.subject.isprintable():
            violations.append(Violation("subject", f"must be at most {LONGEST_SUBJECT} visible characters"))
        if violations:
            raise LeadValidationError(violations)
        wanted = AccessFilter(
            lead_id=query.lead_id,
            subject=query.subject or None,
            recorded_after=query.recorded_after,
            recorded_before=query.recorded_before,
        )
        identity, tags = f"accesses/{wanted!r}", self._page_token_tags
        after = None
        if query.page_token:
            after = read_page_token(query.page_token, int, list_identity=identity, tags=tags)
        limit = min(query.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        found = await self._records.find(wanted, after=after, limit=limit + 1)
        page, token = found[:limit], ""
        if len(found) > limit:
            last = page[-1]
            token = make_page_token(last.entry.recorded_at, last.id, list_identity=identity, tags=tags)
        return page, token
