"""The use cases of a person who asks "what do you have on me?" and "forget me": find, export, erase.

Promises: what is found carries the identifier itself; what is exported or erased was chosen, or is what an erasure of a
chosen lead takes with it. Of another person's lead only the id is in an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from service.errors import (
    LeadNotFoundError,
    ScopeMissingError,
    StorageUnavailableError,
    invalid,
)
from service.lead import Lead, LeadEvent, Resubmission, SealedConflict, SealedLead, SealedResubmission
from service.lead_sealer import LeadSealer
from service.scopes import Caller, Scope
from service.storage.intake.all_spools import AllSpools
from service.storage.intake.outage import RecentRequests
from service.storage.leads.changes import BEGINNING, LeadHistory
from service.storage.leads.changes import Place as EventPlace
from service.storage.leads.erasing import Reseal
from service.storage.leads.erasures import Erasures, PersonMovedError
from service.storage.leads.look_up import ATTEMPTS
from service.storage.leads.persons import Item, Match, MatchKind, Persons, Place, Ref
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool, Spooled
from service.use_cases.conflict_service import Conflict
from service.use_cases.page_token import LARGEST_PAGE, Tags, make_page_token, read_page, read_page_token
from service.validation import ValidationService

MOST_REFS = 100

_SUBMISSIONS = (MatchKind.RESUBMISSION, MatchKind.CONFLICT)

_NOT_BEGUN = BEGINNING._replace(version=-1)
"""The place in an item's history before its content."""


