"""The daily files of a running service, read as anybody would: with a plain JSON parser."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from tests.harness.faults import execute
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

TOKEN = "e1.gAAAAAAAAAAAtoken"
"""Looks like a sealed token."""


def create(service: RunningService, **fields: str) -> str:
    """Create a lead; its id."""
    return service.create(somebody(**fields), role="admin").id


def store_lead(database: TestDatabase, created_at: str, number: int = 0) -> None:
    """Store a lead of that time behind the service's back."""
    execute(
        database.admin_url,
        f"""INSERT INTO lead (id, name, phone, nid, address, interested_policy, phone_index, nid_index, created_by,
            content_digest, created_at)
            SELECT gen_random_uuid(), 'P', '{TOKEN}', '{TOKEN}', '{TOKEN}', 'Term', sha256('p{created_at}{number}'),
            sha256('n{created_at}{number}'), 'chatbot', sha256('c'), '{created_at}'""",
    )


def today() -> date:
    return datetime.now(UTC).date()


def file_of(service: RunningService, day: date | None = None) -> Path:
    return service.data_dir / "files" / f"leads_{(day or today()).isoformat()}.json"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def leads_in(path: Path) -> dict[str, dict[str, Any]]:
    """The leads of a file by id; none while there is no file."""
    return {lead["id"]: lead for lead in read(path)["leads"]} if path.exists() else {}


def soon_in(path: Path, lead_id: str, *, within: float = 30.0, **values: object) -> bool:
    """Whether the file soon shows the lead with these values."""

    def shown() -> bool:
        lead = leads_in(path).get(lead_id)
        return lead is not None and all(lead[name] == value for name, value in values.items())

    return eventually(shown, within=within)
