"""The services of one database, as they last said: which keys each has, and which its spool needs.

A row outlives its process. Whoever changes keys waits until every running replica has what the change needs, so that
nobody ever meets a token that it cannot open. A replica that was stopped is not waited for: when it starts it finds
the change, or is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage import models
from service.storage.database import Database

NAME_FILE = "replica-name"
"""In the spool's folder: what is spooled there belongs to this name, whichever process comes back to it."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a replica says of itself: see models.Replica."""

    name: str
    state: str
    epoch: int
    opens: tuple[str, ...]
    seals: tuple[str, ...]
    spool_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replica:
    """The same as it stands in the database, and when it was said."""

    said: Said
    started_at: datetime
    seen_at: datetime
    silent_seconds: float
    """How long ago that was, by the database's clock."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.said.name

    @property
    def running(self) -> bool:
        """Whether it has not said that it stopped; one that was killed has not either."""
        return self.said.state == "running"


def replica_name(folder: Path) -> str:
    """The lasting name of the replica whose spool is in this folder; made when there is none."""
    if name := known_name(folder):
        return name
    path = folder / NAME_FILE
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:40] or "replica"
    name = f"{host}-{secrets.token_hex(3)}"
    with contextlib.suppress(OSError):  # a disk that is full: the next start gets another name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(name + "\n")
            file.flush()
            os.fsync(file.fileno())
    return name


def known_name(folder: Path) -> str | None:
    """The name that was given to the replica whose spool is in this folder."""
    with contextlib.suppress(OSError):
        return (folder / NAME_FILE).read_text().strip() or None
    return None


async def say(database: Database, said: Said, *, starts: bool = False) -> None:
    """Put it into the database; with `starts` as the first word of a process. Tries once, raises like write_once."""
    values = {
        "name": said.name,
        "state": said.state,
        "epoch": said.epoch,
        "opens": list(said.opens),
        "seals": list(said.seals),
        "spool_keys": list(said.spool_keys),
    }
    statement = insert(models.Replica).values(values)
    replaced = {name: statement.excluded[name] for name in values if name != "name"} | {"seen_at": func.now()}
    if starts:
        replaced |= {"started_at": func.now()}
    upsert = statement.on_conflict_do_update(index_elements=["name"], set_=replaced)

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(upsert)

    await database.write_once(work)


async def replicas(database: Database) -> list[Replica]:
    """Every replica, by name."""
    table = models.table(models.Replica)
    silent = func.extract("epoch", func.clock_timestamp() - table.c.seen_at).label("silent")

    async def work(connection: AsyncConnection) -> list[Replica]:
        return [
            Replica(
                Said(
                    name=row.name,
                    state=row.state,
                    epoch=row.epoch,
                    opens=tuple(row.opens),
                    seals=tuple(row.seals),
                    spool_keys=tuple(row.spool_keys),
                ),
                started_at=row.started_at,
                seen_at=row.seen_at,
                silent_seconds=float(row.silent),
            )
            for row in await connection.execute(select(table, silent).order_by(table.c.name))
        ]

    return await database.read(work)


async def forget(database: Database, names: Sequence[str]) -> list[str]:
    """Take replicas out that are gone for good; the names that there were."""
    table = models.table(models.Replica)

    async def work(connection: AsyncConnection) -> list[str]:
        statement = delete(table).where(table.c.name.in_(names)).returning(table.c.name)
        return list((await connection.execute(statement)).scalars())

    return await database.write(work)
