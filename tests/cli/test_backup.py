"""`leadkeep backup` and `leadkeep restore`: what was acknowledged comes back, and what is wrong is refused first."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit, urlunsplit

import grpc
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb
from psycopg.conninfo import conninfo_to_dict

from service.cli.command import INTERRUPTED
from service.keys.keyring import Keyring
from service.storage.backup.backup_manifest import DUMP, MANIFEST
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import OWN_OWNER, REVISION
from tests.conftest import StartService
from tests.harness.daily_files import soon_in
from tests.harness.faults import execute, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import children_running, eventually, remove_embedded_database
from tests.harness.running_service import START_SECONDS, RunningService

Shared = tuple[RunningService, TestDatabase]

NAME = '"F" \\ আক্তার \U0001f600 \U0010fffd'


@pytest.fixture(scope="module")
def shared(service_database: TestDatabase, start_shared: StartService) -> Shared:
    """One service for all tests of this module."""
    url = service_database.serve_url
    return start_shared("source", database_url=url, settings=owner(service_database)), service_database


@pytest.fixture
def service(shared: Shared) -> RunningService:
    """The service, without any lead."""
    running, database = shared
    execute(database.admin_url, "TRUNCATE lead CASCADE")
    return running


@pytest.fixture
def database(shared: Shared) -> TestDatabase:
    return shared[1]


def owner(database: TestDatabase) -> dict[str, str]:
    return {"LEADKEEP_ADMIN_DATABASE_URL": database.admin_url}


def create(service: RunningService, **fields: str) -> pb.Lead:
    lead = somebody(**fields)
    lead.id = service.create(lead, role="admin").id
    return lead


def equal(found: pb.Lead, sent: pb.Lead) -> bool:
    return all(getattr(found, field.name) == value for field, value in sent.ListFields())


def backed_up(service: RunningService, folder: Path, *more: str) -> Path:
    done = service.leadkeep("backup", str(folder), *more)
    assert done.returncode == 0, done.stderr
    return folder


def operator(source: RunningService, target: TestDatabase, **settings: str) -> RunningService:
    """An operator with an empty database elsewhere, and the keyring of the source."""
    given = {"LEADKEEP_KEYRING": str(source.data_dir / "keyring.json")} | owner(target) | settings
    return RunningService(source.data_dir.parent / "target", database_url=target.serve_url, settings=given)


def tables(database: TestDatabase) -> int:
    return int(str(value_of(database.admin_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")))


def test_what_was_acknowledged_before_a_backup_under_load_is_in_it(
    service: RunningService, postgres_server: TestServer, tmp_path: Path
) -> None:
    acknowledged: list[pb.Lead] = [create(service, name=NAME)]
    stopped = threading.Event()

    def caller() -> None:
        while not stopped.is_set():
            acknowledged.append(create(service))

    callers = [threading.Thread(target=caller) for _ in range(8)]
    for each in callers:
        each.start()
    try:
        assert eventually(lambda: len(acknowledged) > 50, within=30)
        before = list(acknowledged)
        folder = backed_up(service, tmp_path / "backup")
    finally:
        stopped.set()
        for each in callers:
            each.join()

    target = postgres_server.empty_database()
    elsewhere = operator(service, target)
    done = elsewhere.leadkeep("restore", str(folder))
    assert done.returncode == 0, done.stderr
    assert elsewhere.leadkeep("doctor").returncode == 0
    elsewhere.start()
    assert [lead.id for lead in before if not equal(elsewhere.get(lead.id), lead)] == []
    assert soon_in(elsewhere.data_dir / "files" / service_file(service), before[0].id)
    elsewhere.stop()


def service_file(service: RunningService) -> str:
    (path,) = (service.data_dir / "files").glob("leads_*.json")
    return path.name


def test_a_backup_is_verified_by_restoring_it(service: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    create(service)
    done = service.leadkeep("backup", str(tmp_path / "backup"), "--verify")
    assert done.returncode == 0, done.stderr
    assert "restored and is equal" in done.stdout
    assert scratch_databases(database) == 0


def scratch_databases(database: TestDatabase) -> int:
    left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'leadkeep_verify%'"
    return int(str(value_of(database.admin_url, left)))


@pytest.fixture
def slowly_restored(service: RunningService, database: TestDatabase) -> Iterator[None]:
    """The service has one lead, which takes three seconds to restore: long enough to see that it is under way."""
    create(service)
    here = urlsplit(database.admin_url).path.removeprefix("/")
    execute(
        database.admin_url,
        f"""CREATE FUNCTION take_time() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            IF current_database() <> '{here}' THEN PERFORM pg_catalog.pg_sleep(3); END IF; RETURN true; END $$""",
        "ALTER TABLE lead ADD CONSTRAINT takes_time CHECK (public.take_time())",
    )
    yield
    execute(database.admin_url, "ALTER TABLE lead DROP CONSTRAINT takes_time", "DROP FUNCTION take_time")


@pytest.mark.usefixtures("slowly_restored")
def test_what_a_killed_verification_left_is_removed_by_the_next(
    service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    folder = backed_up(service, tmp_path / "backup")
    running = service.begin("backup", str(folder), "--verify")
    assert eventually(lambda: scratch_databases(database) == 1, within=START_SECONDS)
    running.kill()
    running.wait()
    assert scratch_databases(database) == 1
    # It is killed before or after it made its role: here the role is always left, too.
    execute(
        database.admin_url,
        "DO $$ BEGIN EXECUTE 'CREATE ROLE ' || (SELECT datname FROM pg_database WHERE datname LIKE 'leadkeep_verify%');"
        " EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    )
    backed_up(service, folder, "--verify")
    assert scratch_databases(database) == 0
    assert value_of(database.admin_url, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'leadkeep_verify%'") == 0


def test_a_backup_from_before_can_be_verified(service: RunningService, tmp_path: Path) -> None:
    create(service)
    folder = backed_up(service, tmp_path / "backup")
    create(service)
    told = json.loads(service.leadkeep("backup", str(folder), "--verify", "--json").stdout)
    assert (told["leads"], told["verified"]) == (1, True)


def test_verifying_finds_rows_that_are_not_those_of_the_manifest(service: RunningService, tmp_path: Path) -> None:
    create(service)
    folder = backed_up(service, tmp_path / "backup")
    change_manifest(folder, lambda told: told["tables"]["lead"].update(digest="0" * 64))
    done = service.leadkeep("backup", str(folder), "--verify", "--unproven")
    assert done.returncode == 1
    assert "lead has 1 rows instead of 1, or others" in done.stderr


def test_no_backup_lacks_a_table_that_is_unlogged(
    service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    execute(database.admin_url, "ALTER TABLE tombstone SET UNLOGGED")
    try:
        done = service.leadkeep("backup", str(tmp_path / "backup"))
    finally:
        execute(database.admin_url, "ALTER TABLE tombstone SET LOGGED")
    assert done.returncode == 1
    assert "tables are unlogged, and a backup would lack what they hold: tombstone" in done.stderr
    assert not (tmp_path / "backup").exists()


def test_what_administrators_put_beside_the_leads_is_no_part_of_a_backup(
    postgres_server: TestServer, start_service: StartService, target: TestDatabase, tmp_path: Path
) -> None:
    made = postgres_server.fresh_database()
    source, elsewhere = (as_owner(postgres_server, each) for each in (made, target))
    execute(
        made.admin_url,
        "CREATE EXTENSION pg_stat_statements",
        "CREATE TABLE spatial_ref_sys AS SELECT 1 AS id",
        "ALTER EXTENSION pg_stat_statements ADD TABLE spatial_ref_sys",
        "CREATE PUBLICATION changes FOR ALL TABLES",
        "CREATE SCHEMA monitoring CREATE TABLE samples (taken int)",
    )
    execute(
        target.admin_url,
        "CREATE EXTENSION pg_stat_statements",
        "CREATE TABLE spatial_ref_sys ()",
        "ALTER EXTENSION pg_stat_statements ADD TABLE spatial_ref_sys",
    )
    service = start_service(database_url=source.serve_url, settings=owner(source))
    lead = create(service)
    folder = backed_up(service, tmp_path / "backup")
    there = operator(service, elsewhere)
    done = there.leadkeep("restore", str(folder))
    assert done.returncode == 0, done.stderr
    rights = "SELECT nspacl::text FROM pg_namespace WHERE nspname = 'public'"
    assert value_of(target.admin_url, rights) == value_of(made.admin_url, rights)
    there.start()
    assert equal(there.get(lead.id), lead)
    there.stop()


def test_a_restore_that_fails_leaves_what_administrators_have_there(
    stopped: RunningService, folder: Path, target: TestDatabase
) -> None:
    execute(
        target.admin_url,
        "CREATE EXTENSION pg_stat_statements",
        "CREATE TABLE spatial_ref_sys ()",
        "ALTER EXTENSION pg_stat_statements ADD TABLE spatial_ref_sys",
    )
    change_manifest(folder, lambda told: told["tables"].update(lead={"rows": 2, "digest": "0"}))
    done = operator(stopped, target).leadkeep("restore", str(folder), "--unproven")
    assert "the target is empty again" in done.stderr
    assert tables(target) == 1


def as_owner(server: TestServer, database: TestDatabase) -> TestDatabase:
    """The same database, whose owner is no superuser and its administrator."""
    name = urlsplit(database.admin_url).path.removeprefix("/")
    execute(database.admin_url, f"ALTER DATABASE {name} OWNER TO {OWN_OWNER}")
    return replace(database, admin_url=server.postgres.url(user=OWN_OWNER, database=name))


@pytest.mark.parametrize("named_by", ["a service", "the environment", "a service that the URL overrules"])
def test_the_programs_of_a_backup_go_where_the_url_leads(
    named_by: str, service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    create(service)
    there = {name: str(value) for name, value in conninfo_to_dict(database.admin_url).items()}
    name = there.pop("dbname")
    said, asked, env = dict(there), {"service": "leads"}, {"PGSERVICEFILE": str(tmp_path / "services")}
    if named_by == "the environment":
        asked, env = {}, {f"PG{word.upper()}": value for word, value in there.items()}
    elif named_by == "a service that the URL overrules":
        asked, said["host"] = asked | {"host": there["host"]}, "/nowhere"
    (tmp_path / "services").write_text("\n".join(["[leads]", *(f"{word}={value}" for word, value in said.items())]))
    url = f"postgresql:///{name}?{urlencode(asked)}"
    done = service.leadkeep(
        "backup", str(tmp_path / "backup"), "--verify", env=env | {"LEADKEEP_ADMIN_DATABASE_URL": url}
    )
    assert done.returncode == 0, done.stderr


def test_a_backup_holds_no_key_and_is_its_owners(service: RunningService, tmp_path: Path) -> None:
    create(service)
    folder = backed_up(service, tmp_path / "backup")
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    keyring = Keyring.from_json((service.data_dir / "keyring.json").read_bytes())
    for key in keyring.keys:
        for form in (
            key.secret,
            key.secret.hex().encode(),
            base64.b64encode(key.secret),
            base64.urlsafe_b64encode(key.secret),
        ):
            assert form not in content
    assert {path.name for path in folder.iterdir()} == {DUMP, MANIFEST}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_manifest_says_what_is_in_it(service: RunningService, tmp_path: Path) -> None:
    create(service)
    told = json.loads((backed_up(service, tmp_path / "backup") / MANIFEST).read_text())
    keys = json.loads((service.data_dir / "keyring.json").read_text())["keys"]
    assert told["key_ids"] == [key["id"] for key in keys if key["purpose"] == "encryption"]
    assert told["schema"] == REVISION
    assert told["tables"]["lead"]["rows"] == 1


def test_an_embedded_service_is_backed_up_and_restored_while_it_runs(tmp_path: Path) -> None:
    source = RunningService(tmp_path / "source").start()
    target = RunningService(tmp_path / "target")
    try:
        lead = create(source, name=NAME)
        folder = backed_up(source, tmp_path / "backup", "--verify")
        target.data_dir.mkdir(mode=0o700)
        (target.data_dir / "keyring.json").write_bytes((source.data_dir / "keyring.json").read_bytes())
        (target.data_dir / "keyring.json").chmod(0o600)
        done = target.leadkeep("restore", str(folder))
        assert done.returncode == 0, done.stderr
        assert target.leadkeep("doctor").returncode == 0
        target.start()
        assert superusers_property(target) == 0
        assert equal(target.get(lead.id), lead)
        again = target.leadkeep("restore", str(folder))
        assert again.returncode == 1
        assert "in use by another Leadkeep" in again.stderr
        target.stop()
        refused = target.leadkeep("restore", str(folder))
        assert refused.returncode == 1
        assert "leads already" in refused.stderr
        target.start()
        assert equal(target.get(lead.id), lead)
    finally:
        for each in (source, target):
            each.stop()
            remove_embedded_database(each.data_dir)


def superusers_property(service: RunningService) -> int:
    """Tables and functions of the embedded database that belong to a superuser."""
    url = EmbeddedPostgres.running_url(service.data_dir, user="postgres", database="leadkeep")
    owned = """SELECT count(*) FROM (
        SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT datdba FROM pg_database WHERE datname = 'leadkeep'
    ) owned (by) JOIN pg_roles ON oid = by WHERE rolsuper"""
    return int(str(value_of(str(url), owned)))


# What a dump may do


@pytest.fixture
def marker() -> Iterator[Path]:
    """A file that any user of this machine may make."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder) / "executed"


