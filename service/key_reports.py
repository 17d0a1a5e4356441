"""What the long commands that change keys tell, while they run and at their end."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long command is. `total` was counted at its beginning."""

    what: str
    done: int
    total: int


@dataclass(slots=True)
class Resealed:
    """What a reseal did."""

    key_id: str
    sealed_anew: dict[str, int] = field(default_factory=dict)
    """Rows by what they are."""
    unreadable: list[str] = field(default_factory=list)
    """Rows that do not open, which stay as they are."""
    left: int = 0
    """Rows that still are sealed with other keys, the unreadable ones among them."""
    seconds: float = 0.0


@dataclass(slots=True)
class Reindexed:
    """What a reindex did. `needed` is False when the blind indexes were right already."""

    needed: bool
    leads: int = 0
    beside: list[tuple[UUID, UUID, str]] = field(default_factory=list)
    """Leads that stand beside another one with the same phone or nid: (the lead, the other one, the field)."""
    seconds: float = 0.0


@dataclass(slots=True)
class Verified:
    """What was looked at, and what is wrong, in words without any value."""

    rows: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
