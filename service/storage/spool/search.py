"""Search of spools by keyed digests: what is sought, and what was found, in the form in which both pass the database.

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

from service.keys.encryption import NOT_CONFIRMED, IndexScheme
from service.lead import BlindIndexes, SealedSubmission


@dataclass(frozen=True, slots=True)
class SearchKeys:
    """The digests of one submission's phone, nid and e-mail."""

    phones: frozenset[bytes] = field(default=frozenset(), repr=False)
    nids: frozenset[bytes] = field(default=frozenset(), repr=False)
    emails: frozenset[str] = field(default=frozenset(), repr=False)


MakeKeys = Callable[[SealedSubmission, Sequence[IndexScheme]], SearchKeys]
"""The digests of a submission, made by some schemes; those of a field that does not open are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """What is sought: submissions with one of these ids or digests."""

    schemes: tuple[IndexScheme, ...] = ()
    """By which the digests of phone and nid were made. Those of e-mails name their key themselves."""
    phones: frozenset[bytes] = field(default=frozenset(), repr=False)
    nids: frozenset[bytes] = field(default=frozenset(), repr=False)
    emails: frozenset[str] = field(default=frozenset(), repr=False)
    ids: frozenset[UUID] = frozenset()

    def fields_of(self, keys: SearchKeys) -> tuple[str, ...]:
        """The fields by which a submission with these digests matches."""
        matches = {"phone": self.phones & keys.phones, "nid": self.nids & keys.nids, "email": self.emails & keys.emails}
        return tuple(name for name, shared in matches.items() if shared)

    def to_json(self) -> str:
        """In the form that `of` reads; of equal ones it is equal."""
        return json.dumps(
            {
                "schemes": [asdict(scheme) for scheme in self.schemes],
                "phones": sorted(each.hex() for each in self.phones),
                "nids": sorted(each.hex() for each in self.nids),
                "emails": sorted(self.emails),
                "ids": sorted(map(str, self.ids)),
            }
        )

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Sought:
        """What `to_json` wrote."""
        return cls(
            schemes=tuple(IndexScheme(**scheme) for scheme in document["schemes"]),
            phones=frozenset(map(bytes.fromhex, document["phones"])),
            nids=frozenset(map(bytes.fromhex, document["nids"])),
            emails=frozenset(document["emails"]),
            ids=frozenset(map(UUID, document["ids"])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMatch:
    """A submission that waits in a spool and was sought there."""

    submission: SealedSubmission
    """Without its blind indexes and digests. One that is damaged has no fields."""
    matched_fields: tuple[str, ...]
    """Of phone, nid and email; none when it was sought by its id alone."""


def answer_of(matches: Sequence[WaitingMatch]) -> bytes:
    """Matches in the form that `matches_of` reads; to be sealed."""
    return json.dumps(
        [
            {
                "id": str(match.submission.id),
                "fields": dict(match.submission.fields),
                "created_by": match.submission.created_by,
                "request_id": match.submission.request_id,
                "accepted_at": match.submission.accepted_at and match.submission.accepted_at.isoformat(),
                "refused": match.submission.refused,
                "matched_fields": match.matched_fields,
            }
            for match in matches
        ]
    ).encode()


def matches_of(answer: bytes) -> list[WaitingMatch]:
    """What `answer_of` wrote."""
    return [
        WaitingMatch(
            submission=SealedSubmission(
                id=UUID(each["id"]),
                fields=each["fields"],
                created_by=each["created_by"],
                request_id=each["request_id"],
                accepted_at=datetime.fromisoformat(each["accepted_at"]),
                refused=each["refused"],
                content_digest=b"",
                indexes=BlindIndexes(epoch=NOT_CONFIRMED, phone=(None, None), nid=(None, None)),
            ),
            matched_fields=tuple(each["matched_fields"]),
        )
        for each in json.loads(answer)
    ]
