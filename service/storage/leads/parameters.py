"""Arguments of the repository: steps and corrections of a lead, positions of lists."""

from __future__ import annotations

from collections.abc import Mapping
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
    """New values of clear columns, new tokens of sealed ones (None: removed), new blind indexes; and why."""

    columns: Mapping[str, Any] = field(repr=False)
    actor: str
    reason: str | None

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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person is looked for by: the blind indexes of each identifier (phone, nid, email), by field."""

    of_leads: Mapping[str, tuple[Any, ...]] = field(repr=False)
    """As leads have them, and submissions that wait: those of phone and nid are bytes."""
    of_submissions: Mapping[str, tuple[str, ...]] = field(repr=False)
    """As resubmissions and conflicts have them: text."""
    schemes: tuple[str, ...]
    """How those were made. What was indexed by another scheme cannot be found."""


Step = StatusStep | AssignmentStep


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a lead in lists, which run by these two, newest first."""

    created_at: datetime
    id: UUID
