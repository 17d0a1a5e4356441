"""What was submitted and erased in the scenario of erasures, and what is wrong with what is stored in the end. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from leadkeep.v1 import lead_service_pb2 as pb

from tests.faults.chaos.history import Content

LIVING = ("lead", "lead_alias", "lead_conflict")
"""The tables in which an acknowledged id lives on."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One attempt of a member of a family, whose phones and national IDs are drawn from a few."""

    number: int
    content: Content
    request_id: str
    """Empty: it was sent without one."""

    @property
    def name(self) -> str:
        """Of this attempt alone; a name is stored in clear."""
        return f"Quillon Attempt {self.number}"

    def lead(self) -> pb.Lead:
        """The same lead each time."""
        lead = self.content.lead()
        lead.name = self.name
        return lead


@dataclass(frozen=True, slots=True)
class Sent:
    """A submission and what its caller was answered in the end."""

    submission: Submission
    code: str
    id: str = ""
    replica: int = 0
    ended: float = 0.0
    """On the monotonic clock, like that of an erasure."""

    @property
    def acknowledged(self) -> bool:
        """Whether its caller was told that it is durable."""
        return self.code == "OK"


@dataclass(frozen=True, slots=True)
class Erased:
    """An id that was to be erased, and the answer."""

    id: str
    code: str
    kept_ids: tuple[str, ...] = ()
    replica: int = 0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A row in which an id stands in the end."""

    table: str
    id: str
    name: str = ""


def broken(sent: Sequence[Sent], erasures: Sequence[Erased], rows: Sequence[Kept]) -> list[str]:
    """Every broken promise, in words."""
    answers = [erased for erased in erasures if erased.code not in ("OK", "NOT_FOUND")]
    return [
        *(f"EraseLead of {erased.id} was answered {erased.code}" for erased in answers),
        *_lost(sent, _Taken(sent, erasures), rows),
        *_alive(sent, erasures, rows),
        *_twice(rows),
        *_kept_and_gone(sent, erasures, rows),
    ]


def evidence(sent: Sequence[Sent], erasures: Sequence[Erased], words: str) -> Iterator[str]:
    """What was done to the submissions that a broken promise names, in the order of time."""
    names = {each.submission.name for each in sent if each.id and each.id in words}
    names |= {each.submission.name for each in sent if f"{each.submission.name})" in words}
    about = [each for each in sent if each.submission.name in names]
    ids = {each.id for each in about if each.id}
    events = [(each.ended, f"sent to {each.replica}: {each.code} {each.id} {each.submission}") for each in about]
    events += [
        (each.ended, f"erased at {each.replica}: {each.code} {each.id}, kept {', '.join(each.kept_ids) or 'nothing'}")
        for each in erasures
        if each.id in ids
    ]
    return (f"{ended:.3f} {event}" for ended, event in sorted(events))


class _Taken:
    """What the erasures may take: the ids, their requests, and what has both the phone and the national ID."""

    def __init__(self, sent: Sequence[Sent], erasures: Sequence[Erased]) -> None:
        self._ids = {erased.id for erased in erasures}
        persons = [each.submission for each in sent if each.id in self._ids]
        self._requests = {person.request_id for person in persons if person.request_id}
        self._contents = {person.content for person in persons}

    def may_be_gone(self, each: Sent) -> bool:
        submission = each.submission
        return each.id in self._ids or submission.request_id in self._requests or submission.content in self._contents


def _lost(sent: Sequence[Sent], taken: _Taken, rows: Sequence[Kept]) -> Iterator[str]:
    ids = {row.id for row in rows if row.table in LIVING}
    names = {row.name for row in rows}
    for each in sent:
        if taken.may_be_gone(each):
            continue
        if each.acknowledged and each.id not in ids:
            yield f"{each.id} ({each.submission.name}) was acknowledged, not erased, and is nowhere"
        if each.code == "ALREADY_EXISTS" and each.submission.name not in names:
            yield f"{each.submission.name} was refused, not erased, and is kept nowhere"


def _alive(sent: Sequence[Sent], erasures: Sequence[Erased], rows: Sequence[Kept]) -> Iterator[str]:
    ids = {erased.id for erased in erasures}
    names = {each.submission.name for each in sent if each.id in ids}
    for row in rows:
        if row.id in ids or row.name in names:
            yield f"{row.id} ({row.name}) was erased and is in {row.table}"


def _twice(rows: Sequence[Kept]) -> Iterator[str]:
    for row_id, times in Counter(row.id for row in rows if row.table in LIVING).items():
        if times > 1:
            yield f"{row_id} is in {times} rows"


def _kept_and_gone(sent: Sequence[Sent], erasures: Sequence[Erased], rows: Sequence[Kept]) -> Iterator[str]:
    conflicts = {row.id for row in rows if row.table == "lead_conflict"}
    taken = _Taken(sent, erasures)
    # What was kept may have been erased later. Only an acknowledged id tells whose it is.
    still_kept = {each.id for each in sent if each.acknowledged and not taken.may_be_gone(each)}
    for kept_id in {kept_id for erased in erasures for kept_id in erased.kept_ids}:
        if kept_id in still_kept and kept_id not in conflicts:
            yield f"{kept_id} was named as kept, and is no conflict"
