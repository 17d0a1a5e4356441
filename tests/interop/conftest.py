"""Which examples are built, and what they call."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService
from tests.interop.build import LANGUAGES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of this folder where the examples of this checkout are not built."""
    if all(language.is_built for language in LANGUAGES):
        return
    missing = pytest.mark.skip(reason="no examples: `make interop-build` builds them with Go, Node.js and Maven")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(missing)


@pytest.fixture(scope="module")
def service_database(server: TestServer) -> TestDatabase:
    """The database of `service`, on a server that tests may stop."""
    return server.fresh_database()


@pytest.fixture(scope="module")
def token_file(service: RunningService) -> Path:
    """A file with a token of a chatbot."""
    path = service.data_dir.with_name("token")
    path.write_text(f"{service.token('chatbot')}\n")
    return path
