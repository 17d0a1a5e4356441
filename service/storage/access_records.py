"""The record of looks at values in clear.

Promise: the record is committed before the caller may show a value, and never holds one. The application's role may
add to it and read it, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage import models
from service.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who looks at which fields in clear: of one lead, or with `lead_id` None of all that the operation names."""

    subject: str
    operation: str
    fields: Sequence[str]
    lead_id: UUID | None = None
    reason: str | None = None


async def record_access(database: Database, accesses: Sequence[Access]) -> None:
    """Commit the record in one transaction. What it raises means that no value may be shown."""
    rows = [
        {
            "subject": access.subject,
            "operation": access.operation,
            "lead_id": access.lead_id,
            "fields": list(access.fields),
            "reason": access.reason,
        }
        for access in accesses
    ]

    async def add(connection: AsyncConnection) -> None:
        await connection.execute(insert(models.AccessRecord), rows)

    await database.write(add)
