"""What a replica does about its spool for the others: finds what is sought there, and applies their erasures.

Questions come as rows of the database and are looked for twice a second: a notification would need a session of its
own, which a pooler does not give. An answer is sealed and bound to its question. What was asked long ago is removed, by
whichever replica sees it first, so that neither question nor answer outlives a caller that died.

An erasure is applied in this order: tombstones in the database, then the spool, then its row is removed. A process that
is killed in between does it again when it starts, before it stores anything from its spool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

import structlog
from sqlalchemy import text

from service.errors import StorageUnavailableError
from service.keys.encryption import EncryptionService, IndexScheme
from service.keys.keyring import Purpose
from service.lead import SealedSubmission
from service.storage.database.database import Database, Statement
from service.storage.database.failures import StorageFaultError
from service.storage.database.retry import RetryScope, retry_scope
from service.storage.intake.outage import RecentRequests
from service.storage.leads.erasing import ALONE, KnownTombstone
from service.storage.leads.erasures import Erasures
from service.storage.leads.open_erasures import OpenErasure, OpenErasures, WaitingErasures, close, waiting_erasures
from service.storage.leads.tombstones import request_digest
from service.storage.spool.file import SpoolError
from service.storage.spool.rows import SpoolRow
from service.storage.spool.search import MakeKeys, SearchKeys, Sought, WaitingMatch, answer_of
from service.storage.spool.spool import Spool, closed

LOOK_SECONDS = 0.5
"""How often questions are looked for: a caller waits for the answer."""

QUESTION_SECONDS = 30
"""Seconds after which a question is removed: no caller waits for so long."""

MOST_MATCHES = 10_000
"""Matches of one answer, of some 150 bytes each. More are no one person's."""

WAIT_SECONDS = 1.0
"""How long one look waits for the database."""

_QUESTIONS = Statement(
    text("""
    SELECT id, question FROM spool_search WHERE replica = :replica AND answer IS NULL
        AND asked_at > clock_timestamp() - CAST(:kept AS int) * interval '1 s' ORDER BY asked_at, id
""")
)
_ANSWER = Statement(text("UPDATE spool_search SET answer = :answer WHERE id = :id"))
_IS_OLD = Statement(
    text("SELECT 1 FROM spool_search WHERE asked_at < clock_timestamp() - CAST(:kept AS int) * interval '1 s' LIMIT 1")
)
_REMOVE_OLD = Statement(
    text("DELETE FROM spool_search WHERE asked_at < clock_timestamp() - CAST(:kept AS int) * interval '1 s'")
)
_KEPT = {"kept": QUESTION_SECONDS}


@dataclass(frozen=True, slots=True)
class _Erasable:
    """A spooled submission that an erasure concerns."""

    id: UUID
    entry: SealedSubmission | None
    """None: it cannot be opened."""
    known: KnownTombstone
    is_certain: bool
    """False: the clocks do not show whether it was accepted before the erasure."""
    shares_both: bool
    """Whether the erasure named both its phone and its nid."""
    set_aside: bool


