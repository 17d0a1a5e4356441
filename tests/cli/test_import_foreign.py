"""`leadkeep import` of files as platforms and spreadsheets write them: options, summary, exit codes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from service.cli.command import MANY_SHARING_ONE, NOT_ALL_IMPORTED
from service.importing.reports import MANY_SHARING
from tests.harness.faults import value_of
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService

HEADER = "name,phone,nid,address,interested_policy,email"


@pytest.fixture
def operator(database: TestDatabase, tmp_path: Path) -> RunningService:
    return RunningService(tmp_path / "leadkeep", database_url=database.serve_url)


def row(number: int, *, phone: int | None = None, nid: int | None = None) -> str:
    phone, nid = (number if shared is None else shared for shared in (phone, nid))
    return f"Person {number},+88017{phone:08d},19{nid:011d},{number} Lake Road,Term,"


def written(folder: Path, rows: list[str], name: str = "leads.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([HEADER, *rows, ""]))
    return path


def results_of(path: Path) -> list[dict[str, str]]:
    with path.with_name(path.name + ".results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("shared", ["phone", "nid"])
def test_many_rows_that_share_with_one_lead_are_said_in_summary_and_exit_code(
    shared: str, operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = written(tmp_path, [row(n, **{shared: 0}) for n in range(45)])
    for _ in range(2):  # a repetition says it too
        done = operator.leadkeep_here("import", "--json", str(path))
        (summary,) = json.loads(done.stdout)
        first, *others = results_of(path)
        assert done.returncode == MANY_SHARING_ONE
        assert summary["shared_by_many"] == {first["lead_id"]: 44}
        assert {(each["result"], each["lead_id"]) for each in others} == {("duplicate", first["lead_id"])}
        assert int(str(value_of(database.admin_url, "SELECT resubmissions FROM lead"))) >= 44
    done = operator.leadkeep_here("import", str(path))
    assert f"44 rows share only the phone or only the nid of lead {first['lead_id']}" in done.stdout


def test_some_duplicates_and_one_person_many_times_are_no_fault(operator: RunningService, tmp_path: Path) -> None:
    family = [row(n, phone=0) for n in range(MANY_SHARING)]
    same_person = [row(100).replace("100 Lake", f"{n} Lake") for n in range(30)]
    done = operator.leadkeep_here("import", "--json", str(written(tmp_path, [*family, *same_person])))
    (summary,) = json.loads(done.stdout)
    assert (done.returncode, summary["duplicate"], summary["shared_by_many"]) == (0, MANY_SHARING - 1 + 29, {})


def test_rows_that_could_not_be_imported_count_first(operator: RunningService, tmp_path: Path) -> None:
    path = written(tmp_path, [*(row(n, phone=0) for n in range(20)), "No phone,,1990,1 Lake Road,Term,"])
    assert operator.leadkeep_here("import", str(path)).returncode == NOT_ALL_IMPORTED


def test_a_file_in_another_encoding_is_imported_whole_or_not_at_all(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = tmp_path / "leads.csv"
    content = f"{HEADER.replace('name', 'Título')}\n{row(1)}\n{row(2).replace('Person', 'José')}\nbad,12,,,,\n"
    path.write_bytes(content.encode("cp1252"))
    refused = operator.leadkeep_here("import", "--map", "Título=name", str(path))
    assert refused.returncode == 1
    assert "--encoding cp1252" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert value_of(database.admin_url, "SELECT count(*) FROM lead") == 0

    arguments = ["--encoding", "cp1252", "--map", "título=name"]
    done = operator.leadkeep_here("import", *arguments, str(path))
    assert (done.returncode, [each["result"] for each in results_of(path)]) == (
        NOT_ALL_IMPORTED,
        ["saved", "saved", "invalid"],
    )
    assert value_of(database.admin_url, "SELECT name FROM lead ORDER BY name LIMIT 1") == "José 2"

    # The rejects are UTF-8, whatever the file was; the same arguments read them.
    rejects = tmp_path / "leads.csv.rejects.csv"
    rejects.write_text(rejects.read_text().replace('"bad"', '"Ångström"').replace('"12","","",""', row_cells(3)))
    assert operator.leadkeep_here("import", *arguments, str(rejects)).returncode == 0
    assert value_of(database.admin_url, "SELECT count(*) FROM lead WHERE name = 'Ångström'") == 1
    assert operator.leadkeep_here("import", *arguments, str(path)).returncode == NOT_ALL_IMPORTED


def row_cells(number: int) -> str:
    return ",".join(f'"{cell}"' for cell in row(number).split(",")[1:5])


def test_rejects_of_guarded_cells_can_be_imported_again(
    operator: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    path = written(tmp_path, ['Rahima,="12",="0190012345",1 Lake Road,Term,'])
    assert operator.leadkeep_here("import", str(path)).returncode == NOT_ALL_IMPORTED
    rejects = tmp_path / "leads.csv.rejects.csv"
    rejects.write_text(rejects.read_text().replace('"12"', '"+8801712345678"'))
    assert operator.leadkeep_here("import", str(rejects)).returncode == 0
    assert value_of(database.admin_url, "SELECT count(*) FROM lead") == 1


@pytest.mark.parametrize("written_as", ["tab", "\\t", "\t"])
def test_a_delimiter_can_be_insisted_on(written_as: str, operator: RunningService, tmp_path: Path) -> None:
    path = written(tmp_path, [row(1)])
    path.write_text(path.read_text().replace(",", "\t"))
    assert operator.leadkeep_here("import", "--delimiter", written_as, str(path)).returncode == 0
    done = operator.leadkeep_here("import", "--delimiter", ";", str(path))
    assert done.returncode == 1
    assert "no column for name" in done.stderr


@pytest.mark.parametrize("delimiter", ["", "ab", "x", '"', "\n"])
def test_what_cannot_delimit_is_refused(delimiter: str, operator: RunningService, tmp_path: Path) -> None:
    done = operator.leadkeep_here("import", "--delimiter", delimiter, str(written(tmp_path, [row(1)])))
    assert done.returncode == 2
    assert "--delimiter" in done.stderr


def test_json_goes_without_a_delimiter(operator: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text("[]")
    done = operator.leadkeep_here("import", "--delimiter", ";", str(path))
    assert (done.returncode, "goes without --delimiter" in done.stderr) == (1, True)