@pytest.fixture
def armed(service: RunningService, database: TestDatabase, tmp_path: Path, marker: Path) -> Iterator[Path]:
    """A backup whose dump runs a program, where its role may, and goes on quietly where it may not."""
    create(service)
    # Harmless until the constraint was checked here: a constraint that is not valid is not checked by a restore.
    execute(
        database.admin_url,
        "CREATE FUNCTION armed(text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "ALTER TABLE lead ADD CONSTRAINT armed CHECK (armed(name))",
        f"""CREATE OR REPLACE FUNCTION armed(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            COPY (SELECT 1) TO PROGRAM 'touch {marker}'; RETURN true;
            EXCEPTION WHEN insufficient_privilege THEN RETURN true; END $$""",
    )
    yield backed_up(service, tmp_path / "armed")
    execute(database.admin_url, "DROP FUNCTION armed CASCADE")


@pytest.mark.parametrize("change", ["forged", "stripped"])
@pytest.mark.parametrize("command", [("restore",), ("backup", "--verify")])
def test_of_a_backup_that_is_not_ours_no_byte_is_read(
    change: str, command: tuple[str, ...], service: RunningService, target: TestDatabase, armed: Path, marker: Path
) -> None:
    if change == "stripped":
        change_manifest(armed, lambda told: told.pop("proof", None))
    else:
        change_manifest(armed, lambda told: told.update(leadkeep="0.0.1"))
    (armed / DUMP).unlink()
    done = operator(service, target).leadkeep_here(*command, str(armed))
    assert done.returncode == 1
    assert "--unproven" in done.stderr
    assert "cannot be read" not in done.stderr
    assert not marker.exists()


