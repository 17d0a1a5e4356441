"""`leadkeep export`: what comes out, and what stays in."""

from __future__ import annotations

import csv
import io
import json
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.cli.command import INTERRUPTED, SOME_UNREADABLE
from service.importing.csv_file import restored
from service.lead import CUSTOMER_FIELDS
from service.scopes import Scope
from tests.conftest import StartService
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually, family_megabytes
from tests.harness.running_service import RunningService

Shared = tuple[RunningService, TestDatabase]

SECRET = {
    "phone": "+8801798765432",
    "nid": "1985120394857",
    "address": '47 Shapla\nHousing, "Mirpur" \\',
    "email": "farzana.akter@example.org",
    "notes": "=HYPERLINK(heart condition)",
}
NAME = '@Farzana "F" \\ আক্তার \U0001f600 \U00020000'


@pytest.fixture(scope="module")
def shared(service_database: TestDatabase, start_shared: StartService) -> Shared:
    """One service for all tests of this module."""
    settings = {"LEADKEEP_TRANSCRIPT_URL": "https://x/{conversation_id}"}
    return start_shared(database_url=service_database.serve_url, settings=settings), service_database


@pytest.fixture
def service(shared: Shared) -> RunningService:
    """The service, without any lead."""
    running, database = shared
    execute(database.admin_url, "TRUNCATE lead CASCADE", "TRUNCATE access_record")
    return running


@pytest.fixture
def database(shared: Shared) -> TestDatabase:
    return shared[1]


def create(service: RunningService, **fields: str) -> str:
    # A chatbot sees what it creates masked, so that this leaves no access.
    return service.create(somebody(**fields)).id


