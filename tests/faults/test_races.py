"""Every pair of operations that erase, decide, correct, drain or submit, raced at two replicas: the trial in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import times
from tests.faults.race_trial import run
from tests.harness.postgres import TestDatabase

RACES = times(1, whole=200)


@pytest.mark.timeout(times(300, whole=3600))
async def test_no_race_leaves_a_person_lets_a_duplicate_in_or_answers_wrongly(
    database: TestDatabase, tmp_path: Path
) -> None:
    verdict = await run(database, tmp_path, races=RACES)
    assert len(verdict.pairs) == 120
    assert verdict.clean, verdict.table()
    assert verdict.sum_of("overlapped") > verdict.races / 2, "most were no race"
