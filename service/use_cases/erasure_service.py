"""The use case of erasing a person.

Promise: once an erasure was answered, the database holds a tombstone in place of everything that it had of the lead, no
copy that still waits in a spool, of this replica or of another one, becomes a lead, and this process has forgotten it
too. What only shares the phone or only the nid is another person's: it stays, for a person to decide. The daily files
follow within their pace; backups, and PostgreSQL's log and free space, in their time: see docs/erasure.md.
"""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from service.access import Caller
from service.errors import LeadNotFoundError, StorageUnavailableError
from service.storage.intake.outage import RecentRequests
from service.storage.leads.erasing import Reseal
from service.storage.leads.erasures import Erasures, PersonMovedError
from service.storage.leads.queries import ATTEMPTS
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool, Spooled
from service.validation import ValidationService


class ErasureService:
    """The use case around erasures."""

    def __init__(
        self,
        *,
        erasures: Erasures,
        spool: Spool,
        recent: RecentRequests,
        validation: ValidationService,
        reseal: Reseal,
    ) -> None:
        self._erasures = erasures
        self._spool = spool
        self._recent = recent
        self._validation = validation
        self._reseal = reseal

    async def erase_lead(self, caller: Caller, lead_id: UUID, *, reason: str = "") -> tuple[UUID, ...]:
        """Erase the person of a lead; returns the conflicts of others that were kept. A repeat succeeds.

        Raises LeadValidationError, LeadNotFoundError, StorageUnavailableError.
        """
        why = self._validation.reason(reason)
        for _ in range(ATTEMPTS):
            with suppress(PersonMovedError):
                spooled = await self._spooled(lead_id)
                erased = await self._erasures.erase(lead_id, actor=caller.subject, reason=why, spooled=spooled)
                break
        else:
            raise StorageUnavailableError
        if erased is None:
            raise LeadNotFoundError
        self._recent.forget(erased.gone)
        if settled := [*spooled.own, *(entry.id for entry in spooled.others)]:
            with suppress(SpoolError):  # the drain finds the tombstones and the conflicts
                await self._spool.remove(settled)
        return erased.kept

    async def _spooled(self, lead_id: UUID) -> Spooled:
        try:
            if self._spool.empty:
                return Spooled()
            person = await self._erasures.person(lead_id)
            return await self._spool.of_person(lead_id, person, self._reseal)
        except SpoolError:
            # Once the lead is gone, nothing would find what waits there of the person.
            raise StorageUnavailableError from None
