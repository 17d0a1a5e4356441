"""Resubmissions and conflicts are found by phone, nid and e-mail before, while and after keys and rules change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from service.errors import IndexIncompleteError, StartRefusedError
from service.factories import new_id
from service.lead import CustomerFields
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.keys.canary import plan_of, read_key_state
from service.storage.keys.rekeying import BATCH_ROWS
from service.storage.leads.persons import Persons
from service.storage.leads.submissions import SubmissionStore
from service.validation import ValidationService
from service.validation.nid import NidRule
from tests.harness.faults import execute, value_of
from tests.harness.postgres import TestDatabase
from tests.rotation.conftest import KeyRotation

LONG, SHORT = "19991234567890123", "1234567890123"
"""Two nids that are one person's under the rule BD."""

ANY, BANGLADESHI = ValidationService(), ValidationService(nid_rule=NidRule.BD)
EMAIL = "rahima@example.com"


class Rotation(KeyRotation):
    """A database with a lead, a resubmission and a conflict; its keyring, and one with another primary index key."""

    kept: list[UUID]

    async def store(self) -> None:
        await self.begin(ANY.normaliser_identity)
        self.kept = []
        store = SubmissionStore(self.connected)
        await store.create(self._submission(nid="555666777", late=False))
        for late in (False, True):
            made = self._submission(nid=LONG, late=late)
            await store.create(made)
            self.kept.append(made.id)

    def _submission(self, *, nid: str, late: bool):  # type: ignore[no-untyped-def]
        details = CustomerFields(
            name="R", phone="+8801711223300", nid=nid, address="1 Lake Road", interested_policy="Term", email=EMAIL
        )
        sealer = LeadSealer(self.first, ANY, transcript_url=None)
        made = sealer.seal(new_id(), details, created_by="bot", request_id=None)
        now = datetime.now(UTC)
        return replace(made, accepted_at=now, accepted_between=(now, now)) if late else made

    async def found(self, validation: ValidationService = ANY, **wanted: str) -> list[UUID]:
        """The resubmissions and conflicts that a service of now finds."""
        state = await self.connected.read(read_key_state)
        assert state is not None
        self.rotated.plan = plan_of(state, self.rotated)
        sealer = LeadSealer(self.rotated, validation, transcript_url=None)
        persons = Persons(self.connected, sealer.resealed_and_reindexed)
        matches = await persons.find(sealer.wanted(wanted), after=None, limit=100)
        return [each.id for each in matches if each.lead is None]

    def keys_of(self, table: str) -> object:
        return value_of(self.database.admin_url, f"SELECT split_part(min(phone_index), '.', 1) FROM {table}")


@pytest.fixture
async def rotation(database: TestDatabase, connected: Database, tmp_path: Path) -> Rotation:
    made = Rotation(database, connected, tmp_path)
    await made.store()
    return made


def forget_indexes(rotation: Rotation) -> None:
    """As rows are from before there was the search."""
    for table in ("resubmission", "lead_conflict"):
        empty = "phone_index = NULL, nid_index = NULL, email_index = NULL"
        execute(rotation.database.admin_url, f"UPDATE {table} SET {empty}")


async def test_a_new_key_finds_everything_all_the_time_and_the_old_one_can_be_retired(rotation: Rotation) -> None:
    for wanted in ({"phone": "+8801711223300"}, {"nid": LONG}, {"email": EMAIL}):
        assert await rotation.found(ANY, **wanted) == rotation.kept
    async with rotation.keys() as keys:
        with pytest.raises(StartRefusedError, match="1 resubmissions"):
            await keys.retire(rotation.old, files=dict)
        done = await keys.reindex(ANY.normaliser_identity)
        again = await keys.reindex(ANY.normaliser_identity)
        await keys.retire(rotation.old, files=dict)
        verified = await keys.verify()

    for wanted in ({"phone": "+8801711223300"}, {"nid": LONG}, {"email": EMAIL}):
        assert await rotation.found(ANY, **wanted) == rotation.kept
    assert (done.submissions, again.submissions, verified.faults) == (2, 0, [])
    assert [rotation.keys_of(table) for table in ("resubmission", "lead_conflict")] == [rotation.new.id] * 2


async def test_what_counts_as_one_nid_under_new_rules_is_found_and_never_missed_on_the_way(rotation: Rotation) -> None:
    answers: list[bool] = []

    async with rotation.keys() as keys:
        # Ends in the middle: leads follow the new rules, resubmissions do not yet.
        def stop(progress: str) -> None:
            if "resubmissions" in progress:
                raise KeyboardInterrupt

        async with rotation.keys(stop) as interrupted:
            with pytest.raises(KeyboardInterrupt):
                await interrupted.reindex(BANGLADESHI.normaliser_identity)
        with pytest.raises(IndexIncompleteError):
            await rotation.found(BANGLADESHI, nid=SHORT)
        await keys.reindex(BANGLADESHI.normaliser_identity)
        verified = await keys.verify()

    assert await rotation.found(BANGLADESHI, nid=SHORT) == await rotation.found(BANGLADESHI, nid=LONG) == rotation.kept
    assert (answers, verified.faults) == ([], [])


async def test_old_rows_are_indexed_by_a_step_that_is_resumed_where_it_was_stopped(rotation: Rotation) -> None:
    forget_indexes(rotation)
    copies = BATCH_ROWS + 5
    execute(
        rotation.database.admin_url,
        "CREATE TABLE copy AS SELECT * FROM resubmission",
        "UPDATE copy SET verified = verified",
        f"""INSERT INTO resubmission SELECT (jsonb_populate_record(NULL::resubmission, to_jsonb(copy)
            || jsonb_build_object('submission_id', gen_random_uuid()))).* FROM copy, generate_series(1, {copies})""",
        "DROP TABLE copy",
    )
    with pytest.raises(IndexIncompleteError):
        await rotation.found(phone="+8801711223300")

    def stop(progress: str) -> None:
        if progress.startswith(f"{BATCH_ROWS} of"):
            raise KeyboardInterrupt

    async with rotation.keys(stop) as interrupted:
        with pytest.raises(KeyboardInterrupt):
            await interrupted.reseal()
    filled = value_of(rotation.database.admin_url, "SELECT count(*) FROM resubmission WHERE phone_index IS NOT NULL")
    async with rotation.keys() as keys:
        lacking = (await keys.verify()).faults
        done = await keys.reseal()
        again = await keys.reseal()

    assert filled == BATCH_ROWS
    assert any("1 conflicts lack the blind indexes" in each for each in lacking)
    # The copies do not open under their ids: they keep nobody else from being found.
    assert (done.submissions, again.submissions) == (copies + 2 - BATCH_ROWS, 0)
    assert await rotation.found(phone="+8801711223300") == rotation.kept


async def test_one_damaged_value_keeps_nobody_from_being_found(rotation: Rotation) -> None:
    execute(rotation.database.admin_url, "UPDATE lead_conflict SET phone = 'x.gAAAAAAAAAAA'")
    async with rotation.keys() as keys:
        await keys.reindex(BANGLADESHI.normaliser_identity)

    assert await rotation.found(BANGLADESHI, nid=SHORT) == rotation.kept
    assert await rotation.found(BANGLADESHI, phone="+8801711223300") == rotation.kept[:1]


async def test_verify_names_a_resubmission_whose_index_is_another_ones(rotation: Rotation) -> None:
    execute(rotation.database.admin_url, "UPDATE resubmission SET nid_index = phone_index")

    async with rotation.keys() as keys:
        [fault] = (await keys.verify()).faults

    assert fault.startswith("resubmission ")
    assert fault.endswith("not that of its value: nid_index")
