"""`leadkeep files`: rendered, compared, shown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.files.daily_file import FileStorageService
from service.storage.daily.daily_leads import DailyLeads, Days
from service.validation import MASK
from tests.conftest import StartService
from tests.harness.daily_files import create, file_of, read, soon_in, today
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService

Stopped = tuple[RunningService, TestDatabase]

SECRET = {"phone": "+8801798765432", "nid": "1985120394857", "address": "47 Shapla", "email": "f@example.org"}
DAY = "2026-03-29"


def old_file(service: RunningService) -> Path:
    return service.data_dir / "files" / f"leads_{DAY}.json"


@pytest.fixture(scope="module")
def service(service: RunningService, service_database: TestDatabase) -> RunningService:
    """A service with a lead of today and one of an old day, both in their files."""
    old = create(service, **SECRET)
    execute(service_database.admin_url, f"UPDATE lead SET created_at = '{DAY}T10:00Z' WHERE id = '{old}'")
    # Last, so that today is rendered after the old lead has left it: a move touches only the day it leads to.
    new = create(service)
    assert soon_in(old_file(service), old)
    assert soon_in(file_of(service), new)
    assert old not in file_of(service).read_text()
    return service


@pytest.fixture(scope="module")
def once_running(postgres_server: TestServer, start_shared: StartService) -> Stopped:
    """A service that has stopped, with a lead of an old day."""
    database = postgres_server.fresh_database()
    service = start_shared("stopped", database_url=database.serve_url)
    lead = create(service, **SECRET)
    execute(database.admin_url, f"UPDATE lead SET created_at = '{DAY}T10:00Z'")
    assert soon_in(old_file(service), lead)
    service.stop()
    return service, database


@pytest.fixture
def stopped(once_running: Stopped) -> Iterator[Stopped]:
    """The same one for each test, which may change its file and its lead."""
    service, database = once_running
    leads = DailyLeads(database.serve_url, Days("UTC"))
    files = FileStorageService(service.data_dir / "files", Days("UTC"), leads)
    files.render(date.fromisoformat(DAY), settles=True)
    phone = value_of(database.admin_url, "SELECT phone FROM lead")
    yield service, database
    execute(database.admin_url, f"UPDATE lead SET name = 'Farzana', phone = '{phone}'")
    leads.close()


def test_every_day_is_equal(service: RunningService) -> None:
    done = service.leadkeep("files", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 files are equal to the database" in done.stdout


def test_a_comparison_can_be_json(service: RunningService) -> None:
    found = json.loads(service.leadkeep_here("files", "verify", "--json").stdout)
    assert [each["state"] for each in found] == ["equal", "equal"]
    assert [each["day"] for each in found] == [DAY, str(today())]


def different(path: Path) -> None:
    path.write_text(path.read_text().replace("Term Life", "Tern Life"))


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda path: path.unlink(), "missing"),
        (different, "different"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "damaged"),
    ],
)
def test_a_file_that_is_not_equal_is_found(change: object, state: str, stopped: Stopped) -> None:
    service, _ = stopped
    assert callable(change)
    change(old_file(service))
    done = service.leadkeep_here("files", "verify", "--day", DAY, "--json")
    assert done.returncode == 1
    assert [each["state"] for each in json.loads(done.stdout)] == [state]
    assert "leadkeep files render" in done.stderr


def test_a_change_that_no_service_rendered_is_behind(stopped: Stopped) -> None:
    service, database = stopped
    execute(database.admin_url, "UPDATE lead SET name = 'Changed'")
    done = service.leadkeep_here("files", "verify", "--day", DAY)
    assert "behind" in done.stdout
    service.leadkeep_here("files", "render")
    assert "equal" in service.leadkeep_here("files", "verify", "--day", DAY).stdout


def test_files_are_rendered_without_a_service(stopped: Stopped) -> None:
    service, _ = stopped
    for path in old_file(service).parent.glob("*.json"):
        path.unlink()
    done = service.leadkeep("files", "render")
    assert done.returncode == 0, done.stderr
    assert read(old_file(service))["lead_count"] == 1


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        (["--day", DAY], [DAY]),
        (["--to", "2026-04-01"], [DAY]),
        (["--from", "2026-03-28", "--to", "2026-03-30"], ["2026-03-28", DAY, "2026-03-30"]),
    ],
)
def test_days_can_be_chosen(arguments: list[str], rendered: list[str], service: RunningService) -> None:
    done = service.leadkeep_here("files", "render", "--json", *arguments)
    assert [each["day"] for each in json.loads(done.stdout)] == rendered


@pytest.mark.parametrize(
    "arguments",
    [
        ["--day", "today"],
        ["--day", DAY, "--from", DAY],
        ["--from", "2026-02-02", "--to", "2026-02-01"],
        ["--from", DAY, "--to", "9999-12-31"],
    ],
)
def test_days_that_make_no_sense_are_wrong_usage(arguments: list[str], service: RunningService) -> None:
    assert service.leadkeep_here("files", "render", *arguments).returncode == 2


def test_a_day_is_shown_masked(service: RunningService) -> None:
    done = service.leadkeep("files", "show", "--day", DAY)
    assert done.returncode == 0, done.stderr
    assert "+880•••32" in done.stdout
    assert [value for value in SECRET.values() if value in done.stdout] == []


@pytest.mark.parametrize("revealed", [(), ("--reveal", "email")])
def test_a_corrected_phone_is_not_shown_by_the_conversation(service: RunningService, revealed: tuple[str, ...]) -> None:
    former = somebody()
    former.conversation_id = f"whatsapp:{former.phone}"
    lead_id = service.create(former).id
    corrected = pb.Lead(id=lead_id, phone=somebody().phone)
    service.call("UpdateLead", pb.UpdateLeadRequest(lead=corrected))
    assert service.leadkeep_here("files", "render").returncode == 0
    day = file_of(service).stem.removeprefix("leads_")
    token = {"LEADKEEP_TOKEN": service.token()}
    for command in (("files", "show", "--day", day, "--json"), ("export", "--format", "json")):
        done = service.leadkeep_here(*command, *revealed, env=token)
        (shown,) = [lead for lead in json.loads(done.stdout) if lead["id"] == lead_id]
        assert shown["conversation_id"] == MASK


def test_a_day_can_be_shown_as_json(service: RunningService) -> None:
    (lead,) = json.loads(service.leadkeep_here("files", "show", "--day", DAY, "--json").stdout)
    assert lead["nid"] == "•••57"


def test_a_day_is_shown_in_clear_with_a_token_and_recorded(
    service: RunningService, service_database: TestDatabase
) -> None:
    arguments = ["files", "show", "--day", DAY, "--unmask", "--reason", "call back"]
    done = service.leadkeep_here(*arguments, env={"LEADKEEP_TOKEN": service.token(subject="rahima")})
    assert done.returncode == 0, done.stderr
    assert [value for value in SECRET.values() if value not in done.stdout] == []
    record = value_of(
        service_database.admin_url,
        "SELECT subject || ' | ' || operation || ' | ' || reason FROM access_record WHERE subject = 'rahima'",
    )
    assert record == f"rahima | files show | daily file of {DAY}: call back"


@pytest.mark.parametrize("role", [None, "agent", "chatbot"])
def test_a_day_is_not_shown_in_clear_without_the_scope(role: str | None, service: RunningService) -> None:
    env = {"LEADKEEP_TOKEN": service.token(role)} if role else {}
    done = service.leadkeep_here("files", "show", "--day", DAY, "--unmask", env=env)
    assert done.returncode == 1
    assert done.stdout == ""


def test_what_cannot_be_recorded_is_not_shown(service: RunningService, service_database: TestDatabase) -> None:
    execute(service_database.admin_url, "REVOKE INSERT ON access_record FROM leadkeep_app")
    done = service.leadkeep_here("files", "show", "--day", DAY, "--unmask", env={"LEADKEEP_TOKEN": service.token()})
    execute(service_database.admin_url, "GRANT INSERT ON access_record TO leadkeep_app")
    assert done.returncode == 1
    assert done.stdout == ""


def test_a_field_that_cannot_be_opened_is_shown_as_such(stopped: Stopped) -> None:
    service, database = stopped
    execute(database.admin_url, "UPDATE lead SET phone = nid")
    service.leadkeep_here("files", "render")
    done = service.leadkeep_here("files", "show", "--day", DAY)
    assert "(cannot be opened)" in done.stdout
    assert done.returncode == 5
    assert "1 leads have fields that cannot be opened" in done.stderr


def test_a_day_is_shown_in_clear_only_to_who_says_why_where_that_is_asked(service: RunningService) -> None:
    env = {"LEADKEEP_TOKEN": service.token(), "LEADKEEP_REASON_REQUIRED": "1"}
    arguments = ["files", "show", "--day", DAY, "--unmask"]
    refused = service.leadkeep_here(*arguments, env=env)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert service.leadkeep_here(*arguments, "--reason", "call back", env=env).returncode == 0


def test_a_day_without_a_file_is_told(service: RunningService) -> None:
    done = service.leadkeep_here("files", "show", "--day", "2020-01-01")
    assert done.returncode == 1
    assert "leads_2020-01-01.json" in done.stderr


@pytest.mark.parametrize("line", ["7", "[" * 100_000, '{"id": 7}', '{"id": "x", "phone": {}}', '{"a": 1, "a": 2}'])
def test_a_line_that_is_no_lead_is_damage(line: str, stopped: Stopped) -> None:
    service, _ = stopped
    path = old_file(service)
    first, second, *_ = path.read_text().split("\n")
    path.write_text("\n".join((first, second, line, "]}", "")))
    done = service.leadkeep_here("files", "show", "--day", DAY)
    assert done.returncode == 1
    assert "is damaged" in done.stderr


@pytest.mark.parametrize("what", ["pipe", "device", "count"])
def test_what_is_no_file_is_refused_and_not_waited_for(what: str, stopped: Stopped) -> None:
    service, _ = stopped
    path = old_file(service)
    content = path.read_text()
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text(content.replace('"lead_count":1,', '"lead_count":1e999,'))
    shown = service.leadkeep_here("files", "show", "--day", DAY)
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    compared = service.leadkeep_here("files", "verify", "--day", DAY)
    assert (compared.returncode, "damaged" in compared.stdout) == (1, True)
    path.unlink()


def test_a_terminal_is_not_commanded_by_a_file(stopped: Stopped) -> None:
    service, _ = stopped
    path = old_file(service)
    first, second, line, *rest = path.read_text().split("\n")
    lead = json.loads(line) | {"name": "a\x1b[2J\x9b\nforged"}
    path.write_text("\n".join((first, second, json.dumps(lead), *rest)))
    shown = service.leadkeep_here("files", "show", "--day", DAY).stdout
    assert not {"\x1b", "\x9b"} & set(shown)
    assert shown.count("\n") == 2
