"""Arguments of the repository: steps and corrections of a lead, filters and positions of lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from service.lead import LeadStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusStep:
    """A change of status, and why."""

    to_status: LeadStatus
    actor: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentStep:
    """A change of assignee, and why."""

    to_assignee: str | None
    actor: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """New values of clear columns, new tokens of sealed ones (None: removed), new blind indexes."""

    columns: Mapping[str, Any] = field(repr=False)

    @property
    def phones(self) -> tuple[bytes, ...]:
        """The new blind indexes of the phone; none when it stays."""
        return self._indexes("phone_index", "phone_index_2")

    @property
    def nids(self) -> tuple[bytes, ...]:
        """The new blind indexes of the nid; none when it stays."""
        return self._indexes("nid_index", "nid_index_2")

    def _indexes(self, *names: str) -> tuple[bytes, ...]:
        return tuple(index for name in names if (index := self.columns.get(name)) is not None)


Step = StatusStep | AssignmentStep


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadFilter:
    """What a list holds; None and empty mean: any. `created_by` restricts it to one subject's leads."""

    statuses: Sequence[LeadStatus] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    assignee: str | None = None
    interested_policy: str | None = None
    source: str | None = None
    conversation_id: str | None = field(default=None, repr=False)
    conversation_indexes: Sequence[str] = field(default=(), repr=False)
    phone_indexes: Sequence[bytes] | None = field(default=None, repr=False)
    """The blind indexes of one phone, one of which a lead must have; likewise `nid_indexes`."""
    nid_indexes: Sequence[bytes] | None = field(default=None, repr=False)
    email_indexes: Sequence[str] | None = field(default=None, repr=False)
    reference: bytes | None = None
    """The end of the ids that lead to a lead."""
    created_by: str | None = None

    @property
    def selective(self) -> tuple[str, ...]:
        """The names of the set filters that few leads match: those are fetched first and sorted then."""
        given = {
            "reference": self.reference,
            "email": self.email_indexes,
            "phone": self.phone_indexes,
            "nid": self.nid_indexes,
            "conversation_id": self.conversation_id,
        }
        return tuple(name for name, value in given.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a lead in lists, which run by these two, newest first."""

    created_at: datetime
    id: UUID
