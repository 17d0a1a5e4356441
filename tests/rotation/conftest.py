"""A rotation of the index key, as the tests of each index begin one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, Purpose
from service.rotation.key_service import KeyService
from service.storage.database.database import Database
from service.storage.keys.canary import confirm_canary, plan_of
from service.storage.keys.rekeying import rekeying
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client


class KeyRotation:
    """A database, its keyring, and one with another primary index key."""

    def __init__(self, database: TestDatabase, connected: Database, folder: Path) -> None:
        self.database, self.connected, self.folder = database, connected, folder
        keyring = Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC))
        self.first = EncryptionService(keyring)
        self.old = keyring.primary(Purpose.INDEX)
        added, self.new = keyring.with_new_key(Purpose.INDEX, now=datetime(2026, 2, 1, tzinfo=UTC))
        self.rotated = EncryptionService(added.with_primary(self.new.id))

    async def begin(self, normaliser_identity: str) -> None:
        """Admit the first keyring, as a service does before it stores."""
        self.first.plan = plan_of(await confirm_canary(self.connected, self.first, normaliser_identity), self.first)

    @asynccontextmanager
    async def keys(self, on_progress: Callable[[str], None] = lambda _: None) -> AsyncIterator[KeyService]:
        """The work on keys with the second keyring."""
        async with rekeying(self.database.serve_url) as tables:
            yield KeyService(
                database=self.connected,
                rekeying=tables,
                encryption=self.rotated,
                on_wait=lambda _: None,
                on_progress=on_progress,
                spool=self.folder,
                timeout=1.0,
                rate=0.0,
            )


@pytest.fixture
def admin(service: RunningService) -> Iterator[Client]:
    with service.channel() as channel:
        yield Client(service, channel)
