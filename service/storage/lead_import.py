"""Leads of a foreign file, stored by the rules of any other submission: unique indexes decide what is a duplicate."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedSubmission
from service.storage.database import Database
from service.storage.outcomes import Outcome
from service.storage.repository import LeadRepository


class _RolledBackError(Exception):
    def __init__(self, outcomes: dict[UUID, Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


async def import_leads(
    database: Database, repository: LeadRepository, batch: Sequence[SealedSubmission], *, dry_run: bool
) -> dict[UUID, Outcome]:
    """Store a batch in one transaction; by id, what became of each. With `dry_run` nothing stays.

    Raises StorageUnavailableError, and StorageFaultError when the database refuses one of them.
    """

    async def work(connection: AsyncConnection) -> dict[UUID, Outcome]:
        outcomes = await repository.store_within(batch, connection)
        if dry_run:
            raise _RolledBackError(outcomes)
        return outcomes

    try:
        return await database.write(work)
    except _RolledBackError as rolled_back:
        return rolled_back.outcomes
