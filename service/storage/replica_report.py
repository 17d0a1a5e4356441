"""What this service says of its keys, once a second, and what it hears of the database's.

Promises: a plan for blind indexes, or a key to seal with, is said to be in use only when leads that followed the one
before it have had a second to reach the database. A plan that this keyring cannot follow is not taken and not said:
whoever waits for it learns who holds things up.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from service.encryption import NOT_CONFIRMED, EncryptionService
from service.errors import StartRefusedError, StorageUnavailableError
from service.keyring import Keyring, Purpose
from service.storage.canary import KeyState, compare_canary, plan_of, read_key_state
from service.storage.database import Database
from service.storage.failures import Failure, cause_of, classify
from service.storage.replicas import Said, say
from service.storage.spool import Spool
from service.storage.spool_file import SpoolError

BEAT_SECONDS = 1.0
"""How often. An operator who rotates keys waits for a few of them; the database sees two small statements."""


class ReplicaReport:
    """The report of one service. `database` is the guarded one: before it is confirmed there is nothing to say."""

    def __init__(
        self, name: str, database: Database, spool: Spool, encryption: EncryptionService, normaliser: str
    ) -> None:
        self.name = name
        self._database = database
        self._spool = spool
        self._encryption = encryption
        self._normaliser = normaliser
        self._log = structlog.get_logger("leadkeep.keys")
        self._in_use = self._now_in_use()
        self._said_epoch, self._said_seals = self._in_use
        self._fault: str | None = None
        self._refused: str | None = None
        self._beating = asyncio.Lock()

    async def announce(self, database: Database) -> None:
        """The first word, before the state of the keys is read. Raises StorageUnavailableError."""
        await self._say(database, "running", starts=True)

    async def withdraw(self, database: Database) -> None:
        """The start was refused: nobody needs to wait for this one."""
        with contextlib.suppress(StorageUnavailableError):
            await self._say(database, "stopped")

    async def run(self) -> None:
        """Report once a second."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if self._database.admitted:
                await self.beat()

    async def say_stopped(self) -> None:
        """Report that this service has stopped, and what its spool still needs."""
        if self._database.admitted:
            await self.withdraw(self._database)

    async def take(self, keyring: Keyring) -> None:
        """Use another keyring from now on, and say so. Raises StartRefusedError when it must not be used here."""
        candidate = EncryptionService(keyring)
        compared: KeyState | None = None
        if self._database.admitted:
            with contextlib.suppress(StorageUnavailableError):
                compared = await compare_canary(self._database, candidate, None)
        indexed_with = {scheme.key_id for scheme in self._encryption.plan.schemes} if self._encryption.plan else set()
        lacks = indexed_with - {key.id for key in keyring.usable(Purpose.INDEX)}
        if compared is None and not candidate.opens_canary(self._encryption.make_canary().sealed):
            lacks.add(self._encryption.keyring.primary(Purpose.ENCRYPTION).id)
        if lacks:
            raise StartRefusedError(f"it lacks keys that are in use here: {', '.join(sorted(lacks))}")
        self._encryption.take(keyring)
        await self.beat()

    async def beat(self) -> None:
        """Hear and say once. Never raises for a database that is away."""
        async with self._beating:
            try:
                state = await self._database.read(read_key_state)
                if state is not None:
                    await self._hear(state)
                await self._say(self._database, "running")
            except StorageUnavailableError:
                pass  # the writer's to tell; what was said last stands until then

    async def _hear(self, state: KeyState) -> None:
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
        # What the next start without the database needs to know. Another normaliser is remembered by its own start.
        with contextlib.suppress(SpoolError):
            known = await self._spool.identity()
            if known is not None and known[0] != state.canary:
                await self._spool.remember(state.canary, known[1])

    async def _say(self, database: Database, state: str, *, starts: bool = False) -> None:
        used = self._now_in_use()
        if used == self._in_use:
            self._said_epoch, self._said_seals = used
        self._in_use = used
        keyring = self._encryption.keyring
        try:
            spool_keys = await self._spool.key_ids()
        except SpoolError:
            return  # better silent than wrong: nobody may think that the spool needs no key
        said = Said(
            name=self.name,
            state=state,
            epoch=self._said_epoch,
            opens=tuple(sorted(key.id for purpose in Purpose for key in keyring.usable(purpose))),
            seals=tuple(sorted({*self._said_seals, *used[1]})),
            spool_keys=tuple(sorted(spool_keys)),
        )
        try:
            await say(database, said, starts=starts)
        except Exception as error:  # noqa: BLE001 # told apart by what it means
            if classify(error) is Failure.RETRY:
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
