"""What an operator may know of the looks at values in clear: who, when, at which lead, and why."""

from __future__ import annotations

from service.errors import LeadValidationError, Violation
from service.page_token import Tags, make_page_token, read_page_token
from service.storage.access_chain import RecordedAccess
from service.storage.access_records import AccessFilter, AccessRecords

DEFAULT_PAGE = 50
LARGEST_PAGE = 100
LONGEST_SUBJECT = 200
"""As a token's `sub`."""


class AccessService:
    """The use cases around the access record."""

    def __init__(self, *, records: AccessRecords, page_token_tags: Tags) -> None:
        self._records = records
        self._page_token_tags = page_token_tags

    async def list_accesses(
        self, wanted: AccessFilter, *, page_size: int = 0, page_token: str = ""
    ) -> tuple[list[RecordedAccess], str]:
        """One page of entries, newest first, and the token of the next.

        Raises LeadValidationError, PageTokenInvalidError.
        """
        violations = []
        if page_size < 0:
            violations.append(Violation("page_size", "must not be negative"))
        if wanted.subject and (len(wanted.subject) > LONGEST_SUBJECT or not wanted.subject.isprintable()):
            violations.append(Violation("subject", f"must be at most {LONGEST_SUBJECT} visible characters"))
        if violations:
            raise LeadValidationError(violations)
        identity, tags = f"accesses/{wanted!r}", self._page_token_tags
        after = None
        if page_token:
            after = read_page_token(page_token, int, list_identity=identity, tags=tags)
        limit = min(page_size or DEFAULT_PAGE, LARGEST_PAGE)
        found = await self._records.find(wanted, after=after, limit=limit + 1)
        page, token = found[:limit], ""
        if len(found) > limit:
            last = page[-1]
            token = make_page_token(last.recorded_at, last.id, list_identity=identity, tags=tags)
        return page, token
