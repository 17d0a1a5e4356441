"""What tests share: one PostgreSQL a run, a fresh database or a running service for each test that asks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from hypothesis import HealthCheck, settings

from service.storage.database.database import Database
from tests.harness.certificates import Authority
from tests.harness.disks import NoMountError, memory_disk, tiny_disk
from tests.harness.postgres import TestDatabase, TestServer, own_postgres
from tests.harness.processes import remove_embedded_database
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client

# A run must not fail because the machine is slow, and one that fails must fail again: inputs are the same every time.
settings.register_profile("leadkeep", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("leadkeep")

# When the last object of grpc.aio is collected, gRPC waits for its poller, for ever if an operation is left. Without
# this that happens in whatever test collects garbage next.
grpc.aio.init_grpc_aio()

# A service that crashes says where: its log is shown beside a failure.
os.environ["PYTHONFAULTHANDLER"] = "1"

if disk := memory_disk():
    # A database for each test is hundreds of new files, and syncing them is most of a run's time.
    tempfile.tempdir = os.environ["TMPDIR"] = disk

StartService = Callable[..., RunningService]

LONGEST = (
    *("faults/test_key_rotation.py", "faults/test_sentinel.py", "interop/test_examples.py", "faults/test_kill.py"),
    *("faults/test_start_without_database.py", "faults/test_standby_away.py", "interop/test_faults.py"),
    *("faults/test_superseded_primary.py", "faults/test_poolers.py", "faults/test_full_spool_disk.py"),
    *("cli/test_import.py", "cli/test_backup.py", "storage/postgres/test_embedded.py", "faults/test_races.py"),
    *("clients/test_generated_clients.py", "rpc/test_error_table.py", "cli/test_keys.py", "cli/test_commands.py"),
    *("storage/leads/test_erasure_neighbours.py", "storage/leads/test_repository.py", "cli/test_export.py"),
    *("storage/spool/test_crash.py", "rpc/tokens/test_token_rules.py", "contract/test_languages.py"),
)
"""Files that take longest, which begin first: one that began last would keep a run going alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the others stay in their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the last lines of each service beside a test that failed: it runs in a process of its own."""
    report = yield
    if report.failed:
        for service in _running:
            assert service.process is not None
            title = f"log of {service.data_dir.name}, which {_state(service.process.poll())}"
            report.sections.append((title, service.log()[-2000:]))
    return report


def _state(code: int | None) -> str:
    return "runs" if code is None else f"ended with {code}"


_running: list[RunningService] = []
"""The services of the test that runs, and of its module."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip tests that start the service or its commands")


@pytest.fixture(scope="session", autouse=True)
def _no_service(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --fast, whoever starts a process of the service is skipped."""

    def skip(*_: object, **__: object) -> None:
        pytest.skip("it starts the service")

    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--fast"):
            patch.setattr(RunningService, "start", skip)
            patch.setattr(RunningService, "leadkeep", skip)
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[TestServer]:
    """The run's PostgreSQL."""
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    """A PostgreSQL of one module, whose tests may stop it."""
    with own_postgres() as server:
        yield server


@pytest.fixture
def database(postgres_server: TestServer) -> Iterator[TestDatabase]:
    """A migrated, empty database of this test's own."""
    made = postgres_server.fresh_database()
    yield made
    postgres_server.drop(made)


@pytest.fixture
async def connected(database: TestDatabase) -> AsyncIterator[Database]:
    """The test's database, as the role of `serve`; patient, because a test's machine may be busy."""
    opened = Database(database.serve_url, attempt_seconds=10)
    yield opened
    await opened.close()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start services that end with the test: `start_service("name", database_url=…, settings=…)`."""
    yield from _services(tmp_path)


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartService]:
    """Start services that end with the module, and which its tests share."""
    yield from _services(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def shared_keyring(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The setting by which the services of a module have one keyring."""
    return {"LEADKEEP_KEYRING": str(tmp_path_factory.mktemp("keyring") / "keyring.json")}


def _services(folder: Path) -> Iterator[StartService]:
    started: list[RunningService] = []

    def start(name: str = "leadkeep", *, wait: bool = True, forked: bool = True, **more: Any) -> RunningService:
        service = RunningService(folder / name, **more)
        started.append(service)
        _running.append(service)
        return service.start(wait=wait, forked=forked)

    yield start
    for service in started:
        _running.remove(service)
        service.stop()
        remove_embedded_database(service.data_dir)


@pytest.fixture(scope="module")
def service_database(postgres_server: TestServer) -> TestDatabase:
    """The database of `service`."""
    return postgres_server.fresh_database()


@pytest.fixture(scope="module")
def service(service_database: TestDatabase, start_shared: StartService) -> RunningService:
    """A running service that the tests of one module share, on a database of its own."""
    return start_shared(database_url=service_database.serve_url)


@pytest.fixture(scope="module")
def admin(service: RunningService) -> Iterator[Client]:
    """Somebody with every scope, who calls `service`."""
    with service.channel() as channel:
        yield Client(service, channel)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte; the test is skipped where none can be mounted."""
    try:
        with tiny_disk(tmp_path / "disk") as folder:
            yield folder
    except NoMountError:
        pytest.skip("a disk cannot be mounted here")
