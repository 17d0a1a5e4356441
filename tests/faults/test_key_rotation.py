"""The trial of key rotation in short: both keys of two replicas under load, with one kill."""

from __future__ import annotations

from pathlib import Path

from tests.faults.key_rotation_trial import run
from tests.harness.postgres import TestDatabase


def test_keys_are_rotated_under_load_and_nothing_is_lost_let_in_or_left(database: TestDatabase, tmp_path: Path) -> None:
    verdict = run(database, tmp_path, kills=1, callers=4, leads=0)
    assert verdict.kills == 1
    assert verdict.calls["read"] > 50
    assert verdict.calls["find"] > 30
    assert verdict.clean, verdict
