"""After ErasePerson no value, token or digest of the person is anywhere, and every stranger is as before."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness import columns
from tests.harness.columns import Contents
from tests.harness.daily_files import file_of, leads_in
from tests.harness.disguises import disguises, hidden_in, hidden_under
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client
from tests.rpc.test_person import Life, erase, find, kinds, live

KEYS = ("id", "submission_id", "lead_id")
"""The columns by which a row is somebody's."""


def rows_of(held: Contents, ids: Collection[str], *, others: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The rows of some leads and submissions; or all other ones."""
    return {
        table: [row for row in rows if any(row.get(key) in ids for key in KEYS) is not others]
        for table, rows in held.items()
    }


def test_nothing_of_an_erased_person_is_left_and_strangers_are_whole(
    service: RunningService, service_database: TestDatabase, postgres_server: TestServer, admin: Client, tmp_path: Path
) -> None:
    url = service_database.admin_url
    life, other = live(admin), live(admin)
    found = find(admin, email=life.email)
    ids = {each.id for each in found}
    assert len(ids) == 6
    held, types = columns.contents(url), columns.types(url)
    traces = _traces(held, types, ids)
    values = {"email": set(disguises(life.email)), "notes": set(disguises(_notes_of(admin, life)))}
    assert hidden_in(_dump(postgres_server, url), traces) == traces.keys()
    assert eventually(lambda: life.leads[0] in leads_in(file_of(service)), within=60)

    done = erase(admin, found)

    assert len(done.erased) == 6
    assert eventually(lambda: not ids & leads_in(file_of(service)).keys(), within=60)
    assert eventually(lambda: leads_in(file_of(service))[life.stranger]["kept_resubmissions"] == [], within=60)
    written = [service.data_dir / "files", service.data_dir / "spool", service.out_path, service.log_path]
    assert hidden_in(_dump(postgres_server, url), traces | values) == set()
    assert hidden_under(written, traces | values) == {}
    assert kinds(find(admin, email=other.email)) == kinds(found)
    before, after = (rows_of(each, ids, others=True) for each in (held, columns.contents(url)))
    strangers = {*other.leads, other.stranger, life.stranger}
    assert [_whole(row) for row in before["lead"] if row["id"] in strangers] == [
        _whole(row) for row in after["lead"] if row["id"] in strangers
    ]
    for table in ("resubmission", "lead_conflict", "lead_alias", "lead_conversation"):
        assert before[table] == after[table]


def _traces(held: Contents, types: dict[str, str], ids: Collection[str]) -> dict[str, set[bytes]]:
    """What the rows of some ids hold and no other row does."""
    others = columns.traces(rows_of(held, ids, others=True), types)
    own = columns.traces(rows_of(held, ids), types)
    return {name: left for name, forms in own.items() if (left := forms - others.get(name, set()))}


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """A lead's row, without what says how often and when somebody came back."""
    return {name: value for name, value in row.items() if name not in ("resubmissions", "resubmitted_at")}


def _notes_of(admin: Client, life: Life) -> str:
    return admin.get(life.leads[0], pb.LEAD_VIEW_FULL).notes


def _dump(server: TestServer, url: str) -> bytes:
    return subprocess.run(
        [server.postgres.bin_dir / "pg_dump", "--dbname", url], capture_output=True, check=True
    ).stdout
