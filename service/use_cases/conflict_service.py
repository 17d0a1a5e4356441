"""The use cases of conflicts, acknowledged submissions that match a lead: list them with their leads, resolve them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from service.errors import invalid
from service.lead import CORRECTABLE_FIELDS, ConflictResolution, Lead, SealedConflict, SealedLead
from service.lead_sealer import LeadSealer
from service.scopes import Caller
from service.storage.leads.changes import Correction
from service.storage.leads.conflicts import ConflictRepository, Decision, Drop, JoinLead, OwnLead
from service.storage.leads.decision import DuplicateMatch
from service.use_cases.page_token import Tags, read_page
from service.validation import ValidationService

LARGEST_PAGE = 25
"""A conflict shows up to four of the longest leads: a page of it fits into one message."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A conflict as it is stored, and its submission and leads opened: unreadable fields are left out and named."""

    sealed: SealedConflict
    submission: Lead
    leads: tuple[Lead, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictService:
    """The use cases around conflicts."""

    conflicts: ConflictRepository
    sealer: LeadSealer
    validation: ValidationService
    page_token_tags: Tags

    async def list_conflicts(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        resolved_too: bool = False,
        hidden: Collection[str] = (),
    ) -> tuple[list[Conflict], str]:
        """One page of conflicts, oldest first, and the token of the next; `hidden` fields are not opened.

        Raises PageTokenInvalidError.
        """
        page, token = await read_page(
            partial(self.conflicts.list_conflicts, resolved_too=resolved_too),
            lambda row: (row[0].accepted_at, row[0].id),
            UUID,
            size=page_size,
            token=page_token,
            list_identity=f"conflicts/{resolved_too}",
            tags=self.page_token_tags,
            default=LARGEST_PAGE,
            largest=LARGEST_PAGE,
        )
        return [self._opened(conflict, leads, hidden) for conflict, leads in page], token

    async def resolve_conflict(
        self,
        caller: Caller,
        conflict_id: UUID,
        resolution: ConflictResolution,
        *,
        lead_id: UUID | None,
        reason: str,
        hidden: Collection[str] = (),
    ) -> Lead | None:
        """Resolve a conflict; returns the lead that the submission's id leads to from now on, None when it was dropped.

        `lead_id` names one of the matched leads; None: the only one. `hidden` fields of the lead are not opened. Where
        every lead that it matched was erased, KEEP_FIRST drops it and TAKE_NEW is refused. Raises LeadValidationError,
        ConflictNotFoundError, ConflictResolvedError, DuplicateLeadError, FieldUnreadableError.
        """
        why = self.validation.text("reason", reason)

        def decide(conflict: SealedConflict) -> Decision:
            if resolution is ConflictResolution.OWN_LEAD:
                if lead_id is not None:
                    raise invalid("lead_id", "must be empty for a lead of its own")
                return OwnLead(self.sealer.resealed_and_reindexed(conflict))
            if not conflict.lead_ids:
                return _without_lead(conflict, resolution, lead_id)
            target, linked = _target(conflict, lead_id), self.sealer.with_conversation_index(conflict)
            if resolution is ConflictResolution.KEEP_FIRST:
                return JoinLead(target, linked)
            submitted = self.sealer.open(conflict.as_lead(conflict.accepted_at))
            # A field that the customer left out this time is kept.
            values = {name: value for name in CORRECTABLE_FIELDS if (value := getattr(submitted, name)) is not None}

            def correction(current: SealedLead) -> Correction:
                # Also what the lead holds already: its history must not tell which masked values are equal.
                return self.sealer.correction(current.id, values, actor=caller.subject, reason=why)

            return JoinLead(target, linked, correction)

        sealed = await self.conflicts.resolve(conflict_id, resolution, decide, actor=caller.subject, reason=why)
        if isinstance(sealed, DuplicateMatch):
            raise sealed.error(lambda _: True)  # who operates sees every conflict's leads
        return self.sealer.open(sealed, hidden=hidden) if sealed is not None else None

    def _opened(self, conflict: SealedConflict, leads: list[SealedLead], hidden: Collection[str]) -> Conflict:
        def opened(sealed: SealedLead) -> Lead:
            return self.sealer.open(sealed, hidden=hidden, flag_unreadable=True)

        return Conflict(conflict, opened(conflict.as_lead(conflict.accepted_at)), tuple(map(opened, leads)))


def _without_lead(conflict: SealedConflict, resolution: ConflictResolution, lead_id: UUID | None) -> Drop:
    if lead_id is not None:
        raise invalid("lead_id", "must be empty: the lead that was matched is erased")
    if resolution is not ConflictResolution.KEEP_FIRST or conflict.erased_lead_id is None:
        wanted = "must be KEEP_FIRST or OWN_LEAD: the lead that would take the values is erased"
        raise invalid("resolution", wanted)
    return Drop(conflict.erased_lead_id)


def _target(conflict: SealedConflict, lead_id: UUID | None) -> UUID:
    matched = conflict.lead_ids
    if lead_id is None and len(matched) == 1:
        return matched[0]
    if lead_id is None or lead_id not in matched:
        choice = ", ".join(str(each) for each in matched)
        raise invalid("lead_id", f"must be one of the leads that were matched: {choice}")
    return lead_id
