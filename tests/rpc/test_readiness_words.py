"""`/readyz` is open to everybody: it shows words of a closed list, whatever is wrong. Details are for operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.rpc.readiness import ReadinessReason
from tests.conftest import StartService
from tests.harness import faults
from tests.harness.daily_files import create, file_of, soon_in
from tests.harness.postgres import TestDatabase, TestServer, own_postgres
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"

Strange = Callable[[RunningService, str], None]


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    with own_postgres() as server:
        yield server


def comes_to(service: RunningService, reason: str) -> bool:
    return eventually(lambda: reason in service.readiness["reasons"], within=30)


def with_another_keyring(server: TestServer, start: StartService) -> RunningService:
    """A service that started without its database and then finds one that belongs to another keyring."""
    owned = server.fresh_database()
    start("stranger", database_url=owned.serve_url).stop()
    return _started_before_the_database(server, start, owned, {})


def with_another_normaliser(server: TestServer, start: StartService) -> RunningService:
    """The same keyring, and other rules for phone numbers and national IDs."""
    owned = server.fresh_database()
    first = start("first", database_url=owned.serve_url)
    first.stop()
    settings = {"LEADKEEP_NID_RULE": "BD", "LEADKEEP_KEYRING": str(first.data_dir / "keyring.json")}
    return _started_before_the_database(server, start, owned, settings)


def _started_before_the_database(
    server: TestServer, start: StartService, owned: TestDatabase, settings: dict[str, str]
) -> RunningService:
    server.postgres.stop()
    try:
        service = start("service", database_url=owned.serve_url, settings=settings)
        assert comes_to(service, "keyring_not_confirmed")
        _is_of_the_list(service)
    finally:
        server.postgres.start()
    return service


def _is_of_the_list(service: RunningService) -> None:
    body = service.readiness
    assert set(body) == {"ready", "degraded", "reasons"}
    assert body["reasons"]
    assert set(body["reasons"]) <= set(ReadinessReason)


@pytest.mark.parametrize(
    ("strange", "detail"),
    [
        (with_another_keyring, "is not the one that the stored leads were sealed with"),
        (with_another_normaliser, "LEADKEEP_NID_RULE"),
    ],
)
def test_a_database_that_is_refused_is_one_word_and_the_log_has_the_detail(
    server: TestServer,
    start_service: StartService,
    strange: Callable[[TestServer, StartService], RunningService],
    detail: str,
) -> None:
    service = strange(server, start_service)
    assert comes_to(service, "database_refused")
    _is_of_the_list(service)
    assert detail in service.log()


def test_a_spool_that_fails_is_one_word_and_the_log_names_its_folder(database: TestDatabase, tmp_path: Path) -> None:
    service = RunningService(tmp_path / "leadkeep", database_url=database.serve_url)
    faults.broken_spool(service.data_dir)
    service.start()
    try:
        assert comes_to(service, "spool_failing")
        _is_of_the_list(service)
        assert eventually(lambda: f"the spool {service.data_dir / 'spool'} takes no leads" in service.log(), within=30)
    finally:
        service.stop()


def test_files_that_cannot_be_written_are_one_word(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    assert soon_in(file_of(service), create(service))
    folder = file_of(service).parent
    folder.rename(folder.with_name("aside"))
    folder.write_text("no folder")
    create(service)
    assert comes_to(service, "files_behind")
    _is_of_the_list(service)


def test_a_reason_that_joins_another_one_is_logged(database: TestDatabase, start_service: StartService) -> None:
    with own_postgres() as server:
        service = start_service(database_url=server.fresh_database().serve_url)
        assert soon_in(file_of(service), create(service))
        folder = file_of(service).parent
        folder.rename(folder.with_name("aside"))
        folder.write_text("no folder")
        create(service)
        assert comes_to(service, "files_behind")
        server.postgres.stop()
        assert comes_to(service, "database_away")
        assert eventually(lambda: "the database cannot be reached or takes no writes" in service.log(), within=30)


def test_the_operators_guide_lists_exactly_these_words() -> None:
    section = OPERATIONS.read_text().split("## Health, readiness, metrics")[1].split("\n## ")[0]
    table = section.split("| word | means |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(ReadinessReason)
