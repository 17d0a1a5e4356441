"""No value of a customer's field is in anything that the system writes, and nothing at all is after an erasure."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import sentinel
from tests.faults.sentinel import CLEAR, SENSITIVE, Trial, forms
from tests.harness import columns, faults
from tests.harness.columns import Contents
from tests.harness.daily_files import file_of
from tests.harness.disguises import hidden_in, hidden_under
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService


@dataclass(frozen=True)
class Life:
    """A trial whose lead went through every path, and what the database held before and after its keys were changed."""

    on: Trial
    types: dict[str, str]
    old_keys: set[str]
    before: Contents
    rotated: Contents


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    with sentinel.trial() as on:
        old_keys = {key.id for key in sentinel.keyring(on).keys}
        add_what_nobody_knows(on)
        for path in sentinel.PATHS:
            if path is sentinel.rotate:
                before = columns.contents(on.database.admin_url)
            path(on)
        url = on.database.admin_url
        yield Life(on, columns.types(url), old_keys, before, columns.contents(url))


@pytest.fixture(scope="module")
def gone_through(life: Life) -> Trial:
    """The trial alone."""
    return life.on


def add_what_nobody_knows(on: Trial) -> None:
    """Add columns and a table of which no part of Leadkeep knows: each check must find them."""
    (sealing,) = {key.id for key in sentinel.keyring(on).keys if key.purpose == "encryption"}
    faults.execute(
        on.database.admin_url,
        # In two parts, because a dump shows the default, too.
        f"ALTER TABLE lead ADD COLUMN trial text DEFAULT '{sealing}.gAAAAA' || '-of-the-lead'",
        "ALTER TABLE tombstone ADD COLUMN trial text DEFAULT 'of the tombstone'",
        "CREATE TABLE trial (lead_id uuid DEFAULT gen_random_uuid(), digest bytea DEFAULT sha256('trial'), empty text)",
        "INSERT INTO trial DEFAULT VALUES",
    )


def test_no_sensitive_value_is_in_anything_that_was_written(gone_through: Trial) -> None:
    assert hidden_under(gone_through.written, forms(SENSITIVE)) == {}


def test_the_same_search_finds_them_where_they_were_asked_for(gone_through: Trial) -> None:
    found = hidden_under([gone_through.folder / "unmasked"], forms(SENSITIVE))
    assert {name for names in found.values() for name in names} >= {
        "phone",
        "nid",
        "email",
        "notes",
        "corrected address",
        "conversation_id",
    }


def test_what_is_kept_in_clear_is_in_no_log(gone_through: Trial) -> None:
    assert hidden_under(sentinel.logs(gone_through), forms(CLEAR)) == {}
    assert hidden_under([gone_through.folder / "here" / "files"], forms(CLEAR)) != {}


def test_a_history_holds_no_value_of_any_field(gone_through: Trial) -> None:
    events = sentinel.events(gone_through)
    assert {kind for kind, _ in events} >= {1, 2, 3, 4, 5}
    looked_for = forms({**SENSITIVE, **CLEAR, "policy": sentinel.POLICY})
    assert hidden_in("\n".join(text for _, text in events).encode(), looked_for) == set()


@pytest.mark.parametrize("value", SENSITIVE.values())
def test_the_search_finds_a_value_that_hides(value: str, tmp_path: Path) -> None:
    hidden = f"xyz{value} and more".encode()
    looked_for = forms({"value": value})
    phases = [base64.b64encode(hidden[start:]) for start in range(3)]
    for content in (hidden, hidden[::-1], hidden.hex().encode(), hidden.hex().upper().encode(), *phases):
        assert hidden_in(b"\0" * 9000 + content + b"\0" * 9000, looked_for) == {"value"}
    (tmp_path / f"core.{value.replace('/', '')}").touch()
    assert hidden_under([tmp_path], looked_for) != {}


def test_a_restored_backup_has_every_column(life: Life, tmp_path: Path) -> None:
    target = life.on.server.empty_database()
    held = columns.contents(life.on.database.admin_url)
    life.on.run("backup-of-all", "backup", str(tmp_path / "backup"))
    done = operator(life.on, target).leadkeep("restore", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    assert columns.differing(held, columns.contents(target.admin_url), columns.MOVES) == set()


def test_a_daily_file_brings_every_column_back(life: Life) -> None:
    target = life.on.server.fresh_database()
    url = life.on.database.admin_url
    assert eventually(lambda: faults.value_of(url, "SELECT count(*) FROM lead_touch") == 0, within=60)
    held = columns.contents(url)
    done = operator(life.on, target).leadkeep_here("import", str(file_of(life.on.here)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert columns.differing(held, columns.contents(target.admin_url), columns.NOT_IN_FILES) == {
        "lead.trial",
        "trial.lead_id",
        "trial.digest",
    }


def operator(on: Trial, target: TestDatabase) -> RunningService:
    """An operator with the same keyring and another database."""
    settings = {name: on.here.environment[name] for name in ("LEADKEEP_KEYRING",)}
    settings["LEADKEEP_ADMIN_DATABASE_URL"] = target.admin_url
    return RunningService(on.folder / "results" / "operator", database_url=target.serve_url, settings=settings)


def test_a_rotation_leaves_nothing_of_an_old_key_and_changes_nothing_else(life: Life) -> None:
    found = columns.not_rekeyed(life.before, life.rotated, life.types, life.old_keys)
    assert found == {"lead.trial", "trial.digest"}


def test_after_an_erasure_no_token_no_digest_and_no_name_is_left(gone_through: Trial) -> None:
    on = gone_through
    sentinel.note_stored(on)
    stored = {name for name in on.traces if not name.startswith("spooled")}
    assert hidden_in(sentinel.dump(on).read_bytes(), on.traces) >= stored
    there = hidden_under([on.there.data_dir / "spool"], on.traces)
    assert {name for names in there.values() for name in names} >= on.traces.keys() - stored - {"spooled id"}

    sentinel.erase(on)

    looked_for = {**on.traces, **forms(SENSITIVE)}
    # Of the table and of the column of tombstones of which no part of Leadkeep knows.
    left = {"trial.digest", "tombstone.trial"}
    assert hidden_under(sentinel.after_erasure(on), looked_for) == {str(sentinel.dump(on)): left}
    assert [kind for kind, text in sentinel.events(on) if on.lead_id in text] == [7]


# A new column or table that is not known to erasure, restore, daily files, import and rotation is found here. Where a
# test fails, let that part know the column; or name it in tests/harness/columns.py, with the reason why it need not.


def test_every_column_is_filled_on_these_paths(life: Life) -> None:
    erased = columns.contents(life.on.database.admin_url)
    assert columns.never_filled(life.types, life.before, life.rotated, erased) == {"trial.empty"}


def test_no_column_keeps_anything_of_an_erased_lead(life: Life) -> None:
    erased = columns.contents(life.on.database.admin_url)
    assert columns.left(erased) == {"tombstone.trial", "trial.lead_id", "trial.digest"}
