"""Another keyring or normaliser stops the start, and says what to do; the right ones start again."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, Purpose, create_keyring
from service.storage.database.database import Database
from service.storage.keys.canary import compare_canary, confirm_canary, plan_of
from service.validation import ValidationService
from tests.conftest import StartService
from tests.harness.running_service import RunningService


@pytest.fixture(scope="module")
def stopped(service: RunningService) -> RunningService:
    """A service that has stored a lead, and is stopped."""
    service.create()
    service.stop()
    return service


@pytest.fixture
def used(stopped: RunningService) -> Iterator[RunningService]:
    """The same, with its keyring as it was."""
    kept = keyring_of(stopped).read_bytes()
    yield stopped
    stopped.stop()
    keyring_of(stopped).write_bytes(kept)
    keyring_of(stopped).chmod(0o600)


def keyring_of(service: RunningService) -> Path:
    return service.data_dir / "keyring.json"


def refusal(service: RunningService, **settings: str) -> str:
    """What `serve` says when it refuses to start."""
    done = service.leadkeep("serve", env=settings)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("leadkeep: ")
    assert "Traceback" not in done.stderr
    return done.stderr


async def test_a_look_at_the_canary_leaves_the_encryption_as_it_was(connected: Database) -> None:
    keyring = Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC))
    normaliser = ValidationService().normaliser_identity
    first, other = EncryptionService(keyring), EncryptionService(keyring)

    confirmed = await confirm_canary(connected, first, normaliser)
    compared = await compare_canary(connected, other, normaliser)

    assert compared == confirmed
    assert (first.plan, other.plan) == (None, None)
    assert plan_of(confirmed, first).epoch == 1


async def test_a_keyring_without_the_index_key_of_the_leads_is_refused(connected: Database) -> None:
    keyring = Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC))
    await confirm_canary(connected, EncryptionService(keyring), ValidationService().normaliser_identity)
    rotated, made = keyring.with_new_key(Purpose.INDEX, now=datetime(2026, 2, 1, tzinfo=UTC))
    retired = rotated.with_primary(made.id).with_retired(keyring.primary(Purpose.INDEX).id)

    with pytest.raises(StartRefusedError, match="lacks an index key"):
        await compare_canary(connected, EncryptionService(retired), None)


def test_another_keyring_is_refused(used: RunningService, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    create_keyring(other, now=datetime.now(UTC))
    said = refusal(used, LEADKEEP_KEYRING=str(other))
    assert "not the one that the stored leads were sealed with" in said
    assert "LEADKEEP_KEYRING" in said


def test_after_a_refused_keyring_the_right_one_still_starts(used: RunningService, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    create_keyring(other, now=datetime.now(UTC))
    refusal(used, LEADKEEP_KEYRING=str(other))
    used.start()


def test_a_missing_keyring_is_refused_and_none_is_made(used: RunningService) -> None:
    keyring_of(used).unlink()
    said = refusal(used)
    assert str(keyring_of(used)) in said
    assert "restore the keyring" in said
    assert "leadkeep keys init" in said
    assert not keyring_of(used).exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": "other"}', b'{"format": "leadkeep-keyring", "version": 9}']
)
def test_a_damaged_keyring_is_refused(content: bytes, used: RunningService) -> None:
    keyring_of(used).write_bytes(content)
    assert "cannot be used" in refusal(used)


def test_a_keyring_that_others_may_read_is_refused(used: RunningService) -> None:
    keyring_of(used).chmod(0o644)
    assert "chmod 600" in refusal(used)


@pytest.mark.parametrize(
    "changed",
    [{"LEADKEEP_DEFAULT_REGION": "BD"}, {"LEADKEEP_PHONE_RULE": "valid"}, {"LEADKEEP_NID_RULE": "BD"}],
    ids=lambda changed: next(iter(changed)),
)
def test_another_normaliser_is_refused_and_names_the_way_out(changed: dict[str, str], used: RunningService) -> None:
    said = refusal(used, **changed)
    assert next(iter(changed)) in said
    assert "leadkeep keys reindex" in said


def test_after_a_refused_normaliser_the_right_one_still_starts(used: RunningService) -> None:
    refusal(used, LEADKEEP_DEFAULT_REGION="BD")
    used.start()
    used.create()


def test_a_setting_that_changes_no_index_changes_no_normaliser(used: RunningService) -> None:
    used.environment["LEADKEEP_TRANSCRIPT_URL"] = "https://chat.example/{conversation_id}"
    used.start()
    used.create()


def test_an_embedded_service_makes_its_keyring_on_the_first_start_only(start_service: StartService) -> None:
    service = start_service()
    made = keyring_of(service).read_bytes()
    assert stat.S_IMODE(keyring_of(service).stat().st_mode) == 0o600
    service.stop()
    service.start()
    assert keyring_of(service).read_bytes() == made


def test_an_embedded_service_with_leads_and_without_keyring_refuses_and_makes_none(start_service: StartService) -> None:
    service = start_service()
    lead_id = service.create().id
    service.stop()
    kept = keyring_of(service).rename(service.data_dir.with_name("kept.json"))
    assert "restore the keyring" in refusal(service)
    assert not keyring_of(service).exists()

    shutil.copy2(kept, keyring_of(service))
    service.start()
    assert service.get(lead_id).phone.startswith("+88017")


def test_an_embedded_service_refuses_the_keyring_of_another_one(start_service: StartService) -> None:
    first, second = start_service("first"), start_service("second")
    for service in (first, second):
        service.stop()
    shutil.copy2(keyring_of(second), keyring_of(first))
    assert "LEADKEEP_KEYRING" in refusal(first)
