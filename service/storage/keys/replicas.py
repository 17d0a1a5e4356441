"""Replicas of one database: the keys that each has, and those that its spool needs, published by a heartbeat.

A row outlives its process. A change of keys waits until every running replica has what it needs, so that no replica
ever reads a token that it cannot open. It does not wait for a stopped replica: that one reads the change when it
starts, or is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog
from sqlalchemy import Float, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StartRefusedError, StorageUnavailableError
from service.keys.encryption import NOT_CONFIRMED, EncryptionService
from service.keys.keyring import Keyring, Purpose
from service.keys.secret_file import replace_secret_file
from service.storage import models
from service.storage.access.record import Access, AccessRecords, Chain
from service.storage.database.database import Database
from service.storage.database.failures import StorageFaultError, cause_of, is_transient
from service.storage.keys.canary import DatabaseKeys, compare_canary, plan_of, read_key_state
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool
from service.validation import KNOWS_INDEX_RULE

HEARTBEAT_SECONDS = 1.0
"""How often a replica publishes its status. An operator who rotates keys waits for a few of them; the database sees two
small statements."""

NAME_FILE = "replica-name"
"""File in the spool's folder with the name of the replica, which outlives its processes."""

FORGOTTEN = "forget an open erasure"
"""The operation on record when a replica is forgotten that had yet to erase something."""

_REPLICAS = models.replica
_OPEN = models.spool_erasure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """Status of a replica as it published it, see models.replica, and when it did."""

    name: str
    state: str
    epoch: int
    opens: Sequence[str]
    seals: Sequence[str]
    spool_keys: Sequence[str]
    seen_at: datetime
    silent_seconds: float
    """How long ago it was published, by the database's clock."""


def replica_name(folder: Path) -> str:
    """The lasting name of the replica whose spool is in this folder; made when there is none."""
    if name := known_name(folder):
        return name
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:40] or "replica"
    name = f"{host}-{secrets.token_hex(3)}"
    with contextlib.suppress(OSError):  # a disk that is full: the next start gets another name
        replace_secret_file(folder / NAME_FILE, f"{name}\n".encode())
    return name


def known_name(folder: Path) -> str | None:
    """The name of the replica whose spool is in this folder, if it has one."""
    with contextlib.suppress(OSError):
        return (folder / NAME_FILE).read_text().strip() or None
    return None


async def replicas(database: Database) -> list[ReplicaStatus]:
    """Every replica, by name."""
    silent = func.extract("epoch", func.clock_timestamp() - _REPLICAS.c.seen_at).cast(Float).label("silent_seconds")
    columns = [column for column in _REPLICAS.c if column.name != "started_at"]
    query = select(*columns, silent).order_by(_REPLICAS.c.name)
    return [ReplicaStatus(**row._asdict()) for row in await database.rows(query)]


async def forget(database: Database, records: AccessRecords, names: Sequence[str], *, actor: str) -> set[str]:
    """Remove replicas that are gone for good; the names that were found.

    What they had yet to erase from their spools is noted in the access record, in the same transaction.
    """

    async def work(connection: AsyncConnection) -> tuple[set[str], Chain | None]:
        removed = delete(_REPLICAS).where(_REPLICAS.c.name.in_(names)).returning(_REPLICAS.c.name)
        found = set((await connection.execute(removed)).scalars())
        closed = delete(_OPEN).where(_OPEN.c.replica.in_(names)).returning(_OPEN.c.replica, _OPEN.c.erased_id)
        rows = (await connection.execute(closed)).all()
        if not rows:
            return found, None
        left = [
            Access(
                subject=actor, operation=FORGOTTEN, fields=(), lead_id=row.erased_id, reason=f"replica {row.replica}"
            )
            for row in rows
        ]
        now = datetime.now(UTC)
        chain = await records.begin_chain(connection, uuid4(), f"keys@{socket.gethostname()}", now)
        chain = await records.extend_chain(connection, chain, left, now)
        return found | {row.replica for row in rows}, chain

    found, chain = await database.write(work)
    if chain is not None:
        await records.end_chain(chain)
    return found


