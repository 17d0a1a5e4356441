"""Rows of the table of leads, as sealed leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.lead import SENSITIVE_FIELDS, LeadStatus, SealedLead
from service.storage.lead_queries import LEAD

_CLEAR = (
    "id",
    "name",
    "interested_policy",
    "preferred_contact_time",
    "conversation_id",
    "status",
    "created_at",
    "updated_at",
    "version",
    "assignee",
    "resubmissions",
    "created_by",
)


class LeadRows:
    """What statements ask of leads, in which order, and how that becomes a lead."""

    def __init__(self) -> None:
        self._names = (*_CLEAR, *SENSITIVE_FIELDS)
        self.columns = tuple(LEAD.c[name] for name in self._names)

    def lead(self, values: Sequence[Any]) -> SealedLead:
        """The lead of a row that holds `columns`."""
        (
            lead_id,
            name,
            interested_policy,
            preferred_contact_time,
            conversation_id,
            status,
            created_at,
            updated_at,
            version,
            assignee,
            resubmissions,
            created_by,
            *tokens,
        ) = values
        return SealedLead(
            id=lead_id,
            name=name,
            interested_policy=interested_policy,
            preferred_contact_time=preferred_contact_time,
            conversation_id=conversation_id,
            status=LeadStatus(status),
            created_at=created_at,
            updated_at=updated_at,
            version=version,
            assignee=assignee,
            resubmissions=resubmissions,
            created_by=created_by,
            sealed={field: token for field, token in zip(SENSITIVE_FIELDS, tokens, strict=True) if token is not None},
        )

    def lead_of_all(self, row: Any) -> SealedLead:
        """The lead of a row that holds the whole table's columns, by name."""
        return self.lead([getattr(row, name) for name in self._names])
