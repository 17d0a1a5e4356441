"""What tests share: one PostgreSQL a run, a fresh database or a running service for each test that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.disks import NoMountError, tiny_disk
from tests.harness.postgres import TestDatabase, TestServer, folder_for_postgres
from tests.harness.processes import remove_embedded_database
from tests.harness.running_service import RunningService

# A run must not fail because the machine is slow, and one that fails must fail again: inputs are the same every time.
settings.register_profile("leadkeep", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("leadkeep")

StartService = Callable[..., RunningService]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[TestServer]:
    """The run's PostgreSQL."""
    with folder_for_postgres() as folder:
        server = TestServer(folder / "data")
        yield server
        server.stop()


@pytest.fixture
def database(postgres_server: TestServer) -> TestDatabase:
    """A migrated, empty database of this test's own."""
    return postgres_server.fresh_database()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start services that end with the test: `start_service("name", database_url=…, settings=…)`."""
    started: list[RunningService] = []

    def start(
        name: str = "leadkeep",
        *,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> RunningService:
        service = RunningService(tmp_path / name, database_url=database_url, settings=settings)
        started.append(service)
        return service.start(wait=wait)

    yield start
    for service in started:
        service.stop()
        remove_embedded_database(service.data_dir)


@pytest.fixture(scope="module")
def service_database(postgres_server: TestServer) -> TestDatabase:
    """The database of `service`."""
    return postgres_server.fresh_database()


@pytest.fixture(scope="module")
def service(service_database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A running service that the tests of one module share, on a database of its own."""
    folder = tmp_path_factory.mktemp("service") / "leadkeep"
    running = RunningService(folder, database_url=service_database.serve_url)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte; the test is skipped where none can be mounted."""
    try:
        with tiny_disk(tmp_path / "disk") as folder:
            yield folder
    except NoMountError:
        pytest.skip("a disk cannot be mounted here")