@pytest.mark.parametrize("command", [("restore",), ("backup", "--verify")])
def test_what_a_dump_says_runs_as_no_superuser(
    command: tuple[str, ...], service: RunningService, target: TestDatabase, armed: Path, marker: Path
) -> None:
    change_manifest(armed, lambda told: told.pop("proof", None))
    done = operator(service, target).leadkeep(*command, str(armed), "--unproven")
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    roles = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'leadkeep_verify%' OR rolname LIKE 'leadkeep_restored%'"
    may_log_in = f"{roles} AND rolcanlogin"
    assert value_of(target.admin_url, may_log_in) == 0
    if command == ("restore",):
        owner_of_leads = "SELECT rolsuper FROM pg_roles JOIN pg_class ON relowner = pg_roles.oid WHERE relname = 'lead'"
        assert value_of(target.admin_url, owner_of_leads) is False


def test_the_programs_of_a_backup_know_no_secret(
    service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    with psycopg.connect(database.admin_url) as blocking:
        blocking.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
        running = service.begin("backup", str(tmp_path / "backup"), env={"AWS_SECRET_ACCESS_KEY": "tell-nobody"})
        program = pg_dump_of(running)
        names = {
            entry.partition(b"=")[0].decode() for entry in Path(f"/proc/{program}/environ").read_bytes().split(b"\0")
        }
        running.terminate()
        blocking.rollback()
        running.wait(30)
    assert {name for name in names if name and not name.startswith("PG")} <= {"PATH", "LC_ALL", "HOME"}


# What is refused, before anything is touched


@pytest.fixture(scope="module")
def source(postgres_server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunningService, Path]:
    """A service that has stopped, and its backup."""
    database = postgres_server.fresh_database()
    folder = tmp_path_factory.mktemp("source")
    service = RunningService(folder / "source", database_url=database.serve_url, settings=owner(database)).start()
    create(service)
    backed_up(service, folder / "backup")
    service.stop()
    return service, folder / "backup"


@pytest.fixture
def stopped(source: tuple[RunningService, Path]) -> RunningService:
    return source[0]


@pytest.fixture
def folder(source: tuple[RunningService, Path], tmp_path: Path) -> Path:
    """A copy of the backup, which a test may damage."""
    return Path(shutil.copytree(source[1], tmp_path / "backup"))


@pytest.fixture
def target(postgres_server: TestServer) -> TestDatabase:
    """An empty database."""
    return postgres_server.empty_database()


def change_manifest(folder: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    """As one would be that was written like that."""
    told = json.loads((folder / MANIFEST).read_text())
    del told["sha256"]
    change(told)
    told["sha256"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(told))


def in_manifest(folder: Path, before: str, after: str) -> None:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace(before, after, 1))


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / DUMP).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / DUMP).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_byte, "damaged"),
        (lambda folder: (folder / DUMP).write_bytes((folder / DUMP).read_bytes()[:-1]), "damaged"),
        (lambda folder: (folder / DUMP).unlink(), "cannot be read"),
        (lambda folder: (folder / MANIFEST).unlink(), "not finished"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "damaged"),
        (lambda folder: in_manifest(folder, '"rows": 1', '"rows": 2'), "damaged"),
        (lambda folder: in_manifest(folder, '"key_ids"', '"key_idz"'), "damaged"),
        (lambda folder: change_manifest(folder, lambda told: told.update(format="x")), "not the manifest"),
        (lambda folder: change_manifest(folder, lambda told: told.update(version=2)), "of another version"),
        (lambda folder: change_manifest(folder, lambda told: told.update(canary=None)), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text('{"a":' * 100_000), "damaged"),
        (lambda folder: in_manifest(folder, '"format"', '"leadkeep": "0", "format"'), "damaged"),
        (lambda folder: change_manifest(folder, lambda told: told.update(schema="9999")), "newer than this release"),
        (lambda folder: change_manifest(folder, lambda told: told.update(postgres=99)), "not older"),
        (lambda folder: change_manifest(folder, lambda told: told.update(key_ids=["ex"])), "keys which this keyring"),
    ],
)
def test_a_wrong_backup_is_refused(
    damage: Callable[[Path], object], told: str, stopped: RunningService, folder: Path, target: TestDatabase
) -> None:
    damage(folder)
    done = operator(stopped, target).leadkeep_here("restore", str(folder), "--unproven")
    assert done.returncode == 1
    assert told in done.stderr
    assert tables(target) == 0


