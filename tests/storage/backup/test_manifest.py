"""Proof of a backup: any byte that somebody else wrote is noticed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, Purpose
from service.storage.backup.backup_manifest import (
    DUMP,
    MANIFEST,
    Canary,
    Manifest,
    TableContent,
    read_manifest,
    whole_dump,
)
from tests.harness.documents import places

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
KEYRING = Keyring.generate(now=NOW)
ENCRYPTION = EncryptionService(KEYRING)
CONTENT = b"the dump"

MANIFEST_OF_OURS = Manifest(
    made_at=NOW,
    leadkeep="1.0",
    postgres=18,
    schema="0007",
    key_ids=("e1",),
    canary=Canary("e1.token", "ab", "v1"),
    tables={"lead": TableContent(1, "cd"), "tombstone": TableContent(0, "ef")},
    dump_bytes=len(CONTENT),
    dump_sha256=hashlib.sha256(CONTENT).hexdigest(),
).proven(ENCRYPTION)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MANIFEST_OF_OURS.write(tmp_path)
    (tmp_path / DUMP).write_bytes(CONTENT)
    return tmp_path


def document() -> dict[str, Any]:
    return {
        "made_at": NOW.isoformat(),
        "leadkeep": "1.0",
        "postgres": 18,
        "schema": "0007",
        "key_ids": ["e1"],
        "canary": {"sealed": "e1.token", "digest": "ab", "normaliser": "v1"},
        "tables": {"lead": {"rows": 1, "digest": "cd"}, "tombstone": {"rows": 0, "digest": "ef"}},
        "dump_bytes": len(CONTENT),
        "dump_sha256": "00",
        "proof": {"key_id": "a1", "hmac": "00"},
    }


def rewritten(folder: Path, change: Any) -> None:
    """As somebody would who knows the format, but not the keyring."""
    told = json.loads((folder / MANIFEST).read_text())
    del told["sha256"]
    change(told)
    told["sha256"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(told))


def test_ours_is_proven(folder: Path) -> None:
    read_manifest(folder).require_proof(ENCRYPTION)


@pytest.mark.parametrize("path", list(places(document())), ids=str)
@pytest.mark.parametrize("value", [None, "x", "é", "00", 7, [], {}, "2027-01-31T09:00:00+00:00"], ids=repr)
def test_no_value_can_be_altered(path: tuple[Any, ...], value: object, folder: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        *above, name = path
        for each in above:
            told = told[each]
        assert told[name] != value
        told[name] = value

    rewritten(folder, change)
    with pytest.raises(StartRefusedError):
        read_manifest(folder).require_proof(ENCRYPTION)


@pytest.mark.parametrize("path", list(places(document())), ids=str)
def test_no_value_can_be_left_out(path: tuple[Any, ...], folder: Path) -> None:
    def change(told: Any) -> None:
        *above, name = path
        for each in above:
            told = told[each]
        del told[name]

    rewritten(folder, change)
    with pytest.raises(StartRefusedError):
        read_manifest(folder).require_proof(ENCRYPTION)


def test_nothing_can_be_added(folder: Path) -> None:
    rewritten(folder, lambda told: told.update(more=1))
    with pytest.raises(StartRefusedError):
        read_manifest(folder)


def test_another_keyring_proves_nothing(folder: Path) -> None:
    stranger = EncryptionService(Keyring.generate(now=NOW))
    with pytest.raises(StartRefusedError, match="does not have"):
        read_manifest(folder).require_proof(stranger)


def test_a_proof_of_another_keyring_is_none(folder: Path) -> None:
    stranger = EncryptionService(Keyring.generate(now=NOW))
    forged = replace(MANIFEST_OF_OURS, leadkeep="2.0").proven(stranger)
    assert forged.proof is not None
    ours = KEYRING.primary(Purpose.AUDIT).id
    replace(forged, proof=replace(forged.proof, key_id=ours)).write(folder)
    with pytest.raises(StartRefusedError, match="somebody changed it"):
        read_manifest(folder).require_proof(ENCRYPTION)


def test_an_old_audit_key_proves_as_long_as_it_is_in_the_keyring(folder: Path) -> None:
    before = KEYRING.primary(Purpose.AUDIT)
    rotated, made = KEYRING.with_new_key(Purpose.AUDIT, now=NOW)
    rotated = rotated.with_primary(made.id).with_retired(before.id)
    read_manifest(folder).require_proof(EncryptionService(rotated))
    without = Keyring(key for key in rotated.keys if key.id != before.id)
    with pytest.raises(StartRefusedError, match="does not have"):
        read_manifest(folder).require_proof(EncryptionService(without))


def test_a_keyring_that_has_lost_one_key_of_the_leads_is_refused() -> None:
    canary = ENCRYPTION.make_canary()
    told = replace(MANIFEST_OF_OURS, canary=Canary(canary.sealed, canary.index.hex(), "v1"))
    own = KEYRING.primary(Purpose.ENCRYPTION).id
    replace(told, key_ids=(own,)).require_keyring(ENCRYPTION, "v1")
    with pytest.raises(StartRefusedError, match="does not have: gone"):
        replace(told, key_ids=(own, "gone")).require_keyring(ENCRYPTION, "v1")


def test_what_was_checked_is_what_is_restored(folder: Path) -> None:
    with whole_dump(folder, MANIFEST_OF_OURS) as dump:
        with (folder / DUMP).open("r+b") as file:
            file.write(b"evil")
        dump.seek(0)
        assert dump.read() == CONTENT


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x", b"The dump", b"x" * 5_000_000])
def test_another_dump_is_refused(content: bytes, folder: Path) -> None:
    (folder / DUMP).write_bytes(content)
    with pytest.raises(StartRefusedError, match="damaged"), whole_dump(folder, MANIFEST_OF_OURS):
        pass


@pytest.mark.parametrize("name", [MANIFEST, DUMP])
@pytest.mark.parametrize("place", ["a pipe", "a link to a device"])
def test_what_is_no_file_is_refused_and_not_waited_for(name: str, place: str, folder: Path) -> None:
    (folder / name).unlink()
    if place == "a pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(StartRefusedError, match="no regular file"), whole_dump(folder, MANIFEST_OF_OURS):
        read_manifest(folder)


def test_the_document_of_these_tests_has_every_value(folder: Path) -> None:
    told = json.loads((folder / MANIFEST).read_text())
    made = copy.deepcopy(document())
    assert set(places(told)) - set(places(made)) == {("format",), ("version",), ("sha256",)}
