"""Keys of the database: the canary, which proves keyring and normaliser, and the state of a rotation.

With another keyring nothing would open and every duplicate would be let in; with another normaliser old blind indexes
would no longer match new ones. Both stop the start. So does a keyring that still seals with a key which was retired:
no other replica could open its tokens.

Each change is one transaction that names the state it starts from. Two operators who rotate at once do not harm each
other: a change that another one made first is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService, IndexPlan, IndexScheme, KeyCanary, key_id_of
from service.keys.keyring import Purpose
from service.storage import models
from service.storage.database.database import Database
from service.validation import IndexRule, have_same_settings

_CANARY = models.key_canary

_REFUSING_LOCK = 0x4C4B_4B59
"""Advisory lock that every transaction which stores a lead shares (migration 0006). A change of what is refused takes
it exclusively: when it is committed, all transactions that read the state before it are over."""


@dataclass(frozen=True, slots=True)
class DatabaseKeys:
    """The row of models.key_canary: the canary, and where a rotation stands."""

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


async def confirm_canary(database: Database, encryption: EncryptionService, normaliser: str) -> DatabaseKeys:
    """Return the state of the database's keys after comparing its canary; write this keyring's canary if it has none.

    Raises StartRefusedError when the keyring or the normaliser is another one.
    """

    async def leave(connection: AsyncConnection) -> None:
        made = encryption.make_canary()
        mine = {"id": 1, "sealed": made.sealed, "digest": made.index, "normaliser": normaliser}
        await connection.execute(insert(models.key_canary).values(mine).on_conflict_do_nothing())

    state = await compare_canary(database, encryption, normaliser)
    while state is None:
        await database.write(leave)
        state = await compare_canary(database, encryption, normaliser)
    return state


async def compare_canary(
    database: Database, encryption: EncryptionService, normaliser: str | None
) -> DatabaseKeys | None:
    """Compare the database's canary, if it has one, with a keyring and a normaliser (None: any is right).

    Changes nothing: a caller that stores leads sets `encryption.plan` to the `plan_of` this state. Raises
    StartRefusedError when keyring or normaliser are not the database's.
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
    stored = [each for each in (state.normaliser, state.next_normaliser) if each is not None]
    if normaliser is not None and not any(have_same_settings(normaliser, each) for each in stored):
        raise StartRefusedError(
            f"phone numbers and national IDs were normalised as '{state.normaliser}', these settings mean "
            f"'{normaliser}': duplicates would be let in. Set LEADKEEP_DEFAULT_REGION, LEADKEEP_PHONE_RULE and "
            "LEADKEEP_NID_RULE back, or, if they are meant, compute the blind indexes anew: leadkeep keys reindex"
        )
    return state


def schemes_of(state: DatabaseKeys, encryption: EncryptionService) -> tuple[IndexScheme, IndexScheme | None]:
    """The scheme of the blind indexes in use, and the one that a rotation leads to.

    Raises StartRefusedError when the keyring cannot make one of them.
    """
    current = _scheme(encryption, state.canary.index, state.normaliser)
    if state.next_digest is None or state.next_normaliser is None:
        return current, None
    return current, _scheme(encryption, state.next_digest, state.next_normaliser)


def plan_of(state: DatabaseKeys, encryption: EncryptionService) -> IndexPlan:
    """Which blind indexes the database wants, pair by pair. Raises StartRefusedError like `schemes_of`."""
    current, following = schemes_of(state, encryption)
    return IndexPlan(state.epoch, (current, following) if state.pair == 1 else (following, current))


def found_by(state: DatabaseKeys, encryption: EncryptionService) -> list[str]:
    """The names of the schemes by which resubmissions and conflicts are found. Raises like `schemes_of`."""
    return [scheme.text for scheme in encryption.found_by(filter(None, schemes_of(state, encryption)))]


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


async def read_key_state(connection: AsyncConnection) -> DatabaseKeys | None:
    """The stored state, not compared with a keyring; None before the first start."""
    row = (await connection.execute(select(_CANARY))).one_or_none()
    if row is None:
        return None
    return DatabaseKeys(
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


async def seal_canary(database: Database, encryption: EncryptionService, state: DatabaseKeys) -> None:
    """Seal the canary with the primary key: from now on a keyring without that key is refused at its start."""
    made = encryption.make_canary(encryption.index_key_of(state.canary.index))
    await _update(database, {"sealed": made.sealed})


async def write_both_pairs(database: Database, state: DatabaseKeys, wanted: KeyCanary, normaliser: str) -> DatabaseKeys:
    """Let every replica write the other pair of blind indexes too, with the wanted index key and normaliser."""
    values = {"next_digest": wanted.index, "next_normaliser": normaliser, "epoch": state.epoch + 1}
    return await _update(database, values, epoch=state.epoch)


async def refuse_older_plans(database: Database, state: DatabaseKeys) -> None:
    """Refuse leads whose blind indexes follow a plan before the present one."""
    await _update(database, {"accepts_from": state.epoch}, epoch=state.epoch, exclusive=True)


async def flip_pairs(database: Database, state: DatabaseKeys) -> DatabaseKeys:
    """Put the other pair into use; replicas stop writing the one that was."""
    values = {
        "digest": state.next_digest,
        "normaliser": state.next_normaliser,
        "pair": 3 - state.pair,
        "next_digest": None,
        "next_normaliser": None,
        "clearing": True,
        "epoch": state.epoch + 1,
    }
    return await _update(database, values, epoch=state.epoch)


async def note_cleared(database: Database, state: DatabaseKeys) -> DatabaseKeys:
    """Note that the pair which is not in use is empty."""
    return await _update(database, {"clearing": False}, epoch=state.epoch)


async def refuse_key(database: Database, key_id: str) -> None:
    """Refuse everything that is sealed with this encryption key."""
    await _update(database, {"retired_keys": func.array_append(_without(key_id), key_id)}, exclusive=True)


async def accept_key(database: Database, key_id: str) -> None:
    """Undo `refuse_key`."""
    await _update(database, {"retired_keys": _without(key_id)})


def _without(key_id: str) -> Any:
    return func.array_remove(_CANARY.c.retired_keys, key_id)


async def _update(
    database: Database, values: dict[str, Any], *, epoch: int | None = None, exclusive: bool = False
) -> DatabaseKeys:
    """Change the row, if it still has this epoch; the state afterwards."""
    statement = update(_CANARY).values(values)
    if epoch is not None:
        statement = statement.where(_CANARY.c.epoch == epoch)

    async def work(connection: AsyncConnection) -> DatabaseKeys:
        if exclusive:
            await connection.execute(select(func.pg_advisory_xact_lock(_REFUSING_LOCK)))
        await connection.execute(statement)
        state = await read_key_state(connection)
        assert state is not None  # noqa: S101 # the row is never removed
        return state

    return await database.write(work)
