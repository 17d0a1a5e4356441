"""What happens when a person is to be forgotten.

Promise: once an erasure was answered, the database holds a tombstone in place of everything that it had of the lead, no
copy that still waits in a spool, of this replica or of another one, becomes a lead, and this process has forgotten it
too. The daily files follow within their pace; backups, and PostgreSQL's log and free space, in their time: see
docs/operations.md.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from service.access import Caller
from service.errors import LeadNotFoundError, StorageUnavailableError
from service.storage.memory import RequestMemory
from service.storage.spool import Spool
from service.storage.spool_file import SpoolError
from service.storage.tombstones import Tombstones
from service.validation import ValidationService


class ErasureService:
    """The use case around tombstones."""

    def __init__(
        self, *, tombstones: Tombstones, spool: Spool, memory: RequestMemory, validation: ValidationService
    ) -> None:
        self._tombstones = tombstones
        self._spool = spool
        self._memory = memory
        self._validation = validation

    async def erase_lead(self, caller: Caller, lead_id: UUID, *, reason: str = "") -> None:
        """Forget the person that an id stands for. The same again succeeds.

        Raises LeadValidationError, LeadNotFoundError, StorageUnavailableError.
        """
        why = self._validation.reason(reason)
        sought = await self._tombstones.sought(lead_id)
        indexes = [(sought.phone_index, sought.nid_index)] if sought is not None else []
        spooled: dict[UUID, datetime] | None
        try:
            spooled = await self._spool.related(lead_id, *indexes)
        except SpoolError:
            spooled = None
        gone = await self._tombstones.erase(lead_id, actor=caller.subject, reason=why, spooled=spooled or {})
        if gone is None:
            # No acknowledged lead is called missing because the spool cannot be read.
            raise LeadNotFoundError if spooled is not None else StorageUnavailableError
        self._memory.forget(gone)
        await self._forget_spooled([*gone, *(spooled or ())])

    async def _forget_spooled(self, ids: list[UUID]) -> None:
        """Remove what waits here. If the spool cannot do it now, the drain does: it finds the tombstones."""
        try:
            waiting = [each for each in ids if await self._spool.holds(each)]
            if waiting:
                await self._spool.remove(waiting)
        except SpoolError:
            return
