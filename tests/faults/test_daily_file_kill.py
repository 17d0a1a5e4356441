"""A reader of today's file never sees half of one, whatever happens to the service."""

from __future__ import annotations

import pytest

from tests.faults import times
from tests.faults.daily_file_trial import Trial, run
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService

KILLS = times(3, whole=6)
PAUSE = 1.0
LONGEST_LAG = 30.0
"""Seconds. Two is what a quiet machine keeps, and a trial of its own measures; a busy one must not fail the suite."""


@pytest.fixture(scope="module")
def trial(service: RunningService, service_database: TestDatabase) -> Trial:
    return run(service, service_database.serve_url, kills=KILLS, pause=PAUSE, longest_lag=LONGEST_LAG)


def test_the_reader_was_there(trial: Trial) -> None:
    assert trial.reads > 100
    assert trial.versions > KILLS
    assert trial.acknowledged > 64


def test_every_file_parses_and_counts(trial: Trial) -> None:
    assert trial.failures == []


def test_what_was_acknowledged_before_a_snapshot_is_in_it(trial: Trial) -> None:
    assert trial.broken_snapshots == 0


def test_every_acknowledged_lead_comes_into_the_file(trial: Trial) -> None:
    assert trial.missing == 0
    assert trial.equal


def test_the_file_follows_restarts_included(trial: Trial) -> None:
    assert trial.lags[-1] < LONGEST_LAG
