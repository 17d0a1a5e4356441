"""The service behind PgBouncer: what is SAVED survives kill -9 of PostgreSQL, and nothing goes to another database."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.faults import times
from tests.harness.daily_files import create, file_of, soon_in
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.pooler import ODD, pooler, reset_role, set_role
from tests.harness.postgres import TestDatabase, TestServer, own_postgres
from tests.harness.processes import eventually, send_all
from tests.harness.running_service import RunningService

MODES = pytest.mark.parametrize("mode", ["session", "transaction"])

SAVED = times(200, whole=1000)
CALLERS = 8


@pytest.fixture
def lazy_server() -> Iterator[TestServer]:
    """A PostgreSQL that writes what was committed without waiting only after ten seconds, the longest there is."""
    with own_postgres() as server:
        execute(server.postgres.url(user="postgres", database="postgres"), "ALTER SYSTEM SET wal_writer_delay = '10s'")
        server.postgres.stop()
        server.postgres.start()
        yield server


def kill_postgres(server: TestServer) -> None:
    """kill -9 of the server and of every process of it, and its start, with a recovery."""
    assert server.postgres.pid is not None
    send_all(server.postgres.pid, signal.SIGKILL)
    server.postgres.stop()
    server.postgres.start()


def saved_ids(service: RunningService, count: int) -> list[str]:
    """Submit until so many are answered SAVED; their ids."""
    with service.channel() as channel, ThreadPoolExecutor(CALLERS) as callers:
        stub, metadata = service.stub(channel), service.metadata()

        def submit(_: int) -> str | None:
            answer = stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=metadata, timeout=20)
            return str(answer.id) if answer.state == pb.SAVE_STATE_SAVED else None

        found: list[str] = []
        while len(found) < count:
            found += filter(None, callers.map(submit, range(count - len(found))))
    return found


def missing(database: TestDatabase, ids: list[str]) -> int:
    with psycopg.connect(database.admin_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM unnest(%s::uuid[]) AS wanted WHERE NOT EXISTS (SELECT FROM lead WHERE id = wanted)",
            [ids],
        ).fetchone()
    assert row is not None
    return int(row[0])


@MODES
def test_what_is_saved_behind_a_pooler_survives_kill_9_of_postgresql(
    lazy_server: TestServer, start_service: StartService, mode: str
) -> None:
    database = lazy_server.fresh_database()
    name = database.serve_url.partition("?")[0].rpartition("/")[2]
    execute(database.admin_url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    set_role(database.admin_url)
    with pooler(database.serve_url, mode) as front:
        service = start_service(database_url=front.url)
        ids = saved_ids(service, SAVED)
        kill_postgres(lazy_server)
        assert missing(database, ids) == 0
        assert eventually(lambda: service.readiness["reasons"] == [], within=30)
        assert create(service)
        service.stop()


@MODES
def test_a_start_behind_a_pooler_is_refused_without_the_settings_of_the_role(
    server: TestServer, start_service: StartService, mode: str
) -> None:
    database = server.fresh_database()
    reset_role(database.admin_url, synchronous_commit="off")
    with pooler(database.serve_url, mode, drops=["options"]) as front:
        service = start_service(database_url=front.url, wait=False)
        assert service.process is not None
        assert service.process.wait(timeout=60) == 1
        for name in ("synchronous_commit", "lock_timeout"):
            assert f"ALTER ROLE … SET {name} = " in service.log()
        told = service.leadkeep("doctor")
        assert told.returncode == 3
        assert "settings that Leadkeep relies on are lost (synchronous_commit, " in told.stdout


@MODES
def test_a_role_that_loses_a_setting_while_the_service_runs_is_noticed(
    server: TestServer, start_service: StartService, mode: str
) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)
    with pooler(database.serve_url, mode) as front:
        service = start_service(database_url=front.url)
        assert create(service)
        set_role(database.admin_url, synchronous_commit="off")
        front.reconnect()
        lost(service, database, mode)
        set_role(database.admin_url)
        front.reconnect()
        assert eventually(lambda: service.readiness["reasons"] == [], within=30)
        assert eventually(lambda: service.metric("leadkeep_spool_entries") == 0, within=30)


def lost(service: RunningService, database: TestDatabase, mode: str) -> None:
    if mode == "session":  # a server connection lasts as long as the client's
        execute(
            database.admin_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'leadkeep_serve'"
            " AND datname = current_database()",
        )
    assert eventually(lambda: service.readiness["reasons"] == ["settings_lost"], within=60)
    assert "lost (synchronous_commit)" in service.log()
    assert service.create().state == pb.SAVE_STATE_DELAYED


def test_an_exchange_of_the_database_behind_a_pooler_stores_no_lead_in_the_wrong_one(
    server: TestServer, start_service: StartService
) -> None:
    right, wrong = server.fresh_database(), server.fresh_database()
    set_role(right.admin_url)
    other = start_service("other", database_url=wrong.serve_url)
    other.stop()
    with pooler(right.serve_url, "transaction") as front:
        service = start_service(database_url=front.url)
        ids = saved_ids(service, 20)
        front.lead_to(wrong.serve_url)
        with service.channel() as channel:
            stub, metadata = service.stub(channel), service.metadata()
            requests = [pb.CreateLeadRequest(lead=somebody()) for _ in range(20)]
            answers = [stub.CreateLead(request, metadata=metadata, timeout=20) for request in requests]
            change = pb.UpdateStatusRequest(id=ids[0], status=pb.LEAD_STATUS_CONTACTED)
            with pytest.raises(grpc.RpcError) as refused:
                stub.UpdateStatus(change, metadata=metadata, timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert eventually(lambda: service.readiness["reasons"] == ["database_refused"], within=30)
        assert value_of(wrong.admin_url, "SELECT count(*) FROM lead") == 0
        front.lead_to(right.serve_url)
        ids += [answer.id for answer in answers]
        assert eventually(lambda: missing(right, ids) == 0, within=30)
        assert value_of(wrong.admin_url, "SELECT count(*) FROM lead") == 0


@MODES
def test_every_use_of_the_database_works_behind_a_pooler(
    server: TestServer, start_service: StartService, mode: str, tmp_path: Path
) -> None:
    database = server.fresh_database()
    set_role(database.admin_url)
    with pooler(database.serve_url, mode) as front:
        use_everything(start_service, tmp_path, front.url, front.admin_url, direct=database.admin_url)


def test_every_use_of_the_database_works_with_roles_that_have_every_setting_wrong(
    start_service: StartService, tmp_path: Path
) -> None:
    with own_postgres() as server:
        database = server.fresh_database()
        reset_role(database.admin_url, **ODD, statement_timeout="'9s'")
        reset_role(database.admin_url, role="postgres", **ODD)
        use_everything(start_service, tmp_path, database.serve_url, database.admin_url, direct=database.admin_url)


def use_everything(start_service: StartService, tmp_path: Path, url: str, admin_url: str, *, direct: str) -> None:
    """Two replicas and every command, then a takeover of the daily files.

    Backups go to the server itself: the role that they are restored with is made on the way, and no pooler knows it.
    """
    both = {"LEADKEEP_KEYRING": str(tmp_path / "keyring.json"), "LEADKEEP_ADMIN_DATABASE_URL": admin_url}
    service = start_service(database_url=url, settings=both)
    assert soon_in(file_of(service), create(service), within=30)  # it has the turn
    second = start_service("second", database_url=url, settings=both)
    with service.channel() as channel:
        use(service, channel)
    assert soon_in(file_of(service), create(second), within=30)
    assert "renders the daily files" not in second.log()
    find_and_erase_in_another_spool(service, second, direct)
    for command in COMMANDS:
        arguments = [part.format(tmp=tmp_path) for part in command]
        if command[0] == "backup":  # starts programs
            done = service.leadkeep(*arguments, env={"LEADKEEP_ADMIN_DATABASE_URL": direct})
        else:
            done = service.leadkeep_here(*arguments)
        # Whole it would be cut in a report, and of a hundred lines that are well one is not.
        unwell = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
        assert done.returncode == 0, "\n".join((str(command), *unwell[-20:], done.stderr[-2000:]))
    service.kill()
    assert soon_in(file_of(second), create(second), within=40)
    for replica in (service, second):
        assert "SQLSTATE" not in replica.log()


def find_and_erase_in_another_spool(service: RunningService, other: RunningService, admin_url: str) -> None:
    """What waits in the other replica's spool is found, exported and erased; what else waits there becomes a lead."""
    email, kind = "waits@example.com", pb.PERSON_MATCH_KIND_WAITING
    execute(admin_url, "REVOKE INSERT ON public.lead FROM leadkeep_app")
    waiting, kept = create(other, email=email), create(other)
    with service.channel() as channel:
        stub = service.stub(channel)
        metadata = [*service.metadata(), ("leadkeep-reason", "asked for it")]
        found = stub.FindPerson(pb.FindPersonRequest(email=email), metadata=metadata, timeout=20)
        assert [(each.kind, each.id) for each in found.matches] == [(kind, waiting)]
        chosen = [pb.PersonRef(kind=kind, id=waiting)]
        shown = stub.ExportPerson(pb.ExportPersonRequest(refs=chosen), metadata=metadata, timeout=20)
        assert shown.records[0].lead.email == email
        erase = pb.ErasePersonRequest(refs=chosen, reason="asked for it")
        erased = stub.ErasePerson(erase, metadata=metadata, timeout=20)
        assert [each.id for each in erased.erased] == [waiting]
    assert [*found.unanswered_replicas, *shown.unanswered_replicas, *erased.unanswered_replicas] == []
    execute(admin_url, "GRANT INSERT ON public.lead TO leadkeep_app")
    assert eventually(lambda: other.metric("leadkeep_spool_entries") == 0, within=60)
    stored = f"SELECT array_agg(id::text) FROM public.lead WHERE id IN ('{waiting}', '{kept}')"
    assert value_of(admin_url, stored) == [kept]
    for table in ("spool_search", "spool_erasure"):
        assert value_of(admin_url, f"SELECT count(*) FROM public.{table}") == 0


