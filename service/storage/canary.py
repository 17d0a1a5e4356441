"""The proof that the stored leads belong to this keyring and this normaliser.

With another keyring nothing would open and every duplicate would be let in; with another normaliser old blind indexes
would no longer meet new ones. Both stop the start.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.encryption import EncryptionService, KeyCanary
from service.errors import StartRefusedError
from service.storage import models
from service.storage.database import Database


async def has_canary(database: Database) -> bool:
    """Whether some keyring has already been used with this database."""
    return await database.read(_look) is not None


async def confirm_canary(database: Database, encryption: EncryptionService, normaliser: str) -> KeyCanary:
    """The database's canary, which is this keyring's: left there if there is none yet.

    Raises StartRefusedError when the keyring or the normaliser is another one.
    """

    async def leave(connection: AsyncConnection) -> None:
        made = encryption.make_canary()
        mine = {"id": 1, "sealed": made.sealed, "digest": made.index, "normaliser": normaliser}
        await connection.execute(insert(models.KeyCanary).values(mine).on_conflict_do_nothing())

    canary = await compare_canary(database, encryption, normaliser)
    while canary is None:
        await database.write(leave)
        canary = await compare_canary(database, encryption, normaliser)
    return canary


async def compare_canary(database: Database, encryption: EncryptionService, normaliser: str) -> KeyCanary | None:
    """The database's canary, if it has one; raises StartRefusedError when it is another keyring's or normaliser's."""
    found = await database.read(_look)
    if found is None:
        return None
    canary, stored_normaliser = found
    if not encryption.confirms(canary):
        raise StartRefusedError(
            "the keyring is not the one that the stored leads were sealed with: they would not open, and duplicates "
            "would be let in. Point LEADKEEP_KEYRING to the keyring of this database"
        )
    if stored_normaliser != normaliser:
        raise StartRefusedError(
            f"phone numbers and national IDs were normalised as '{stored_normaliser}', these settings mean "
            f"'{normaliser}': duplicates would be let in. Set LEADKEEP_DEFAULT_REGION, LEADKEEP_PHONE_RULE and "
            "LEADKEEP_NID_RULE back. (A later release computes the blind indexes anew: leadkeep keys reindex)"
        )
    return canary


async def _look(connection: AsyncConnection) -> tuple[KeyCanary, str] | None:
    table = models.KeyCanary
    row = (await connection.execute(select(table.sealed, table.digest, table.normaliser))).one_or_none()
    return None if row is None else (KeyCanary(row.sealed, row.digest), row.normaliser)
