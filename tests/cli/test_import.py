"""`leadkeep import`: what goes in, what is told, and that repeating is harmless."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import stat
import subprocess
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.cli.command import INTERRUPTED, NOT_ALL_IMPORTED
from service.files.daily_file import FileStorageService
from service.storage.daily.daily_leads import DailyLeads, Days
from tests.harness import histories
from tests.harness.daily_files import file_of, soon_in
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually, family_megabytes, remove_embedded_database
from tests.harness.running_service import RunningService

COLUMNS = ["name", "phone", "nid", "address", "interested_policy", "email", "notes"]


@pytest.fixture
def operator(database: TestDatabase, tmp_path: Path) -> RunningService:
    """An operator with a database in which no service has run yet."""
    return RunningService(tmp_path / "leadkeep", database_url=database.serve_url)


def person(number: int, **changed: str) -> dict[str, str]:
    made_up = {
        "name": f"Person {number}",
        "phone": f"+88017{number:08d}",
        "nid": f"19{number:011d}",
        "address": f"{number} Lake Road",
        "interested_policy": "Term Life",
        "email": f"person{number}@example.com",
        "notes": "",
    }
    return made_up | changed


def csv_file(folder: Path, rows: list[dict[str, str]], name: str = "leads.csv") -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def results_of(path: Path) -> list[dict[str, str]]:
    with path.with_name(path.name + ".results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count(database: TestDatabase, table: str = "lead") -> int:
    return int(str(value_of(database.admin_url, f"SELECT count(*) FROM {table}")))


def test_every_row_of_a_csv_becomes_a_lead(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    path = csv_file(tmp_path, [person(n) for n in range(1200)])
    done = operator.leadkeep("import", str(path))
    assert done.returncode == 0, done.stderr
    assert "1200 saved" in done.stdout
    assert count(database) == 1200
    assert [each["result"] for each in results_of(path)] == ["saved"] * 1200


def test_an_imported_lead_can_be_read_in_clear(operator: RunningService, tmp_path: Path) -> None:
    values = person(1, name='"Quoted" \\ রহিমা \U0001f600 \U0001000f', address="two\nlines", notes="=1+1")
    path = csv_file(tmp_path, [values])
    assert operator.leadkeep_here("import", str(path)).returncode == 0
    (result,) = results_of(path)
    operator.start()
    lead = operator.get(result["lead_id"])
    operator.stop()
    assert {name: getattr(lead, name) for name in COLUMNS} == values
    assert lead.status == pb.LEAD_STATUS_NEW


def test_json_is_imported_too(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text(json.dumps([person(n) for n in range(3)], indent=2))
    assert operator.leadkeep_here("import", str(path)).returncode == 0
    assert count(database) == 3


def test_importing_again_changes_nothing(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    path = csv_file(tmp_path, [person(n) for n in range(10)])
    operator.leadkeep_here("import", str(path))
    before = table_lines(database)
    done = operator.leadkeep_here("import", str(path))
    assert done.returncode == 0
    assert "10 saved before" in done.stdout
    assert table_lines(database) == before


def test_a_bad_row_costs_only_itself_and_is_told_without_its_value(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    rows = [person(1), person(2, phone="secret-phone", email="secret-mail"), person(3)]
    path = csv_file(tmp_path, rows)
    done = operator.leadkeep("import", str(path))
    assert done.returncode == NOT_ALL_IMPORTED
    assert count(database) == 2
    (_, bad, _) = results_of(path)
    assert bad["result"] == "invalid"
    assert "phone" in bad["detail"]
    assert "email" in bad["detail"]
    told = done.stdout + done.stderr + path.with_name("leads.csv.results.csv").read_text()
    assert "secret" not in told


def test_rejects_can_be_corrected_and_imported_again(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, [person(1), person(2, phone="12")])
    operator.leadkeep_here("import", str(path))
    rejects = path.with_name("leads.csv.rejects.csv")
    assert stat.S_IMODE(rejects.stat().st_mode) == 0o600
    assert rejects.read_text().startswith('"leadkeep_reason",')
    rejects.write_text(rejects.read_text().replace('"12"', '"+8801700000002"'))
    done = operator.leadkeep_here("import", str(rejects))
    assert done.returncode == 0, done.stdout + done.stderr
    assert count(database) == 2


def test_rejects_hold_no_formula_and_come_back_as_they_were(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    rows = [person(1, phone="12", notes="=HYPERLINK(1)", address="x;=1+1"), person(2, phone="12", notes="'=2+2")]
    path = csv_file(tmp_path, rows)
    path.write_text(path.read_text().replace("notes", "notes,=cmd").replace("(1)", "(1),@x").replace("2+2", "2+2,y"))
    assert operator.leadkeep_here("import", str(path)).returncode == NOT_ALL_IMPORTED
    rejects = path.with_name("leads.csv.rejects.csv")
    with rejects.open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert [cell for row in found for cell in row if cell.startswith(("=", "+", "-", "@"))] == []
    assert '"x;=1+1"' in rejects.read_text()
    rejects.write_text(rejects.read_text().replace('"12"', '"+8801700000001"', 1).replace('"12"', '"+8801700000002"'))
    done = operator.leadkeep_here("import", str(rejects))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "columns are not imported: =cmd" in done.stderr
    operator.start()
    leads = operator.call("ListLeads", pb.ListLeadsRequest(view=pb.LEAD_VIEW_FULL)).leads
    operator.stop()
    assert {lead.notes for lead in leads} == {"=HYPERLINK(1)", "=2+2"}


def test_headers_of_a_file_command_no_terminal(operator: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "leads.csv"
    path.write_text('name,"\x1b[2J\nleadkeep: all is well"\nx,y\n')
    done = operator.leadkeep_here("import", str(path))
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 1
    path.write_text(",".join([*COLUMNS, '"\x9b2J\nleadkeep: all is well"']) + "\n")
    done = operator.leadkeep_here("import", str(path))
    assert done.returncode == 0
    assert "\x9b" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_json_rejects_can_be_imported_again(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text(json.dumps([person(1, phone="12")]))
    operator.leadkeep_here("import", str(path))
    rejects = tmp_path / "leads.json.rejects.jsonl"
    (reject,) = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert "phone" in reject["leadkeep_reason"]
    rejects.write_text(rejects.read_text().replace('"12"', '"+8801700000001"'))
    assert operator.leadkeep_here("import", str(rejects)).returncode == 0
    assert count(database) == 1


def test_a_duplicate_is_told_with_the_lead_that_it_met(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    first = csv_file(tmp_path, [person(1)], "first.csv")
    second = csv_file(tmp_path, [person(1, name="Other Name"), person(2, nid=person(1)["nid"])], "second.csv")
    operator.leadkeep_here("import", str(first))
    done = operator.leadkeep_here("import", str(second))
    assert done.returncode == 0
    lead_id = results_of(first)[0]["lead_id"]
    assert [(each["result"], each["lead_id"], each["detail"]) for each in results_of(second)] == [
        ("duplicate", lead_id, "phone and nid"),
        ("duplicate", lead_id, "nid"),
    ]
    assert count(database) == 1


def test_of_two_equal_rows_the_first_is_the_lead(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, [person(1), person(1), person(1, name="Third")])
    operator.leadkeep_here("import", str(path))
    assert [each["result"] for each in results_of(path)] == ["saved", "saved before", "duplicate"]
    assert value_of(database.admin_url, "SELECT name FROM lead") == "Person 1"


def test_a_duplicate_is_kept_with_its_lead_once(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, [person(1), person(1, name="Again")])
    operator.leadkeep_here("import", str(path))
    operator.leadkeep_here("import", str(path))
    assert count(database, "resubmission") == 1
    assert value_of(database.admin_url, "SELECT resubmissions FROM lead") == 1


def test_a_file_of_duplicates_is_imported_as_any_other(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    operator.leadkeep_here("import", str(csv_file(tmp_path, [person(n) for n in range(1000)], "first.csv")))
    again = [person(n, name=f"Again {n}") for n in range(1000)] + [person(7, name=f"Often {n}") for n in range(50)]
    path = csv_file(tmp_path, again)
    done = operator.leadkeep_here("import", "--json", str(path))
    (summary,) = json.loads(done.stdout)
    assert (done.returncode, summary["duplicate"]) == (0, 1050)
    assert summary["seconds"] < 60  # a statement for each took longer than the database may take for a transaction
    assert count(database, "resubmission") == 1050
    counted = "SELECT resubmissions FROM lead WHERE name = 'Person 7'"
    assert value_of(database.admin_url, counted) == 51
    kept = "SELECT string_agg(name, ' ' ORDER BY submission_id) FROM resubmission WHERE name LIKE 'Often%'"
    assert str(value_of(database.admin_url, kept)).split()[1::2] == [str(n) for n in range(50)]


def test_two_imports_of_one_file_at_once_store_nothing_twice(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, [person(n) for n in range(3000)])
    running = [begun(operator, path) for _ in range(2)]
    told = [each.communicate(timeout=60) for each in running]
    assert [each.returncode for each in running] == [0, 0], told
    assert count(database) == 3000
    assert {each["result"] for each in results_of(path)} <= {"saved", "saved before"}
    assert len(results_of(path)) == 3000


def test_a_dry_run_changes_nothing(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    path = csv_file(tmp_path, [person(1), person(2, phone="12")])
    before = table_lines(database)
    done = operator.leadkeep_here("import", "--dry-run", str(path))
    assert done.returncode == NOT_ALL_IMPORTED
    assert [each["result"] for each in results_of(path)] == ["saved", "invalid"]
    assert table_lines(database) == before
    assert count(database, "key_canary") == 0


def test_a_dry_run_finds_duplicates(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    operator.leadkeep_here("import", str(csv_file(tmp_path, [person(1)], "first.csv")))
    path = csv_file(tmp_path, [person(1, name="Other")])
    operator.leadkeep_here("import", "--dry-run", str(path))
    assert [each["result"] for each in results_of(path)] == ["duplicate"]
    assert count(database, "resubmission") == 0


def test_columns_can_be_named(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    path = tmp_path / "crm.csv"
    path.write_text("Kunde;Handy;Ausweis;Anschrift;Produkt;Schuhe\nRahima;+8801712345678;1990;1 Lake Road;Term;42\n")
    named = {
        "Kunde": "name",
        "Handy": "phone",
        "Ausweis": "nid",
        "Anschrift": "address",
        "Produkt": "interested_policy",
    }
    maps = [part for header, field in named.items() for part in ("--map", f"{header}={field}")]
    done = operator.leadkeep_here("import", *maps, str(path))
    assert done.returncode == 0, done.stderr
    assert "not imported: Schuhe" in done.stderr
    assert count(database) == 1


def test_the_summary_can_be_json(operator: RunningService, tmp_path: Path) -> None:
    path = csv_file(tmp_path, [person(1), person(2, phone="12")])
    (summary,) = json.loads(operator.leadkeep_here("import", "--json", str(path)).stdout)
    assert (summary["rows"], summary["saved"], summary["invalid"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.csv"], "cannot be read"),
        (["leads.csv", "--results", "leads.csv"], "files of their own"),
        (["leads.csv", "--rejects", "other.txt", "--results", "other.txt"], "files of their own"),
        (["leads.csv", "--results", "other.txt"], "no report of an import"),
        (["leads.csv", "--results", "/dev/full"], "is no file"),
        (["leads.csv", "--map", "x=nid"], "does not have"),
        (["other.txt"], "no column for"),
    ],
)
def test_what_cannot_be_imported_is_told(
    arguments: list[str], told: str, operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    csv_file(tmp_path, [person(1)])
    (tmp_path / "other.txt").write_text("hello\n")
    done = operator.leadkeep_here("import", *arguments)
    assert done.returncode == 1
    assert told in done.stderr
    assert count(database) == 0
    assert (tmp_path / "other.txt").read_text() == "hello\n"


def test_another_keyring_is_refused(operator: RunningService, tmp_path: Path, database: TestDatabase) -> None:
    path = csv_file(tmp_path, [person(1)])
    operator.leadkeep_here("import", str(path))
    stranger = RunningService(tmp_path / "stranger", database_url=database.serve_url)
    done = stranger.leadkeep_here("import", str(path))
    assert done.returncode == 1
    assert "keyring is not the one" in done.stderr


def begun(operator: RunningService, path: Path) -> subprocess.Popen[bytes]:
    return operator.begin("import", str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_import_that_was_interrupted_is_repeated_and_nothing_is_there_twice(
    how: signal.Signals, operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, [person(n) for n in range(4000)])
    execute(
        database.admin_url,
        """CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$""",
        "CREATE TRIGGER take_time BEFORE INSERT ON lead FOR EACH ROW EXECUTE FUNCTION take_time()",
    )
    running = begun(operator, path)
    assert eventually(lambda: count(database) > 500, within=60)
    running.send_signal(how)
    running.communicate(timeout=60)
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert eventually(lambda: value_of(database.admin_url, others) == 0, within=30), "a last commit may be under way"
    execute(database.admin_url, "DROP TRIGGER take_time ON lead")
    kept = count(database)
    assert kept < 4000
    if how is not signal.SIGKILL:
        assert running.returncode == INTERRUPTED
        assert len(results_of(path)) == kept
    done = operator.leadkeep("import", str(path))
    assert done.returncode == 0
    assert count(database) == 4000
    told = [each["result"] for each in results_of(path)]
    assert told.count("saved before") == kept
    assert told.count("saved") == 4000 - kept


def test_memory_does_not_grow_with_the_file(operator: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    path = csv_file(tmp_path, [person(n, notes="x" * 4000) for n in range(16_000)])
    # Fewer than some 6,000 do not fill the batches that are on their way. Then 36 MB are read, and 50 MB are sealed.
    small, large = 0.0, 0.0
    running = begun(operator, path)
    while running.poll() is None:
        is_small = count(database) < 7_000
        megabytes = family_megabytes(running.pid)
        small, large = (max(small, megabytes), large) if is_small else (small, max(large, megabytes))
        time.sleep(0.1)
    assert running.returncode == 0
    assert small > 0
    assert 0 < large < small + 20


# Daily files

TABLES = ("lead", "lead_event", "lead_conversation", "resubmission", "lead_alias")


def table_lines(database: TestDatabase, server: TestServer | None = None) -> dict[str, list[str]]:
    with psycopg.connect(database.admin_url) as connection:
        return {
            table: sorted(row[0] for row in connection.execute(f"SELECT t::text FROM {table} t".encode()))
            for table in TABLES
        }


OWN_NUMBERS = (
    "SELECT (lead_id, submission_id, conversation_id, conversation_index, linked_at)::text FROM lead_conversation",
    """SELECT (lead_id, row_number() OVER (PARTITION BY lead_id ORDER BY version, id), version, type, actor, reason,
        fields, from_status, to_status, from_assignee, to_assignee, at)::text FROM lead_event""",
)
"""Rows that each database numbers itself, without those numbers."""


def dumped(server: TestServer, database: TestDatabase) -> list[str]:
    """What pg_dump writes of leads, and their links and histories; the rows in an order of their own."""
    chosen = [part for table in ("lead", "resubmission", "lead_alias") for part in ("--table", table)]
    program = str(server.postgres.bin_dir / "pg_dump")
    command = [program, "--data-only", *chosen, "--dbname", database.admin_url]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    with psycopg.connect(database.admin_url) as connection:
        lines = [row[0] for query in OWN_NUMBERS for row in connection.execute(query.encode())]
    # pg_dump 18 guards its scripts with a random word.
    return sorted([*lines, *(line for line in text.splitlines() if not re.match(r"\\(un)?restrict ", line))])


@dataclass(frozen=True)
class Source:
    """A service that has stopped, with leads that have seen everything, on two days."""

    service: RunningService
    database: TestDatabase
    rendered: list[Path]

    def files(self, folder: Path) -> list[Path]:
        """Copies of its daily files, which a test may damage."""
        return [Path(shutil.copy(path, folder)) for path in self.rendered]


@pytest.fixture(scope="module")
def source(postgres_server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Source:
    database = postgres_server.fresh_database()
    folder = tmp_path_factory.mktemp("source") / "leadkeep"
    service = RunningService(folder, database_url=database.serve_url).start()
    with service.channel() as channel:
        stub, metadata = service.stub(channel), service.metadata()
        ids = []
        for number in range(30):
            name = f'"{number}" \\ \n রহিমা \U0001f600'.replace("\n", "")
            lead = somebody(name=name, conversation_id=f"chat-{number}", address='1 "Lake"\n\\Road')
            ids.append(stub.CreateLead(pb.CreateLeadRequest(lead=lead, request_id=f"r-{number}"), metadata=metadata).id)
            again = pb.Lead()
            again.CopyFrom(lead)
            again.conversation_id = f"later-{number}"
            if number % 3 == 0:
                with pytest.raises(Exception, match="ALREADY_EXISTS"):
                    stub.CreateLead(pb.CreateLeadRequest(lead=again), metadata=metadata)
        for lead_id in ids[::2]:
            moved = pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED, reason='said "yes"\n')
            stub.UpdateStatus(moved, metadata=metadata)
            stub.AssignLead(pb.AssignLeadRequest(id=lead_id, assignee="rahima"), metadata=metadata)
        correction = pb.UpdateLeadRequest(lead=pb.Lead(id=ids[0], phone="+8801999999999"))
        correction.update_mask.paths.append("phone")
        stub.UpdateLead(correction, metadata=metadata)
    execute(
        database.admin_url,
        f"INSERT INTO lead_alias (id, lead_id, created_by) VALUES (gen_random_uuid(), '{ids[1]}', 'chatbot')",
        f"UPDATE lead SET created_at = '2026-03-29T10:00:00.123456Z' WHERE id IN ('{ids[3]}', '{ids[4]}')",
        "UPDATE lead_event SET at = created_at FROM lead WHERE lead.id = lead_id AND type = 1",
    )
    service.stop()
    return Source(service, database, files_in(service, database))


def files_in(service: RunningService, database: TestDatabase) -> list[Path]:
    days = Days("UTC")
    leads = DailyLeads(database.serve_url, days)
    files = FileStorageService(service.data_dir.parent / "rendered", days, leads)
    files.make_folder()
    for day in leads.days_with_leads():
        files.render(day, settles=False)
    leads.close()
    return [files.path(day) for day in files.days_on_disk()]


@pytest.fixture
def target(postgres_server: TestServer) -> TestDatabase:
    """An empty database."""
    return postgres_server.fresh_database()


@pytest.fixture
def elsewhere(source: Source, target: TestDatabase, tmp_path: Path) -> RunningService:
    """An operator with the target and the keyring of the source."""
    keyring = {"LEADKEEP_KEYRING": str(source.service.data_dir / "keyring.json")}
    return RunningService(tmp_path / "target", database_url=target.serve_url, settings=keyring)


def test_daily_files_bring_everything_back(
    source: Source, elsewhere: RunningService, target: TestDatabase, postgres_server: TestServer, tmp_path: Path
) -> None:
    files = [str(path) for path in source.files(tmp_path)]
    done = elsewhere.leadkeep("import", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert dumped(postgres_server, target) == dumped(postgres_server, source.database)
    again = elsewhere.leadkeep("import", *files)
    assert again.returncode == 0
    assert "saved before" in again.stdout
    assert dumped(postgres_server, target) == dumped(postgres_server, source.database)


def test_a_lead_that_was_changed_before_it_was_created_was_changed_when_it_was_created(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    """Lists take for granted that none was changed sooner; files of an earlier release may hold one."""
    [path] = [each for each in source.files(tmp_path) if "2026-03-29" in each.name]
    path.write_text(re.sub(r'("updated_at": *)"[^"]*"', r'\1"2026-03-29T09:59:00+00:00"', path.read_text()))
    elsewhere.leadkeep_here("import", str(path))
    assert value_of(target.admin_url, "SELECT json_agg(updated_at = created_at) FROM lead") == [True, True]


def test_daily_files_go_into_a_new_embedded_service(source: Source, tmp_path: Path) -> None:
    target = RunningService(tmp_path / "embedded")
    files = [str(path) for path in source.files(tmp_path)]
    try:
        refused = target.leadkeep("import", *files)
        assert refused.returncode == 1
        assert "there is no database yet" in refused.stderr
        target.data_dir.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(source.service.data_dir / "keyring.json", target.data_dir)
        done = target.leadkeep("import", *files)
        assert done.returncode == 0, done.stderr
        assert target.leadkeep("doctor").returncode == 0
    finally:
        remove_embedded_database(target.data_dir)


def test_histories_go_on_after_an_import(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    elsewhere.leadkeep_here("import", *map(str, source.files(tmp_path)))
    lead_id = str(value_of(target.admin_url, "SELECT id FROM lead WHERE status = 'contacted' LIMIT 1"))
    elsewhere.start()
    moved = pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONVERTED)
    assert elsewhere.call("UpdateStatus", moved).lead.status == pb.LEAD_STATUS_CONVERTED
    elsewhere.stop()


def test_imported_leads_come_into_the_daily_files(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    elsewhere.leadkeep_here("import", *map(str, source.files(tmp_path)))
    day = date(2026, 3, 29)
    lead_id = str(value_of(target.admin_url, f"SELECT id FROM lead WHERE created_at < '{day}T12:00Z' LIMIT 1"))
    elsewhere.start()
    assert soon_in(file_of(elsewhere, day), lead_id)
    elsewhere.stop()


def test_histories_beside_others_keep_their_order(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, [person(77, phone="+8801600000077", nid="another 77")])
    assert elsewhere.leadkeep_here("import", str(path)).returncode == 0
    done = elsewhere.leadkeep_here("import", *map(str, source.files(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert count(target, "lead_event") == count(source.database, "lead_event") + 1
    assert value_of(target.admin_url, "SELECT count(*) = count(DISTINCT id) FROM lead_event")
    assert value_of(target.admin_url, histories.WRONG) == 0


def changed_file(path: Path, *changes: Any) -> None:
    """Change the first leads of a file, each by one of the changes."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, change in enumerate(changes, start=2):
        lead = json.loads(lines[number].removesuffix(","))
        change(lead)
        lines[number] = json.dumps(lead) + ("," if lines[number].endswith(",") else "")
    path.write_text("\n".join(lines), encoding="utf-8")


