from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from service.factories import new_id
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring
from service.lead import CustomerFields, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.intake.writer import LeadWriter
from service.storage.leads.changes import LeadHistory
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool
from service.validation import ValidationService

Submit = Callable[..., SealedSubmission]

Talk = tuple[str, tuple[str, ...]]
"""A conversation id and its blind indexes."""

_numbers = count(1)


@pytest.fixture(scope="module")
def encryption() -> EncryptionService:
    return EncryptionService(Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)))


@pytest.fixture(scope="module")
def sealer(encryption: EncryptionService) -> LeadSealer:
    return LeadSealer(encryption, ValidationService(), transcript_url=None, repeat_window=timedelta(hours=24))


@pytest.fixture(scope="module")
def submit(sealer: LeadSealer) -> Submit:
    """Seal a submission; name, phone and nid are somebody's of its own unless told."""

    def make(
        *, created_by: str = "bot", request_id: str | None = None, lead_id: UUID | None = None, **fields: str | None
    ) -> SealedSubmission:
        number = next(_numbers)
        made_up: dict[str, Any] = {
            "name": f"Somebody {number}",
            "phone": f"+88018{number:08d}",
            "nid": f"20{number:011d}",
            "address": "1 Lake Road",
            "interested_policy": "Term Life",
        }
        details = CustomerFields(**(made_up | fields))
        return sealer.seal(lead_id or new_id(), details, created_by=created_by, request_id=request_id)

    return make


@pytest.fixture(scope="module")
def talk(sealer: LeadSealer) -> Talk:
    """The conversation `talk`."""
    return "talk", sealer.conversation_indexes("talk")


@pytest.fixture
def spool(tmp_path: Path, encryption: EncryptionService) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", encryption, max_bytes=100_000_000)
    spool.identified = True
    spool.clock.measured(spool.clock.read(), datetime.now(UTC))  # as a heartbeat does it
    yield spool
    spool.close()


@pytest.fixture
def store(connected: Database) -> SubmissionStore:
    return SubmissionStore(connected)


@pytest.fixture
def repository(connected: Database, spool: Spool, store: SubmissionStore) -> LeadRepository:
    return LeadRepository(connected, spool, LeadWriter(store, spool, Outage(), RecentRequests()))


@pytest.fixture
def history(connected: Database) -> LeadHistory:
    return LeadHistory(connected)


def everyone(_creator: str) -> bool:
    """Of a caller who may read every lead."""
    return True
