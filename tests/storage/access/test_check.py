"""What `audit verify` finds: each way in which somebody with the database can change what is on record."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest

from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, KeyState, Purpose, RootKey
from service.storage import schema
from service.storage.access.check import AccessCheck, Findings, check
from service.storage.access.record import Access, AccessRecords, Chain, entry_payload
from service.storage.access.writer import AccessWriter, logged_heads
from service.storage.database.database import Database
from service.supervisor import Component
from tests.harness.faults import execute
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.supervision import running
from tests.storage.access.test_writer import ENCRYPTION, look, writing


@dataclass
class Written:
    """A record of three chains: an ended one of 5 entries, one of 5 whose writer was killed, an ended one of 2."""

    database: TestDatabase
    heads: list[Chain]
    """Every head that went to the log, and one in the middle."""


@pytest.fixture(scope="module")
def written(postgres_server: TestServer) -> Written:
    database = postgres_server.fresh_database()
    execute(
        database.admin_url,
        "INSERT INTO access_record (subject, operation, fields, reason) VALUES ('old', 'export', '{phone,nid}', 'why')",
        "INSERT INTO access_record (subject, operation, fields) VALUES ('old', 'files show', '{}')",
    )
    heard: list[Chain] = []

    async def write() -> None:
        async with writing(database, heard=heard) as writer:
            for _ in range(5):
                await writer.record([look()])
        pool = Database(database.serve_url)
        records = AccessRecords(pool, ENCRYPTION)
        killed = AccessWriter(pool, records, writer="test", new_id=uuid4, limit=None, on_chain=heard.append)
        async with running(Component(name="killed", run=killed.run, finish=killed.finish, stop=killed.stop)):
            for _ in range(5):
                await killed.record([look()])
            assert killed.chain is not None
            heard.append(killed.chain)
        await pool.close()
        async with writing(database, heard=heard) as writer:
            await writer.record([look(), look()])

    asyncio.run(write())
    return Written(database, heard)


@pytest.fixture
def tampered(written: Written) -> Iterator[psycopg.Connection]:
    """A transaction of the database's owner, which sees what it did to the record and is undone."""
    with psycopg.connect(written.database.admin_url) as connection:
        yield connection
        connection.rollback()


def found(connection: psycopg.Connection, heads: list[Chain] | None = None) -> Findings:
    return AccessCheck(connection, ENCRYPTION).run(heads or [])


