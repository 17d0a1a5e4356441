"""The changes of what the database knows of its keys, each of them one transaction that knows where it starts from.

Two operators who rotate at once do not harm each other: a change that another one made first is not made again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.encryption import EncryptionService, KeyCanary
from service.storage import models
from service.storage.canary import KeyState
from service.storage.database import Database

_CANARY = models.table(models.KeyCanary)

_REFUSING_LOCK = 0x4C4B_4B59
"""Shared by every transaction that stores a lead (migration 0004), taken alone by a change of what is refused: when
that is committed, all that looked before it are over."""


async def seal_canary(database: Database, encryption: EncryptionService, state: KeyState) -> None:
    """Seal the canary with the primary key: from now on a keyring without it is refused at the start."""
    made = encryption.make_canary(encryption.index_key_of(state.canary.index))
    await _change(database, {"sealed": made.sealed})


async def write_both(database: Database, state: KeyState, wanted: KeyCanary, normaliser: str) -> None:
    """Let every replica write the other pair too, by the wanted index key and normaliser."""
    values = {"next_digest": wanted.index, "next_normaliser": normaliser, "epoch": state.epoch + 1}
    await _change(database, values, epoch=state.epoch)


async def refuse_older_plans(database: Database, state: KeyState) -> None:
    """Store no lead any more that follows a plan before the present one."""
    await _change(database, {"accepts_from": state.epoch}, epoch=state.epoch, alone=True)


async def flip(database: Database, state: KeyState) -> None:
    """Let the other pair be the one in use; replicas stop writing the one that was."""
    values = {
        "digest": state.next_digest,
        "normaliser": state.next_normaliser,
        "pair": 3 - state.pair,
        "next_digest": None,
        "next_normaliser": None,
        "clearing": True,
        "epoch": state.epoch + 1,
    }
    await _change(database, values, epoch=state.epoch)


async def cleared(database: Database, state: KeyState) -> None:
    """The pair that is not in use is empty."""
    await _change(database, {"clearing": False}, epoch=state.epoch)


async def refuse_key(database: Database, key_id: str) -> None:
    """Store nothing any more that is sealed with this encryption key."""
    await _change(database, {"retired_keys": func.array_append(_without(key_id), key_id)}, alone=True)


async def accept_key(database: Database, key_id: str) -> None:
    """Take that back."""
    await _change(database, {"retired_keys": _without(key_id)})


def _without(key_id: str) -> Any:
    return func.array_remove(_CANARY.c.retired_keys, key_id)


async def _change(database: Database, values: dict[str, Any], *, epoch: int | None = None, alone: bool = False) -> None:
    statement = update(_CANARY).values(values)
    if epoch is not None:
        statement = statement.where(_CANARY.c.epoch == epoch)

    async def work(connection: AsyncConnection) -> None:
        if alone:
            await connection.execute(select(func.pg_advisory_xact_lock(_REFUSING_LOCK)))
        await connection.execute(statement)

    await database.write(work)
