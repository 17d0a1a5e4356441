"""`leadkeep import` into a database that refuses: one clear cause, and no row reported."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from service.cli.command import NOT_ALL_IMPORTED
from tests.harness.faults import execute, value_of
from tests.harness.postgres import TestDatabase
from tests.harness.refusals import RAISE, REFUSALS, refusing
from tests.harness.running_service import RunningService

ROWS = 600
"""More than a batch."""

NAMES = (
    "no INSERT on lead",
    "no INSERT on resubmission",
    "no SELECT on key_canary",
    "a trigger raises",
    "a trigger raises as for content",
)
"""Each fails elsewhere: before the first row, at a lead, at a duplicate, or as if the content were at fault."""


@pytest.fixture
def operator(database: TestDatabase, tmp_path: Path) -> RunningService:
    """An operator whose database and keyring know each other."""
    operator = RunningService(tmp_path / "leadkeep", database_url=database.serve_url)
    assert operator.leadkeep_here("import", str(leads(tmp_path, "first.csv", 1, begin=5000))).returncode == 0
    return operator


def leads(folder: Path, name: str, count: int, *, begin: int = 0) -> Path:
    path = folder / name
    rows = [f"Person {n},+88017{n:08d},19{n:011d},{n} Lake Road,Term" for n in range(begin, begin + count)]
    path.write_text("\n".join(["name,phone,nid,address,interested_policy", *rows, ""]))
    return path


def reported(path: Path) -> list[str]:
    results = path.with_name(path.name + ".results.csv")
    if not results.exists():
        return []
    with results.open(newline="", encoding="utf-8") as file:
        return [each["result"] for each in csv.DictReader(file)]


def test_a_database_that_refuses_everything_is_named_once(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    for name in NAMES:
        path = leads(tmp_path, "leads.csv", ROWS)
        # A right that only duplicates need is missed by a duplicate.
        path.write_text(path.read_text().replace("+8801700000003", "+8801700000002"))
        with refusing(database, REFUSALS[name]):
            done = operator.leadkeep_here("import", str(path))
        assert done.returncode == 1, (name, done.stdout, done.stderr)
        assert done.stderr.startswith("leadkeep: "), (name, done.stderr)
        assert done.stderr.count("\n") == 1, (name, done.stderr)
        assert re.search(r"\(SQLSTATE \w{5}\): leadkeep doctor names the cause", done.stderr), (name, done.stderr)
        assert reported(path) == [], name
    assert value_of(database.admin_url, "SELECT count(*) FROM lead") == 1
    assert operator.leadkeep_here("import", str(path)).returncode == 0
    assert value_of(database.admin_url, "SELECT count(*) FROM lead") == ROWS


def test_a_row_that_alone_is_refused_for_its_content_costs_only_itself(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    raises = f"{RAISE} USING ERRCODE = '23514'; END $$"
    trigger = "BEFORE INSERT ON lead FOR EACH ROW WHEN (NEW.name = 'Person 550') EXECUTE FUNCTION raise_on_purpose()"
    execute(database.admin_url, raises, f"CREATE TRIGGER picky {trigger}")
    path = leads(tmp_path, "leads.csv", ROWS)
    assert operator.leadkeep_here("import", str(path)).returncode == NOT_ALL_IMPORTED
    assert [number for number, result in enumerate(reported(path)) if result != "saved"] == [550]
