"""The use cases of a lead's history: its changes of status, its assignments, and everything that happened to it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from service.errors import ScopeMissingError
from service.lead import LeadEvent, LeadEventType
from service.scopes import Caller, Scope
from service.storage.leads.changes import LeadHistory, Place
from service.storage.leads.repository import LeadRepository
from service.use_cases.page_token import Tags, read_page


class HistoryService:
    """The histories of leads that the caller may read."""

    def __init__(self, *, leads: LeadRepository, history: LeadHistory, page_token_tags: Tags) -> None:
        self._leads = leads
        self._history = history
        self._page_token_tags = page_token_tags

    async def of_type(self, caller: Caller, lead_id: UUID, event_type: LeadEventType) -> list[LeadEvent]:
        """All events of one type of a lead, oldest first. Raises LeadNotFoundError."""
        lead = await self._leads.get(lead_id, caller.may_read_lead_created_by)
        return await self._history.of_type(lead.id, event_type)

    async def events(
        self,
        caller: Caller,
        lead_id: UUID,
        *,
        page_size: int,
        page_token: str,
        newest_first: bool,
        include_accesses: bool,
    ) -> tuple[list[LeadEvent], str]:
        """One page of a lead's history and the token of the next, empty on the last.

        Raises ScopeMissingError, LeadNotFoundError, LeadValidationError, PageTokenInvalidError.
        """
        if include_accesses and not caller.may(Scope.OPERATE):
            raise ScopeMissingError(Scope.OPERATE)
        lead = await self._leads.get(lead_id, caller.may_read_lead_created_by)

        async def find(after: tuple[datetime, str] | None, limit: int) -> list[tuple[LeadEvent, Place]]:
            place = Place(after[0], *map(int, after[1].split("/"))) if after else None
            return await self._history.page(
                lead.id, after=place, limit=limit, newest_first=newest_first, with_accesses=include_accesses
            )

        page, token = await read_page(
            find,
            lambda row: (row[1].at, "/".join(map(str, row[1][1:]))),
            str,
            size=page_size,
            token=page_token,
            list_identity=f"events/{lead.id}/{newest_first}/{include_accesses}",
            tags=self._page_token_tags,
        )
        return [event for event, _ in page], token
