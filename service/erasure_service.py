"""What happens when a person is to be forgotten.

Promise: once an erasure was answered, the database holds a tombstone in place of everything that it had of the lead, no
copy that still waits in a spool, of this replica or of another one, becomes a lead, and this process has forgotten it
too. The daily files follow within their pace; backups, and PostgreSQL's log and free space, in their time: see
docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Protocol
from uuid import UUID

from service.access import Caller
from service.errors import LeadNotFoundError, StorageUnavailableError
from service.storage.memory import RequestMemory
from service.storage.spool_file import SpoolError
from service.storage.tombstones import Tombstones
from service.validation import ValidationService


class SpooledCopies(Protocol):
    """The spool of this machine, as its owner or an operator sees it."""

    async def related(self, lead_id: UUID, *indexes: tuple[bytes, bytes]) -> dict[UUID, datetime]:
        """See Spool.related; must name what was set aside too. Raises SpoolError."""
        ...

    async def remove(self, ids: Sequence[UUID]) -> None:
        """Remove submissions that have tombstones, or leave them to the drain, which does. Raises SpoolError."""
        ...


class ErasureService:
    """The use case around tombstones."""

    def __init__(
        self, *, tombstones: Tombstones, spool: SpooledCopies, memory: RequestMemory, validation: ValidationService
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
        indexes = await self._tombstones.sought(lead_id)
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
        if spooled:
            with suppress(SpoolError):  # the drain finds the tombstones
                await self._spool.remove(list(spooled))
