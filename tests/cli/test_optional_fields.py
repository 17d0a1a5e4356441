"""Leads without national ID, address and policy in files, backups and under other keys. One life, in order."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from jsonschema import Draft202012Validator

import service
from service.lead import OPTIONAL_BY_SETTING
from tests.conftest import StartService
from tests.harness.daily_files import file_of, soon_in
from tests.harness.faults import conflict_with, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService

OPTIONAL = {"LEADKEEP_OPTIONAL_FIELDS": ",".join(OPTIONAL_BY_SETTING)}
SCHEMA = Path(service.__file__).parents[1] / "docs" / "daily-file.schema.json"


@dataclass
class Life:
    """A service that requires none of them, and its leads without them."""

    service: RunningService
    database: TestDatabase
    ids: list[str] = field(default_factory=list)

    def create(self, **fields: str) -> str:
        lead = somebody(source="web", **fields)
        for name in OPTIONAL_BY_SETTING:
            lead.ClearField(name)
        return self.service.create(lead, role="admin").id

    def run(self, *arguments: str) -> str:
        done = self.service.leadkeep(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def life(service_database: TestDatabase, start_shared: StartService) -> Life:
    settings = {**OPTIONAL, "LEADKEEP_ADMIN_DATABASE_URL": service_database.admin_url}
    life = Life(start_shared(database_url=service_database.serve_url, settings=settings), service_database)
    life.ids += [life.create() for _ in range(3)]
    return life


def elsewhere(life: Life, target: TestDatabase, **settings: str) -> RunningService:
    """An operator with another database, who requires all of them, and the same keyring."""
    given = {
        "LEADKEEP_KEYRING": str(life.service.data_dir / "keyring.json"),
        "LEADKEEP_ADMIN_DATABASE_URL": target.admin_url,
        **settings,
    }
    folder = life.service.data_dir.parent / target.serve_url.partition("?")[0].rpartition("/")[2]
    return RunningService(folder, database_url=target.serve_url, settings=given)


def columns(database: TestDatabase) -> object:
    """Of each lead: its id, name and what it has of the optional fields."""
    query = (
        f"SELECT json_agg(row_to_json(l) ORDER BY id) FROM (SELECT id, name, source, {', '.join(OPTIONAL_BY_SETTING)}"
    )
    return value_of(database.admin_url, f"{query}, nid_index, nid_index_2 FROM lead) l")


def test_the_daily_file_has_them_as_null_and_equals_the_database(life: Life) -> None:
    nothing: dict[str, Any] = dict.fromkeys(OPTIONAL_BY_SETTING)
    assert all(soon_in(file_of(life.service), lead_id, source="web", **nothing) for lead_id in life.ids)

    assert "equal: 3 leads, 3 in the database" in life.run("files", "verify")
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(file_of(life.service).read_text()))


def test_a_daily_file_is_put_back_where_they_are_required(life: Life, postgres_server: TestServer) -> None:
    target = postgres_server.fresh_database()
    operator = elsewhere(life, target)

    done = operator.leadkeep("import", str(file_of(life.service)))

    assert done.returncode == 0, done.stdout + done.stderr
    assert columns(target) == columns(life.database)
    postgres_server.drop(target)


def test_a_backup_brings_them_back(life: Life, postgres_server: TestServer, tmp_path: Path) -> None:
    target = postgres_server.empty_database()
    life.run("backup", str(tmp_path / "backup"))

    done = elsewhere(life, target).leadkeep("restore", str(tmp_path / "backup"))

    assert done.returncode == 0, done.stderr
    assert columns(target) == columns(life.database)
    postgres_server.drop(target)


def test_an_export_has_them_empty_and_is_imported_again(
    life: Life, postgres_server: TestServer, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(life.service.token())
    for kind in ("csv", "json"):
        target, path = postgres_server.fresh_database(), tmp_path / f"leads.{kind}"
        life.run(
            *("export", "--format", kind, "--unmask", "--token-file", str(token), "--reason", "x"),
            *("--output", str(path)),
        )
        shown = (
            json.loads(path.read_text())
            if kind == "json"
            else list(csv.DictReader(path.read_text("utf-8-sig").splitlines()))
        )
        assert [[each[name] for name in OPTIONAL_BY_SETTING] for each in shown] == [["", "", ""]] * 3

        done = elsewhere(life, target, **OPTIONAL).leadkeep("import", str(path))

        assert done.returncode == 0, done.stdout + done.stderr
        assert value_of(target.admin_url, "SELECT count(*) FROM lead WHERE nid IS NULL AND source = 'web'") == 3
        postgres_server.drop(target)


def test_a_csv_without_their_columns_is_imported_only_where_they_are_optional(
    life: Life, postgres_server: TestServer, tmp_path: Path
) -> None:
    target, path = postgres_server.fresh_database(), tmp_path / "leads.csv"
    path.write_text("name,phone,lead source\nRahima,+8801712345678,web\nKarim,+8801712345679,web\n")

    refused = elsewhere(life, target).leadkeep("import", str(path))
    assert refused.returncode == 1
    assert "no column for nid, address, interested_policy" in refused.stderr
    done = elsewhere(life, target, **OPTIONAL).leadkeep("import", str(path))

    assert done.returncode == 0, done.stdout + done.stderr
    assert value_of(target.admin_url, "SELECT count(*) FROM lead WHERE nid IS NULL AND source = 'web'") == 2
    postgres_server.drop(target)


def test_a_placeholder_in_a_row_is_left_out_and_named(life: Life, postgres_server: TestServer, tmp_path: Path) -> None:
    target, path = postgres_server.fresh_database(), tmp_path / "leads.json"
    rows: list[dict[str, Any]] = [{"name": "A", "phone": "+8801712345678", "nid": "not provided"}]
    rows += [{"name": "B", "phone": "+8801712345679", "nid": 1985123456789}]
    path.write_text(json.dumps(rows))

    elsewhere(life, target, **OPTIONAL).leadkeep("import", str(path))

    with path.with_name("leads.json.results.csv").open() as results:
        found = [(each["result"], each["detail"]) for each in csv.DictReader(results)]
    assert found[0] == ("saved", "left out, because it cannot be read: nid")
    assert (found[1][0], found[1][1].partition(":")[0]) == ("invalid", "nid must be a string, in quotes")
    postgres_server.drop(target)


def test_other_keys_seal_and_index_them(life: Life) -> None:
    for purpose in ("encryption", "index"):
        made = str(json.loads(life.run("keys", "add", "--purpose", purpose, "--json"))["id"])
        os.kill(life.service.pid, signal.SIGHUP)
        life.run("keys", "promote", made, "--timeout", "20s")
        os.kill(life.service.pid, signal.SIGHUP)

    life.run("keys", "reseal", "--timeout", "20s")
    reindexed = json.loads(life.run("keys", "reindex", "--timeout", "20s", "--json"))

    assert (reindexed["needed"], reindexed["leads"], reindexed["beside"]) == (True, 3, [])
    life.run("keys", "verify")
    nids = "SELECT count(*) FROM lead WHERE num_nonnulls(nid_index, nid_index_2) > 0"
    assert value_of(life.database.admin_url, nids) == 0
    assert life.create() not in life.ids


def test_a_conflict_is_shown_without_what_it_does_not_have(life: Life) -> None:
    phone = life.service.get(life.ids[0]).phone
    with pytest.raises(grpc.RpcError, match="ALREADY_EXISTS"):
        life.create(phone=phone)
    conflict_with(life.database.admin_url, life.ids[0])

    shown = life.run("conflicts", "list")

    assert "phone +880" in shown
    assert "nid" not in shown.replace("phone,nid", "")
    assert ", ," not in shown


def test_rows_of_one_file_without_an_id_are_compared_with_each_other_by_the_phone(
    life: Life, postgres_server: TestServer, tmp_path: Path
) -> None:
    target, path = postgres_server.fresh_database(), tmp_path / "leads.csv"
    first, again = "Rahima,+8801712345671,", "Karim,+8801712345671,"
    other = "Salma,+8801712345672,"
    path.write_text("\n".join(("name,phone,nid", first, again, f"{again}1985123456789", other, first)))

    done = elsewhere(life, target, **OPTIONAL).leadkeep("import", str(path))

    assert done.returncode == 0, done.stdout + done.stderr
    with path.with_name("leads.csv.results.csv").open() as results:
        found = [each["result"] for each in csv.DictReader(results)]
    assert found == ["saved", "duplicate", "duplicate", "saved", "saved before"]
    postgres_server.drop(target)
