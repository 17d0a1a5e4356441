"""Search of spools by keyed digests: for what a new submission shares with others, and for what is a person's.

What is sought of a person, and what was found, pass the database between replicas, in the forms that are made here. A
spool may hold any number of matches, so what is sought by digests is sought page by page.

No value of a customer is in a question. Digests of phone and nid are those of blind indexes, so each question names the
schemes by which they were made: whoever answers makes its own by the same ones, whatever its plan is by then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from service.errors import FieldUnreadableError
from service.keys.encryption import NOT_CONFIRMED, EncryptionService, IndexScheme
from service.lead import BlindIndexes, SealedSubmission
from service.storage.leads.decision import Earlier, Found, MatchedLead
from service.storage.spool.file import SpoolFile
from service.storage.spool.rows import SpoolRow, submission_of


@dataclass(frozen=True, slots=True)
class Alike:
    """The rows that share something with a submission, oldest first."""

    entry: SealedSubmission
    own: SpoolRow | None
    request: SpoolRow | None
    phone: Sequence[SpoolRow]
    nid: Sequence[SpoolRow]

    @classmethod
    def of(cls, entry: SealedSubmission, requests: Sequence[bytes], file: SpoolFile) -> Alike:
        """Those of a submission with these digests of its request."""
        return cls(
            entry,
            own=next(iter(file.find("id", [entry.id.bytes])), None),
            request=next(iter(file.find("request", requests)), None),
            phone=file.find("phone", entry.indexes.phones),
            nid=file.find("nid", entry.indexes.nids),
        )

    def keeps_refused(self) -> bool:
        """Whether the submission was refused and kept before."""
        alike = (row.refused and self.entry.has_content(row.content) for row in self.phone)
        return self.request is not None or any(alike)

    def found(self, encryption: EncryptionService, now: datetime) -> Found:
        """What decides about the submission."""
        phone, nid = (next((row for row in rows if not row.refused), None) for rows in (self.phone, self.nid))
        matched = _matched(phone, encryption)
        has_both = phone is not None and (phone == nid if self.entry.indexes.nids else phone.nid is None)
        is_own = has_both and matched is not None and matched.created_by == self.entry.created_by
        return Found(
            own=_earlier(self.own),
            request=_earlier(self.request),
            person=_earlier(phone) if is_own else None,
            now=now,
            phone=matched,
            nid=matched if phone == nid else _matched(nid, encryption),
        )


def _earlier(row: SpoolRow | None) -> Earlier | None:
    if row is None:
        return None
    return Earlier(id=row.id, accepted_at=row.accepted_at, content_digest=row.content, refused=row.refused)


def _matched(row: SpoolRow | None, encryption: EncryptionService) -> MatchedLead | None:
    if row is None:
        return None
    try:
        return MatchedLead(row.id, submission_of(row, encryption).created_by)
    except FieldUnreadableError:
        return MatchedLead(row.id, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchKeys:
    """Digests of phones, nids and e-mails: those of one submission, or those that are sought."""

    phones: frozenset[bytes] = field(default=frozenset(), repr=False)
    nids: frozenset[bytes] = field(default=frozenset(), repr=False)
    emails: frozenset[str] = field(default=frozenset(), repr=False)


MakeKeys = Callable[[SealedSubmission, Sequence[IndexScheme]], SearchKeys]
"""The digests of a submission, made by some schemes; those of a field that does not open are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought(SearchKeys):
    """What is sought: submissions with one of these ids or digests."""

    schemes: tuple[IndexScheme, ...] = ()
    """By which the digests of phone and nid were made. Those of e-mails name their key themselves."""
    ids: frozenset[UUID] = frozenset()
    limit: int | None = None
    """How many matches of a spool are wanted at most, the oldest; None: all."""
    after: tuple[datetime, UUID] | None = None
    """Behind which time of acceptance and id they are wanted; None: from the first one on."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields whose digests are sought."""
        return self.fields_of(self)

    def fields_of(self, keys: SearchKeys) -> tuple[str, ...]:
        """The fields by which a submission with these digests matches."""
        matches = {"phone": self.phones & keys.phones, "nid": self.nids & keys.nids, "email": self.emails & keys.emails}
        return tuple(name for name, shared in matches.items() if shared)

    def to_json(self) -> str:
        """In the form that `of` reads. Equal objects give equal text."""
        return json.dumps(
            {
                "schemes": [asdict(scheme) for scheme in self.schemes],
                "phones": sorted(each.hex() for each in self.phones),
                "nids": sorted(each.hex() for each in self.nids),
                "emails": sorted(self.emails),
                "ids": sorted(map(str, self.ids)),
                "limit": self.limit,
                "after": self.after and (self.after[0].isoformat(), str(self.after[1])),
            }
        )

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Sought:
        """What `to_json` wrote."""
        after = document.get("after")
        return cls(
            schemes=tuple(IndexScheme(**scheme) for scheme in document["schemes"]),
            phones=frozenset(map(bytes.fromhex, document["phones"])),
            nids=frozenset(map(bytes.fromhex, document["nids"])),
            emails=frozenset(document["emails"]),
            ids=frozenset(map(UUID, document["ids"])),
            limit=document.get("limit"),
            after=(datetime.fromisoformat(after[0]), UUID(after[1])) if after else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMatch:
    """A submission that waits in a spool and was sought there."""

    submission: SealedSubmission
    """Without its blind indexes and digests. One that is damaged, or was not sought by its id, has no fields."""
    accepted_at: datetime
    matched_fields: tuple[str, ...]
    """Of phone, nid and email; none when it was sought by its id alone."""

    @property
    def place(self) -> tuple[datetime, UUID]:
        """Its place among the matches of all spools."""
        return self.accepted_at, self.submission.id


def answer_of(matches: Sequence[WaitingMatch]) -> bytes:
    """Matches in the form that `matches_of` reads; to be sealed."""
    return json.dumps(
        [
            {
                "id": str(match.submission.id),
                "fields": dict(match.submission.fields),
                "created_by": match.submission.created_by,
                "request_id": match.submission.request_id,
                "accepted_at": match.accepted_at.isoformat(),
                "refused": match.submission.refused,
                "matched_fields": match.matched_fields,
            }
            for match in matches
        ]
    ).encode()


def matches_of(answer: bytes) -> list[WaitingMatch]:
    """What `answer_of` wrote."""
    return [_match_of(written) for written in json.loads(answer)]


def _match_of(written: Mapping[str, Any]) -> WaitingMatch:
    accepted_at = datetime.fromisoformat(written["accepted_at"])
    submission = SealedSubmission(
        id=UUID(written["id"]),
        fields=written["fields"],
        created_by=written["created_by"],
        request_id=written["request_id"],
        accepted_at=accepted_at,
        refused=written["refused"],
        content_digest=b"",
        indexes=BlindIndexes(epoch=NOT_CONFIRMED, phone=(None, None), nid=(None, None)),
    )
    return WaitingMatch(submission=submission, accepted_at=accepted_at, matched_fields=tuple(written["matched_fields"]))