def exported_json(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    leads: list[dict[str, Any]] = json.loads(done.stdout)
    return leads


def exported_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def test_json_is_what_the_json_endpoint_answers(service: RunningService) -> None:
    created = create(service, name=NAME, conversation_id="chat-1", **SECRET)
    (lead,) = exported_json(service.leadkeep("export", "--format", "json"))
    assert lead["id"] == created
    assert lead["name"] == NAME
    assert lead["status"] == "LEAD_STATUS_NEW"
    assert lead["transcript_uri"] == "https://x/chat-1"
    assert lead["masked"] is True
    assert lead["phone"] == "+880•••32"


@pytest.mark.parametrize("file_format", ["json", "csv"])
def test_nothing_sensitive_is_in_clear(file_format: str, service: RunningService) -> None:
    create(service, **SECRET)
    done = service.leadkeep_here("export", "--format", file_format)
    assert done.returncode == 0
    assert [value for value in SECRET.values() if value[:9] in done.stdout + done.stderr] == []


def test_no_leads_are_an_empty_array(service: RunningService) -> None:
    assert exported_json(service.leadkeep_here("export", "--format", "json")) == []


def test_many_leads_are_one_array(service: RunningService, database: TestDatabase) -> None:
    ids = [create(service) for _ in range(5)]
    assert [lead["id"] for lead in exported_json(service.leadkeep_here("export", "--format", "json"))] == ids


def unmasked(service: RunningService, *more: str, **token: Any) -> subprocess.CompletedProcess[str]:
    return service.leadkeep_here("export", "--unmask", *more, env={"LEADKEEP_TOKEN": service.token(**token)})


def test_a_csv_is_read_back_whole(service: RunningService) -> None:
    sent = SECRET | {"name": NAME, "interested_policy": "Term", "preferred_contact_time": "9", "conversation_id": "c"}
    sent["source"] = "=web"
    create(service, **sent)
    done = unmasked(service, "--format", "csv")
    assert done.returncode == 0, done.stderr
    (lead,) = exported_csv(done.stdout)
    assert {name: restored(lead[name]) for name in CUSTOMER_FIELDS} == sent
    assert lead["masked"] == "false"


def test_a_csv_cell_executes_nothing(service: RunningService) -> None:
    create(service, name=NAME, **SECRET)
    (lead,) = exported_csv(unmasked(service, "--format", "csv").stdout)
    assert [lead["name"][0], lead["phone"][0], lead["notes"][0]] == ["'"] * 3


def test_every_cell_is_in_quotes_for_whoever_separates_by_something_else(service: RunningService) -> None:
    create(service, name="a;=1+1", interested_policy="b|=1+1")
    written = service.leadkeep_here("export", "--format", "csv").stdout
    assert ',"a;=1+1",' in written
    assert ',"b|=1+1",' in written


def test_an_unmasked_export_can_be_imported_again(
    service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    create(service, name=NAME, **SECRET)
    done = unmasked(service, "--format", "csv", "--output", str(tmp_path / "out.csv"))
    assert done.returncode == 0
    assert service.leadkeep_here("import", str(tmp_path / "out.csv")).returncode == 0
    assert value_of(database.admin_url, "SELECT resubmissions FROM lead") == 1


def test_an_unmasked_export_is_recorded(service: RunningService, database: TestDatabase) -> None:
    create(service)
    done = unmasked(service, "--format", "json", "--from", "2026-01-01", "--reason", "audit 7", subject="rahima")
    assert exported_json(done)[0]["masked"] is False
    record = value_of(database.admin_url, "SELECT subject || ' | ' || operation || ' | ' || reason FROM access_record")
    assert record == "rahima | export | export of 2026-01-01 to the last day: audit 7"


def test_a_masked_export_needs_no_record(service: RunningService, database: TestDatabase) -> None:
    service.leadkeep_here("export", "--format", "json")
    assert value_of(database.admin_url, "SELECT count(*) FROM access_record") == 0


def test_what_cannot_be_recorded_is_not_exported(
    service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    create(service, **SECRET)
    execute(database.admin_url, "REVOKE INSERT ON access_record FROM leadkeep_app")
    done = unmasked(service, "--format", "json", "--output", str(tmp_path / "out.json"))
    execute(database.admin_url, "GRANT INSERT ON access_record TO leadkeep_app")
    assert done.returncode == 1
    assert SECRET["phone"] not in done.stdout + done.stderr
    assert list(tmp_path.glob("*out.json*")) == []


def test_an_export_in_clear_is_for_who_says_why_where_that_is_asked(service: RunningService) -> None:
    create(service, **SECRET)
    env = {"LEADKEEP_TOKEN": service.token(), "LEADKEEP_REASON_REQUIRED": "1"}
    arguments = ["export", "--unmask", "--format", "json"]
    refused = service.leadkeep_here(*arguments, env=env)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert service.leadkeep_here(*arguments, "--reason", "for the auditor", env=env).returncode == 0


def test_it_is_recorded_before_anything_is_written(service: RunningService, database: TestDatabase) -> None:
    create(service)
    command = ("export", "--unmask", "--format", "json")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with service.begin(*command, env={"LEADKEEP_TOKEN": service.token()}, **pipes) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == b""
    assert value_of(database.admin_url, "SELECT count(*) FROM access_record") == 1


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (None, "needs a token"),
        ({"role": "agent"}, "lacks the scope leads:unmask"),
        ({"scopes": set(Scope) - {Scope.UNMASK}}, "lacks the scope leads:unmask"),
    ],
)
def test_unmasking_needs_the_scope(token: dict[str, Any] | None, told: str, service: RunningService) -> None:
    create(service, **SECRET)
    env = {} if token is None else {"LEADKEEP_TOKEN": service.token(**token)}
    done = service.leadkeep_here("export", "--format", "json", "--unmask", env=env)
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stdout == ""


def test_fields_are_revealed_to_who_has_their_scope(service: RunningService, database: TestDatabase) -> None:
    create(service, **SECRET)
    env = {"LEADKEEP_TOKEN": service.token("agent")}
    (lead,) = exported_json(service.leadkeep_here("export", "--format", "json", "--reveal", "phone", env=env))
    assert lead["phone"] == SECRET["phone"]
    assert {"nid", "address"} <= set(lead["masked_fields"])
    assert value_of(database.admin_url, "SELECT fields FROM access_record WHERE operation = 'export'") == ["phone"]
    done = service.leadkeep_here("export", "--format", "json", "--reveal", "phone,nid", env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert "lacks the scope leads:unmask:nid" in done.stderr


def test_a_token_that_is_not_valid_is_refused(service: RunningService) -> None:
    done = service.leadkeep_here("export", "--format", "json", "--unmask", env={"LEADKEEP_TOKEN": "nonsense"})
    assert done.returncode == 1
    assert done.stdout == ""


def test_a_token_may_come_from_a_file_of_its_owner(service: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(service.token())
    path.chmod(0o600)
    assert service.leadkeep_here("export", "--format", "json", "--unmask", "--token-file", str(path)).returncode == 0
    path.chmod(0o644)
    done = service.leadkeep_here("export", "--format", "json", "--unmask", "--token-file", str(path))
    assert done.returncode == 1
    assert "chmod 600" in done.stderr


def test_a_file_is_readable_by_its_owner_only(service: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert service.leadkeep_here("export", "--format", "json", "--output", str(path)).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == []


def test_a_file_is_replaced_only_when_asked(service: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("mine")
    done = service.leadkeep_here("export", "--format", "json", "--output", str(path))
    assert done.returncode == 1
    assert path.read_text() == "mine"
    assert service.leadkeep_here("export", "--format", "json", "--output", str(path), "--force").returncode == 0
    assert path.read_text() != "mine"


def test_a_full_disk_is_told(service: RunningService) -> None:
    create(service)
    with Path("/dev/full").open("w") as full:
        running = service.begin("export", "--format", "json", stdout=full, stderr=subprocess.PIPE)
        _, told = running.communicate()
    assert (running.returncode, told) == (
        1,
        b"leadkeep: standard output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_ended_leaves_nothing(
    how: signal.Signals, service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    create(service)
    with psycopg.connect(database.admin_url) as blocking:
        blocking.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
        running = service.begin("export", "--format", "json", "--output", str(tmp_path / "out"))
        assert eventually(lambda: any(tmp_path.glob(".out*")), within=20)
        running.send_signal(how)
        blocking.rollback()
        assert running.wait(20) == INTERRUPTED
    assert list(tmp_path.glob("*out*")) + list(tmp_path.glob(".out*")) == []


def test_a_folder_that_is_not_there_is_told(service: RunningService, tmp_path: Path) -> None:
    done = service.leadkeep_here("export", "--format", "json", "--output", str(tmp_path / "none" / "out.json"))
    assert done.returncode == 1
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 4),
        (["--from", "2026-03-29", "--to", "2026-03-29"], 2),
        (["--from", "2026-03-30"], 1),
        (["--to", "2026-03-28"], 1),
        (["--from", "0001-01-01", "--to", "9999-12-31"], 4),
        (["--from", "9999-12-31"], 0),
        (["--to", "0001-01-01"], 0),
    ],
)
def test_days_are_half_open_in_their_zone(
    arguments: list[str], count: int, service: RunningService, database: TestDatabase
) -> None:
    for moment in ("2026-03-28T22:59:59.9Z", "2026-03-28T23:00Z", "2026-03-29T21:59:59.9Z", "2026-03-29T22:00Z"):
        created = create(service)
        execute(database.admin_url, f"UPDATE lead SET created_at = '{moment}' WHERE id = '{created}'")
    zone = {"LEADKEEP_FILES_TIMEZONE": "Europe/Berlin"}
    done = service.leadkeep_here("export", "--format", "json", *arguments, env=zone)
    assert len(exported_json(done)) == count


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "xml"],
        [],
        ["--format", "json", "--from", "yesterday"],
        ["--format", "json", "--from", "2026-02-02", "--to", "2026-02-01"],
    ],
)
def test_wrong_usage_is_told(arguments: list[str], service: RunningService) -> None:
    assert service.leadkeep_here("export", *arguments).returncode == 2


