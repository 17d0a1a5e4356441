"""Decision about a submission, as a pure function: lead, duplicate, conflict, alias, or still in the spool.

PostgreSQL (submissions.py), the spool and the recent requests look for what they hold about a submission, fill a
`Found` with it, and apply the `Outcome`. Each answers for what it can know; a new submission for which PostgreSQL
finds nothing was inserted, one for which the spool finds nothing waits there. And whose a submission is: `Person`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from uuid import UUID

from service.errors import DuplicateLeadError
from service.lead import SealedLead, SealedSubmission


@dataclass(frozen=True, slots=True)
class MatchedLead:
    """A lead, or a submission that waits to become one, with the phone or the nid of a submission."""

    id: UUID
    created_by: str


@dataclass(frozen=True, slots=True)
class DuplicateMatch:
    """A refused duplicate: the lead with its phone and the lead with its nid, which may be the same one."""

    phone: MatchedLead | None
    nid: MatchedLead | None

    @property
    def verified(self) -> bool:
        """Whether phone and nid both belong to one and the same lead."""
        return self.phone is not None and self.phone == self.nid

    @property
    def leads(self) -> tuple[MatchedLead, ...]:
        """The matched leads, each once."""
        return tuple(dict.fromkeys(lead for lead in (self.phone, self.nid) if lead is not None))

    def error(self, may_read: Callable[[str], bool]) -> DuplicateLeadError:
        """What a caller gets who may read the leads that certain subjects created."""
        return DuplicateLeadError(
            phone_lead_id=self.phone.id if self.phone else None,
            nid_lead_id=self.nid.id if self.nid else None,
            visible=frozenset(lead.id for lead in self.leads if may_read(lead.created_by)),
        )


@dataclass(frozen=True, slots=True)
class Created:
    """The submission is a lead."""

    lead: SealedLead
    is_new: bool
    """Whether this attempt has inserted it; False: an earlier attempt or the same request has."""


@dataclass(frozen=True, slots=True)
class RequestIdReused:
    """The subject used the request_id for other content before."""


@dataclass(frozen=True, slots=True)
class Delayed:
    """The submission is acknowledged, and no lead yet: it waits in the spool, or for an operator to decide."""

    id: UUID
    """The id that it was acknowledged under; that of the earlier submission when it repeats one."""
    accepted_at: datetime
    decided: bool = False
    """Whether it is in the database all the same: an operator has decided meanwhile, or the database had it before it
    became unavailable."""


@dataclass(frozen=True, slots=True)
class Aliased:
    """A drained submission whose request became another lead before: its id leads to where `target_id` leads."""

    target_id: UUID


@dataclass(frozen=True, slots=True)
class InConflict:
    """A drained submission that matches a lead: an operator decides. Without a match it is a conflict already."""

    match: DuplicateMatch | None = None
    request_lead_id: UUID | None = None
    """The lead that has its request_id with other content."""
    repeats: UUID | None = None
    """The conflict of the same request, whose resolution is its own too."""
    erased_lead_id: UUID | None = None
    """A lead that was erased, whose request it may be a copy of."""


@dataclass(frozen=True, slots=True)
class Erased:
    """The submission, or the request that it is a copy of, was acknowledged at `created_at` and erased since."""

    created_at: datetime


Outcome = Created | DuplicateMatch | RequestIdReused | Delayed | Aliased | InConflict | Erased


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """An earlier submission with the same id or the same request: a lead, a conflict, or one that waits."""

    id: UUID
    accepted_at: datetime
    content_digest: bytes = field(repr=False)
    lead: SealedLead | None = None
    decided: bool = False
    """See Delayed."""
    repeats: UUID | None = None
    """Of a conflict: the first one of its request."""
    refused: bool = False
    """Of one that waits: it was refused as a duplicate of another one that waits."""

    @property
    def acknowledged(self) -> Outcome:
        """The answer to a repeat of it."""
        if self.lead is not None:
            return Created(self.lead, is_new=False)
        return Delayed(self.id, self.accepted_at, self.decided)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a store holds about one submission; the default of each field also stands for "cannot be known here"."""

    own: Earlier | None = None
    """What holds the submission's own id: an earlier attempt succeeded, and its answer was lost."""
    request: Earlier | None = None
    """The lead, or the waiting submission, of the same subject and request_id."""
    person: Earlier | None = None
    """The lead, or the waiting submission, of the same subject with both its phone and its nid, or neither a nid."""
    now: datetime | None = None
    """The moment of the look, by the clock that dates what is new in the store."""
    conflict: Earlier | None = None
    """The oldest conflict of the same subject and request_id."""
    phone: MatchedLead | None = None
    nid: MatchedLead | None = None
    alias: UUID | None = None
    """The lead that the submission's own id leads to."""
    erased_created_at: datetime | None = None
    """The tombstone's: when the submission was acknowledged that was erased, of this id or of this request."""
    perhaps_erased_with: UUID | None = None
    """The lead whose request was erased, when the clocks do not show whether the submission was accepted before."""

    @property
    def match(self) -> DuplicateMatch | None:
        """The leads that the submission duplicates."""
        return DuplicateMatch(self.phone, self.nid) if self.phone or self.nid else None