def swap_token(lead: dict[str, Any]) -> None:
    lead["phone"], lead["address"] = lead["address"], lead["phone"]


DAMAGES = [
    (swap_token, "invalid"),
    (lambda lead: lead.update(id="01890a5d-ac96-774b-bcce-b302099a8057"), "invalid"),
    (lambda lead: lead.pop("version"), "invalid"),
    (lambda lead: lead.update(id="nonsense"), "invalid"),
    (lambda lead: lead.update(id=7), "invalid"),
    (lambda lead: lead.update(phone=None), "invalid"),
    (lambda lead: lead.update(version="2"), "invalid"),
    (lambda lead: lead["events"].append({"version": []}), "invalid"),
    (lambda lead: lead["kept_resubmissions"].append({}), "invalid"),
    (lambda lead: lead.update(name="\ud800"), "invalid"),
    (lambda lead: lead.update(name="\0"), "invalid"),
    (lambda lead: lead.update(name="Somebody Else"), "invalid"),
    (lambda lead: lead.update(status="lost"), "invalid"),
    (lambda lead: lead.update(created_at="yesterday or so"), "invalid"),
    (lambda lead: lead.update(created_at="infinity"), "invalid"),
    (lambda lead: lead.update(assignee="\033[2J"), "invalid"),
]


