"""What an operator may do about acknowledged submissions that met a lead: see both sides, and decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.access import Caller
from service.errors import DuplicateLeadError, LeadValidationError, Violation
from service.lead import (
    CORRECTABLE_FIELDS,
    ConflictResolution,
    Lead,
    SealedConflict,
    SealedLead,
)
from service.page_token import make_page_token, read_page_token
from service.sealing import LeadSealer
from service.storage.conflicts import ConflictRepository, Decision, Drop, KeepFirst, OwnLead, TakeNew
from service.storage.decision import DuplicateMatch
from service.storage.requests import Correction, Position
from service.validation import ValidationService

LARGEST_PAGE = 25
"""A conflict shows up to four of the longest leads: a page of it fits into one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A submission and the leads that it met, opened; fields that cannot be opened are left out and named."""

    submission: Lead
    leads: tuple[Lead, ...]
    met_fields: tuple[str, ...]
    """Which of phone, nid and request_id match a lead; `erased`: one that matched was erased since."""
    accepted_at: datetime
    found_at: datetime
    resolution: ConflictResolution | None
    resolved_by: str | None
    resolved_at: datetime | None
    reason: str | None


class ConflictService:
    """The use cases around conflicts."""

    def __init__(
        self,
        *,
        conflicts: ConflictRepository,
        sealer: LeadSealer,
        validation: ValidationService,
        page_token_tags: Callable[[bytes], Sequence[bytes]],
    ) -> None:
        self._conflicts = conflicts
        self._sealer = sealer
        self._validation = validation
        self._page_token_tags = page_token_tags

    async def list_conflicts(
        self, *, page_size: int = 0, page_token: str = "", resolved_too: bool = False
    ) -> tuple[list[Conflict], str]:
        """One page of conflicts, oldest first, and the token of the next. Raises PageTokenInvalidError."""
        if page_size < 0:
            raise LeadValidationError([Violation("page_size", "must not be negative")])
        identity, tags = f"conflicts/{resolved_too}", self._page_token_tags
        after = Position(*read_page_token(page_token, UUID, list_identity=identity, tags=tags)) if page_token else None
        limit = min(page_size or LARGEST_PAGE, LARGEST_PAGE)
        found = await self._conflicts.list_conflicts(resolved_too=resolved_too, after=after, limit=limit + 1)
        page, token = found[:limit], ""
        if len(found) > limit:
            last = page[-1][0]
            token = make_page_token(last.accepted_at, last.id, list_identity=identity, tags=tags)
        return [self._opened(conflict, leads) for conflict, leads in page], token

    async def resolve_conflict(
        self, caller: Caller, conflict_id: UUID, resolution: ConflictResolution, *, lead_id: UUID | None, reason: str
    ) -> Lead | None:
        """Decide; the lead that the submission's id stands for from now on, None when it was dropped.

        `lead_id` names one of the leads that were met; None: the only one. Where every lead that it matched was erased,
        KEEP_FIRST drops it and TAKE_NEW is refused. Raises LeadValidationError, ConflictNotFoundError,
        ConflictResolvedError, DuplicateLeadError, FieldUnreadableError.
        """
        why = self._validation.reason(reason)

        def decide(conflict: SealedConflict) -> Decision:
            if resolution is ConflictResolution.OWN_LEAD:
                if lead_id is not None:
                    raise LeadValidationError([Violation("lead_id", "must be empty for a lead of its own")])
                return OwnLead(self._sealer.resealed_and_reindexed(conflict))
            if not conflict.lead_ids:
                return _without_lead(conflict, resolution, lead_id)
            target = _target(conflict, lead_id)
            if resolution is ConflictResolution.KEEP_FIRST:
                return KeepFirst(target)
            submitted = self._sealer.open(conflict.as_lead(conflict.accepted_at))
            # What the customer left out this time is no wish to have it removed.
            told = {name: value for name in CORRECTABLE_FIELDS if (value := getattr(submitted, name)) is not None}

            def correction(current: SealedLead) -> Correction:
                return self._sealer.correction(current.id, told)

            return TakeNew(target, correction)

        sealed = await self._conflicts.resolve(conflict_id, resolution, decide, actor=caller.subject, reason=why)
        if isinstance(sealed, DuplicateMatch):
            raise DuplicateLeadError(
                phone_lead_id=sealed.phone.id if sealed.phone else None,
                nid_lead_id=sealed.nid.id if sealed.nid else None,
                visible=frozenset(lead.id for lead in sealed.leads),  # who operates sees every conflict's leads
            )
        return self._sealer.open(sealed) if sealed is not None else None

    def _opened(self, conflict: SealedConflict, leads: list[SealedLead]) -> Conflict:
        submitted = conflict.as_lead(conflict.accepted_at)
        met = {
            "phone": conflict.phone_lead_id,
            "nid": conflict.nid_lead_id,
            "request_id": conflict.request_lead_id,
            "erased": conflict.erased_lead_id,
        }
        return Conflict(
            submission=self._sealer.open(submitted, flag_unreadable=True),
            leads=tuple(self._sealer.open(lead, flag_unreadable=True) for lead in leads),
            met_fields=tuple(name for name, lead_id in met.items() if lead_id is not None),
            accepted_at=conflict.accepted_at,
            found_at=conflict.found_at,
            resolution=conflict.resolution,
            resolved_by=conflict.resolved_by,
            resolved_at=conflict.resolved_at,
            reason=conflict.reason,
        )


def _without_lead(conflict: SealedConflict, resolution: ConflictResolution, lead_id: UUID | None) -> Drop:
    if lead_id is not None:
        raise LeadValidationError([Violation("lead_id", "must be empty: the lead that was met is erased")])
    if resolution is not ConflictResolution.KEEP_FIRST or conflict.erased_lead_id is None:
        wanted = "must be KEEP_FIRST or OWN_LEAD: the lead that would take the values is erased"
        raise LeadValidationError([Violation("resolution", wanted)])
    return Drop(conflict.erased_lead_id)


def _target(conflict: SealedConflict, lead_id: UUID | None) -> UUID:
    met = conflict.lead_ids
    if lead_id is None and len(met) == 1:
        return met[0]
    if lead_id is None or lead_id not in met:
        choice = ", ".join(str(each) for each in met)
        raise LeadValidationError([Violation("lead_id", f"must be one of the leads that were met: {choice}")])
    return lead_id