class SpoolAnswers:
    """Answers for one replica's spool."""

    def __init__(
        self,
        *,
        database: Database,
        spool: Spool,
        encryption: EncryptionService,
        open_erasures: OpenErasures,
        erasures: Erasures,
        recent: RecentRequests,
        make_keys: MakeKeys,
    ) -> None:
        self.open_erasures = open_erasures
        self.waiting: tuple[WaitingErasures, ...] = ()
        """The erasures that waited for any replica at the last look."""
        self._database = database
        self._spool = spool
        self._encryption = encryption
        self._erasures = erasures
        self._recent = recent
        self._make_keys = make_keys
        self._applying = asyncio.Lock()
        self._lacks_key = False
        self._log = structlog.get_logger("leadkeep.erasure")

    async def run(self) -> None:
        """Look twice a second for what others ask."""
        while True:
            if self._database.admitted:
                retry_scope.set(RetryScope(time.monotonic() + WAIT_SECONDS, lambda _: None))
                # The next look makes up for it. What is not answered, its caller names.
                with suppress(StorageUnavailableError, StorageFaultError, SpoolError):
                    await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        await self.apply_erasures()
        given = {"replica": self.open_erasures.replica} | _KEPT
        for row in await self._database.read(lambda connection: _QUESTIONS.rows(connection, given)):
            await self._answer(row.id, Sought.of(row.question))
        if await self._database.read(lambda connection: _IS_OLD.rows(connection, _KEPT)):
            await self._database.write(lambda connection: _REMOVE_OLD.rows(connection, _KEPT), alone=True)
        self.waiting = tuple(await waiting_erasures(self._database))

    async def _answer(self, question: UUID, sought: Sought) -> None:
        found = await self.find(sought)
        if found is not None:
            answer = {"id": question, "answer": self._encryption.seal_spooled(question, answer_of(found))}
            await self._database.write(lambda connection: _ANSWER.rows(connection, answer), alone=True)

    async def find(self, sought: Sought) -> list[WaitingMatch] | None:
        """What waits here and is sought; None: that cannot be answered. Raises SpoolError."""

        def look(row: SpoolRow, entry: SealedSubmission | None) -> WaitingMatch | None:
            fields = sought.fields_of(self._keys_of(row, entry, sought.schemes))
            if not fields and row.id not in sought.ids:
                return None
            submission = entry or closed(row)
            if row.id not in sought.ids:
                submission = replace(submission, fields={})
            return WaitingMatch(submission=submission, matched_fields=fields)

        found = await self._spool.look_through(look, limit=MOST_MATCHES + 1) if self._has_keys(sought) else None
        return None if found is None or len(found) > MOST_MATCHES else found

    async def apply_erasures(self) -> None:
        """Erase from this spool what others have erased. Raises SpoolError, StorageUnavailableError and others.

        Returns with erasures left open when this keyring lacks a key to find what is to be erased.
        """
        async with self._applying:
            for erasure in await self._database.read(self.open_erasures.all):
                await self._apply(erasure)

    async def _apply(self, erasure: OpenErasure) -> None:
        if not self._has_keys(erasure.sought):
            return
        found = await self._spool.look_through(partial(self._erasable, erasure))
        gone, settled = set(erasure.ids), list[UUID]()
        for each in found:
            if each.is_certain:
                forwards = not (erasure.alone or each.shares_both)
                gone |= await self._erasures.erase_spooled(erasure, each.id, each.known, each.entry, forwards=forwards)
                settled.append(each.id)
            elif each.entry is not None and not each.set_aside:
                await self._erasures.keep_undecided(each.entry, erasure.erased_id)
                settled.append(each.id)
            else:
                self._log.error("a submission that was set aside may be of an erased person", id=str(each.id))
        if settled:
            await self._spool.remove(settled)
        self._recent.forget(gone)
        await self._database.write(lambda connection: close(connection, erasure), alone=True)
        self._log.info("an erasure was applied to the spool", id=str(erasure.erased_id), submissions=len(settled))

    def _erasable(self, erasure: OpenErasure, row: SpoolRow, entry: SealedSubmission | None) -> _Erasable | None:
        shares_both = erasure.is_same_person(self._keys_of(row, entry, erasure.sought.schemes))
        digest = request_digest(entry) if entry else None
        if row.id in erasure.ids:
            is_certain = True
        elif shares_both or digest in erasure.requests:
            earliest, latest = row.clock.bounds(row.accepted_at) if row.clock else (None, None)
            # What was accepted after the erasure is new: the person came back.
            if earliest is not None and earliest > erasure.erased_at:
                return None
            is_certain = latest is not None and latest <= erasure.erased_at
        else:
            return None
        known = KnownTombstone(
            created_at=row.accepted_at,
            erased_at=erasure.erased_at,
            lead_id=ALONE if erasure.alone else erasure.erased_id,
            request_digest=digest,
        )
        return _Erasable(row.id, entry, known, is_certain, shares_both, row.damage is not None)

    def _keys_of(self, row: SpoolRow, entry: SealedSubmission | None, schemes: Sequence[IndexScheme]) -> SearchKeys:
        """The digests of a submission, with those that were noted when it was put: it may not open."""
        keys = self._make_keys(entry, schemes) if entry else SearchKeys()
        nids = keys.nids | ({row.nid} if row.nid is not None else set())
        return replace(keys, phones=keys.phones | {row.phone}, nids=nids)

    def _has_keys(self, sought: Sought) -> bool:
        usable = {key.id for key in self._encryption.keyring.usable(Purpose.INDEX)}
        lacks = {scheme.key_id for scheme in sought.schemes} - usable
        if bool(lacks) != self._lacks_key:
            self._lacks_key = bool(lacks)
            if lacks:
                self._log.error("the spool cannot be searched: index keys are missing", keys=sorted(lacks))
        return not lacks