def test_a_damaged_lead_of_a_daily_file_costs_only_itself(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = source.files(tmp_path)[-1]
    changed_file(path, *(change for change, _ in DAMAGES))
    done = elsewhere.leadkeep_here("import", str(path))
    assert done.returncode == NOT_ALL_IMPORTED, done.stderr
    told = [each["result"] for each in results_of(path)]
    assert told == [result for _, result in DAMAGES] + ["saved"] * (len(told) - len(DAMAGES))
    assert count(target) == len(told) - len(DAMAGES) > 5


def leads_of(path: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["leads"]
    return listed


@pytest.mark.parametrize("known", ["of the file", "of the database", "its own", "a resubmission"])
def test_no_other_id_of_a_lead_may_be_anothers(
    known: str, source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = source.files(tmp_path)[-1]
    listed = leads_of(path)
    living, own = listed[-1]["id"], listed[0]["id"]
    if known == "of the database":
        only = source.files(tmp_path)[0]
        assert elsewhere.leadkeep_here("import", str(only)).returncode == 0
        living = leads_of(only)[0]["id"]
    if known == "a resubmission":
        living = next(each for lead in listed[1:] for each in lead["kept_resubmissions"])["submission_id"]
    before = count(target)
    alias = {"id": own if known == "its own" else living, "created_by": "c", "created_at": "2026-01-01T00:00:00+00:00"}
    changed_file(path, lambda lead: lead["aliases"].append(alias))
    done = elsewhere.leadkeep_here("import", str(path))
    assert done.returncode == NOT_ALL_IMPORTED
    assert [each["result"] for each in results_of(path)] == ["failed"] + ["saved"] * (len(listed) - 1)
    assert "belongs to another lead" in results_of(path)[0]["detail"]
    assert count(target) == before + len(listed) - 1
    assert value_of(target.admin_url, f"SELECT count(*) FROM lead_alias WHERE id = '{living}'") == 0
    is_a_lead = known != "a resubmission"
    assert value_of(target.admin_url, f"SELECT count(*) FROM lead WHERE id = '{living}'") == is_a_lead


@pytest.mark.parametrize("together", [True, False])
def test_a_resubmission_that_is_kept_with_two_leads_comes_back_with_both(
    together: bool, database: TestDatabase, target: TestDatabase, tmp_path: Path
) -> None:
    service = RunningService(tmp_path / "leadkeep", database_url=database.serve_url).start()
    first, second = somebody(), somebody()
    ids = [service.create(each, role="admin").id for each in (first, second)]
    with pytest.raises(Exception, match="ALREADY_EXISTS"):
        service.create(somebody(phone=first.phone, nid=second.nid), role="admin")
    service.stop()
    if not together:
        execute(database.admin_url, f"UPDATE lead SET created_at = '2026-03-29T10:00:00Z' WHERE id = '{ids[0]}'")
    files = files_in(service, database)
    keyring = {"LEADKEEP_KEYRING": str(service.data_dir / "keyring.json")}
    elsewhere = RunningService(tmp_path / "target", database_url=target.serve_url, settings=keyring)
    done = elsewhere.leadkeep_here("import", *map(str, files))
    assert done.returncode == 0, done.stdout + done.stderr
    assert count(target) == count(target, "resubmission") == 2
    assert value_of(target.admin_url, "SELECT count(DISTINCT submission_id) FROM resubmission") == 1


def test_an_alias_that_is_kept_with_its_lead_comes_back(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = source.files(tmp_path)[-1]
    kept = leads_of(path)[0]["kept_resubmissions"][0]
    alias = {"id": kept["submission_id"], "created_by": "c", "created_at": "2026-01-01T00:00:00+00:00"}
    changed_file(path, lambda lead: lead["aliases"].append(alias))
    done = elsewhere.leadkeep_here("import", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert value_of(target.admin_url, f"SELECT count(*) FROM lead_alias WHERE id = '{alias['id']}'") == 1


def as_a_lead(lead: dict[str, Any]) -> None:
    """Make of a lead what was refused and kept with it, which its tokens and its digest prove."""
    kept = lead["kept_resubmissions"].pop(0)
    lead |= {name: kept[name] for name in kept if name in lead}
    lead |= {"id": kept["submission_id"], "phone_shared": True, "nid_shared": True, "resubmissions": 0}
    lead |= {"conversations": [], "version": 1, "events": []}


@pytest.mark.parametrize("is_here", ["a resubmission", "a conflict"])
def test_no_lead_may_have_the_id_of_something_else_here(
    is_here: str, source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = source.files(tmp_path)[-1]
    whole, here = path.read_text(encoding="utf-8"), is_here == "a resubmission"
    changed_file(path, as_a_lead)
    forged = leads_of(path)[0]["id"]
    altered = path.read_text(encoding="utf-8")
    path.write_text(whole, encoding="utf-8")
    assert elsewhere.leadkeep_here("import", str(path)).returncode == 0
    assert value_of(target.admin_url, f"SELECT count(*) FROM resubmission WHERE submission_id = '{forged}'") == 1
    if not here:
        execute(
            target.admin_url,
            f"""INSERT INTO lead_conflict (id, name, phone, content_digest, created_by, accepted_at, phone_lead_id)
                SELECT submission_id, name, phone, content_digest, actor, now(), lead_id FROM resubmission
                WHERE submission_id = '{forged}'""",
            f"DELETE FROM resubmission WHERE submission_id = '{forged}'",
        )
    path.write_text(altered, encoding="utf-8")
    assert elsewhere.leadkeep_here("import", str(path)).returncode == NOT_ALL_IMPORTED
    assert results_of(path)[0]["result"] == "failed"
    assert "belongs to another lead" in results_of(path)[0]["detail"]
    assert value_of(target.admin_url, f"SELECT count(*) FROM lead WHERE id = '{forged}'") == 0


def test_a_lead_whose_id_leads_to_another_here_is_not_called_saved(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    first, last = (source.files(tmp_path)[number] for number in (0, -1))
    assert elsewhere.leadkeep_here("import", str(first)).returncode == 0
    taken = leads_of(last)[0]["id"]
    execute(
        target.admin_url,
        f"INSERT INTO lead_alias (id, lead_id, created_by) SELECT '{taken}', id, 'c' FROM lead LIMIT 1",
    )
    assert elsewhere.leadkeep_here("import", str(last)).returncode == NOT_ALL_IMPORTED
    assert results_of(last)[0]["result"] == "failed"


def test_a_lead_that_is_older_here_stays_as_it_is(source: Source, tmp_path: Path) -> None:
    path = source.files(tmp_path)[-1]
    changed_file(path, lambda lead: lead.update(version=lead["version"] + 1, name="Newer"))
    done = source.service.leadkeep_here("import", str(path))
    assert done.returncode == NOT_ALL_IMPORTED
    assert results_of(path)[0]["result"] == "older here"
    assert value_of(source.database.admin_url, "SELECT count(*) FROM lead WHERE name = 'Newer'") == 0


@pytest.mark.parametrize(("erased", "told"), [(False, "older here"), (True, "saved before")])
def test_a_resubmission_that_is_not_here_is_reported_unless_it_was_erased(
    source: Source, tmp_path: Path, erased: bool, told: str
) -> None:
    path, url = source.files(tmp_path)[-1], source.database.admin_url
    first = "(SELECT id FROM lead ORDER BY id LIMIT 1)"
    was = value_of(url, f"SELECT submission_id FROM resubmission WHERE lead_id = {first}")
    execute(url, f"UPDATE resubmission SET submission_id = gen_random_uuid() WHERE lead_id = {first}")
    if erased:
        execute(url, f"INSERT INTO tombstone (id, lead_id, erased_by) VALUES ('{was}', '{was}', 'boss')")
    source.service.leadkeep_here("import", str(path))
    execute(
        url,
        f"UPDATE resubmission SET submission_id = '{was}' WHERE lead_id = {first}",
        f"DELETE FROM tombstone WHERE id = '{was}'",
    )
    assert [each["result"] for each in results_of(path)][:2] == [told, "saved before"]


def test_a_lead_of_a_daily_file_that_meets_another_is_a_duplicate(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = source.files(tmp_path)[0]
    elsewhere.leadkeep_here("import", str(path))
    execute(target.admin_url, "DELETE FROM lead_conversation", "DELETE FROM resubmission", "DELETE FROM lead_alias")
    execute(target.admin_url, "DELETE FROM lead_event")
    execute(target.admin_url, "UPDATE lead SET id = gen_random_uuid()")
    elsewhere.leadkeep_here("import", str(path))
    assert {each["result"] for each in results_of(path)} == {"duplicate"}


def test_leads_that_share_with_one_that_is_not_restored_keep_duplicates_out(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = source.files(tmp_path)[0]
    changed_file(path, lambda lead: lead.update(phone_shared=True, nid_shared=True))
    done = elsewhere.leadkeep_here("import", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert value_of(target.admin_url, "SELECT count(*) FROM lead WHERE phone_shared OR nid_shared") == 0


def test_a_file_of_another_keyring_is_refused(source: Source, target: TestDatabase, tmp_path: Path) -> None:
    stranger = RunningService(tmp_path / "stranger", database_url=target.serve_url)
    done = stranger.leadkeep_here("import", *map(str, source.files(tmp_path)))
    assert done.returncode == 1
    assert "keys that this keyring does not have" in done.stderr
    assert count(target) == 0


def test_a_daily_file_that_was_cut_off_is_refused(
    source: Source, elsewhere: RunningService, target: TestDatabase, tmp_path: Path
) -> None:
    path = source.files(tmp_path)[-1]
    path.write_bytes(path.read_bytes()[:-1000])
    done = elsewhere.leadkeep_here("import", str(path))
    assert done.returncode == 1
    assert "not a whole daily file" in done.stderr
    assert count(target) == 0


def test_an_optional_value_that_cannot_be_read_costs_no_row_and_is_named(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, [person(1, email="N/A"), person(2, email="\\N", notes="a\x01b"), person(3)])

    done = operator.leadkeep("import", str(path))

    assert done.returncode == 0, done.stderr
    assert [(each["result"], each["detail"]) for each in results_of(path)] == [
        ("saved", "left out, because it cannot be read: email"),
        ("saved", "left out, because it cannot be read: email, notes"),
        ("saved", ""),
    ]


def test_placeholders_and_rewritten_numbers_of_a_file_are_refused_row_by_row(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    rows = [person(n, nid="unknown") for n in range(30)]
    rows += [person(30, phone="+8801811000011.0"), person(31, nid="8123456701.0"), person(32)]

    done = operator.leadkeep("import", str(csv_file(tmp_path, rows)))

    assert done.returncode == NOT_ALL_IMPORTED
    details = [each["detail"] for each in results_of(tmp_path / "leads.csv")]
    assert all(detail.startswith("nid is a placeholder") for detail in details[:30])
    assert details[30].startswith("phone was rewritten by a spreadsheet")
    assert details[31].startswith("nid was rewritten by a spreadsheet")
    assert count(database) == 1