def test_a_field_that_cannot_be_opened_stops_nothing(service: RunningService, database: TestDatabase) -> None:
    broken, whole = create(service), create(service)
    execute(database.admin_url, f"UPDATE lead SET phone = nid WHERE id = '{broken}'")
    done = service.leadkeep_here("export", "--format", "json")
    assert done.returncode == SOME_UNREADABLE
    leads = {lead["id"]: lead for lead in json.loads(done.stdout)}
    assert leads[broken]["unreadable_fields"] == ["phone"]
    assert leads[whole]["unreadable_fields"] == []
    assert "1 leads have fields that cannot be opened" in done.stderr


def peak_megabytes(service: RunningService, output: Path) -> float:
    running, peak = service.begin("export", "--format", "json", "--output", str(output)), 0.0
    while running.poll() is None:
        peak = max(peak, family_megabytes(running.pid))
        time.sleep(0.1)  # all processes of the machine are looked through each time
    assert running.returncode in (0, SOME_UNREADABLE)
    return peak


def copies(database: TestDatabase, number: int) -> None:
    """Copy the one lead that there is; its tokens do not open in the copies."""
    execute(
        database.admin_url,
        f"""INSERT INTO lead (id, name, phone, nid, address, interested_policy, notes, phone_index, nid_index,
            created_by, content_digest)
            SELECT gen_random_uuid(), name, phone, nid, address, interested_policy, notes, sha256(('p' || i)::bytea),
            sha256(('n' || i)::bytea), created_by, content_digest
            FROM (SELECT * FROM lead LIMIT 1) one, generate_series(1, {number}) i ON CONFLICT DO NOTHING""",
    )


def test_memory_does_not_grow_with_the_leads(service: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    create(service, notes="x" * 3000)
    copies(database, 500)
    small = peak_megabytes(service, tmp_path / "small.json")
    copies(database, 6_000)
    large = peak_megabytes(service, tmp_path / "large.json")
    assert (tmp_path / "large.json").stat().st_size > 2_500_000
    assert large < small + 15
