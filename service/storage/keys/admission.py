"""Admission of the database: confirms that it belongs to this keyring and normaliser before a lead is stored in it.

While the database is away, the spool's memory of it serves instead: with it leads can be spooled, without it nothing is
accepted. A database that turns out to be another one is never written to, and spooled leads stay in the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from service.errors import StartRefusedError, StorageUnavailableError
from service.keys.encryption import EncryptionService, KeyCanary
from service.storage.database.database import Database
from service.storage.database.failures import RetryScope, StorageFaultError, retry_scope
from service.storage.keys.canary import confirm_canary, plan_of
from service.storage.keys.replicas import ReplicaReport
from service.storage.schema import UNREACHABLE_AT_START, require_current, revision_of
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool
from service.validation import have_same_settings

START_WAIT_SECONDS = 3.0
"""How long a start waits for the database before it goes on without it: about what a restart of it takes."""

RETRY_SECONDS = 1.0
"""Seconds between attempts to confirm the database after a start without it."""

PASSING = ("connection_refused", "server_superseded")
"""Refusals that do not stop a start: PgBouncer also refuses while PostgreSQL is down, and of a superseded server the
right one is only away."""


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
