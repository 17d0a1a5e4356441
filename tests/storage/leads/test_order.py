"""Submissions that are stored together: each counts before the next, also while another import is at work."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from service.factories import new_id
from service.lead import SealedSubmission
from service.storage.database.database import Database
from service.storage.database.failures import Retry, RetryScope, retry_scope
from service.storage.leads.decision import Created, DuplicateMatch, Outcome
from service.storage.leads.import_export import import_leads
from tests.harness.faults import value_of
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit


def in_few_hands(submit: Submit, numbers: random.Random, count: int) -> list[SealedSubmission]:
    """Submissions of which many share a phone, a nid, or a request with others."""
    kinds = count // 3
    return [
        submit(
            phone=f"+88017{numbers.randrange(kinds):08d}",
            nid=f"19{numbers.randrange(kinds):011d}",
            request_id=f"r{number if numbers.random() < 0.9 else numbers.randrange(count)}",
        )
        for number in range(count)
    ]


def one_by_one(batch: Sequence[SealedSubmission]) -> list[tuple[object, ...]]:
    """What becomes of each when one comes after the other, by the rule of AC-008."""
    phones: dict[bytes, UUID] = {}
    nids: dict[bytes, UUID] = {}
    requests: dict[str | None, SealedSubmission] = {}
    done: list[tuple[object, ...]] = []
    for entry in batch:
        (phone,), (nid,) = entry.indexes.phones, entry.indexes.nids
        earlier = requests.get(entry.request_id)
        if entry.request_id is not None and earlier is not None:
            is_repeat = earlier.content_digest == entry.content_digest
            done.append(("created", earlier.id) if is_repeat else ("reused",))
        elif phone in phones or nid in nids:
            done.append(("duplicate", phones.get(phone), nids.get(nid)))
        else:
            phones[phone], nids[nid], requests[entry.request_id] = entry.id, entry.id, entry
            done.append(("created", entry.id))
    return done


def plain(outcome: Outcome) -> tuple[object, ...]:
    match outcome:
        case Created(lead):
            return ("created", lead.id)
        case DuplicateMatch(phone, nid):
            return ("duplicate", phone and phone.id, nid and nid.id)
    return ("reused",)


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_stored_together_is_decided_in_its_order(seed: int, connected: Database, submit: Submit) -> None:
    batch = in_few_hands(submit, random.Random(seed), 120)

    outcomes = await import_leads(connected, batch, dry_run=False)

    assert [plain(outcomes[entry.id]) for entry in batch] == one_by_one(batch)


async def test_a_long_chain_of_neighbours_is_decided_in_its_order(connected: Database, submit: Submit) -> None:
    batch = [submit(phone=f"+88017{(n + 1) // 2:08d}", nid=f"19{n // 2:011d}", request_id=None) for n in range(300)]

    outcomes = await import_leads(connected, batch, dry_run=False)

    assert [plain(outcomes[entry.id]) for entry in batch] == one_by_one(batch)


async def test_a_repeat_within_a_batch_is_answered_with_the_lead_as_it_is_stored(
    connected: Database, submit: Submit, database: TestDatabase
) -> None:
    first = submit(request_id="r")
    again = replace(first, id=new_id())

    repeated = (await import_leads(connected, [first, again], dry_run=False))[again.id]

    stored = value_of(database.admin_url, f"SELECT created_at FROM lead WHERE id = '{first.id}'")
    assert isinstance(repeated, Created)
    assert not repeated.is_new
    assert (repeated.lead.id, repeated.lead.created_at) == (first.id, stored)


async def test_imports_of_one_shuffled_file_at_once_wait_for_each_other_and_never_in_a_circle(
    database: TestDatabase, submit: Submit
) -> None:
    numbers = random.Random(1)
    rows = in_few_hands(submit, numbers, 2000)
    repeated: list[str] = []

    async def imported() -> None:
        database_of_one = Database(database.serve_url)
        shuffled = random.Random(numbers.random()).sample(rows, len(rows))
        for begin in range(0, len(shuffled), 200):
            # Each has a time of its own: on a busy machine all of them together take a while.
            retry_scope.set(RetryScope(time.monotonic() + 60, note))
            await import_leads(database_of_one, shuffled[begin : begin + 200], dry_run=False)
        await database_of_one.close()

    def note(retry: Retry) -> None:
        repeated.append(retry.cause)

    # When one fails, the others end too: else they would hold the database that is dropped.
    async with asyncio.TaskGroup() as imports:
        for _ in range(3):
            imports.create_task(imported())

    assert repeated == []


async def test_copies_without_a_request_id_in_one_batch_are_one_lead_and_its_repeats(
    connected: Database, submit: Submit
) -> None:
    first = replace(submit(), repeat_window=timedelta(hours=1))
    copies = [first, *(replace(first, id=new_id()) for _ in range(2))]

    outcomes = await import_leads(connected, copies, dry_run=False)

    assert [plain(outcomes[each.id]) for each in copies] == [("created", copies[0].id)] * 3