def do(connection: psycopg.Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(statement.encode())


def test_what_nobody_touched_is_unchanged(written: Written) -> None:
    findings = check(written.database.serve_url, ENCRYPTION, written.heads)
    assert findings.faults == []
    assert (findings.chains, findings.ended, findings.entries) == (3, 2, 12)
    assert (findings.earlier_entries, findings.earlier_sealed) == (2, True)


ENDED = "(SELECT id FROM access_chain WHERE number = 1)"
KILLED = "(SELECT id FROM access_chain WHERE number = 2)"
COPIED = "INSERT INTO access_record (subject, operation, fields, chain_id, number, key_id, digest)"
LAST = "(SELECT id FROM access_chain WHERE number = 3)"


@pytest.mark.parametrize(
    "column",
    [
        "recorded_at = recorded_at + interval '1 microsecond'",
        "subject = 'nobody'",
        "operation = 'ListLeads'",
        "lead_id = gen_random_uuid()",
        "lead_id = NULL",
        "fields = '{phone}'",
        "fields = '{}'",
        "reason = 'because'",
        "request_id = 'other'",
        "digest = sha256('x')",
    ],
)
def test_a_changed_entry_is_found(column: str, tampered: psycopg.Connection) -> None:
    do(tampered, f"UPDATE access_record SET {column} WHERE chain_id = {ENDED} AND number = 3")
    assert {(fault.kind, fault.number) for fault in found(tampered).faults} >= {("changed", 3)}


@pytest.mark.parametrize(
    ("statements", "kinds"),
    [
        ([f"DELETE FROM access_record WHERE chain_id = {ENDED} AND number = 3"], {"gap"}),
        ([f"DELETE FROM access_record WHERE chain_id = {ENDED} AND number = 1"], {"gap"}),
        (
            [
                f"DELETE FROM access_record WHERE chain_id = {ENDED} AND number = 3",
                f"UPDATE access_record SET number = number - 1 WHERE chain_id = {ENDED} AND number > 3",
            ],
            {"changed", "cut"},
        ),
        ([f"DELETE FROM access_record WHERE chain_id = {ENDED} AND number > 3"], {"cut"}),
        ([f"DELETE FROM access_record WHERE chain_id = {KILLED} AND number > 3"], {"cut"}),
        ([f"DELETE FROM access_record WHERE chain_id = {KILLED}"], {"cut"}),
        (["TRUNCATE access_record"], {"cut", "changed"}),
        (
            [
                f"UPDATE access_record SET number = -number WHERE chain_id = {ENDED}",
                f"UPDATE access_record SET number = 6 + number WHERE chain_id = {ENDED}",
            ],
            {"changed"},
        ),
        (
            [
                f"DELETE FROM access_record WHERE chain_id = {KILLED} AND number = 2",
                f"{COPIED} SELECT subject, operation, fields, {KILLED}, number, key_id, digest FROM access_record"
                f" WHERE chain_id = {ENDED} AND number = 2",
            ],
            {"changed"},
        ),
        (["DELETE FROM access_chain WHERE number = 2"], {"missing chain"}),
        (["DELETE FROM access_chain WHERE number = 1"], {"missing chain", "changed"}),
        (["DELETE FROM access_chain WHERE number = 3"], {"missing chain"}),
        (
            [
                f"DELETE FROM {table} WHERE {name} = {KILLED}"
                for table, name in (("access_record", "chain_id"), ("access_head", "chain_id"), ("access_chain", "id"))
            ],
            {"missing chain"},
        ),
        (["UPDATE access_chain SET writer = 'nobody' WHERE number = 2"], {"changed"}),
        (["UPDATE access_chain SET began_at = now() WHERE number = 2"], {"changed"}),
        ([f"UPDATE access_head SET number = 4 WHERE chain_id = {ENDED} AND number = 5"], {"changed"}),
        ([f"UPDATE access_head SET ended = true WHERE chain_id = {KILLED}"], {"changed"}),
        (["UPDATE access_record SET subject = 'nobody' WHERE chain_id IS NULL"], {"changed"}),
        (["DELETE FROM access_record WHERE chain_id IS NULL AND operation = 'export'"], {"changed"}),
        (["INSERT INTO access_record (subject, operation, fields) VALUES ('ann', 'export', '{}')"], {"changed"}),
        (
            [
                f"{COPIED} SELECT subject, operation, fields, chain_id, 6, key_id, digest FROM access_record"
                f" WHERE chain_id = {ENDED} AND number = 5"
            ],
            {"changed"},
        ),
    ],
)
def test_what_somebody_did_to_the_record_is_found(
    statements: list[str], kinds: set[str], tampered: psycopg.Connection
) -> None:
    do(tampered, *statements)
    assert {fault.kind for fault in found(tampered).faults} == kinds


def test_an_entry_that_is_right_in_itself_but_of_another_time_line_is_found(tampered: psycopg.Connection) -> None:
    row = tampered.execute(
        f"SELECT recorded_at, chain_id, key_id FROM access_record WHERE chain_id = {ENDED} AND number = 3".encode()
    ).fetchone()
    before = tampered.execute(
        f"SELECT digest FROM access_record WHERE chain_id = {ENDED} AND number = 2".encode()
    ).fetchone()
    assert row is not None
    assert before is not None
    other = Access(subject="nobody", operation="GetLead", fields=("phone",))
    digest = ENCRYPTION.audit_digest(row[2], entry_payload(row[1], 3, before[0], row[0], other))
    tampered.execute(
        f"""UPDATE access_record SET subject = 'nobody', lead_id = NULL, fields = '{{phone}}', digest = %s
            WHERE chain_id = {ENDED} AND number = 3""".encode(),
        [digest],
    )
    assert [(fault.kind, fault.number) for fault in found(tampered).faults] == [("changed", 4)]


FORGETTING = [
    # A tail, with the heads in the database that tell of it.
    [
        f"DELETE FROM access_record WHERE chain_id = {KILLED} AND number > 3",
        f"DELETE FROM access_head WHERE chain_id = {KILLED} AND number > 3",
    ],
    # The newest chain, with all that tells of it.
    [
        f"DELETE FROM access_record WHERE chain_id = {LAST}",
        f"DELETE FROM access_head WHERE chain_id = {LAST}",
        "DELETE FROM access_chain WHERE number = 3",
    ],
    # Everything.
    ["TRUNCATE access_record, access_head, access_chain"],
]


@pytest.mark.parametrize(
    ("statements", "kind"), list(zip(FORGETTING, ["cut", "missing chain", "missing chain"], strict=True))
)
def test_heads_of_the_log_find_what_the_database_has_forgotten(
    statements: list[str], kind: str, tampered: psycopg.Connection, written: Written
) -> None:
    do(tampered, *statements)
    assert found(tampered).unchanged, "only the log can tell"
    assert {fault.kind for fault in found(tampered, written.heads).faults} == {kind}


def test_a_chain_that_took_the_place_of_a_forgotten_one_does_not_hide_it(postgres_server: TestServer) -> None:
    database = postgres_server.fresh_database()
    heard: list[Chain] = []

    async def write() -> None:
        async with writing(database, heard=heard) as writer:
            await writer.record([look(), look()])

    asyncio.run(write())
    execute(database.admin_url, *FORGETTING[2])
    asyncio.run(write())
    assert check(database.serve_url, ENCRYPTION).unchanged
    assert [fault.kind for fault in check(database.serve_url, ENCRYPTION, heard).faults] == ["missing chain"]


def test_a_record_that_another_key_wrote_cannot_be_called_unchanged(written: Written) -> None:
    stranger = EncryptionService(Keyring.generate(now=datetime.now(UTC)))
    assert {fault.kind for fault in check(written.database.serve_url, stranger).faults} == {"unknown key", "changed"}


def test_an_old_audit_key_still_checks_what_it_wrote(postgres_server: TestServer) -> None:
    now = datetime.now(UTC)
    old = Keyring.generate(now=now)
    new_root = RootKey(Purpose.AUDIT, "a-new", KeyState.PRIMARY, now, bytes(32))
    kept = [
        RootKey(key.purpose, key.id, KeyState.ACTIVE, key.created_at, key.secret)
        if key.purpose is Purpose.AUDIT
        else key
        for key in old.keys
    ]
    database = postgres_server.fresh_database()

    async def write(encryption: EncryptionService) -> None:
        async with writing(database, encryption=encryption) as writer:
            await writer.record([look()])

    rotated = EncryptionService(Keyring([*kept, new_root]))
    asyncio.run(write(EncryptionService(old)))
    asyncio.run(write(rotated))
    findings = check(database.serve_url, rotated)
    assert (findings.faults, findings.entries) == ([], 2)


def test_entries_from_before_are_not_sealed_until_the_first_look(postgres_server: TestServer) -> None:
    database = postgres_server.fresh_database()
    execute(database.admin_url, "INSERT INTO access_record (subject, operation, fields) VALUES ('old', 'export', '{}')")
    findings = check(database.serve_url, ENCRYPTION)
    assert (findings.unchanged, findings.earlier_entries, findings.earlier_sealed) == (True, 1, False)


def line(head: Chain, prefix: str = "") -> str:
    told = head.head
    return (
        f'{prefix}{{"chain": "{told.chain_id}", "chain_number": {head.number}, "number": {told.number}, '
        f'"digest": "{told.digest.hex()}", "ended": false, "event": "access head"}}\n'
    )


def test_heads_are_found_among_other_lines(written: Written) -> None:
    head = written.heads[0]
    lines = ["not JSON\n", '{"event": "call"}\n', line(head), line(head, "leadkeep-0  | "), line(head)[:-30], "[1]\n"]
    assert [each.head.number for each in logged_heads(lines)] == [1, 1]


@pytest.mark.parametrize("broken", ['"number": "x"', '"number": null'])
def test_a_damaged_head_is_named(broken: str, written: Written) -> None:
    with pytest.raises(ValueError, match="line 1"):
        list(logged_heads([line(written.heads[0]).replace('"number": 1', broken)]))


def test_another_digest_in_the_log_is_found(written: Written) -> None:
    head = written.heads[0]
    forged = list(logged_heads([line(head).replace(head.head.digest.hex(), "00" * 32)]))
    assert [fault.kind for fault in check(written.database.serve_url, ENCRYPTION, forged).faults] == ["changed"]


def test_a_head_that_is_ahead_of_its_chain_is_a_cut(written: Written) -> None:
    ahead = list(logged_heads([line(written.heads[0]).replace('"number": 1,', '"number": 9,')]))
    assert [fault.kind for fault in check(written.database.serve_url, ENCRYPTION, ahead).faults] == ["cut"]


def test_a_stranger_chain_in_the_log_is_missing(written: Written) -> None:
    head = written.heads[0]
    strange = list(logged_heads([line(head).replace(str(head.head.chain_id), str(uuid4()))]))
    assert [fault.kind for fault in check(written.database.serve_url, ENCRYPTION, strange).faults] == ["missing chain"]


def test_entries_of_the_release_before_survive_the_migration_and_are_unchanged(postgres_server: TestServer) -> None:
    database = postgres_server.database_at("0006")
    execute(
        database.admin_url,
        "INSERT INTO access_record (subject, operation, fields, reason) VALUES ('old', 'export', '{phone}', 'audit 7')",
    )
    schema.migrate(database.admin_url)
    before = check(database.serve_url, ENCRYPTION)

    async def write() -> None:
        async with writing(database) as writer:
            await writer.record([look()])

    asyncio.run(write())
    after = check(database.serve_url, ENCRYPTION)
    assert (before.faults, before.earlier_entries, before.earlier_sealed) == ([], 1, False)
    assert (after.faults, after.earlier_entries, after.earlier_sealed) == ([], 1, True)