class ReplicaReport:
    """Heartbeat of this replica: applies the state of the database's keys and publishes the own status every second.

    Promises: a plan for blind indexes, or a key to seal with, is published as in use only when leads that followed the
    one before it have had a second to reach the database. A plan that this keyring cannot follow is neither used nor
    published: a command that waits for it names this replica.

    `database` is the guarded one: before it is confirmed nothing is published.
    """

    def __init__(self, name: str, database: Database, spool: Spool, encryption: EncryptionService) -> None:
        self.name = name
        self._database = database
        self._spool = spool
        self._encryption = encryption
        self._log = structlog.get_logger("leadkeep.keys")
        self._in_use = self._published = self._now_in_use()
        self._fault: str | None = None
        self._refused: str | None = None
        self._lock = asyncio.Lock()

    async def announce(self, database: Database) -> None:
        """Publish the first status, before the state of the keys is read. Raises StorageUnavailableError."""
        await self._publish(database, "running", starts=True)

    async def withdraw(self, database: Database) -> None:
        """Publish that this replica has stopped, and what its spool still needs."""
        with contextlib.suppress(StorageUnavailableError):
            await self._publish(database, "stopped")

    async def run(self) -> None:
        """Send a heartbeat every second."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if self._database.admitted:
                await self.heartbeat()

    async def use_keyring(self, keyring: Keyring) -> None:
        """Use another keyring from now on, and publish it. Raises StartRefusedError when it must not be used here."""
        candidate = EncryptionService(keyring)
        compared: DatabaseKeys | None = None
        if self._database.admitted:
            with contextlib.suppress(StorageUnavailableError, StorageFaultError):
                compared = await compare_canary(self._database, candidate, None)
        indexed_with = {scheme.key_id for scheme in self._encryption.plan.schemes} if self._encryption.plan else set()
        lacks = indexed_with - {key.id for key in keyring.usable(Purpose.INDEX)}
        if compared is None and not candidate.opens_canary(self._encryption.make_canary().sealed):
            lacks.add(self._encryption.keyring.primary(Purpose.ENCRYPTION).id)
        if lacks:
            raise StartRefusedError(f"it lacks keys that are in use here: {', '.join(sorted(lacks))}")
        self._encryption.take(keyring)
        await self.heartbeat()

    async def heartbeat(self) -> None:
        """Apply the database's state and publish the own one. Never raises for a database that is unavailable."""
        async with self._lock:
            # Readiness reports a database that is unavailable or refuses; the status that was published last stands.
            with contextlib.suppress(StorageUnavailableError, StorageFaultError):
                state = await self._database.read(read_key_state)
                if state is not None:
                    await self._apply(state)
                await self._publish(self._database, "running")

    async def _apply(self, state: DatabaseKeys) -> None:
        try:
            plan = plan_of(state, self._encryption)
        except StartRefusedError as refused:
            if self._fault != str(refused):
                self._fault = str(refused)
                self._log.error("the database's blind indexes cannot be followed", what=self._fault)
            return
        self._fault = None
        if plan != self._encryption.plan:
            self._encryption.plan = plan
            self._log.info("blind indexes follow another plan", epoch=plan.epoch, keys=[s.key_id for s in plan.schemes])
        # A start without the database needs it. The normaliser is remembered at the start.
        with contextlib.suppress(SpoolError):
            known = await self._spool.identity()
            if known is not None and known[0] != state.canary:
                await self._spool.remember(state.canary, known[1])

    async def _publish(self, database: Database, state: str, *, starts: bool = False) -> None:
        used = self._now_in_use()
        if used == self._in_use:
            self._published = used
        self._in_use = used
        keyring = self._encryption.keyring
        try:
            spool_keys = await self._spool.key_ids()
        except SpoolError:
            return  # better no status than a wrong one, by which the spool seems to need no key
        epoch, seals = self._published
        values: dict[str, Any] = {
            "state": state,
            "epoch": epoch,
            "opens": sorted([KNOWS_INDEX_RULE, *(key.id for purpose in Purpose for key in keyring.usable(purpose))]),
            "seals": sorted({*seals, *used[1]}),
            "spool_keys": sorted(spool_keys),
            "seen_at": func.now(),
        }
        if starts:
            values["started_at"] = func.now()
        upsert = insert(_REPLICAS).values(name=self.name, **values)
        upsert = upsert.on_conflict_do_update(index_elements=["name"], set_=values)

        async def work(connection: AsyncConnection) -> None:
            began = self._spool.clock.read()
            found = await connection.execute(upsert.returning(func.clock_timestamp()))
            self._spool.clock.measured(began, found.scalar_one())

        try:
            await database.write_once(work)
        except Exception as error:  # noqa: BLE001 # classified below
            if is_transient(error):
                raise StorageUnavailableError from None
            if self._refused != cause_of(error):
                self._refused = cause_of(error)
                self._log.error("the replica's report was refused", cause=self._refused)
        else:
            self._refused = None

    def _now_in_use(self) -> tuple[int, tuple[str, ...]]:
        plan = self._encryption.plan
        keyring = self._encryption.keyring
        return plan.epoch if plan else NOT_CONFIRMED, tuple(keyring.primary(purpose).id for purpose in Purpose)
