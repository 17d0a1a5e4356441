"""Replicas of one database: the keys that each has, published by a heartbeat, and how each admits the database.

A database is admitted when it is confirmed that it belongs to this keyring and normaliser, before a lead is stored in
it. While it is away, the spool's memory of it serves instead: with it leads can be spooled, without it nothing is
accepted. A database that turns out to be another one is never written to, and spooled leads stay in the spool.

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
import time
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
from service.keys.encryption import NOT_CONFIRMED, EncryptionService, KeyCanary
from service.keys.keyring import Keyring, Purpose
from service.keys.secret_file import replace_secret_file
from service.storage import models
from service.storage.access.record import Access, AccessRecords, Chain
from service.storage.database.database import Database
from service.storage.database.failures import RetryScope, StorageFaultError, cause_of, is_transient, retry_scope
from service.storage.keys.canary import DatabaseKeys, compare_canary, confirm_canary, plan_of, read_key_state
from service.storage.schema import UNREACHABLE_AT_START, require_current, revision_of
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool
from service.validation import KNOWS_INDEX_RULE, have_same_settings

HEARTBEAT_SECONDS = 1.0
"""How often a replica publishes its status. An operator who rotates keys waits for a few of them; the database sees two
small statements."""

NAME_FILE = "replica-name"
"""File in the spool's folder with the name of the replica, which outlives its processes."""

FORGOTTEN = "forget an open erasure"
"""The operation on record when a replica is forgotten that had yet to erase something."""

START_WAIT_SECONDS = 3.0
"""How long a start waits for the database before it goes on without it: about what a restart of it takes."""

RETRY_SECONDS = 1.0
"""Seconds between attempts to confirm the database after a start without it."""

PASSING = ("connection_refused", "server_superseded")
"""Refusals that do not stop a start: PgBouncer also refuses while PostgreSQL is down, and of a superseded server the
right one is only away."""

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


class Admission:
    """Confirms and admits `database`. `confirming` connects to the same one and is not guarded."""

    def __init__(
        self,
        database: Database,
        confirming: Database,
        spool: Spool,
        encryption: EncryptionService,
        normaliser: str,
        report: ReplicaReport,
    ) -> None:
        self._database = database
        self._confirming = confirming
        self._spool = spool
        self._encryption = encryption
        self._normaliser = normaliser
        self._report = report
        self.refusal: str | None = None
        """Why the database cannot be used, as shown to the operator."""

    async def start(self) -> None:
        """Confirm the database; if it is away, go on with what the spool remembers and confirm it later.

        Raises StartRefusedError when database or spool belong to another keyring or normaliser.
        """
        try:
            await self._confirm()
        except StorageUnavailableError:
            refused = await self._confirming.why_refused()
            if refused is not None and refused.word not in PASSING:
                raise refused from None
            what = UNREACHABLE_AT_START if refused is None else str(refused)
            structlog.get_logger("leadkeep").warning("started without the database", what=what)
            await self._recall()

    async def _confirm(self) -> None:
        try:
            retry_scope.set(RetryScope(time.monotonic() + START_WAIT_SECONDS, lambda _: None))
            require_current(await revision_of(self._confirming))
            if not self._spool.empty:
                await self._remembered()
            # Published before the state of the keys is read: a command that changes it waits for this
            # replica, or this replica reads the change.
            await self._report.announce(self._confirming)
            try:
                state = await confirm_canary(self._confirming, self._encryption, self._normaliser)
                self._encryption.plan = plan_of(state, self._encryption)
            except StartRefusedError:
                await self._report.withdraw(self._confirming)
                raise
        except StorageFaultError as fault:
            raise StartRefusedError(f"{fault}: see that the role of LEADKEEP_DATABASE_URL has the grants") from None
        finally:
            retry_scope.set(None)
        with contextlib.suppress(SpoolError):  # then the next start needs the database, and no lead is in danger
            if await self._spool.identity() != (state.canary, self._normaliser):
                await self._spool.remember(state.canary, self._normaliser)
        self._spool.identified = True
        self._database.admit(state.database)

    async def _remembered(self) -> tuple[KeyCanary, str] | None:
        """The canary and the normaliser that the spool remembers; None: neither, or it cannot be read.

        Raises StartRefusedError when its keyring is another one. Another index key or normaliser is no harm where the
        database can be reached: the drain computes the blind indexes anew.
        """
        with contextlib.suppress(SpoolError):
            remembered = await self._spool.identity()
            if remembered is not None and not self._encryption.opens_canary(remembered[0].sealed):
                raise StartRefusedError(
                    f"the spool {self._spool.folder} belongs to another keyring: what lies in it would not open. Point "
                    "LEADKEEP_KEYRING to that keyring, or LEADKEEP_SPOOL_DIR to another folder"
                )
            return remembered
        return None

    async def _recall(self) -> None:
        remembered = await self._remembered()
        if remembered is None:
            return
        if not have_same_settings(remembered[1], self._normaliser):
            raise StartRefusedError(
                f"phone numbers and national IDs were normalised as '{remembered[1]}', these settings mean "
                f"'{self._normaliser}'. Set LEADKEEP_DEFAULT_REGION, LEADKEEP_PHONE_RULE and LEADKEEP_NID_RULE "
                "back, or start when the database can be reached"
            )
        self._spool.identified = True

    async def run(self) -> None:
        """Try again until the database is confirmed, if `start` went on without it."""
        log = structlog.get_logger("leadkeep")
        while not self._database.admitted:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._confirm()
            except StorageUnavailableError:
                continue
            except StartRefusedError as refused:
                if self.refusal != str(refused):
                    self.refusal = str(refused)
                    log.error("the database cannot be used", what=self.refusal)
            else:
                self.refusal = None
                log.info("the database is confirmed")
