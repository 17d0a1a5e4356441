"""What becomes of a submission that is stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.lead import SealedLead


@dataclass(frozen=True, slots=True)
class MetLead:
    """An existing lead that a submission meets."""

    id: UUID
    created_by: str


@dataclass(frozen=True, slots=True)
class Met:
    """Which lead the phone met and which one the nid met; both may be the same."""

    phone: MetLead | None
    nid: MetLead | None

    @property
    def verified(self) -> bool:
        """Whether phone and nid both met one and the same lead."""
        return self.phone is not None and self.phone == self.nid

    @property
    def leads(self) -> tuple[MetLead, ...]:
        """The leads that were met, each once."""
        return tuple(dict.fromkeys(lead for lead in (self.phone, self.nid) if lead is not None))


@dataclass(frozen=True, slots=True)
class Created:
    """The submission is the lead: stored now, or by an earlier attempt or repeat."""

    lead: SealedLead


@dataclass(frozen=True, slots=True)
class RequestIdReused:
    """The subject used the request_id for other content."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The submission is acknowledged, and no lead yet: it waits in the spool, or for a person to decide."""

    id: UUID
    """The id that it was acknowledged under; another one's when it repeats that one, with the same values."""
    accepted_at: datetime
    decided: bool = False
    """Whether it is in the database all the same: a person has decided meanwhile, or the database had it before it
    went away."""


@dataclass(frozen=True, slots=True)
class Aliased:
    """An acknowledged submission whose request had become another lead: its id leads there."""


@dataclass(frozen=True, slots=True)
class InConflict:
    """An acknowledged submission that meets a lead: a person decides."""


@dataclass(frozen=True, slots=True)
class Erased:
    """The submission, or the request that it is a copy of, was stored or waited for that, and its lead was erased."""

    created_at: datetime


Outcome = Created | Met | RequestIdReused | Waiting | Aliased | InConflict | Erased
