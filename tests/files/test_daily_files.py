"""The daily files: always whole, always what the database holds."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jsonschema
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.files.daily_file import MEANINGS, DailyFileError, FileStorageService, content_of, read_header
from service.storage import models
from service.storage.daily.daily_leads import DailyLeads, DailyLeadsError, Days
from tests.conftest import StartService
from tests.harness.daily_files import create, file_of, leads_in, read, soon_in, store_lead, today
from tests.harness.faults import execute, value_of
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "daily-file.schema.json").read_text())
OLD_DAY = date(2026, 3, 29)
LEAD = UUID("01890a5d-ac96-774b-bcce-b302099a8057")

NOT_IN_FILES = {
    *("phone_index", "nid_index", "phone_index_2", "nid_index_2", "email_index", "index_epoch"),
    "resubmitted_at",
}
"""An import computes the blind indexes anew, and the moment of the last resubmission follows from the resubmissions."""


@pytest.fixture
def own_service(database: TestDatabase, start_service: StartService) -> RunningService:
    """A service that a test may stop."""
    return start_service(database_url=database.serve_url)


def validate(path: Path) -> None:
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(read(path))


# What is in it


def test_a_lead_is_soon_in_todays_file(service: RunningService) -> None:
    assert soon_in(file_of(service), create(service, conversation_id="chat-1"))


def test_a_file_with_every_kind_of_history_matches_the_schema(service: RunningService) -> None:
    created = create(service, phone="+8801712345678", conversation_id="chat-1")
    with service.channel() as channel:
        stub, metadata = service.stub(channel), service.metadata()
        with pytest.raises(Exception, match="ALREADY_EXISTS"):
            create(service, phone="+8801712345678")
        stub.UpdateStatus(pb.UpdateStatusRequest(id=created, status=pb.LEAD_STATUS_CONTACTED), metadata=metadata)
        stub.AssignLead(pb.AssignLeadRequest(id=created, assignee="rahima", reason="north"), metadata=metadata)
        stub.UpdateLead(pb.UpdateLeadRequest(lead=pb.Lead(id=created, name="Rahima")), metadata=metadata)
    assert soon_in(file_of(service), created, assignee="rahima", status="contacted", resubmissions=1, version=4)
    validate(file_of(service))
    lead = leads_in(file_of(service))[created]
    assert [each["conversation_id"] for each in lead["conversations"]] == [lead["conversation_id"]]
    assert [(each["type"], each["version"]) for each in lead["events"]] == [
        ("resubmitted", 1),
        ("status_changed", 2),
        ("assigned", 3),
        ("corrected", 4),
    ]
    assert [each["fields"] for each in lead["events"]] == [None, None, None, ["name"]]
    assert len(lead["kept_resubmissions"]) == 1


def test_the_header_counts_and_names_the_keys(service: RunningService) -> None:
    created = create(service)
    assert soon_in(file_of(service), created)
    document = read(file_of(service))
    keys = json.loads((service.data_dir / "keyring.json").read_text())["keys"]
    assert document["lead_count"] == len(document["leads"])
    assert document["key_ids"] == [key["id"] for key in keys if key["purpose"] == "encryption"]


def test_no_sensitive_value_is_in_clear(service: RunningService) -> None:
    secrets = {
        "phone": "+8801798765432",
        "nid": "1985120394857",
        "address": "47 Shapla",
        "notes": "heart",
        "email": "f@x.org",
    }
    assert soon_in(file_of(service), create(service, **secrets))
    content = file_of(service).read_text()
    assert [value for value in secrets.values() if value in content] == []


def plane(number: int) -> str:
    """Some characters of one plane of Unicode: assigned ones where there are any, and the last two that may be used."""
    points = [point for point in range(number << 16, (number << 16) + 0xFFFE) if _may_stand_in_a_name(chr(point))]
    return "".join(chr(point) for point in points[:: max(1, len(points) // 20)][:30])


def _may_stand_in_a_name(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Cn", "Cf", "Zl", "Zp", "Zs") and (
        unicodedata.normalize("NFC", character) == character and not unicodedata.combining(character)
    )


@pytest.mark.parametrize("number", range(17))
def test_every_plane_of_unicode_survives(number: int, database: TestDatabase, tmp_path: Path) -> None:
    name = f"x{plane(number)}y"
    store_lead(database, "2026-03-29T10:00:00Z")
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE lead SET name = %s", [name])
    (lead,) = read(rendered(database, tmp_path))["leads"]
    assert lead["name"] == name


@pytest.mark.parametrize(
    "name", ['"quoted"', "back\\slash", "\\n", "a\nb\tc\r", "\\", '\\"', "</script>", "\u2028", "\\.", "\x7f"]
)
def test_what_json_and_copy_escape_survives(name: str, database: TestDatabase, tmp_path: Path) -> None:
    store_lead(database, "2026-03-29T10:00:00Z")
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE lead SET name = %s", [name])
    path = rendered(database, tmp_path)
    (lead,) = read(path)["leads"]
    assert lead["name"] == name
    assert content_of(path).lead_count == 1


def rendered(database: TestDatabase, folder: Path, *, zone: str = "UTC", day: date = OLD_DAY) -> Path:
    days = Days(zone)
    leads = DailyLeads(database.serve_url, days)
    files = FileStorageService(folder, days, leads)
    files.render(day, settles=False)
    leads.close()
    return files.path(day)


def test_the_header_explains_every_member_of_a_lead_in_its_order(database: TestDatabase, tmp_path: Path) -> None:
    store_lead(database, "2026-03-29T10:00:00Z")
    document = read(rendered(database, tmp_path))
    assert list(document["fields"]) == list(document["leads"][0]) == list(MEANINGS)


def test_every_column_of_a_lead_but_the_blind_indexes_is_in_the_file() -> None:
    assert {column.name for column in models.lead.columns} - NOT_IN_FILES <= set(MEANINGS)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_day_of_few_leads_matches_the_schema(count: int, database: TestDatabase, tmp_path: Path) -> None:
    for number in range(count):
        store_lead(database, "2026-03-29T10:00:00Z", number)
    path = rendered(database, tmp_path)
    validate(path)
    assert content_of(path).lead_count == read_header(path).lead_count == count


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-03-28T22:59:59.999999Z", False),
        ("2026-03-28T23:00:00Z", True),
        ("2026-03-29T21:59:59.999999Z", True),
        ("2026-03-29T22:00:00Z", False),
    ],
)
def test_the_day_on_which_the_clocks_change_is_half_open(
    moment: str, inside: bool, database: TestDatabase, tmp_path: Path
) -> None:
    store_lead(database, moment)
    assert len(read(rendered(database, tmp_path, zone="Europe/Berlin"))["leads"]) == inside


def test_times_have_an_offset(database: TestDatabase, tmp_path: Path) -> None:
    execute(database.admin_url, "ALTER ROLE leadkeep_serve SET timezone = 'Asia/Kolkata'")
    store_lead(database, "2026-03-29T10:00:00.25Z")
    (lead,) = read(rendered(database, tmp_path))["leads"]
    execute(database.admin_url, "ALTER ROLE leadkeep_serve RESET timezone")
    assert datetime.fromisoformat(lead["created_at"]) == datetime(2026, 3, 29, 10, 0, 0, 250_000, tzinfo=UTC)
    assert lead["created_at"].endswith("+00:00")


# It follows


def test_an_old_days_file_follows_a_change(service: RunningService, service_database: TestDatabase) -> None:
    created = create(service)
    execute(service_database.admin_url, f"UPDATE lead SET created_at = '2026-03-29T10:00:00Z' WHERE id = '{created}'")
    path = file_of(service, OLD_DAY)
    assert soon_in(path, created, status="new")
    with service.channel() as channel:
        stub, metadata = service.stub(channel), service.metadata()
        stub.UpdateStatus(pb.UpdateStatusRequest(id=created, status=pb.LEAD_STATUS_CONVERTED), metadata=metadata)
        assert soon_in(path, created, status="converted")
        correction = pb.UpdateLeadRequest(lead=pb.Lead(id=created, name="Corrected"))
        correction.update_mask.paths.append("name")
        stub.UpdateLead(correction, metadata=metadata)
    assert soon_in(path, created, name="Corrected")


def test_a_lead_that_is_gone_leaves_its_file(service: RunningService, service_database: TestDatabase) -> None:
    created = create(service)
    path = file_of(service)
    assert soon_in(path, created)
    execute(service_database.admin_url, f"DELETE FROM lead WHERE id = '{created}'")
    assert eventually(lambda: created not in leads_in(path), within=30)


def test_an_alias_is_soon_in_the_file(service: RunningService, service_database: TestDatabase) -> None:
    created = create(service)
    path = file_of(service)
    assert soon_in(path, created)
    execute(
        service_database.admin_url,
        f"INSERT INTO lead_alias (id, lead_id, created_by) VALUES ('{LEAD}', '{created}', 'c')",
    )
    assert eventually(lambda: [each["id"] for each in leads_in(path)[created]["aliases"]] == [str(LEAD)], within=30)


def without_time(path: Path) -> dict[str, Any]:
    document = read(path)
    document.pop("snapshot_at")
    return document


def test_a_deleted_file_comes_back_the_same(service: RunningService) -> None:
    assert soon_in(file_of(service), create(service))
    before = without_time(file_of(service))
    file_of(service).unlink()
    assert eventually(file_of(service).exists, within=30)
    assert without_time(file_of(service)) == before


def test_a_file_that_somebody_changed_is_rendered_again(service: RunningService) -> None:
    assert soon_in(file_of(service), create(service))
    before = without_time(file_of(service))
    file_of(service).write_text("{}")
    assert eventually(lambda: len(read(file_of(service))) > 1, within=30)
    assert without_time(file_of(service)) == before


def test_a_file_that_was_deleted_while_the_service_was_away_comes_back(own_service: RunningService) -> None:
    assert soon_in(file_of(own_service), create(own_service))
    own_service.stop()
    file_of(own_service).unlink()
    own_service.start()
    assert eventually(file_of(own_service).exists, within=30)


def test_what_changed_while_no_service_ran_is_rendered_at_the_start(
    own_service: RunningService, database: TestDatabase
) -> None:
    created = create(own_service)
    assert soon_in(file_of(own_service), created)
    own_service.stop()
    execute(database.admin_url, "UPDATE lead SET name = 'Changed'")
    own_service.start()
    assert soon_in(file_of(own_service), created, name="Changed")


def test_a_service_that_stops_leaves_a_file_that_is_current(own_service: RunningService) -> None:
    assert soon_in(file_of(own_service), create(own_service))
    last = create(own_service)
    own_service.stop()
    assert last in leads_in(file_of(own_service))


def test_leads_from_before_an_upgrade_have_their_files(database: TestDatabase, start_service: StartService) -> None:
    for day in range(1, 4):
        store_lead(database, f"2026-02-0{day}T10:00:00Z")
    execute(database.admin_url, "DELETE FROM lead_touch")
    service = start_service(database_url=database.serve_url)
    expected = {f"leads_2026-02-0{day}.json" for day in range(1, 4)}
    assert eventually(lambda: expected <= {path.name for path in file_of(service).parent.glob("*.json")}, within=30)


def test_another_zone_gets_files_of_its_own_days(database: TestDatabase, start_service: StartService) -> None:
    store_lead(database, "2026-02-01T20:00:00Z")
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_FILES_TIMEZONE": "Asia/Dhaka"})
    assert eventually(file_of(service, date(2026, 2, 2)).exists, within=30)
    assert read(file_of(service, date(2026, 2, 2)))["timezone"] == "Asia/Dhaka"


def test_only_its_owner_may_read_a_file(service: RunningService) -> None:
    assert soon_in(file_of(service), create(service))
    assert stat.S_IMODE(file_of(service).stat().st_mode) == 0o600
    assert stat.S_IMODE(file_of(service).parent.stat().st_mode) == 0o700


def test_touches_are_settled_by_their_render(service: RunningService, service_database: TestDatabase) -> None:
    assert soon_in(file_of(service), create(service))
    assert eventually(lambda: value_of(service_database.admin_url, "SELECT count(*) FROM lead_touch") == 0, within=30)


def test_a_touch_that_the_snapshot_does_not_see_stays_noted(database: TestDatabase) -> None:
    store_lead(database, "2026-03-29T10:00:00Z", 1)
    leads = DailyLeads(database.serve_url, Days("UTC"))
    with leads.snapshot(OLD_DAY, settles=True) as snapshot:
        store_lead(database, "2026-03-29T10:00:00Z", 2)
        assert len(list(snapshot.lines())) == 1
    assert leads.touched() == {OLD_DAY}
    leads.close()


def test_a_render_that_fails_settles_nothing(database: TestDatabase, tmp_path: Path) -> None:
    store_lead(database, "2026-03-29T10:00:00Z")
    leads = DailyLeads(database.serve_url, Days("UTC"))
    files = FileStorageService(tmp_path, Days("UTC"), leads)
    files.path(OLD_DAY).mkdir()
    with pytest.raises(OSError, match="directory"):
        files.render(OLD_DAY, settles=True)
    assert leads.touched() == {OLD_DAY}
    assert list(tmp_path.glob(".leads*")) == []
    leads.close()


def test_a_file_is_on_the_disk_before_it_has_its_name(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_lead(database, "2026-03-29T10:00:00Z")
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        done.append(f"sync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        sync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    rendered(database, tmp_path)
    assert done == ["sync file", "rename", "sync folder"]


# Replicas


def test_one_of_two_replicas_renders_and_the_other_takes_over(
    database: TestDatabase, start_service: StartService, tmp_path: Path
) -> None:
    shared = {"LEADKEEP_FILES_DIR": str(tmp_path / "files"), "LEADKEEP_KEYRING": str(tmp_path / "keyring.json")}
    first = start_service("first", database_url=database.serve_url, settings=shared)
    path = tmp_path / "files" / file_of(first).name
    assert soon_in(path, create(first))
    second = start_service("second", database_url=database.serve_url, settings=shared)
    assert soon_in(path, create(second))
    assert eventually(lambda: "renders the daily files" in first.log(), within=30)
    assert "renders the daily files" not in second.log()
    first.kill()
    assert soon_in(path, create(second), within=40)
    assert eventually(lambda: "renders the daily files" in second.log(), within=30)


def test_a_replica_that_takes_over_renders_what_its_own_folder_lacks(
    database: TestDatabase, start_service: StartService, tmp_path: Path
) -> None:
    shared = {"LEADKEEP_KEYRING": str(tmp_path / "keyring.json")}
    first = start_service("first", database_url=database.serve_url, settings=shared)
    created = create(first)
    assert soon_in(file_of(first), created)
    second = start_service("second", database_url=database.serve_url, settings=shared)
    first.stop()
    assert soon_in(file_of(second), created)


def test_a_turn_that_is_not_renewed_ends_and_what_was_its_holder_settles_nothing(database: TestDatabase) -> None:
    store_lead(database, "2026-03-29T10:00:00Z")
    first, second = (DailyLeads(database.serve_url, Days("UTC")) for _ in range(2))
    assert first.take_turn()
    assert not second.take_turn()
    execute(database.admin_url, "UPDATE file_turn SET expires_at = clock_timestamp() - interval '1 s'")
    assert second.take_turn()
    with pytest.raises(DailyLeadsError, match="turn_lost"), first.snapshot(date(2026, 3, 29), settles=True):
        pass
    assert second.touched() == {date(2026, 3, 29)}
    assert not first.take_turn()


def test_a_render_keeps_the_turn_however_long_it_takes(database: TestDatabase) -> None:
    store_lead(database, "2026-03-29T10:00:00Z")
    first, second = (DailyLeads(database.serve_url, Days("UTC")) for _ in range(2))
    assert first.take_turn()
    execute(database.admin_url, "UPDATE file_turn SET expires_at = clock_timestamp() - interval '1 s'")
    with first.snapshot(date(2026, 3, 29), settles=True):
        assert not second.take_turn()
    assert not second.take_turn()


def test_a_turn_that_is_given_is_free_at_once(database: TestDatabase) -> None:
    first, second = (DailyLeads(database.serve_url, Days("UTC")) for _ in range(2))
    assert first.take_turn()
    first.give_turn()
    assert second.take_turn()


def test_the_renderer_reads_no_other_database(database: TestDatabase) -> None:
    identity = uuid4()
    execute(
        database.admin_url,
        f"INSERT INTO key_canary (id, sealed, digest, normaliser, database) VALUES (1, 'a', 'd', 'n', '{identity}')",
    )
    assert DailyLeads(database.serve_url, Days("UTC"), identity=identity).touched() == set()
    with pytest.raises(DailyLeadsError, match="database_refused"):
        DailyLeads(database.serve_url, Days("UTC"), identity=uuid4()).touched()


# A reader of the format


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "begin"),
        (b"{}\n", "begin"),
        (b'{"format":"other"},\n"leads":[\n]}\n', "damaged"),
        (b'{"format":"other",\n"leads":[\n]}\n', "another name"),
        (b'{"format":"leadkeep-daily-file","version":2,\n"leads":[\n]}\n', "version is not 1"),
    ],
)
def test_what_is_no_daily_file_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DailyFileError, match=told):
        read_header(tmp_path / "file.json")


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_a_file_that_was_cut_off_is_told(cut: int, database: TestDatabase, tmp_path: Path) -> None:
    store_lead(database, "2026-03-29T10:00:00Z")
    path = rendered(database, tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DailyFileError):
        content_of(path)


def test_leftovers_of_a_killed_render_are_removed(database: TestDatabase, tmp_path: Path) -> None:
    leftover = tmp_path / ".leads_2026-01-01.json.tmp"
    leftover.write_text("half")
    rendered(database, tmp_path)
    assert not leftover.exists()


def test_a_day_without_traffic_is_closed_by_itself(database: TestDatabase, start_service: StartService) -> None:
    yesterday = today() - timedelta(days=1)
    store_lead(database, f"{yesterday}T23:59:59.999Z")
    service = start_service(database_url=database.serve_url)
    assert eventually(file_of(service, yesterday).exists, within=30)
    assert read(file_of(service, yesterday))["lead_count"] == 1