@dataclass(frozen=True, slots=True)
class FoundMatch:
    """A match, and its lead opened, if it is one."""

    match: Match
    lead: Lead | None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an export: a lead, a submission, or an event of its history."""

    ref: Ref
    item: Item
    content: Lead | Resubmission | Conflict | LeadEvent


@dataclass(slots=True)
class Export:
    """A page of an export."""

    parts: list[Part] = field(default_factory=list)
    next_page_token: str = ""
    not_found: list[Ref] = field(default_factory=list)
    unanswered: Sequence[str] = ()


@dataclass(slots=True)
class ErasedPerson:
    """What an erasure of chosen matches did."""

    erased: list[Ref] = field(default_factory=list)
    not_found: list[Ref] = field(default_factory=list)
    kept: list[UUID] = field(default_factory=list)
    """Conflicts of other people."""
    unanswered: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureService:
    """The use case of erasing the person of a lead.

    Promise: once an erasure was answered, the database holds a tombstone in place of everything that it had of the
    lead, no copy that still waits in a spool, of this replica or of another one, becomes a lead, and this process has
    forgotten it too. What only shares the phone or only the nid is another person's: it stays, for a person to decide.
    The daily files follow within their pace; backups, and PostgreSQL's log and free space, in their time: see
    docs/erasure.md.
    """

    erasures: Erasures
    spool: Spool
    recent: RecentRequests
    validation: ValidationService
    reseal: Reseal

    async def erase_lead(self, caller: Caller, lead_id: UUID, *, reason: str = "") -> tuple[UUID, ...]:
        """Erase the person of a lead; returns the conflicts of others that were kept. A repeat succeeds.

        Raises LeadValidationError, LeadNotFoundError, StorageUnavailableError.
        """
        why = self.validation.text("reason", reason)
        for _ in range(ATTEMPTS):
            with suppress(PersonMovedError):
                spooled = await self._spooled(lead_id)
                erased = await self.erasures.erase(lead_id, actor=caller.subject, reason=why, spooled=spooled)
                break
        else:
            raise StorageUnavailableError
        if erased is None:
            raise LeadNotFoundError
        self.recent.forget(erased.gone)
        if settled := [*spooled.own, *(entry.id for entry in spooled.others)]:
            with suppress(SpoolError):  # the drain finds the tombstones and the conflicts
                await self.spool.remove(settled)
        return erased.kept

    async def _spooled(self, lead_id: UUID) -> Spooled:
        try:
            if self.spool.empty:
                return Spooled()
            person = await self.erasures.person(lead_id)
            return await self.spool.of_person(lead_id, person, self.reseal)
        except SpoolError:
            # Once the lead is gone, nothing would find what waits there of the person.
            raise StorageUnavailableError from None


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonService:
    """The use cases around persons."""

    persons: Persons
    history: LeadHistory
    erasures: Erasures
    erasing: ErasureService
    spools: AllSpools
    sealer: LeadSealer
    validation: ValidationService
    page_token_tags: Tags

    async def find(
        self, identifiers: Mapping[str, str], *, page_token: str, hidden: Collection[str]
    ) -> tuple[list[FoundMatch], str, Sequence[str]]:
        """One page of what carries an identifier, the token of the next, and the replicas that did not answer.

        `hidden` fields are not opened. Raises LeadValidationError, PageTokenInvalidError, IndexIncompleteError,
        QueryTimeoutError.
        """
        if not identifiers:
            raise invalid("phone", "is required, or nid, or email", "REQUIRED")
        keys = self.validation.filters(identifiers)
        wanted = self.sealer.wanted(keys)
        unanswered: Sequence[str] = ()

        async def matches(after: tuple[datetime, str] | None, limit: int) -> list[Match]:
            nonlocal unanswered
            place = _place(*after) if after else None
            waiting: Sequence[Match] = ()
            # Before the database is read: what is drained meanwhile is found there.
            if place is None or place.rank == 0:
                waiting, unanswered = await self.spools.find(wanted, after=place, limit=limit)
            behind = sorted((each for each in waiting if place is None or each.place > place), key=lambda m: m.place)
            found = await self.persons.find(wanted, after=place, limit=limit)
            stored = {each.id for each in found}
            return [*(each for each in behind if each.id not in stored), *found][:limit]

        page, token = await read_page(
            matches,
            lambda match: (match.at, _text(match.place)),
            str,
            size=0,
            token=page_token,
            list_identity=f"person/{sorted(keys.items())!r}",
            tags=self.page_token_tags,
        )
        opened = partial(self.sealer.open, hidden=hidden, flag_unreadable=True)
        return [FoundMatch(each, opened(each.lead) if each.lead else None) for each in page], token, unanswered

    async def export(self, caller: Caller, refs: Sequence[Ref], *, page_token: str) -> Export:
        """One page of everything about chosen matches, each followed by its history.

        Raises ScopeMissingError, LeadValidationError, PageTokenInvalidError.
        """
        _require(caller, Scope.UNMASK)
        refs = _checked(refs)
        identity = f"export/{refs!r}"
        first, after = 0, None
        if page_token:
            at, text = read_page_token(page_token, str, list_identity=identity, tags=self.page_token_tags)
            first, after = int(text.partition("/")[0]), (at, text)
        page = Export()
        waiting: dict[UUID, Item] = {}
        if wanted := [each.id for each in refs[first:] if each.kind is MatchKind.WAITING]:
            sealed, page.unanswered = await self.spools.export(wanted)
            waiting = {each.id: Item(each.id, each) for each in sealed}
        for number, ref in enumerate(refs[first:], first):
            items = await self.persons.items(ref) or [waiting[each] for each in [ref.id] if each in waiting]
            if not items:
                page.not_found.append(ref)
            resumed = _resumed(after) if after is not None and number == first else None
            elsewhere = {each.id for each in refs if each.id != ref.id or each.kind in _SUBMISSIONS}
            before = set[UUID]()
            for item in items:
                # A lead and the decided conflict that it was have one id, and one history.
                with_history = item.id not in before
                before.add(item.id)
                if not item.is_chosen and item.id in elsewhere:
                    continue  # it has a place of its own
                if resumed is not None and item.place < resumed[0]:
                    continue
                behind = resumed[1] if resumed is not None and item.place == resumed[0] else None
                last = await self._add(page, ref, item, behind, with_history=with_history)
                if last is not None:
                    at, text = last.at, "/".join(map(str, (number, *_item_text(item), *last[1:])))
                    page.next_page_token = make_page_token(at, text, list_identity=identity, tags=self.page_token_tags)
                    return page
        return page

    async def _add(
        self, page: Export, ref: Ref, item: Item, after: EventPlace | None, *, with_history: bool
    ) -> EventPlace | None:
        """Add an item and its history behind a place; where the page was full, None if it was not."""
        if after in (None, _NOT_BEGUN):
            if len(page.parts) == LARGEST_PAGE:
                return _NOT_BEGUN
            page.parts.append(Part(ref, item, self._opened(item)))
            after = BEGINNING
        while with_history:
            room = LARGEST_PAGE - len(page.parts)
            if room == 0:
                return after
            events = await self.history.page(item.id, after=after, limit=room, newest_first=False, with_accesses=True)
            page.parts += (Part(ref, item, event) for event, _ in events)
            if len(events) < room:
                return None
            after = events[-1][1]
        return None

    def _opened(self, item: Item) -> Lead | Resubmission | Conflict:
        match item.sealed:
            case SealedResubmission():
                return self.sealer.open_resubmission(item.sealed)
            case SealedConflict():
                submission = self.sealer.open(item.sealed.as_lead(item.sealed.accepted_at), flag_unreadable=True)
                return Conflict(item.sealed, submission, ())
            case SealedLead():
                return self.sealer.open(item.sealed, flag_unreadable=True)
            case waiting:
                assert waiting.accepted_at is not None  # noqa: S101 # of what waits it is known
                return self.sealer.open(waiting.as_lead(waiting.accepted_at), flag_unreadable=True)

    async def erase(self, caller: Caller, refs: Sequence[Ref], *, reason: str) -> ErasedPerson:
        """Erase chosen matches: a lead as EraseLead does, anything else alone. Safe to repeat.

        Each lead is a transaction of its own, and so are all the submissions: what was erased before a failure stays
        erased. Raises ScopeMissingError, LeadValidationError, StorageUnavailableError.
        """
        _require(caller, Scope.ERASE)
        refs = _checked(refs)
        why = self.validation.text("reason", reason)
        by: dict[str, Any] = {"actor": caller.subject, "reason": why}
        done = ErasedPerson()
        waiting = [ref.id for ref in refs if ref.kind is MatchKind.WAITING]
        # What waited and is a lead by now is erased as one.
        drained = await self.erasures.bury_alone(waiting, **by)
        gone: set[UUID] = set()
        leads = list(dict.fromkeys([*(ref.id for ref in refs if ref.kind is MatchKind.LEAD), *drained]))
        for lead_id in leads:
            try:
                done.kept += await self.erasing.erase_lead(caller, lead_id, reason=reason)
                gone.add(lead_id)
            except LeadNotFoundError:
                continue
        done.unanswered = await self.spools.erase([each for each in waiting if each not in drained], leads=leads)
        if alone := [ref.id for ref in refs if ref.kind is not MatchKind.LEAD and ref.id not in drained]:
            gone |= await self.erasures.erase_alone(alone, **by)
        done.kept = [each for each in dict.fromkeys(done.kept) if each not in gone]
        for ref in refs:
            if ref.id in gone:
                done.erased.append(ref)
            elif ref.kind is not MatchKind.WAITING or not done.unanswered:
                done.not_found.append(ref)
        return done


def _require(caller: Caller, scope: Scope) -> None:
    if not caller.may(scope):
        raise ScopeMissingError(scope)


def _checked(refs: Sequence[Ref]) -> list[Ref]:
    """The chosen matches, each once. Raises LeadValidationError."""
    chosen = list(dict.fromkeys(refs))
    if not 1 <= len(chosen) <= MOST_REFS:
        raise invalid("refs", f"must name 1 to {MOST_REFS} matches", "REQUIRED")
    return chosen


def _text(place: Place) -> str:
    return f"{place.rank}/{place.id}/{place.lead_id}"


def _place(at: datetime, text: str) -> Place:
    rank, match_id, lead_id = text.split("/")
    return Place(int(rank), at, UUID(match_id), UUID(lead_id))


def _item_text(item: Item) -> tuple[int, UUID, UUID]:
    is_other, item_id, lead_id = item.place
    return int(is_other), item_id, lead_id


def _resumed(after: tuple[datetime, str]) -> tuple[tuple[bool, UUID, UUID], EventPlace]:
    """The item of a page token, and the event of it, behind which the page begins."""
    at, text = after
    _, is_other, item_id, lead_id, *event = text.split("/")
    return (is_other == "1", UUID(item_id), UUID(lead_id)), EventPlace(at, *map(int, event))