COMMANDS = (
    ("migrate",),
    ("doctor",),
    ("export", "--format", "json"),
    ("files", "verify"),
    ("keys", "reseal"),
    ("keys", "verify"),
    ("audit", "verify"),
    ("backup", "{tmp}/backup", "--verify"),
    ("backup", "{tmp}/backup", "--verify"),
)


def use(service: RunningService, channel: grpc.Channel) -> None:
    """Create, read, find, correct, move; many at once, so that the pooler mixes its servers."""
    stub, metadata = service.stub(channel), service.metadata()

    def life(_: int) -> None:
        lead = somebody()
        lead_id = stub.CreateLead(pb.CreateLeadRequest(lead=lead), metadata=metadata, timeout=20).id
        other = somebody(phone=lead.phone, nid=lead.nid)
        with pytest.raises(grpc.RpcError) as twice:
            stub.CreateLead(pb.CreateLeadRequest(lead=other), metadata=metadata, timeout=20)
        assert twice.value.code() == grpc.StatusCode.ALREADY_EXISTS
        stub.GetLead(pb.GetLeadRequest(id=lead_id), metadata=metadata, timeout=20)
        stub.UpdateStatus(
            pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED), metadata=metadata, timeout=20
        )
        stub.ListLeads(pb.ListLeadsRequest(page_size=5), metadata=metadata, timeout=20)

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(life, range(80)))
