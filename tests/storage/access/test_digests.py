"""The digests of the access record, held to vectors that another language can check."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring
from service.storage.access.record import (
    Access,
    Head,
    RecordedAccess,
    Registration,
    earlier_digest,
    entry_payload,
    head_payload,
    registration_payload,
)

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "access_record.json").read_text("utf-8"))
KEYRING = json.loads((FOLDER / "encryption.json").read_text("utf-8"))["keyring"]
ENCRYPTION = EncryptionService(Keyring.from_json(json.dumps(KEYRING)))
KEY_ID = ENCRYPTION.audit_key_id


def access_of(vector: dict[str, Any]) -> Access:
    return Access(
        subject=vector["subject"],
        operation=vector["operation"],
        lead_id=UUID(vector["lead_id"]) if vector["lead_id"] else None,
        fields=vector["fields"],
        reason=vector["reason"],
        request_id=vector.get("request_id"),
    )


def moment_of(vector: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(vector["recorded_at"])


def digest_of(payload: bytes) -> bytes:
    return ENCRYPTION.audit_digest(KEY_ID, payload)


def of_registration(vector: dict[str, Any]) -> bytes:
    registration = Registration(
        number=vector["number"],
        id=UUID(vector["chain_id"]),
        writer=vector["writer"],
        began_at=datetime.fromisoformat(vector["began_at"]),
        earlier_entries=vector["earlier_entries"],
        earlier_digest=bytes.fromhex(vector["earlier_digest_hex"]) if vector["earlier_digest_hex"] else None,
    )
    return digest_of(registration_payload(bytes.fromhex(vector["before_hex"]), registration))


def of_entry(vector: dict[str, Any]) -> bytes:
    before, chain_id = bytes.fromhex(vector["before_hex"]), UUID(vector["chain_id"])
    return digest_of(entry_payload(chain_id, vector["number"], before, moment_of(vector), access_of(vector)))


def of_head(vector: dict[str, Any]) -> bytes:
    head = Head(
        chain_id=UUID(vector["chain_id"]),
        number=vector["number"],
        digest=bytes.fromhex(vector["last_hex"]),
        ended=vector["ended"],
    )
    return digest_of(head_payload(head))


def of_earlier(vector: dict[str, Any]) -> bytes:
    entries = [
        RecordedAccess(id=each["id"], recorded_at=moment_of(each), access=access_of(each), chain_id=None, number=None)
        for each in vector["entries"]
    ]
    return earlier_digest(ENCRYPTION, KEY_ID, entries)[1]


KINDS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "registrations": of_registration,
    "entries": of_entry,
    "heads": of_head,
    "earlier": of_earlier,
}


@pytest.mark.parametrize(
    ("kind", "vector"),
    [(kind, vector) for kind in KINDS for vector in VECTORS[kind]],
    ids=lambda each: str(each)[:20],
)
def test_a_digest_is_that_of_its_vector(kind: str, vector: dict[str, Any]) -> None:
    assert KINDS[kind](vector).hex() == vector["digest_hex"]


def test_the_vectors_belong_to_the_audit_key_of_the_others() -> None:
    assert VECTORS["key_id"] == KEY_ID
