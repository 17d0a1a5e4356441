"""Reports of key rotation: what was sealed, indexed or verified, and what is left."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Resealed:
    """Report of a reseal."""

    key_id: str
    sealed_anew: dict[str, int] = field(default_factory=dict)
    """Rows by kind."""
    emails: int = 0
    """E-mails that could not be found by before."""
    submissions: int = 0
    """Resubmissions and conflicts that could not be found before."""
    unreadable: list[str] = field(default_factory=list)
    """Rows that do not open, which stay as they are."""
    left: int = 0
    """Rows that still are sealed with other keys, the unreadable ones among them."""
    seconds: float = 0.0


@dataclass(slots=True)
class Reindexed:
    """Report of a reindex. `needed` is False when the blind indexes were right already."""

    needed: bool
    leads: int = 0
    conversations: int = 0
    emails: int = 0
    submissions: int = 0
    beside: list[dict[str, str]] = field(default_factory=list)
    """Leads that share a phone or nid with another one, see `Rekeying.sharing_leads`."""
    seconds: float = 0.0


@dataclass(slots=True)
class Verified:
    """Report of a verification: rows checked, by kind, and faults found, in words without any value."""

    rows: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
