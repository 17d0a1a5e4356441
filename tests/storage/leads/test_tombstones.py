"""What was erased stays erased, wherever a copy of it still waits, and whatever happens at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from service.errors import LeadNotFoundError, StorageUnavailableError
from service.lead import SealedSubmission
from service.storage.intake import drain as drain_module
from service.storage.leads.decision import Created, Erased
from service.storage.leads.submissions import SubmissionStore
from service.supervisor import Component
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.processes import until
from tests.harness.supervision import running
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World, stored
from tests.storage.leads.replicas import bytes_in, drain, erase, spooled_forms, twins


def value(database: TestDatabase, query: str) -> object:
    return faults.value_of(database.admin_url, query)


async def forget_erasures(world: World, done: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a replica look for erasures until it has done so."""
    monkeypatch.setattr(drain_module, "ERASURES_EVERY_SECONDS", 0.01)
    async with running(Component(name="erasures", run=world.drain.run_erasures)):
        await until(done)


async def test_a_lead_that_waits_in_the_spool_is_erased_to_the_last_byte(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    lead, other = submit(), submit()
    await world.spool.put([lead, other])
    assert all(form in bytes_in(world.spool.folder) for form in spooled_forms(lead))

    await erase(world, lead.id)

    content = bytes_in(world.spool.folder)
    assert [form for form in spooled_forms(lead) if form in content] == []
    assert all(form in content for form in spooled_forms(other))
    await drain(world)
    assert value(database, "SELECT array_agg(id) FROM lead") == [other.id]
    await erase(world, lead.id)


async def test_what_waits_in_another_replicas_spool_is_not_found_here_and_dropped_there(
    world: World, elsewhere: World, submit: Submit, database: TestDatabase
) -> None:
    lead = submit()
    await elsewhere.spool.put([lead])
    with pytest.raises(LeadNotFoundError):
        await erase(world, lead.id)

    await drain(elsewhere)

    assert stored(database) == 0
    assert [form for form in spooled_forms(lead) if form in bytes_in(elsewhere.spool.folder)] == []
    await erase(world, lead.id)  # known now, and erased


async def test_what_was_set_aside_is_dropped_too(
    world: World, elsewhere: World, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = submit(), submit()
    await elsewhere.spool.put([one, other])
    for each in (one, other):
        await elsewhere.spool.set_aside(each.id, "refused by the database (P0001)")
    with pytest.raises(LeadNotFoundError):
        await erase(world, one.id)

    await forget_erasures(elsewhere, lambda: elsewhere.spool.size.damaged == 1, monkeypatch)

    assert await elsewhere.spool.ids_set_aside() == [other.id]
    assert (elsewhere.spool.size.waiting, elsewhere.spool.size.damaged) == (0, 1)


async def test_a_copy_of_the_request_in_another_replicas_spool_is_dropped(
    world: World, elsewhere: World, submit: Submit, database: TestDatabase
) -> None:
    saved, copy = twins(submit)
    await elsewhere.spool.put([copy])
    await world.create(saved)
    await erase(world, saved.id)

    await drain(elsewhere)

    assert stored(database) == 0
    await erase(world, copy.id)  # an id that was acknowledged, and is erased


async def test_the_same_request_after_the_erasure_is_a_new_lead_also_when_it_was_spooled(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    saved, again = twins(submit)
    await world.create(saved)
    await erase(world, saved.id)
    await world.spool.put([again])
    await drain(world)
    assert value(database, "SELECT array_agg(id) FROM lead") == [again.id]


async def test_what_the_person_sent_meanwhile_and_still_waits_here_goes_too(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    saved = submit(phone="+1234567", nid="77001")
    await world.create(saved)
    await world.spool.put([submit(phone="+1234567", nid="77001"), submit()])
    await erase(world, saved.id)
    await drain(world)
    assert stored(database) == 1
    assert value(database, "SELECT count(*) FROM lead_conflict") == 0


async def test_a_refused_duplicate_of_an_erased_spooled_lead_does_not_become_a_lead(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    first, refused = submit(phone="+1234567"), submit(phone="+1234567")
    await world.spool.put([first])
    await world.spool.put([refused])
    await erase(world, first.id)
    await drain(world)
    assert stored(database) == 0


async def test_a_drained_resubmission_of_an_erased_lead_stays_away_when_it_is_drained_again(
    world: World, submit: Submit, store: SubmissionStore
) -> None:
    first, refused = submit(phone="+1234567", nid="77001"), submit(phone="+1234567", nid="77001")
    await world.spool.put([first])
    await world.spool.put([refused])
    (late,) = [each for each in (await world.spool.oldest(9, lambda each: each)).submissions if each.refused]
    await drain(world)
    await erase(world, first.id)
    outcomes = await store.create_all_once([late])  # as after a crash before it left the spool
    assert outcomes == {refused.id: Erased(late.accepted_at or datetime.now(UTC))}


async def test_a_repeat_during_an_outage_does_not_hear_of_an_erased_lead(
    world: World, elsewhere: World, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = submit(request_id="r1")
    for each in (world, elsewhere):
        await each.create(submission)
        assert each.recent.answer(submission) is not None
    await erase(world, submission.id)
    assert world.recent.answer(submission) is None

    await forget_erasures(elsewhere, lambda: elsewhere.recent.answer(submission) is None, monkeypatch)


async def test_a_lead_that_was_erased_before_it_could_be_remembered_is_not_remembered(
    world: World, submit: Submit
) -> None:
    submission = submit(request_id="r1")
    world.recent.forget([submission.id])
    world.recent.remember(submission, submission.as_lead(datetime.now(UTC)))
    assert world.recent.answer(submission) is None


WAITS_FOR_THE_STORING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ShareRowExclusiveLock'"


async def test_an_erasure_waits_for_a_lead_that_is_just_being_stored(
    world: World, submit: Submit, database: TestDatabase, store: SubmissionStore
) -> None:
    """The id has no row that could be locked: without the wait both would commit."""
    faults.gated_inserts(database.admin_url)
    lead = submit(name=faults.SLOW)
    with faults.closed_gate(database.admin_url):
        storing = asyncio.create_task(store.create_all_once([lead]))
        await until(lambda: faults.waits_at_gate(database.admin_url))
        erasing = asyncio.create_task(erase(world, lead.id))
        await until(lambda: value(database, WAITS_FOR_THE_STORING))
    await erasing
    assert isinstance((await storing)[lead.id], Created)
    assert stored(database) == 0


async def test_a_lead_whose_tombstone_came_while_it_was_stored_is_stored_again_and_refused(
    submit: Submit, database: TestDatabase, store: SubmissionStore
) -> None:
    """Its insert waits for the erased row, with a snapshot from before the erasure."""
    lead = replace(submit(), accepted_at=datetime.now(UTC))
    await store.create(lead)
    with psycopg.connect(database.serve_url) as erasing:
        erasing.execute("SELECT lock_for_erasure(%s)", [lead.id])
        erasing.execute(
            "SELECT erase_lead(%s, %s, 'operator', NULL, '{}', '{}', true, NULL, NULL, NULL, NULL)", [lead.id] * 2
        )
        storing = asyncio.create_task(store.create(lead))
        await until(lambda: value(database, "SELECT count(*) FROM pg_locks WHERE NOT granted"))
        erasing.commit()
    assert isinstance(await storing, Erased)
    assert stored(database) == 0


async def test_leads_and_their_erasures_in_any_order_end_with_nothing(
    world: World, elsewhere: World, submit: Submit, database: TestDatabase
) -> None:
    """Drain and erasure race over ids, over copies of requests and over duplicates."""
    leads, copies = zip(*(twins(submit, number) for number in range(40)), strict=True)
    await world.spool.put(leads)
    await elsewhere.spool.put(copies)

    async def erase_when_possible(each: SealedSubmission) -> None:
        await asyncio.sleep(0.001 * (each.id.int % 60))
        while True:
            try:
                await erase(world, each.id)
            except StorageUnavailableError:
                continue  # a busy machine; whoever erases tries again
            except LeadNotFoundError:
                pass  # it is in the other spool still
            return

    await asyncio.gather(drain(world), drain(elsewhere), *(erase_when_possible(each) for each in (*leads, *copies)))

    await asyncio.gather(drain(world), drain(elsewhere))
    assert stored(database) == 0
    assert (
        value(database, "SELECT count(*) FROM lead_alias") == value(database, "SELECT count(*) FROM lead_conflict") == 0
    )
    assert value(database, "SELECT count(*) FROM tombstone WHERE created_at IS NOT NULL") == 80


async def test_the_tombstone_of_a_spooled_lead_names_the_moment_of_its_acceptance(
    world: World, elsewhere: World, submit: Submit, database: TestDatabase
) -> None:
    here, there = submit(), submit()
    await world.spool.put([here])
    await elsewhere.spool.put([there])
    await erase(world, here.id)
    with pytest.raises(LeadNotFoundError):
        await erase(world, there.id)
    await drain(elsewhere)
    ages = "SELECT array_agg(now() - created_at < interval '1 minute') FROM tombstone"
    assert value(database, ages) == [True, True]
    assert datetime.now(UTC) - timedelta(minutes=1) < value(database, "SELECT max(erased_at) FROM tombstone")  # type: ignore[operator]