def decide(submission: SealedSubmission, found: Found) -> Outcome | None:
    """The outcome of a submission; None: it becomes a new lead."""
    own = found.own
    if own is not None and own.lead is not None:
        return own.acknowledged
    if found.erased_created_at is not None:
        return Erased(found.erased_created_at)
    if found.alias is not None:
        return Aliased(found.alias)
    is_drained = submission.accepted_at is not None
    if own is not None:
        return InConflict() if is_drained else own.acknowledged
    return _decide_drained(submission, found) if is_drained else _decide_new(submission, found)


def _repeated(submission: SealedSubmission, found: Found) -> Earlier | None:
    """The submission that this one repeats: by request_id, else the same person and content within the window."""
    if submission.request_id is not None:
        return found.request
    person, moment = found.person, submission.accepted_at or found.now
    if person is None or moment is None or not submission.has_content(person.content_digest):
        return None
    # Copies from two spools are drained in any order.
    return person if abs(moment - person.accepted_at) < submission.repeat_window else None


def _decide_new(submission: SealedSubmission, found: Found) -> Outcome | None:
    earlier = _repeated(submission, found) or found.conflict
    if earlier is None:
        return found.match
    if not submission.has_content(earlier.content_digest):
        return RequestIdReused()
    # A repeat of a refused one stays refused as long as what it duplicates waits.
    return found.match if earlier.refused else earlier.acknowledged


def _decide_drained(submission: SealedSubmission, found: Found) -> Outcome | None:
    """It was acknowledged, so that it is never refused: an operator decides what else it could be."""
    request, conflict, match = _repeated(submission, found), found.conflict, found.match
    if request is not None and submission.has_content(request.content_digest):
        return Aliased(request.id)
    if found.perhaps_erased_with is None:
        if submission.refused and match is not None:
            return match
        if request is None and match is None:
            return None
    repeats = None
    if conflict is not None and submission.has_content(conflict.content_digest):
        if conflict.decided:
            return Aliased(conflict.id)
        repeats = conflict.repeats or conflict.id
    return InConflict(match, request.id if request else None, repeats, found.perhaps_erased_with)


@dataclass(frozen=True, slots=True)
class Person:
    """What one person's submissions are known by."""

    ids: frozenset[UUID]
    requests: frozenset[tuple[str, str]] = frozenset()
    """Subject and request_id of each request; one without request_id is known by its id alone."""
    phones: frozenset[bytes] = frozenset()
    nids: frozenset[bytes] = frozenset()

    def owns(self, submission: SealedSubmission) -> bool:
        """Whether a submission is this person's: by its id, its request, or both its phone and its nid.

        One that shares only the phone or only the nid is another person's: relatives share phones, and people mistype.
        """
        has_phone = not self.phones.isdisjoint(submission.indexes.phones)
        has_nid = not self.nids.isdisjoint(submission.indexes.nids)
        # A submission without request_id is in no request: `requests` never holds None.
        has_request = (submission.created_by, submission.request_id) in self.requests
        return submission.id in self.ids or has_request or (has_phone and has_nid)

    def within(self, other: Person) -> bool:
        """Whether the other person has all of this one's ids, requests, phones and nids."""
        return all(getattr(self, each.name) <= getattr(other, each.name) for each in fields(self))

    def extended_by(self, submission: SealedSubmission) -> Person:
        """The same person, known by a submission of its own too."""
        request = {(submission.created_by, submission.request_id)} if submission.request_id is not None else set()
        return Person(
            self.ids | {submission.id},
            self.requests | request,
            self.phones | set(submission.indexes.phones),
            self.nids | set(submission.indexes.nids),
        )
