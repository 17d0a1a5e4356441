"""PostgreSQL answers and refuses: a right is revoked, a table renamed, a trigger raises. No caller notices more than a
delay, and nothing that was acknowledged is lost, doubled or set aside."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.faults import times
from tests.harness.failures import reason_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.refusals import REFUSALS, refusing
from tests.harness.running_service import RunningService

CALLERS = 32
SECONDS = times(1, whole=60)
"""Seconds of load while the database refuses."""

SHORT = ("no INSERT on lead_touch", "no INSERT on resubmission", "a trigger raises as for content", "lead renamed")
"""The kinds of a short run; the storage tests and those of `doctor` have them all, without load."""

NOTICED_WITHIN = timedelta(seconds=3)
"""How soon `/readyz` must show it."""

PUT_OFF = {"STORAGE_UNAVAILABLE", "DEADLINE_TOO_SHORT"}
"""What is answered once the database takes leads again to those who share a phone with a submission that waits: only
the database can decide, and a minute of load takes longer to drain than a caller waits."""

PLACES = """
    SELECT id::text FROM lead UNION ALL SELECT id::text FROM lead_conflict UNION ALL SELECT id::text FROM lead_alias
    UNION ALL SELECT DISTINCT submission_id::text FROM resubmission
"""


@dataclass
class Answers:
    """What the callers were answered."""

    acknowledged: Counter[str] = field(default_factory=Counter)
    """Ids, with how often each was acknowledged."""
    outcomes: Counter[str] = field(default_factory=Counter)
    put_off_at: list[datetime] = field(default_factory=list)
    """When callers were told to come again."""


def degraded_at(service: RunningService, after: datetime) -> datetime:
    """When the service noticed it, by its log: the callers of this test keep the test itself busy."""
    lines = [json.loads(line) for line in service.log().splitlines() if '"event":"degraded"' in line]
    return next(when for line in lines if (when := datetime.fromisoformat(line["timestamp"])) >= after)


def submit_until(service: RunningService, over: Callable[[], bool], answers: Answers, caller: int) -> None:
    """One caller's submissions, one after the other; every seventh repeats the person before it."""
    metadata = service.metadata("chatbot")
    lead = somebody(conversation_id=f"conversation-{caller}")
    with service.channel() as channel:
        stub = service.stub(channel)
        for number in itertools.count(1):
            if over():
                return
            if number % 7:
                lead = somebody(conversation_id=f"conversation-{caller}-{number}")
            request = pb.CreateLeadRequest(lead=lead, request_id=f"{time.time_ns()}-{caller}-{number}")
            try:
                response = stub.CreateLead(request, timeout=20, metadata=metadata)
            except grpc.RpcError as error:
                reason = reason_of(error)
                if reason in PUT_OFF:
                    answers.put_off_at.append(datetime.now(UTC))
                else:
                    answers.outcomes[reason or str(error)] += 1
            else:
                answers.acknowledged[response.id] += 1
                answers.outcomes[pb.SaveState.Name(response.state)] += 1


def stored(database: TestDatabase) -> Counter[str]:
    with psycopg.connect(database.admin_url) as connection:
        return Counter(row[0] for row in connection.execute(PLACES))


@pytest.mark.parametrize("name", REFUSALS if times(0, whole=1) else SHORT)
def test_under_load_every_lead_is_taken_and_stored_once_when_it_is_mended(
    name: str, service: RunningService, service_database: TestDatabase
) -> None:
    assert eventually(lambda: service.is_well, within=30), service.readiness
    answers = Answers()
    ends: list[bool] = []
    with ThreadPoolExecutor(CALLERS) as callers:
        for caller in range(CALLERS):
            callers.submit(submit_until, service, lambda: bool(ends), answers, caller)
        try:
            assert eventually(lambda: len(answers.acknowledged) > CALLERS, within=60)
            with refusing(service_database, REFUSALS[name]):
                began = datetime.now(UTC)
                assert eventually(lambda: service.readiness["degraded"] is True, within=60), service.readiness
                assert degraded_at(service, began) - began < NOTICED_WITHIN
                time.sleep(SECONDS)
                mended = datetime.now(UTC)
            time.sleep(0.5)  # some go on while it is mended
        finally:
            ends.append(True)
    assert set(answers.outcomes) <= {"SAVE_STATE_SAVED", "SAVE_STATE_DELAYED", "DUPLICATE_PHONE"}, answers.outcomes
    assert all(each > mended for each in answers.put_off_at)
    assert eventually(lambda: service.is_well, within=60), service.readiness
    assert eventually(lambda: service.metric("leadkeep_spool_entries") == 0, within=120)
    found = stored(service_database)
    assert {each: found[each] for each in answers.acknowledged if found[each] != 1} == {}
