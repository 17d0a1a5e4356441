"""What two operations on one person may answer and leave, in whichever order they came (see race_trial.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from service.errors import (
    ConflictNotFoundError,
    ConflictResolvedError,
    DuplicateLeadError,
    LeadkeepError,
    LeadNotFoundError,
    LeadValidationError,
)
from service.lead import SealedSubmission

WHOLE = [
    {"lead"},
    {"lead", "lead_conflict"},
    {"lead_alias"},
    {"lead_alias", "lead_conflict"},
    {"lead_conflict"},
    {"resubmission"},
    {"tombstone"},
]
"""The places that one id may be in."""

ERASING = {"erase lead": "lead", "erase alias": "alias", "erase conflict": "conflict", "erase person": "lead"}
DECIDING = {"keep first", "take new", "own lead"}
CORRECTING = {"correct phone", "correct nid"}
MAY_BE_GONE = {*ERASING, "retention"}
"""What may take what the other operation asks for."""


@dataclass
class Person:
    """One person's submissions before a race."""

    lead: SealedSubmission
    alias: SealedSubmission
    conflict: SealedSubmission
    sharing: SealedSubmission
    resubmission: SealedSubmission
    waiting: SealedSubmission
    is_same: bool
    """Whether the conflict has the lead's phone and nid, not only its phone."""
    waits_as_copy: bool
    """Whether what waits is a copy of the lead's request, not a submission without one."""
    number: int
    """Of its phone and its nid."""
    line: dict[str, Any] = field(default_factory=dict)
    """The lead as a daily file holds it."""

    def ids(self) -> dict[str, UUID]:
        names = ("lead", "alias", "conflict", "sharing", "resubmission", "waiting")
        return {name: getattr(self, name).id for name in names}


def is_right(operation: str, answered: str, other: str) -> bool:
    """Whether an answer is one that the two operations allow, in whichever order they came."""
    allowed = {
        **{name: {"erased"} for name in ERASING},
        **{name: {"decided"} for name in DECIDING},
        **{name: {"corrected"} for name in CORRECTING},
        **{name: {"duplicate"} for name in ("create", "resubmit")},
        "repeat": {"repeat"},
        "drain": {"drained"},
        "retention": {"removed", "not due"},
        "restore": {"not restored"},
    }[operation]
    errors: set[type[LeadkeepError]] = set()
    words: set[str] = set()
    if operation in DECIDING and other in DECIDING:
        errors |= {ConflictResolvedError}
    if operation in DECIDING and other in MAY_BE_GONE:
        errors |= {ConflictNotFoundError, LeadValidationError}
    if operation == "take new" and other in {"correct phone", "correct nid", "own lead", "restore", "create"}:
        errors |= {DuplicateLeadError}
    if operation in CORRECTING and other in MAY_BE_GONE:
        errors |= {LeadNotFoundError}
    if operation in {"create", "resubmit", "repeat"} and other in {*MAY_BE_GONE, *CORRECTING, *DECIDING}:
        words |= {"created", "duplicate"}
    if operation in {"create", "resubmit"} and other in {"create", "resubmit", "repeat"}:
        words |= {"duplicate"}
    return answered in allowed | words | {each.__name__ for each in errors}


def left_of(person: Person, names: tuple[str, str], where: Mapping[str, set[str]]) -> list[str]:
    """What of an erased person is left, after the operations of these names; `where`: the tables of each id, by name.

    What an operator made a lead of its own stays. A correction or a decision that gives the lead other values decides
    whose the rest is, so that is not looked at then.
    """
    gone: set[str] = set()
    for name, other in zip(names, reversed(names), strict=True):
        if name not in ERASING:
            continue
        gone.add(ERASING[name])
        if name != "erase conflict":
            gone |= {"lead", "alias", "resubmission"}
            if person.waits_as_copy or other not in {*MAY_BE_GONE, *CORRECTING, "take new"}:
                gone.add("waiting")
        if person.is_same and other not in {*CORRECTING, "own lead", "retention"}:
            gone |= {"lead", "alias", "resubmission", "conflict"}
    return [name for name in sorted(gone) if where[name] != {"tombstone"}]
