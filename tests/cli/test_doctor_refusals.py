"""`leadkeep doctor` names what the database refuses, and what to run about it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from tests.conftest import StartService
from tests.faults.chaos.proxy import Mode, PostgresProxy
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually, until
from tests.harness.refusals import DROPPING, IN_THE_WAY, REFUSALS, REFUSING, SEEN, Refusal, refusing
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
    dropping = {name: each for name, each in DROPPING.items() if name != "tombstone"}
    for name, refusal in (REFUSALS | SEEN | REFUSING | dropping).items():
        with refusing(database, refusal):
            done = installed.leadkeep_here("doctor")
        assert done.returncode == 3, (name, done.stdout)
        assert refusal.named in done.stdout, (name, done.stdout)
    assert installed.leadkeep_here("doctor").returncode == 0


def test_what_only_some_leads_or_erasures_meet_is_named_though_all_is_well(
    installed: RunningService, database: TestDatabase
) -> None:
    for refusal in (DROPPING["tombstone"], *IN_THE_WAY.values()):
        with refusing(database, refusal):
            done = installed.leadkeep_here("doctor")
        assert done.returncode == 0
        assert refusal.named in done.stdout


def test_a_timeout_that_is_too_short_is_named(installed: RunningService, database: TestDatabase) -> None:
    short = Refusal(
        ["ALTER ROLE leadkeep_serve SET statement_timeout = '100ms'"],
        ["ALTER ROLE leadkeep_serve RESET statement_timeout"],
        "statement_timeout",
    )
    with refusing(database, short), psycopg.connect(database.admin_url) as holding:
        holding.execute("LOCK TABLE pg_trigger IN ACCESS EXCLUSIVE MODE")  # so that the look takes longer
        done = installed.leadkeep_here("doctor")
    assert done.returncode == 3
    assert "does not serve (cause 57014): statement_timeout " in done.stdout


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


def test_every_trigger_that_the_migrations_make_is_checked(installed: RunningService, database: TestDatabase) -> None:
    ours = "SELECT string_agg(t.tgrelid::regclass || ' ' || t.tgname, ',') FROM pg_trigger t WHERE NOT t.tgisinternal"
    made = str(faults.value_of(database.admin_url, ours)).split(",")
    faults.execute(database.admin_url, *(f"ALTER TABLE {each.split()[0]} DISABLE TRIGGER USER" for each in made))
    lines = installed.leadkeep_here("doctor").stdout
    named = re.findall(r"run: ALTER TABLE (\w+) ENABLE TRIGGER (\w+)", lines)
    assert sorted(" ".join(each) for each in named) == sorted(made)


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


@contextmanager
def doctor_beside_a_lock(
    installed: RunningService, database: TestDatabase
) -> Iterator[tuple[psycopg.Connection, Future[CompletedProcess[str]]]]:
    """Doctor, whose first try to store something has waited in vain for a lock, and the connection that holds it."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(database.admin_url) as holding, ThreadPoolExecutor(1) as threads:
        holding.execute("LOCK TABLE lead IN SHARE ROW EXCLUSIVE MODE")  # as the erasure of an unknown id does
        running = threads.submit(installed.leadkeep_here, "doctor")
        for count in (1, 0):
            assert eventually(lambda: holding.execute(waiting).fetchone() == (count,), within=60)  # noqa: B023
        yield holding, running


def test_a_lock_that_is_held_for_a_moment_is_no_fault(installed: RunningService, database: TestDatabase) -> None:
    with doctor_beside_a_lock(installed, database) as (holding, running):
        holding.rollback()
        done = running.result()
    assert done.returncode == 0, done.stdout


def test_a_lock_that_stays_is_named(installed: RunningService, database: TestDatabase) -> None:
    with doctor_beside_a_lock(installed, database) as (_, running):
        done = running.result()
    assert done.returncode == 3
    assert "fails (cause 55P03); something holds a lock for long" in done.stdout


async def test_a_database_that_is_away_for_a_moment_is_no_fault(
    installed: RunningService, database: TestDatabase
) -> None:
    parts = urlsplit(database.serve_url)
    socket = {name: values[0] for name, values in parse_qs(parts.query).items()}
    proxy = PostgresProxy(Path(socket["host"], f".s.PGSQL.{socket['port']}"))
    await proxy.start()
    await proxy.set_mode(Mode.REFUSE)
    url = f"postgresql://{parts.username}@127.0.0.1:{proxy.port}{parts.path}"
    doctor = asyncio.create_task(
        asyncio.to_thread(installed.leadkeep_here, "doctor", env={"LEADKEEP_DATABASE_URL": url})
    )
    await until(lambda: proxy.refused)
    await proxy.set_mode(Mode.FORWARD)
    done = await doctor
    await proxy.stop()
    assert done.returncode == 0, done.stdout
