"""The heads of the access record's chains in the log, where whoever can change the database cannot change them.

A line when a chain begins and ends, and every minute: for this process's own chain as it knows it, and for what other
writers (replicas, commands) added meanwhile. `leadkeep audit verify --heads` compares such lines with the record.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from uuid import UUID

from service.errors import LeadkeepError
from service.log import log_whatever_the_level
from service.storage.access_records import AccessRecords, Chain
from service.storage.failures import StorageFaultError

EVENT = "access head"

SECONDS_BETWEEN = 60.0
"""So much of a tail can be cut without a head that tells, when the tables of the database are cut alike."""


class AccessHeads:
    """Logs heads as long as the service runs. `own` is the chain that this process writes."""

    def __init__(self, records: AccessRecords, own: Callable[[], Chain | None]) -> None:
        self._records = records
        self._own = own
        self._told: dict[UUID, Chain] = {}

    async def run(self) -> None:
        """Log the heads every minute."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN)
            await self.log_own()
            await self.log_others()

    async def log_own(self) -> None:
        """Log how far this process's chain reaches."""
        if (own := self._own()) is not None:
            self.tell(own)

    def tell(self, chain: Chain) -> None:
        """Write how far a chain reaches to the log."""
        self._told[chain.head.chain_id] = chain
        log_whatever_the_level(
            EVENT,
            chain=str(chain.head.chain_id),
            chain_number=chain.number,
            number=chain.head.number,
            digest=chain.head.digest.hex(),
            ended=chain.head.ended,
        )

    async def log_others(self) -> None:
        """Log the chains of other writers that are not logged yet."""
        own = self._own()
        # While the database is away there is nothing new in it.
        with contextlib.suppress(LeadkeepError, StorageFaultError):
            newest = await self._records.newest_heads()
            for chain in newest:
                mine = own is not None and chain.head.chain_id == own.head.chain_id
                if not mine and self._told.get(chain.head.chain_id) != chain:
                    self.tell(chain)
            self._told = {chain.head.chain_id: chain for chain in newest}
