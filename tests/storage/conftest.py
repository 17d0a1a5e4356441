from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from service.encryption import EncryptionService
from service.keyring import Keyring
from service.sealing import LeadSealer
from service.storage.database import Database
from service.storage.repository import LeadRepository
from service.validation import ValidationService
from tests.harness.postgres import TestDatabase


@pytest.fixture
async def connected(database: TestDatabase) -> AsyncIterator[Database]:
    """The test's database, as the role of `serve`."""
    opened = Database(database.serve_url)
    yield opened
    await opened.close()


@pytest.fixture
def repository(connected: Database) -> LeadRepository:
    return LeadRepository(connected)


@pytest.fixture(scope="session")
def sealer() -> LeadSealer:
    encryption = EncryptionService(Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)))
    return LeadSealer(encryption, ValidationService(), transcript_url=None)
