"""Conversation ids that were stored in clear are found, sealed while the service runs, and found again."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb
from sqlalchemy import select

from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, Purpose, create_keyring
from service.lead import CustomerFields, SealedSubmission
from service.lead_sealer import LeadSealer
from service.rotation.key_service import KeyService
from service.storage import models, schema
from service.storage.database.database import Database
from service.storage.keys.canary import confirm_canary, plan_of
from service.storage.keys.rekeying import rekeying
from service.storage.leads.queries import CONDITIONS
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool
from service.validation import ValidationService
from tests.conftest import StartService
from tests.harness.daily_files import file_of, leads_in, soon_in
from tests.harness.disguises import disguises, hidden_in
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client

CLEAR = {
    "lead": "whatsapp:+8801711223344",
    "other lead": "8801755667788@c.us",
    "resubmission": "telegram-501122334455",
    "conflict": "messenger:77889911002233",
}
LEAD, OTHER, AGAIN, LATE = (UUID(f"01890a5d-ac96-774b-bcce-b302099a805{n}") for n in "1234")
ROW = "name, phone, nid, address, interested_policy, conversation_id, content_digest"


@dataclass
class Before:
    """A database of the schema before conversation ids were sealed, with some in every table, and its keyring."""

    database: TestDatabase
    keyring: Path

    def migrate(self) -> None:
        schema.migrate(self.database.admin_url)


@pytest.fixture
def before(postgres_server: TestServer, tmp_path: Path) -> Before:
    database, keyring = postgres_server.database_at("0006"), tmp_path / "keyring.json"
    create_keyring(keyring, now=datetime.now(UTC))
    encryption = EncryptionService(Keyring.from_json(keyring.read_text()))
    sealer = LeadSealer(encryption, ValidationService(), transcript_url=None)

    def sealed(submission: UUID, phone: str, nid: str, talk: str) -> SealedSubmission:
        details = CustomerFields(
            name="R",
            phone=phone,
            nid=nid,
            address="1 Lake Road",
            interested_policy="Term",
            conversation_id=CLEAR[talk],
        )
        made = sealer.seal(submission, details, created_by="bot", request_id=None)
        return replace(made, fields={**made.fields, "conversation_id": CLEAR[talk]})

    def row(each: SealedSubmission) -> list[object]:
        return [each.content_digest if name == "content_digest" else each.fields[name] for name in ROW.split(", ")]

    with psycopg.connect(database.admin_url, autocommit=True) as old:
        for lead_id, phone, talk in ((LEAD, "+8801711223344", "lead"), (OTHER, "+8801755667788", "other lead")):
            made = sealed(lead_id, phone, f"19{phone[-8:]}", talk)
            old.execute(
                f"INSERT INTO lead (id, created_by, phone_index, nid_index, resubmissions, {ROW})"
                " VALUES (%s, 'bot', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)".encode(),
                [lead_id, *made.indexes.phones, *made.indexes.nids, int(lead_id == LEAD), *row(made)],
            )
        for talk, lead_id in (("lead", LEAD), ("other lead", OTHER), ("resubmission", LEAD)):
            old.execute("INSERT INTO lead_conversation VALUES (%s, %s)", [CLEAR[talk], lead_id])
        old.execute(
            f"INSERT INTO resubmission (lead_id, slot, submission_id, actor, verified, {ROW})"
            " VALUES (%s, 0, %s, 'bot', true, %s, %s, %s, %s, %s, %s, %s)".encode(),
            [LEAD, AGAIN, *row(sealed(AGAIN, "+8801711223344", "1911223344", "resubmission"))],
        )
        old.execute(
            f"INSERT INTO lead_conflict (id, created_by, phone_lead_id, accepted_at, {ROW})"
            " VALUES (%s, 'bot', %s, now(), %s, %s, %s, %s, %s, %s, %s)".encode(),
            [LATE, OTHER, *row(sealed(LATE, "+8801755667788", "1990", "conflict"))],
        )
    return Before(database, keyring)


@pytest.fixture
def service(before: Before, start_service: StartService) -> RunningService:
    """A service on that database, migrated."""
    before.migrate()
    settings = {"LEADKEEP_KEYRING": str(before.keyring)}
    return start_service(database_url=before.database.serve_url, settings=settings)


def dump(server: TestServer, database: TestDatabase) -> bytes:
    arguments: list[str | Path] = [server.postgres.bin_dir / "pg_dump", "--dbname", database.admin_url]
    return subprocess.run(arguments, capture_output=True, check=True).stdout


def forms() -> dict[str, list[bytes]]:
    return {name: list(disguises(value)) for name, value in CLEAR.items()}


def checked(service: RunningService) -> dict[str, Any]:
    """What doctor finds about conversation ids."""
    done = service.leadkeep("doctor", "--json")
    [finding] = [each for each in json.loads(done.stdout)["checks"] if each["check"] == "conversation ids"]
    return dict(finding)


def found(admin: Client, talk: str) -> str:
    return admin.by_conversation(CLEAR[talk]).lead.id


def test_what_is_in_clear_is_found_shown_and_changed_before_it_is_sealed(
    admin: Client, service: RunningService
) -> None:
    assert [found(admin, talk) for talk in ("lead", "other lead", "resubmission")] == [str(LEAD), str(OTHER), str(LEAD)]
    assert admin.listed_ids(conversation_id=CLEAR["resubmission"]) == [str(LEAD)]
    assert admin.get(str(LEAD)).conversation_id == CLEAR["lead"]
    assert admin.move(str(LEAD), pb.LEAD_STATUS_CONTACTED).version == 2
    assert admin.correct(str(LEAD), phone="+8801711223355").conversation_id == CLEAR["lead"]
    [conflict] = admin.call("ListConflicts", pb.ListConflictsRequest()).conflicts
    assert conflict.submission.conversation_id == CLEAR["conflict"]
    assert checked(service)["ok"] is False


def test_nothing_is_in_clear_after_a_reseal_and_everything_is_found(
    admin: Client, service: RunningService, before: Before, postgres_server: TestServer
) -> None:
    assert hidden_in(dump(postgres_server, before.database), forms()) == CLEAR.keys()

    done = service.leadkeep("keys", "reseal", "--json")

    counts = {"leads": 2, "resubmissions": 1, "conflicts": 1, "conversations": 3}
    assert (done.returncode, json.loads(done.stdout)["sealed_anew"]) == (0, counts), done.stderr
    assert hidden_in(dump(postgres_server, before.database), forms()) == set()
    assert [found(admin, talk) for talk in ("lead", "other lead", "resubmission")] == [str(LEAD), str(OTHER), str(LEAD)]
    assert admin.listed_ids(conversation_id=CLEAR["resubmission"]) == [str(LEAD)]
    assert admin.get(str(LEAD)).conversation_id == CLEAR["lead"]
    assert checked(service) == {"check": "conversation ids", "ok": True, "detail": "all are sealed"}
    assert service.leadkeep("keys", "verify").returncode == 0


def test_the_daily_file_follows_the_reseal(service: RunningService) -> None:
    assert soon_in(file_of(service), str(LEAD))
    service.leadkeep("keys", "reseal")

    def clean() -> bool:
        return hidden_in(file_of(service).read_bytes(), forms()) == set()

    assert eventually(clean, within=30)
    links = leads_in(file_of(service))[str(LEAD)]["conversations"]
    assert [link["submission_id"] for link in links] == [str(LEAD)] * 2


def test_a_daily_file_with_conversation_ids_in_clear_is_imported_sealed(
    service: RunningService, before: Before, database: TestDatabase, tmp_path: Path
) -> None:
    assert soon_in(file_of(service), str(LEAD))
    settings = {"LEADKEEP_KEYRING": str(before.keyring)}
    other = RunningService(tmp_path / "other", database_url=database.serve_url, settings=settings).start()
    try:
        done = other.leadkeep("import", str(file_of(service)))
        assert done.returncode == 0, done.stdout + done.stderr
        with other.channel() as channel:
            leads = [found(Client(other, channel), talk) for talk in ("lead", "other lead", "resubmission")]
        assert leads == [str(LEAD), str(OTHER), str(LEAD)]
        assert checked(other)["ok"]
    finally:
        other.stop()


@pytest.mark.parametrize("resealed", [False, True])
def test_a_conflict_that_is_decided_links_its_conversation(
    admin: Client, service: RunningService, before: Before, resealed: bool
) -> None:
    if resealed:
        service.leadkeep("keys", "reseal")
    wanted = pb.ResolveConflictRequest(id=str(LATE), resolution=pb.CONFLICT_RESOLUTION_KEEP_FIRST)

    admin.call("ResolveConflict", wanted)

    assert found(admin, "conflict") == str(OTHER)
    query = f"SELECT conversation_index IS NOT NULL FROM lead_conversation WHERE submission_id = '{LATE}'"
    assert value_of(before.database.admin_url, query)


def test_a_conversation_that_is_linked_again_after_the_reseal_is_linked_once(
    admin: Client, service: RunningService, before: Before
) -> None:
    service.leadkeep("keys", "reseal")
    again = somebody(phone="+8801711223344", nid="1911223344", conversation_id=CLEAR["lead"])

    with pytest.raises(grpc.RpcError):
        admin.create(again)

    query = f"SELECT count(*) FROM lead_conversation WHERE lead_id = '{LEAD}'"
    assert value_of(before.database.admin_url, query) == 2


@pytest.mark.parametrize("table", ["lead", "resubmission", "lead_conflict"])
def test_the_database_takes_no_new_conversation_id_in_clear(before: Before, table: str) -> None:
    before.migrate()
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(before.database.admin_url, f"UPDATE {table} SET conversation_id = 'chat-2'")
    execute(before.database.admin_url, f"UPDATE {table} SET name = 'Another', conversation_id = conversation_id")


async def test_a_reindex_replaces_the_index_of_every_link_and_the_old_key_can_be_retired(
    database: TestDatabase, tmp_path: Path
) -> None:
    keyring, validation = Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)), ValidationService()
    connected, first = Database(database.serve_url), EncryptionService(keyring)
    first.plan = plan_of(await confirm_canary(connected, first, validation.normaliser_identity), first)
    sealer, store = LeadSealer(first, validation, transcript_url=None), SubmissionStore(connected)
    details = CustomerFields(
        name="R",
        phone="+8801711223344",
        nid="1911223344",
        address="1 Lake Road",
        interested_policy="Term",
        conversation_id=CLEAR["lead"],
    )
    await store.create(sealer.seal(LEAD, details, created_by="bot", request_id=None))
    old = keyring.primary(Purpose.INDEX)
    added, new = keyring.with_new_key(Purpose.INDEX, now=datetime(2026, 2, 1, tzinfo=UTC))
    rotated = EncryptionService(added.with_primary(new.id))

    async def leads_found(by: LeadSealer) -> list[UUID]:
        indexes = by.conversation_indexes(CLEAR["lead"])
        query = select(models.lead.c.id).where(CONDITIONS["conversation_id"]((CLEAR["lead"], indexes)))
        rows = await connected.rows(query)
        return [row.id for row in rows]

    async with rekeying(database.serve_url) as tables:
        keys = KeyService(
            database=connected,
            rekeying=tables,
            encryption=rotated,
            on_wait=lambda _: None,
            on_progress=lambda _: None,
            spool=tmp_path,
            timeout=1.0,
            rate=0.0,
        )
        with pytest.raises(StartRefusedError, match="conversations"):
            await keys.retire(old, files=dict)
        before_reindex = await leads_found(LeadSealer(rotated, validation, transcript_url=None))
        done = await keys.reindex(validation.normaliser_identity)
        again = await keys.reindex(validation.normaliser_identity)
        await keys.retire(old, files=dict)
        verified = await keys.verify()
    rotated.plan = plan_of(await confirm_canary(connected, rotated, validation.normaliser_identity), rotated)
    after = await leads_found(LeadSealer(rotated, validation, transcript_url=None))
    await connected.close()

    assert (done.conversations, again.conversations, again.needed) == (1, 0, False)
    assert (before_reindex, after, verified.faults) == ([LEAD], [LEAD], [])
    query = "SELECT split_part(conversation_index, '.', 1) FROM lead_conversation"
    assert value_of(database.admin_url, query) == new.id


async def test_what_waits_in_a_spool_from_before_is_found_and_drained_sealed(
    connected: Database, tmp_path: Path
) -> None:
    encryption = EncryptionService(Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)))
    sealer = LeadSealer(encryption, ValidationService(), transcript_url=None)
    details = CustomerFields(
        name="R", phone="+8801711223344", nid="1911223344", address="1 Lake Road", interested_policy="Term"
    )
    waiting = sealer.seal(LEAD, details, created_by="bot", request_id=None)
    waiting = replace(waiting, fields={**waiting.fields, "conversation_id": CLEAR["lead"]})
    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    try:
        await spool.put([waiting])
        assert await spool.holds_conversation(CLEAR["lead"], lambda _: True)
        assert not any(CLEAR["lead"] in key_id for key_id in await spool.key_ids())
        [drained] = (await spool.oldest(10, sealer.resealed_and_reindexed)).submissions
    finally:
        spool.close()
    await SubmissionStore(connected).create(drained)
    query = select(models.lead.c.conversation_id, models.lead_conversation.c.conversation_index)
    [row] = await connected.rows(query.join(models.lead_conversation))
    assert encryption.open(LEAD, "conversation_id", row.conversation_id) == CLEAR["lead"]
    assert row.conversation_index == sealer.conversation_indexes(CLEAR["lead"])[0]
