"""The proof that the stored leads belong to this keyring and this normaliser, and where a rotation of keys stands.

With another keyring nothing would open and every duplicate would be let in; with another normaliser old blind indexes
would no longer meet new ones. Both stop the start. So does a keyring that still seals with a key which was retired:
nothing that it sealed would open elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.encryption import EncryptionService, IndexPlan, IndexScheme, KeyCanary, key_id_of
from service.errors import StartRefusedError
from service.keyring import Purpose
from service.storage import models
from service.storage.database import Database
from service.validation.index_rule import IndexRule


@dataclass(frozen=True, slots=True)
class KeyState:
    """The canary, and where a rotation stands: see models.KeyCanary."""

    canary: KeyCanary
    normaliser: str
    database: UUID
    pair: int
    next_digest: bytes | None
    next_normaliser: str | None
    clearing: bool
    epoch: int
    accepts_from: int
    retired_keys: tuple[str, ...]


async def has_canary(database: Database) -> bool:
    """Whether some keyring has already been used with this database."""
    return await database.read(read_key_state) is not None


async def confirm_canary(database: Database, encryption: EncryptionService, normaliser: str) -> KeyState:
    """The database's canary, which is this keyring's: left there if there is none yet.

    Raises StartRefusedError when the keyring or the normaliser is another one.
    """

    async def leave(connection: AsyncConnection) -> None:
        made = encryption.make_canary()
        mine = {"id": 1, "sealed": made.sealed, "digest": made.index, "normaliser": normaliser}
        await connection.execute(insert(models.KeyCanary).values(mine).on_conflict_do_nothing())

    state = await compare_canary(database, encryption, normaliser)
    while state is None:
        await database.write(leave)
        state = await compare_canary(database, encryption, normaliser)
    return state


async def compare_canary(database: Database, encryption: EncryptionService, normaliser: str | None) -> KeyState | None:
    """The database's canary, if it has one; raises StartRefusedError when it is another keyring's or normaliser's.

    Changes nothing: who is to store leads sets `encryption.plan` to the `plan_of` this state. With `normaliser` None
    any is right.
    """
    state = await database.read(read_key_state)
    if state is None:
        return None
    if not encryption.opens_canary(state.canary.sealed):
        raise StartRefusedError(
            "the keyring is not the one that the stored leads were sealed with, or an old copy of it: key "
            f"{key_id_of(state.canary.sealed)} is not in it, leads would not open, and duplicates would be let in. "
            "Point LEADKEEP_KEYRING to the keyring of this database"
        )
    primary = encryption.keyring.primary(Purpose.ENCRYPTION).id
    if primary in state.retired_keys:
        raise StartRefusedError(
            f"the keyring is an old copy: it seals with the key {primary}, which was retired. Point LEADKEEP_KEYRING "
            "to the keyring that leadkeep keys retire wrote"
        )
    plan_of(state, encryption)  # refuses a keyring that cannot make the blind indexes
    if normaliser is not None and normaliser not in (state.normaliser, state.next_normaliser):
        raise StartRefusedError(
            f"phone numbers and national IDs were normalised as '{state.normaliser}', these settings mean "
            f"'{normaliser}': duplicates would be let in. Set LEADKEEP_DEFAULT_REGION, LEADKEEP_PHONE_RULE and "
            "LEADKEEP_NID_RULE back, or, if they are meant, compute the blind indexes anew: leadkeep keys reindex"
        )
    return state


def plan_of(state: KeyState, encryption: EncryptionService) -> IndexPlan:
    """Which blind indexes the database wants. Raises StartRefusedError when the keyring cannot make one of them."""
    current = _scheme(encryption, state.canary.index, state.normaliser)
    other = None
    if state.next_digest is not None and state.next_normaliser is not None:
        other = _scheme(encryption, state.next_digest, state.next_normaliser)
    return IndexPlan(state.epoch, (current, other) if state.pair == 1 else (other, current))


def _scheme(encryption: EncryptionService, digest: bytes, normaliser: str) -> IndexScheme:
    key_id = encryption.index_key_of(digest)
    if key_id is None:
        raise StartRefusedError(
            "the keyring lacks an index key that this database's blind indexes are made with: duplicates would be let "
            "in. Point LEADKEEP_KEYRING to the keyring of this database; an index key may go only after leadkeep keys "
            "retire"
        )
    try:
        IndexRule.of(normaliser)
    except ValueError:
        raise StartRefusedError(
            f"the database's blind indexes are made as '{normaliser}', which this release does not know: run the "
            "release that made them, or a later one"
        ) from None
    return IndexScheme(key_id, normaliser)


async def read_key_state(connection: AsyncConnection) -> KeyState | None:
    """What the database says, without any proof; None: nothing yet."""
    row = (await connection.execute(select(models.table(models.KeyCanary)))).one_or_none()
    if row is None:
        return None
    return KeyState(
        canary=KeyCanary(row.sealed, row.digest),
        normaliser=row.normaliser,
        database=row.database,
        pair=row.pair,
        next_digest=row.next_digest,
        next_normaliser=row.next_normaliser,
        clearing=row.clearing,
        epoch=row.epoch,
        accepts_from=row.accepts_from,
        retired_keys=tuple(row.retired_keys),
    )
