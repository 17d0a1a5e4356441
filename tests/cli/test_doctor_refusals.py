"""`leadkeep doctor` names what the database refuses, and what to run about it."""

from __future__ import annotations

import re

import pytest

from tests.conftest import StartService
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.refusals import REFUSALS, Refusal, refusing
from tests.harness.running_service import RunningService


@pytest.fixture
def installed(database: TestDatabase, start_service: StartService) -> RunningService:
    """An installation whose service has run and is stopped."""
    service = start_service(database_url=database.serve_url)
    service.stop()
    return service


def test_a_sound_database_passes(installed: RunningService) -> None:
    done = installed.leadkeep_here("doctor")
    assert done.returncode == 0, done.stdout
    assert "statements of the service: every right is there, and a submission passes" in done.stdout
    assert "standbys: a commit waits for 0" in done.stdout


def test_each_refusal_is_named_with_what_to_run(installed: RunningService, database: TestDatabase) -> None:
    for name, refusal in REFUSALS.items():
        with refusing(database, refusal):
            done = installed.leadkeep_here("doctor")
        assert done.returncode == 3, (name, done.stdout)
        assert refusal.named in done.stdout, (name, done.stdout)
    assert installed.leadkeep_here("doctor").returncode == 0


def test_a_login_without_its_group_is_told_so(installed: RunningService, database: TestDatabase) -> None:
    grant = "GRANT leadkeep_app TO leadkeep_serve"
    with refusing(database, Refusal(["REVOKE leadkeep_app FROM leadkeep_serve"], [grant], grant)):
        done = installed.leadkeep_here("doctor")
    assert done.returncode == 3
    assert grant in done.stdout


def test_without_pg_monitor_it_is_said_what_cannot_be_seen(installed: RunningService, database: TestDatabase) -> None:
    grant = "GRANT pg_monitor TO leadkeep_app"
    with refusing(database, Refusal(["REVOKE pg_monitor FROM leadkeep_app"], [grant], grant)):
        done = installed.leadkeep_here("doctor")
    assert done.returncode == 0
    assert grant in done.stdout


def test_every_right_that_the_migrations_grant_is_checked(installed: RunningService, database: TestDatabase) -> None:
    grants = (
        "SELECT string_agg(DISTINCT privilege_type || ' ' || table_name, ',') FROM information_schema.role_table_grants"
        " WHERE grantee = 'leadkeep_app' AND table_name NOT IN ('key_canary', 'alembic_version')"
    )
    granted = str(faults.value_of(database.admin_url, grants)).split(",")
    faults.execute(database.admin_url, "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM leadkeep_app")
    done = installed.leadkeep_here("doctor")
    named = re.findall(r"run: GRANT (\w+) ON (\w+) TO leadkeep_app", done.stdout)
    assert sorted(f"{right} {table}" for right, table in named if table not in ("key_canary", "alembic_version")) == (
        sorted([*granted, "UPDATE tombstone"])
    )
