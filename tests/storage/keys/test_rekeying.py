"""A batch is replaced only where nobody changed a row since it was read; and what waits in a spool names its keys."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from service.keys.encryption import EncryptionService, IndexPlan, IndexScheme
from service.keys.keyring import Keyring, Purpose
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.intake.drain import DrainRound
from service.storage.keys.canary import confirm_canary
from service.storage.keys.rekeying import EVERY_ROW, LEADS, Rekeying, rekeying, sealed_otherwise
from service.storage.leads.decision import Delayed
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.file import SpoolError, SpoolFile
from service.storage.spool.spool import Spool
from service.validation import ValidationService
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit, everyone
from tests.storage.intake.test_writer import World


@pytest.fixture
async def tables(database: TestDatabase) -> AsyncIterator[Rekeying]:
    async with rekeying(database.serve_url) as opened:
        yield opened


@pytest.fixture
def rotated(encryption: EncryptionService) -> EncryptionService:
    """The same keyring with another primary key for everything."""
    keyring = encryption.keyring
    for purpose in Purpose:
        keyring, made = keyring.with_new_key(purpose, now=keyring.keys[0].created_at)
        keyring = keyring.with_primary(made.id)
    return EncryptionService(keyring)


def sealer_of(service: EncryptionService) -> LeadSealer:
    validation = ValidationService(default_region=None, phone_rule="e164", nid_rule="any", policies=())
    return LeadSealer(service, validation, transcript_url=None)


async def test_a_row_that_was_changed_meanwhile_is_left_to_the_next_pass(
    tables: Rekeying,
    store: SubmissionStore,
    submit: Submit,
    encryption: EncryptionService,
    rotated: EncryptionService,
    database: TestDatabase,
) -> None:
    primary = rotated.keyring.primary(Purpose.ENCRYPTION).id
    changed, untouched = submit(), submit(phone="+1234567", nid="7654321")
    for each in (changed, untouched):
        await store.create(each)
    rows = await tables.read(LEADS, sealed_otherwise(LEADS, primary), None)
    # A correction of the address, which has nothing to do with the phone.
    correction = encryption.seal(changed.id, "address", "another one")
    faults.execute(database.admin_url, f"UPDATE lead SET address = '{correction}' WHERE id = '{changed.id}'")
    anew = [
        (
            row,
            {
                name: rotated.seal(row.bound_to, name, rotated.open(row.bound_to, name, token))
                for name, token in row.tokens.items()
            },
        )
        for row in rows
    ]

    assert await tables.replace_tokens(LEADS, anew) == 1

    [left] = await tables.read(LEADS, sealed_otherwise(LEADS, primary), None)
    assert left.bound_to == changed.id
    assert encryption.open(changed.id, "address", left.tokens["address"]) == "another one"


async def test_a_resealed_lead_and_its_day_are_noted_and_its_version_stays(
    tables: Rekeying, store: SubmissionStore, submit: Submit, rotated: EncryptionService, database: TestDatabase
) -> None:
    lead = submit()
    await store.create(lead)
    faults.execute(database.admin_url, "DELETE FROM lead_touch")
    before = faults.value_of(database.admin_url, "SELECT version || ' ' || updated_at FROM lead")
    [row] = await tables.read(LEADS, EVERY_ROW, None)
    await tables.replace_tokens(LEADS, [(row, {**row.tokens, "phone": rotated.seal(lead.id, "phone", "+1")})])
    assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead_touch") == 1
    assert faults.value_of(database.admin_url, "SELECT version || ' ' || updated_at FROM lead") == before


async def test_a_pair_of_indexes_is_not_called_empty_while_a_live_call_holds_a_lead(
    tables: Rekeying,
    store: SubmissionStore,
    submit: Submit,
    encryption: EncryptionService,
    connected: Database,
    database: TestDatabase,
) -> None:
    await store.create(submit())
    await confirm_canary(connected, encryption, ValidationService().normaliser_identity)
    in_use = "phone_index_2 = phone_index, nid_index_2 = nid_index, index_epoch = (SELECT epoch FROM key_canary)"
    faults.execute(database.admin_url, f"UPDATE lead SET {in_use}")
    with psycopg.connect(database.admin_url) as call:
        call.execute("SELECT FROM lead FOR UPDATE")
        assert await tables.clear_indexes(2) > 0
        assert faults.value_of(database.admin_url, "SELECT count(phone_index_2) FROM lead") == 1

    assert [await tables.clear_indexes(2) for _ in range(2)] == [1, 0]
    assert faults.value_of(database.admin_url, "SELECT count(phone_index_2) FROM lead") == 0


async def test_a_lead_of_an_old_plan_and_a_retired_key_waits_in_the_spool_and_is_drained_as_it_should_be(
    connected: Database,
    tmp_path: Path,
    submit: Submit,
    encryption: EncryptionService,
    rotated: EncryptionService,
    database: TestDatabase,
) -> None:
    retired = encryption.keyring.primary(Purpose.ENCRYPTION).id
    faults.execute(
        database.admin_url,
        "INSERT INTO key_canary (id, sealed, digest, normaliser, epoch, accepts_from, retired_keys)"
        f" VALUES (1, 's', 'd', 'n', 5, 5, '{{{retired}}}')",
    )
    stale = submit()
    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    fresh = sealer_of(rotated)
    scheme = IndexScheme(rotated.index_primary_id, ValidationService().normaliser_identity)
    rotated.plan = IndexPlan(5, (None, scheme))
    world = World(connected, spool, fresh, rotated)
    world.start()
    try:
        assert isinstance(await world.create(stale, seconds=2.0), Delayed)
        # The keyring still opens with the key; that it is retired is a change of the next one.
        assert await world.drain.step() is DrainRound.DRAINED
    finally:
        await world.stop()
        spool.close()
    primary = rotated.keyring.primary(Purpose.ENCRYPTION).id
    query = (
        f"SELECT phone_index IS NULL AND index_epoch = 5 AND phone LIKE '{primary}.%' FROM lead WHERE id = '{stale.id}'"
    )
    assert faults.value_of(database.admin_url, query)


async def test_a_spool_names_the_keys_of_what_waits_in_it(
    tmp_path: Path, submit: Submit, encryption: EncryptionService
) -> None:
    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    try:
        assert await spool.key_ids() == set()
        await spool.put([submit()])
        keyring = encryption.keyring
        assert await spool.key_ids() == {keyring.primary(p).id for p in (Purpose.ENCRYPTION, Purpose.SPOOL)}
    finally:
        spool.close()


async def test_after_a_rotation_the_spool_still_knows_its_requests_and_gives_its_leads_on_with_the_new_keys(
    tmp_path: Path, submit: Submit, encryption: EncryptionService, rotated: EncryptionService
) -> None:
    lead = submit(conversation_id="chat-1", request_id="once", phone="+1234567890", nid="1234567", name="Somebody")
    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    try:
        await spool.put([lead])
        encryption.take(rotated.keyring)
        assert await spool.holds_conversation("chat-1", everyone)
        again = submit(conversation_id="chat-1", request_id="once", phone="+1234567890", nid="1234567", name="Somebody")
        assert again.content_digest != lead.content_digest
        assert [outcome.id for outcome in (await spool.put([again])).values()] == [lead.id]  # type: ignore[union-attr]
        [drained] = (await spool.oldest(10, sealer_of(encryption).resealed_and_reindexed)).submissions
        assert {token.partition(".")[0] for token in drained.sealed.values()} == {
            rotated.keyring.primary(Purpose.ENCRYPTION).id
        }
        assert drained.indexes.phones == sealer_of(rotated).identifier_indexes("phone", "+1234567890")
    finally:
        spool.close()


async def test_a_spool_of_an_earlier_release_is_taken_over_and_its_keys_are_found(
    tmp_path: Path, submit: Submit, encryption: EncryptionService
) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder, encryption, max_bytes=10_000_000)
    spool.identified = True
    await spool.put([submit()])
    spool.close()
    with sqlite3.connect(folder / "spool.sqlite") as connection:
        for column in ("clock_ahead", "clock_error"):
            connection.execute(f"ALTER TABLE entry DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    spool = Spool(folder, encryption, max_bytes=10_000_000)
    try:
        keyring: Keyring = encryption.keyring
        assert await spool.key_ids() == {keyring.primary(p).id for p in (Purpose.ENCRYPTION, Purpose.SPOOL)}
    finally:
        spool.close()
    file = SpoolFile(folder, max_bytes=10_000_000)
    assert [isinstance(row.id, UUID) for row in file.oldest(5)] == [True]
    file.close()


@pytest.mark.parametrize("unknown", [1, 99])
def test_a_spool_of_a_format_that_this_release_does_not_know_is_left_alone(tmp_path: Path, unknown: int) -> None:
    SpoolFile(tmp_path, max_bytes=10_000_000).close()
    with closing(sqlite3.connect(tmp_path / "spool.sqlite")) as connection:
        connection.execute(f"PRAGMA user_version = {unknown}")
    with pytest.raises(SpoolError, match=f"another release \\(format {unknown}\\)"):
        SpoolFile(tmp_path, max_bytes=10_000_000)
