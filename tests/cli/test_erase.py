"""`leadkeep erase` and `leadkeep retention`, and how imports and restores mind what was erased."""

from __future__ import annotations

import csv
import json
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from grpc import StatusCode

from service.cli.command import INTERRUPTED
from tests.conftest import StartService
from tests.harness import faults
from tests.harness.daily_files import file_of, soon_in
from tests.harness.faults import conflict_with
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused


@pytest.fixture(scope="module")
def service(service_database: TestDatabase, start_shared: StartService) -> RunningService:
    settings = {
        "LEADKEEP_ADMIN_DATABASE_URL": service_database.admin_url,
        "LEADKEEP_RETENTION": "not_interested=90d",
    }
    return start_shared(database_url=service_database.serve_url, settings=settings)


@contextmanager
def slow_erasures(database: TestDatabase) -> Iterator[None]:
    """An erased lead takes its time, so that a hundred of them outlast whatever holds a test up."""
    faults.execute(
        database.admin_url,
        """CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$""",
        "CREATE TRIGGER take_time AFTER DELETE ON lead FOR EACH ROW EXECUTE FUNCTION take_time()",
    )
    yield
    faults.execute(database.admin_url, "DROP TRIGGER take_time ON lead", "DROP FUNCTION take_time")


def run(service: RunningService, *arguments: str, code: int = 0) -> str:
    """What a command printed. In this process: starting one for each command would take most of the time."""
    done = service.leadkeep_here(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr


def shown(service: RunningService, *arguments: str) -> Any:
    return json.loads(run(service, *arguments, "--json"))


def leads(service: RunningService, *ids: str) -> set[str]:
    """Those of the ids that are leads."""
    return {str(each) for (each,) in execute(service, "SELECT id FROM lead WHERE id = ANY(%(ids)s)", ids=list(ids))}


class TestErase:
    def test_it_erases_and_names_the_user_of_the_machine(self, service: RunningService, admin: Client) -> None:
        lead_id = admin.create(somebody()).id
        assert lead_id in run(service, "erase", lead_id, "--reason", "by letter")
        assert leads(service, lead_id) == set()
        (kept,) = [each for each in shown(service, "erase", "--list") if each["id"] == lead_id]
        assert kept["erased_by"].startswith("cli:")
        assert kept["reason"] == "by letter"
        assert f"{lead_id}  {kept['erased_at']}" in run(service, "erase", "--list")

    def test_the_same_again_succeeds(self, service: RunningService, admin: Client) -> None:
        lead_id = admin.create(somebody()).id
        for _ in range(2):
            assert shown(service, "erase", lead_id)["erased"]

    def test_an_unknown_id_is_refused(self, service: RunningService) -> None:
        assert "no lead" in run(service, "erase", str(uuid4()), code=1)

    @pytest.mark.parametrize("arguments", [[], ["--list", "--from", "x"], [str(uuid4()), "--list"]])
    def test_what_it_should_do_is_said_once(self, arguments: list[str], service: RunningService) -> None:
        run(service, "erase", *arguments, code=2)

    @pytest.mark.parametrize("content", ['[{"id": "x"}]', "[" * 100_000, "{}", "7", "[7]", '{"id": {"lead_id": 1}}'])
    def test_a_file_that_is_no_list_is_refused(self, content: str, service: RunningService, tmp_path: Path) -> None:
        path = tmp_path / "list.json"
        path.write_text(content)
        assert "is not a list of tombstones" in run(service, "erase", "--from", str(path), code=1)


class TestAlteredList:
    @pytest.mark.parametrize(
        "change",
        [
            {"erased_at": "9999-12-31T23:59:59-23:59"},
            {"created_at": "9999-12-31T23:59:59-23:59"},
            {"erased_at": "0001-01-01T00:00:00+23:59"},
            {"erased_at": "2026-01-01T00:00:00"},
            {"erased_at": "infinity"},
            {"erased_at": None},
            {"reason": "\x1b[31m"},
            {"reason": "\0"},
            {"reason": "\ud800"},
            {"reason": 5},
            {"reason": ["x"]},
            {"reason": "x" * 100_000},
            {"erased_by": ""},
            {"erased_by": "a\nb"},
            {"erased_by": {"a": 1}},
            {"request_digest": "ab"},
            {"request_digest": 7},
            {"id": "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057"},
        ],
        ids=str,
    )
    def test_what_the_service_never_writes_is_refused_whole(
        self, change: dict[str, Any], service: RunningService, tmp_path: Path
    ) -> None:
        good: dict[str, Any] = {
            "id": str(uuid4()),
            "created_at": None,
            "erased_at": "2026-01-01T00:00:00+00:00",
            "erased_by": "cli:x",
        }
        good |= {"lead_id": good["id"], "reason": "by letter", "request_digest": None}
        path = tmp_path / "list.json"
        path.write_text(json.dumps([good, good | {"id": str(uuid4())} | change]))
        told = run(service, "erase", "--from", str(path), code=1)
        assert f"{next(iter(change))} of entry 2 is not in the form" in told
        assert good["id"] not in run(service, "erase", "--list")


def test_a_daily_file_does_not_bring_an_erased_lead_back(
    service: RunningService, admin: Client, tmp_path: Path
) -> None:
    lead_id = admin.create(somebody()).id
    today = file_of(service)
    assert soon_in(today, lead_id)
    path = tmp_path / today.name
    shutil.copy(today, path)
    run(service, "erase", lead_id)

    run(service, "import", str(path))

    with path.with_name(path.name + ".results.csv").open(newline="", encoding="utf-8") as file:
        results = {each["lead_id"]: each["result"] for each in csv.DictReader(file)}
    assert results[lead_id] == "erased"
    assert leads(service, lead_id) == set()


def test_a_restored_backup_is_rid_of_the_erased_again(
    service: RunningService, admin: Client, postgres_server: TestServer, tmp_path: Path
) -> None:
    erased, kept = admin.create(somebody(), request_id=str(uuid4())).id, admin.create(somebody()).id
    run(service, "backup", str(tmp_path / "backup"))
    run(service, "erase", erased, "--reason", "by letter")
    tombstones = tmp_path / "tombstones.json"
    tombstones.write_text(run(service, "erase", "--list", "--json"))

    target = postgres_server.empty_database()
    settings = {
        "LEADKEEP_KEYRING": str(service.data_dir / "keyring.json"),
        "LEADKEEP_ADMIN_DATABASE_URL": target.admin_url,
    }
    elsewhere = RunningService(tmp_path / "target", database_url=target.serve_url, settings=settings)
    run(elsewhere, "restore", str(tmp_path / "backup"))
    assert leads(elsewhere, erased, kept) == {erased, kept}

    for _ in range(2):
        run(elsewhere, "erase", "--from", str(tombstones))

    assert leads(elsewhere, erased, kept) == {kept}
    assert shown(elsewhere, "erase", "--list") == json.loads(tombstones.read_text())
    run(elsewhere, "doctor")


class TestRetention:
    @pytest.fixture(autouse=True)
    def nothing_else(self, service_database: TestDatabase) -> None:
        with psycopg.connect(service_database.admin_url) as connection:
            connection.execute("UPDATE lead SET status = 'new'")

    def aged(self, service: RunningService, admin: Client, status: str, days: int, count: int = 1) -> list[str]:
        """Leads of a status that were last changed so many days ago."""
        ids = [admin.create(somebody()).id for _ in range(count)]
        change = """UPDATE lead SET status = %(status)s, created_at = now() - interval '500 days',
            updated_at = now() - make_interval(days => %(days)s) WHERE id = ANY(%(ids)s)"""
        execute(service, change, status=status, days=days, ids=ids)
        return ids

    def test_the_policy_of_the_settings_erases_what_is_older(self, service: RunningService, admin: Client) -> None:
        (old,) = self.aged(service, admin, "not_interested", 91)
        (young,) = self.aged(service, admin, "not_interested", 89)
        (other,) = self.aged(service, admin, "contacted", 91)

        (dry,) = shown(service, "retention", "--dry-run")
        assert (dry["status"], dry["due"], dry["erased"], dry["dry_run"]) == ("not_interested", 1, 0, True)
        assert leads(service, old, young, other) == {old, young, other}
        assert "1 leads were erased" in run(service, "retention")

        assert leads(service, old, young, other) == {young, other}
        ((who, why),) = execute(service, "SELECT erased_by, reason FROM tombstone WHERE id = %(id)s", id=old)
        assert who.startswith("cli:")
        assert why.startswith("retention: not_interested since before 2")

    def test_options_are_a_policy_of_their_own(self, service: RunningService, admin: Client) -> None:
        (one,) = self.aged(service, admin, "contacted", 31)
        (two,) = self.aged(service, admin, "converted", 31)
        (three,) = self.aged(service, admin, "not_interested", 91)
        run(service, "retention", *("--status", "contacted", "--status", "converted", "--older-than", "30d"))
        assert leads(service, one, two, three) == {three}

    def test_who_came_back_lately_or_waits_for_a_decision_stays(self, service: RunningService, admin: Client) -> None:
        back, disputed, gone = self.aged(service, admin, "not_interested", 200, count=3)
        for lead_id, nobody in ((back, somebody()), (disputed, somebody())):
            nobody.phone = admin.get(lead_id).phone
            with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
                admin.create(nobody)
        conflict_with(service.environment["LEADKEEP_DATABASE_URL"], disputed)
        long_ago = "UPDATE resubmission SET submitted_at = now() - interval '300 days' WHERE lead_id = %(id)s"
        execute(service, long_ago, id=disputed)
        run(service, "retention")
        assert leads(service, back, disputed, gone) == {back, disputed}

    @pytest.mark.parametrize(
        "arguments",
        ["--status new", "--older-than 9d", "--status old --older-than 9d", "--status new --older-than x"],
    )
    def test_half_a_policy_is_wrong_usage(self, arguments: str, service: RunningService) -> None:
        run(service, "retention", *arguments.split(), code=2)

    def test_interrupted_it_says_so_and_goes_on_when_it_is_run_again(
        self, service: RunningService, service_database: TestDatabase, admin: Client
    ) -> None:
        ids = self.aged(service, admin, "not_interested", 100, count=150)
        terminal, theirs = pty.openpty()
        with slow_erasures(service_database):
            running = service.begin("retention", stdout=subprocess.DEVNULL, stderr=theirs)
            os.close(theirs)
            written = b""
            while b"not_interested: 50 of 150" not in written:
                written += os.read(terminal, 1000)
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=60) == INTERRUPTED
        os.close(terminal)
        left = leads(service, *ids)
        assert 0 < len(left) < 150
        (done,) = shown(service, "retention")
        assert done["erased"] == len(left)
        assert leads(service, *ids) == set()
