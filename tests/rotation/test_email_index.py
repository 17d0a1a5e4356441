"""Leads from before there was a search by e-mail are indexed while the service runs, and a rotation leaves none out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb
from sqlalchemy import select

from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, create_keyring
from service.lead import CustomerFields
from service.lead_sealer import LeadSealer
from service.storage import models, schema
from service.storage.database.database import Database
from service.storage.leads.queries import CONDITIONS
from service.storage.leads.submissions import SubmissionStore
from service.validation import ValidationService
from tests.conftest import StartService
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService
from tests.rotation.conftest import KeyRotation
from tests.rpc.calls import Client, refused

WITH, DAMAGED, OTHER_DAMAGED, WITHOUT = (UUID(f"01890a5d-ac96-774b-bcce-b302099a806{n}") for n in "1234")
EMAIL = "Rahima@example.com"
VALIDATION = ValidationService()


def details(number: int, **more: str) -> CustomerFields:
    return CustomerFields(
        name="R",
        phone=f"+88017112233{number:02d}",
        nid=f"19112233{number:02d}",
        address="1 Lake Road",
        interested_policy="Term",
        **more,
    )


@dataclass
class Before:
    """A database of the schema before there was the index, with leads, and its keyring."""

    database: TestDatabase
    keyring: Path


@pytest.fixture
def before(postgres_server: TestServer, tmp_path: Path) -> Before:
    database, keyring = postgres_server.database_at("0006"), tmp_path / "keyring.json"
    create_keyring(keyring, now=datetime.now(UTC))
    sealer = LeadSealer(EncryptionService(Keyring.from_json(keyring.read_text())), VALIDATION, transcript_url=None)
    with psycopg.connect(database.admin_url, autocommit=True) as old:
        for number, (lead_id, given) in enumerate(
            {
                WITH: {"email": EMAIL},
                DAMAGED: {"email": "d@example.com"},
                OTHER_DAMAGED: {"notes": "n"},
                WITHOUT: {},
            }.items()
        ):
            extra = {"email": "e@example.com"} if lead_id == OTHER_DAMAGED else {}
            made = sealer.seal(lead_id, details(number, **given, **extra), created_by="admin", request_id=None)
            columns: dict[str, object] = {
                **made.fields,
                "id": lead_id,
                "created_by": made.created_by,
                "content_digest": made.content_digest,
                "phone_index": made.indexes.phones[0],
                "nid_index": made.indexes.nids[0],
            }
            places = ", ".join(["%s"] * len(columns))
            old.execute(f"INSERT INTO lead ({', '.join(columns)}) VALUES ({places})".encode(), list(columns.values()))
        # Tokens of another lead do not open here.
        old.execute("UPDATE lead SET email = (SELECT email FROM lead WHERE id = %s) WHERE id = %s", [WITH, DAMAGED])
        old.execute("UPDATE lead SET notes = 'x.gAAAAAAAAAAA' WHERE id = %s", [OTHER_DAMAGED])
    schema.migrate(database.admin_url)
    return Before(database, keyring)


@pytest.fixture
def service(before: Before, start_service: StartService) -> RunningService:
    settings = {"LEADKEEP_KEYRING": str(before.keyring)}
    return start_service(database_url=before.database.serve_url, settings=settings)


def checked(service: RunningService) -> dict[str, Any]:
    """What doctor finds about the index of e-mails."""
    done = service.leadkeep_here("doctor", "--json")
    [finding] = [each for each in json.loads(done.stdout)["checks"] if each["check"] == "e-mail index"]
    return dict(finding)


def test_old_leads_are_indexed_while_the_service_runs_and_the_search_is_refused_until_then(
    before: Before, service: RunningService, admin: Client
) -> None:
    new = admin.create(somebody(email="rahima@example.com")).id
    with refused(StatusCode.FAILED_PRECONDITION, "INDEX_INCOMPLETE") as refusal:
        admin.list_leads(email=EMAIL)
    assert "keys reseal" in refusal.text
    assert checked(service) | {"detail": ""} == {"check": "e-mail index", "ok": False, "detail": ""}
    assert "3 leads lack the blind index of their e-mail" in service.leadkeep("keys", "verify").stdout

    done = service.leadkeep("keys", "reseal", "--json")

    assert json.loads(done.stdout)["emails"] == 3, done.stderr
    assert admin.listed_ids(email=EMAIL.lower()) == [new, str(WITH)]
    assert checked(service)["ok"]
    # A lead whose notes are damaged is found; one whose e-mail is damaged keeps nobody else from being found.
    assert admin.listed_ids(email="e@example.com") == [str(OTHER_DAMAGED)]
    assert json.loads(service.leadkeep("keys", "reseal", "--json").stdout)["emails"] == 0
    admin.correct(str(DAMAGED), email="d@example.com")
    assert admin.listed_ids(email="d@example.com") == [str(DAMAGED)]


def test_the_step_is_resumed_where_it_was_stopped(before: Before, service: RunningService, admin: Client) -> None:
    service.leadkeep("keys", "reseal")
    execute(before.database.admin_url, f"UPDATE lead SET email_index = NULL WHERE id = '{WITH}'")
    with refused(StatusCode.FAILED_PRECONDITION, "INDEX_INCOMPLETE"):
        admin.list_leads(email=EMAIL)

    assert json.loads(service.leadkeep("keys", "reseal", "--json").stdout)["emails"] == 1

    assert admin.listed_ids(email=EMAIL) == [str(WITH)]
    assert admin.call("GetLead", pb.GetLeadRequest(id=str(WITH))).lead.version == 1


class Rotation(KeyRotation):
    """A database with one lead, its keyring, and one with another primary index key."""

    async def store(self) -> None:
        await self.begin(VALIDATION.normaliser_identity)
        sealer = LeadSealer(self.first, VALIDATION, transcript_url=None)
        made = sealer.seal(WITH, details(1, email=EMAIL), created_by="bot", request_id=None)
        await SubmissionStore(self.connected).create(made)

    async def found_with(self, encryption: EncryptionService) -> Sequence[UUID]:
        indexes = LeadSealer(encryption, VALIDATION, transcript_url=None).email_indexes("RAHIMA@example.com")
        query = select(models.lead.c.id).where(CONDITIONS["email"](indexes))
        return [row.id for row in await self.connected.rows(query)]

    def key_of_index(self) -> object:
        return value_of(self.database.admin_url, "SELECT split_part(email_index, '.', 1) FROM lead")


@pytest.fixture
async def rotation(database: TestDatabase, connected: Database, tmp_path: Path) -> Rotation:
    made = Rotation(database, connected, tmp_path)
    await made.store()
    return made


async def test_a_reindex_replaces_the_index_of_every_email_and_the_old_key_can_be_retired(rotation: Rotation) -> None:
    async with rotation.keys() as keys:
        with pytest.raises(StartRefusedError, match="1 e-mails"):
            await keys.retire(rotation.old, files=dict)
        between = await rotation.found_with(rotation.rotated)
        done = await keys.reindex(VALIDATION.normaliser_identity)
        again = await keys.reindex(VALIDATION.normaliser_identity)
        await keys.retire(rotation.old, files=dict)
        verified = await keys.verify()

    assert (done.emails, again.emails, verified.faults) == (1, 0, [])
    assert between == await rotation.found_with(rotation.rotated) == [WITH]
    assert rotation.key_of_index() == rotation.new.id


async def test_an_index_that_was_made_with_a_retired_key_is_still_found(rotation: Rotation) -> None:
    retired = EncryptionService(rotation.rotated.keyring.with_retired(rotation.old.id))

    assert await rotation.found_with(retired) == [WITH]


async def test_an_email_that_does_not_open_keeps_its_index_and_the_old_key_is_still_needed(rotation: Rotation) -> None:
    execute(rotation.database.admin_url, "UPDATE lead SET email = 'x.gAAAAAAAAAAA'")

    async with rotation.keys() as keys:
        done = await keys.reindex(VALIDATION.normaliser_identity)
        with pytest.raises(StartRefusedError, match="1 e-mails"):
            await keys.retire(rotation.old, files=dict)

    assert done.emails == 0
    assert await rotation.found_with(rotation.rotated) == [WITH]


async def test_verify_names_a_lead_whose_index_is_another_ones(rotation: Rotation) -> None:
    execute(rotation.database.admin_url, f"UPDATE lead SET email_index = '{rotation.old.id}.x'")

    async with rotation.keys() as keys:
        verified = await keys.verify()

    assert verified.faults == [f"e-mail {WITH}: its blind index is not that of its email"]


def test_the_database_keeps_no_index_of_an_address_that_is_gone(database: TestDatabase) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="ck_lead_email_index"):
        execute(
            database.admin_url,
            "INSERT INTO lead (id, name, phone, email_index, phone_index, created_by, content_digest) VALUES"
            " (gen_random_uuid(), 'N', 'k.gAAAAAAAAAAA', 'i.x', sha256('a'), 'bot', '')",
        )
