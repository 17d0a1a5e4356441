"""The rate that an operator gives bounds every step of a change of keys, and is used."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import uuid_utils.compat

from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, Purpose
from service.lead import CustomerFields
from service.lead_sealer import LeadSealer
from service.rotation import key_service
from service.rotation import workers as key_workers
from service.rotation.key_service import KeyService
from service.storage.database.database import Database
from service.storage.keys import rekeying as storage_rekeying
from service.storage.keys.canary import confirm_canary, plan_of
from service.storage.keys.rekeying import rekeying
from service.storage.leads.submissions import SubmissionStore
from service.validation import ValidationService
from tests.harness.postgres import TestDatabase

LEADS, BATCH, RATE = 40, 5, 10.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The seconds that the work on keys has waited."""
    waited = SimpleNamespace(seconds=0.0)

    async def sleep(seconds: float) -> None:
        waited.seconds += seconds

    time = SimpleNamespace(monotonic=lambda: waited.seconds)
    monkeypatch.setattr(key_workers, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(key_workers, "time", time)
    monkeypatch.setattr(key_service, "time", time)
    monkeypatch.setattr(storage_rekeying, "BATCH_ROWS", BATCH)
    return waited


async def test_a_reindex_takes_no_longer_than_its_rate_asks(
    database: TestDatabase, tmp_path: Path, clock: SimpleNamespace
) -> None:
    keyring, validation = Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)), ValidationService()
    connected, first = Database(database.serve_url), EncryptionService(keyring)
    first.plan = plan_of(await confirm_canary(connected, first, validation.normaliser_identity), first)
    await store_leads(connected, LeadSealer(first, validation, transcript_url=None))
    rotated, made = keyring.with_new_key(Purpose.INDEX, now=datetime(2026, 2, 1, tzinfo=UTC))

    async with rekeying(database.serve_url) as tables:
        keys = KeyService(
            database=connected,
            rekeying=tables,
            encryption=EncryptionService(rotated.with_primary(made.id)),
            on_wait=lambda _: None,
            on_progress=lambda _: None,
            spool=tmp_path,
            timeout=1.0,
            rate=RATE,
        )
        done = await keys.reindex(validation.normaliser_identity)
    await connected.close()

    assert done.leads == LEADS
    # Each lead is indexed, compared, and rid of its old index.
    assert clock.seconds == pytest.approx(3 * LEADS / RATE)


async def store_leads(database: Database, sealer: LeadSealer) -> None:
    store = SubmissionStore(database)
    for number in range(LEADS):
        details = CustomerFields(
            name="Somebody",
            phone=f"+88017{number:08d}",
            nid=f"19{number:011d}",
            address="1 Lake Road",
            interested_policy="Term",
        )
        await store.create(sealer.seal(uuid_utils.compat.uuid7(), details, created_by="bot", request_id=None))
