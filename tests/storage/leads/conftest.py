from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.keys.encryption import EncryptionService
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import replica


@pytest.fixture
async def world(
    connected: Database, tmp_path: Path, encryption: EncryptionService, sealer: LeadSealer
) -> AsyncIterator[World]:
    """A replica, with a spool of its own."""
    async with replica(connected, tmp_path / "world", encryption, sealer) as world:
        yield world


@pytest.fixture
async def elsewhere(
    world: World, connected: Database, tmp_path: Path, encryption: EncryptionService, sealer: LeadSealer
) -> AsyncIterator[World]:
    """Another replica, with a spool of its own."""
    async with replica(connected, tmp_path / "elsewhere", encryption, sealer) as other:
        yield other
