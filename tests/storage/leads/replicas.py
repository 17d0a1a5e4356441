"""Replicas on the test's database, what callers do there, and where a submission is afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from service.keys.encryption import EncryptionService
from service.lead import ConflictResolution, SealedSubmission
from service.lead_sealer import LeadSealer
from service.scopes import ROLES, Caller
from service.storage.database.database import Database
from service.storage.leads.conflicts import ConflictRepository, Decision, OwnLead
from service.storage.leads.decision import Outcome
from service.storage.spool.spool import Spool
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World

OPERATOR = Caller("operator", ROLES["admin"])

PLACES = {"lead": "id", "lead_alias": "id", "lead_conflict": "id", "resubmission": "submission_id", "tombstone": "id"}
"""The tables that hold a submission's id, and the column."""


@asynccontextmanager
async def replica(
    database: Database, folder: Path, encryption: EncryptionService, sealer: LeadSealer
) -> AsyncIterator[World]:
    """A replica on a database, with a spool of its own."""
    spool = Spool(folder, encryption, max_bytes=10_000_000)
    spool.identified = True
    spool.clock.measured(spool.clock.read(), datetime.now(UTC))  # as a heartbeat does it
    world = World(database, spool, sealer, encryption, folder.name)
    world.start()
    yield world
    await world.stop()
    spool.close()


async def erase(world: World, lead_id: UUID) -> tuple[UUID, ...]:
    """Erase through one replica; the conflicts that are kept of others."""
    return await world.erasing.erase_lead(OPERATOR, lead_id, reason="asked for it")


async def drain(world: World) -> None:
    async with asyncio.timeout(60):
        while world.spool.size.waiting:
            await world.drain.step()


async def stored_late(world: World, *submissions: SealedSubmission) -> list[Outcome]:
    """What becomes of submissions that come out of a spool."""
    return [(await world.store.create_all_once([late(each)]))[each.id] for each in submissions]


async def own_lead(world: World, submission: SealedSubmission) -> None:
    """Decide that a conflict becomes a lead beside the one that it matches."""
    conflicts = ConflictRepository(world.database)

    def decide(_: object) -> Decision:
        return OwnLead(submission)

    await conflicts.resolve(submission.id, ConflictResolution.OWN_LEAD, decide, actor="boss", reason=None)


def late(submission: SealedSubmission) -> SealedSubmission:
    """The submission, acknowledged before the database had it."""
    now = datetime.now(UTC)
    return replace(submission, accepted_at=now, accepted_between=(now, now))


def twins(submit: Submit, number: int = 0) -> tuple[SealedSubmission, SealedSubmission]:
    """One request, sent twice: two replicas each gave it an id."""
    sent = {"phone": f"+88019{number:08d}", "nid": f"77{number:011d}", "request_id": f"r{number}"}
    return submit(**sent), submit(**sent)


def where(database: TestDatabase, submission: SealedSubmission) -> set[str]:
    """The tables in which a submission's id stands."""
    return {
        table
        for table, column in PLACES.items()
        if faults.value_of(database.admin_url, f"SELECT count(*) FROM {table} WHERE {column} = '{submission.id}'")
    }


def erased_with(database: TestDatabase, submission: SealedSubmission) -> tuple[object, ...]:
    """Of a conflict: the leads that it matches, and the erased one."""
    columns = "ARRAY[phone_lead_id, nid_lead_id, request_lead_id, erased_lead_id]"
    found = faults.value_of(database.admin_url, f"SELECT {columns} FROM lead_conflict WHERE id = '{submission.id}'")
    assert isinstance(found, list)
    return tuple(found)


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def spooled_forms(submission: SealedSubmission) -> list[bytes]:
    """What of a submission lies in a spool's file as it is."""
    return [submission.id.bytes, *submission.indexes.phones, *submission.indexes.nids, submission.content_digest]