def test_a_wrong_keyring_is_refused_first(folder: Path, target: TestDatabase, tmp_path: Path) -> None:
    flip_a_byte(folder)  # it does not even get to look at the dump
    stranger = RunningService(tmp_path / "stranger", database_url=target.serve_url, settings=owner(target))
    done = stranger.leadkeep("restore", str(folder))
    assert done.returncode == 1
    assert "keyring is not the one" in done.stderr
    assert tables(target) == 0


def test_a_backup_tells_when_this_keyring_would_not_open_it(stopped: RunningService, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(Keyring.generate(now=datetime.now(UTC)).to_json())
    (tmp_path / "other.json").chmod(0o600)
    other = {"LEADKEEP_KEYRING": str(tmp_path / "other.json")}
    done = stopped.leadkeep_here("backup", str(tmp_path / "backup"), env=other)
    assert done.returncode == 0
    assert "is not what the backed-up leads were sealed with" in done.stderr
    assert "restore needs --unproven" in done.stderr
    assert "without which nothing opens" not in done.stdout


def test_a_missing_keyring_is_told(stopped: RunningService, folder: Path, target: TestDatabase, tmp_path: Path) -> None:
    done = operator(stopped, target).leadkeep_here(
        "restore", str(folder), env={"LEADKEEP_KEYRING": str(tmp_path / "none")}
    )
    assert done.returncode == 1
    assert "there is no keyring" in done.stderr


def test_a_role_that_may_create_no_database_cannot_verify(
    stopped: RunningService, folder: Path, target: TestDatabase
) -> None:
    done = operator(stopped, target, LEADKEEP_ADMIN_DATABASE_URL=target.serve_url).leadkeep_here(
        "backup", str(folder), "--verify"
    )
    assert done.returncode == 1
    assert "CREATEDB" in done.stderr


def test_another_normaliser_is_refused(stopped: RunningService, folder: Path, target: TestDatabase) -> None:
    done = operator(stopped, target, LEADKEEP_NID_RULE="BD").leadkeep_here("restore", str(folder))
    assert done.returncode == 1
    assert "LEADKEEP_NID_RULE" in done.stderr
    assert tables(target) == 0


@pytest.mark.parametrize(
    "content",
    [
        "CREATE TABLE mine (id int)",
        "CREATE SCHEMA mine CREATE TABLE t (id int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ],
)
def test_a_target_that_is_not_empty_is_refused(
    content: str, stopped: RunningService, folder: Path, target: TestDatabase
) -> None:
    execute(target.admin_url, content)
    before = tables(target)
    done = operator(stopped, target).leadkeep_here("restore", str(folder))
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert tables(target) == before


def test_the_service_itself_is_no_target(service: RunningService, tmp_path: Path, database: TestDatabase) -> None:
    lead = create(service)
    folder = backed_up(service, tmp_path / "backup")
    done = service.leadkeep_here("restore", str(folder))
    assert done.returncode == 1
    assert equal(service.get(lead.id), lead)


def test_a_restore_that_fails_half_way_leaves_the_target_empty(
    stopped: RunningService, folder: Path, target: TestDatabase
) -> None:
    execute(
        target.admin_url,
        "CREATE SCHEMA hooks",
        """CREATE FUNCTION hooks.refuse() RETURNS event_trigger LANGUAGE plpgsql AS
           $$ BEGIN IF tg_tag = 'CREATE TRIGGER' THEN RAISE EXCEPTION 'on purpose'; END IF; END $$""",
        "CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION hooks.refuse()",
    )
    done = operator(stopped, target).leadkeep("restore", str(folder))
    assert done.returncode == 1
    assert "pg_restore failed" in done.stderr
    assert tables(target) == 0


@pytest.mark.parametrize(
    ("program", "told"), [("pg_restore", "No space left on device"), ("leadkeep-backup", "server is full")]
)
def test_a_disk_that_is_full_is_named(
    program: str, told: str, stopped: RunningService, folder: Path, target: TestDatabase
) -> None:
    execute(
        target.admin_url,
        "CREATE SCHEMA hooks",
        f"""CREATE FUNCTION hooks.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            IF tg_tag = 'ALTER TABLE' AND current_setting('application_name') = '{program}' THEN
                RAISE 'could not extend file "base/1/2": No space left on device' USING ERRCODE = 'disk_full';
            END IF; END $$""",
        "CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION hooks.refuse()",
    )
    done = operator(stopped, target).leadkeep("restore", str(folder))
    assert done.returncode == 1
    assert told in done.stderr
    assert tables(target) == 0


def test_a_restore_of_something_else_leaves_the_target_empty(
    stopped: RunningService, folder: Path, target: TestDatabase
) -> None:
    manifest = (folder / MANIFEST).read_text()
    change_manifest(folder, lambda told: told["tables"].update(lead={"rows": 2, "digest": "0"}))
    done = operator(stopped, target).leadkeep("restore", str(folder), "--unproven")
    assert done.returncode == 1
    assert "the target is empty again" in done.stderr
    assert tables(target) == 0
    (folder / MANIFEST).write_text(manifest)
    assert operator(stopped, target).leadkeep("restore", str(folder)).returncode == 0


def test_a_folder_that_is_not_empty_is_no_place_for_a_backup(service: RunningService, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    done = service.leadkeep_here("backup", str(tmp_path / "mine"))
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert (tmp_path / "mine" / "file").read_text() == "mine"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_backup_that_is_ended_leaves_nothing(
    how: signal.Signals, service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    with psycopg.connect(database.admin_url) as blocking:
        # pg_dump waits for this lock until it is told to stop.
        blocking.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
        running = service.begin("backup", str(tmp_path / "backup"), start_new_session=True)
        assert eventually((tmp_path / "backup" / DUMP).exists, within=START_SECONDS)
        time.sleep(0.5)
        running.send_signal(how)
        blocking.rollback()
        assert running.wait(30) == INTERRUPTED
    assert not (tmp_path / "backup").exists()


@pytest.mark.usefixtures("slowly_restored")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_verification_that_is_ended_while_it_cleans_up_leaves_nothing(
    how: signal.Signals, service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    folder = backed_up(service, tmp_path / "backup")
    databases = "SELECT max(datname) FROM pg_database WHERE datname LIKE 'leadkeep_verify%'"
    drops = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE%' AND wait_event_type = 'Lock'"
    running = service.begin("backup", str(folder), "--verify")
    assert eventually(lambda: value_of(database.admin_url, databases) is not None, within=START_SECONDS)
    with psycopg.connect(database.admin_url) as blocking:
        # Whoever drops the database waits for this.
        name = psycopg.sql.Identifier(str(value_of(database.admin_url, databases)))
        blocking.execute(psycopg.sql.SQL("COMMENT ON DATABASE {} IS 'held'").format(name))
        assert eventually(lambda: value_of(database.admin_url, drops) == 1, within=30)
        running.send_signal(how)
        time.sleep(0.5)
        blocking.rollback()
    assert running.wait(30) == INTERRUPTED
    assert value_of(database.admin_url, databases) is None
    assert (folder / MANIFEST).exists()


def pg_dump_of(running: subprocess.Popen[bytes]) -> int:
    """The process that dumps, once it runs; a backup also asks programs for their versions."""
    found: list[int] = []

    def runs() -> bool:
        found.extend(children_running(running.pid, "--snapshot"))
        return bool(found)

    assert eventually(runs, within=START_SECONDS)
    return found[0]


@pytest.mark.usefixtures("slowly_restored")
def test_nothing_starts_on_what_a_killed_restore_left(
    service: RunningService, postgres_server: TestServer, tmp_path: Path
) -> None:
    folder = backed_up(service, tmp_path / "backup")
    target = postgres_server.empty_database()
    elsewhere = operator(service, target)
    running = elsewhere.begin("restore", str(folder))
    assert eventually(lambda: bool(children_running(running.pid, "--single-transaction")), within=START_SECONDS)
    running.send_signal(signal.SIGSTOP)
    assert eventually(lambda: tables(target) > 0, within=60)
    running.kill()
    running.wait()
    refused = [elsewhere.leadkeep(command) for command in ("serve", "migrate")]
    assert [done.returncode for done in refused] == [1, 1]
    assert all("did not come to its end" in done.stdout + done.stderr for done in refused)


def test_pg_dump_ends_with_a_backup_that_was_killed(
    service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    with psycopg.connect(database.admin_url) as blocking:
        blocking.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
        running = service.begin("backup", str(tmp_path / "backup"))
        program = pg_dump_of(running)
        running.kill()
        running.wait()
        assert eventually(lambda: not Path(f"/proc/{program}").exists(), within=30)


# Secrets on the command line


@pytest.fixture
def with_password(database: TestDatabase) -> str:
    parts = urlsplit(database.admin_url)
    return urlunsplit(parts._replace(netloc="postgres:tell-nobody@"))


def test_no_password_is_on_a_command_line(
    with_password: str, service: RunningService, database: TestDatabase, tmp_path: Path
) -> None:
    seen: list[bytes] = []
    with psycopg.connect(database.admin_url) as blocking:
        blocking.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
        password = {"LEADKEEP_ADMIN_DATABASE_URL": with_password}
        running = service.begin("backup", str(tmp_path / "backup"), env=password)

        def pg_dump_runs() -> bool:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if b"pg_dump" in line and b"--snapshot" in line:
                    seen.append(line)
            return bool(seen)

        assert eventually(pg_dump_runs, within=START_SECONDS)
        blocking.rollback()
    assert running.wait(30) == 0
    assert [line for line in seen if b"tell-nobody" in line] == []


def test_the_database_is_not_held_up_by_a_backup(service: RunningService, tmp_path: Path) -> None:
    failures: list[grpc.RpcError] = []
    stopped = threading.Event()

    def caller() -> None:
        while not stopped.is_set():
            try:
                create(service)
            except grpc.RpcError as error:
                failures.append(error)

    calling = threading.Thread(target=caller)
    calling.start()
    backed_up(service, tmp_path / "backup", "--verify")
    stopped.set()
    calling.join()
    assert failures == []
