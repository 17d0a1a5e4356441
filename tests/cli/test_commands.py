"""What an operator types, and what comes back."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import jwt
import psycopg
import pytest
from google.protobuf import json_format
from leadkeep.v1 import lead_service_pb2 as pb

from service.cli.command import FAULT_FOUND
from service.cli.main import REFUSED
from service.config import Settings
from tests.conftest import StartService
from tests.harness.failures import reason_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import embedded_home, processes_in, remove_embedded_database
from tests.harness.running_service import RunningService

WRONG_USAGE = 2


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[RunningService]:
    """An operator of an embedded service that was never started."""
    service = RunningService(tmp_path / "leadkeep")
    yield service
    remove_embedded_database(service.data_dir)


@pytest.fixture(scope="module")
def embedded(start_shared: StartService) -> RunningService:
    """An embedded service that runs."""
    return start_shared("embedded")


def create(service: RunningService, token: str) -> pb.CreateLeadResponse:
    with service.channel() as channel:
        response: pb.CreateLeadResponse = service.stub(channel).CreateLead(
            pb.CreateLeadRequest(lead=somebody()), metadata=[("authorization", f"Bearer {token}")], timeout=10
        )
        return response


def claims(token: str) -> dict[str, object]:
    read: dict[str, object] = jwt.decode(token, options={"verify_signature": False})
    return read


# token


def test_a_chatbots_token_creates_a_lead(embedded: RunningService) -> None:
    done = embedded.leadkeep("token", "--role", "chatbot")
    assert done.returncode == 0
    assert create(embedded, done.stdout.strip()).id


def test_a_token_is_the_only_line_on_standard_output(embedded: RunningService) -> None:
    assert embedded.leadkeep_here("token", "--role", "agent").stdout.count("\n") == 1


def test_an_agents_token_creates_no_lead(embedded: RunningService) -> None:
    token = embedded.leadkeep_here("token", "--role", "agent").stdout.strip()
    with pytest.raises(grpc.RpcError) as refused:
        create(embedded, token)
    assert reason_of(refused.value) == "SCOPE_MISSING"


@pytest.mark.parametrize(
    ("role", "scopes"),
    [
        ("chatbot", "leads:create leads:read-own leads:update-own"),
        ("agent", "leads:read leads:unmask:email leads:unmask:phone leads:update"),
        (
            "admin",
            "leads:create leads:erase leads:operate leads:person leads:read leads:read-own leads:unmask "
            "leads:unmask:address leads:unmask:email leads:unmask:nid leads:unmask:notes leads:unmask:phone "
            "leads:update leads:update-own",
        ),
    ],
)
def test_a_role_has_its_scopes(role: str, scopes: str, operator: RunningService) -> None:
    token = operator.leadkeep_here("token", "--role", role).stdout.strip()
    assert claims(token)["scope"] == scopes
    assert claims(token)["sub"] == role


def test_a_token_names_the_subject_that_was_asked_for(operator: RunningService) -> None:
    token = operator.leadkeep_here("token", "--role", "agent", "--subject", "rahima").stdout.strip()
    assert claims(token)["sub"] == "rahima"


@pytest.mark.parametrize(("ttl", "seconds"), [(None, 3600), ("30s", 30), ("15m", 900), ("7d", 604_800)])
def test_a_token_is_good_for_as_long_as_was_asked(ttl: str | None, seconds: int, operator: RunningService) -> None:
    token = operator.leadkeep_here("token", "--role", "agent", *(["--ttl", ttl] if ttl else [])).stdout.strip()
    read = claims(token)
    assert int(str(read["exp"])) - int(str(read["iat"])) == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        ["--role", "boss"],
        [],
        ["--role", "agent", "--ttl", "soon"],
        ["--role", "agent", "--ttl", "0s"],
        ["--role", "agent", "--ttl", "-1h"],
        ["--role", "agent", "--ttl", "9999d"],
        ["--role", "agent", "--subject", "two\nlines"],
        ["--role", "agent", "--subject", "x" * 201],
    ],
    ids=" ".join,
)
def test_a_wrong_token_command_is_wrong_usage_and_prints_no_token(wrong: list[str], operator: RunningService) -> None:
    done = operator.leadkeep_here("token", *wrong)
    assert done.returncode == WRONG_USAGE
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_no_token_is_made_beside_an_issuer_of_tokens(operator: RunningService, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text('{"keys": []}')
    issuer = {"LEADKEEP_AUTH_JWKS": str(keys), "LEADKEEP_AUTH_ISSUER": "i", "LEADKEEP_AUTH_AUDIENCE": "a"}
    done = operator.leadkeep_here("token", "--role", "agent", env=issuer)
    assert done.returncode == REFUSED
    assert "LEADKEEP_AUTH_JWKS" in done.stderr


def test_the_signing_key_is_its_owners_alone(operator: RunningService) -> None:
    operator.leadkeep_here("token", "--role", "agent")
    assert stat.S_IMODE((operator.data_dir / "signing-key.pem").stat().st_mode) == 0o600


# config

SECRET_URL = "postgresql://serve:hunter2@db.example:5432/leadkeep"


def test_config_as_json_has_every_setting_with_value_default_meaning_and_source(operator: RunningService) -> None:
    rows = json.loads(operator.leadkeep("config", "--json").stdout)
    assert [row["name"] for row in rows] == [f"LEADKEEP_{name.upper()}" for name in Settings.model_fields]
    assert all(set(row) == {"name", "value", "default", "meaning", "source"} for row in rows)
    assert all(row["meaning"] and row["default"] and row["value"] for row in rows)


def test_config_says_where_a_value_comes_from(operator: RunningService) -> None:
    rows = json.loads(operator.leadkeep_here("config", "--json", env={"LEADKEEP_DEFAULT_REGION": "BD"}).stdout)
    found = {row["name"]: (row["value"], row["source"]) for row in rows}
    assert found["LEADKEEP_DEFAULT_REGION"] == ("BD", "environment")
    assert found["LEADKEEP_PHONE_RULE"] == ("e164", "default")


@pytest.mark.parametrize("how", [[], ["--json"]], ids=["table", "json"])
def test_config_hides_passwords(how: list[str], operator: RunningService) -> None:
    done = operator.leadkeep_here("config", *how, env={"LEADKEEP_DATABASE_URL": SECRET_URL})
    assert done.returncode == 0
    assert "hunter2" not in done.stdout + done.stderr
    assert "db.example" in done.stdout


def test_the_table_of_config_names_every_setting(operator: RunningService) -> None:
    table = operator.leadkeep_here("config").stdout
    assert [name for name in Settings.model_fields if f"LEADKEEP_{name.upper()}" not in table] == []


# wrong settings


@pytest.mark.parametrize("command", [["serve"], ["config"], ["doctor"], ["migrate"], ["keys", "init"]], ids=" ".join)
def test_wrong_settings_are_all_named_at_once(command: list[str], operator: RunningService) -> None:
    wrong = {
        "LEADKEEP_GRPC_ADDRESS": "nowhere",
        "LEADKEEP_PHONE_RULE": "loose",
        "LEADKEEP_DATABASE_URL": "mysql://root:hunter2@db/leads",
        "LEADKEEP_DATABSE_URL": "typo",
    }
    done = operator.leadkeep_here(*command, env=wrong)
    assert done.returncode == REFUSED
    assert [name for name in wrong if name not in done.stderr] == []
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_beyond_loopback_without_tls_is_refused(operator: RunningService) -> None:
    done = operator.leadkeep("serve", env={"LEADKEEP_GRPC_ADDRESS": "0.0.0.0:0"})
    assert done.returncode == REFUSED
    assert "LEADKEEP_ALLOW_PLAINTEXT" in done.stderr


def test_a_port_in_use_is_refused_and_named(embedded: RunningService, database: TestDatabase, tmp_path: Path) -> None:
    for variable, address in (
        ("LEADKEEP_GRPC_ADDRESS", embedded.grpc_address),
        ("LEADKEEP_HTTP_ADDRESS", embedded.http_address),
    ):
        second = RunningService(tmp_path / variable, database_url=database.serve_url, settings={variable: address})
        keyring = {"LEADKEEP_KEYRING": str(tmp_path / "LEADKEEP_GRPC_ADDRESS" / "keyring.json")}
        done = second.leadkeep("serve", env=keyring)
        assert done.returncode == REFUSED
        assert variable in done.stderr


# migrate, keys init


def test_migrate_prepares_an_empty_database_and_says_so(postgres_server: TestServer, tmp_path: Path) -> None:
    operator = RunningService(tmp_path / "leadkeep", database_url=postgres_server.empty_database().admin_url)
    assert "The schema is at" in operator.leadkeep("migrate").stdout
    again = operator.leadkeep_here("migrate")
    assert again.returncode == 0
    assert "up to date" in again.stdout


def test_migrate_uses_the_admins_url_and_serve_its_own(
    postgres_server: TestServer, tmp_path: Path, start_service: StartService
) -> None:
    database = postgres_server.empty_database()
    admin = {"LEADKEEP_ADMIN_DATABASE_URL": database.admin_url}
    operator = RunningService(tmp_path / "operator", database_url=database.serve_url, settings=admin)
    assert operator.leadkeep_here("migrate").returncode == 0
    service = start_service(database_url=database.serve_url)
    assert create(service, service.token()).id


def test_migrate_without_ddl_rights_says_which_role_it_needs(postgres_server: TestServer, tmp_path: Path) -> None:
    database = postgres_server.empty_database()
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    done = RunningService(tmp_path / "leadkeep", database_url=database.serve_url).leadkeep_here("migrate")
    assert done.returncode == REFUSED
    assert "LEADKEEP_ADMIN_DATABASE_URL" in done.stderr


def test_migrate_of_the_embedded_database_is_left_to_serve(operator: RunningService) -> None:
    done = operator.leadkeep_here("migrate")
    assert done.returncode == REFUSED
    assert "when the service starts" in done.stderr


def test_keys_init_makes_a_keyring_for_its_owner_alone(operator: RunningService) -> None:
    done = operator.leadkeep("keys", "init")
    assert done.returncode == 0
    keyring = operator.data_dir / "keyring.json"
    assert stat.S_IMODE(keyring.stat().st_mode) == 0o600
    assert str(keyring) in done.stdout


def test_keys_init_prints_no_secret(operator: RunningService) -> None:
    done = operator.leadkeep_here("keys", "init")
    keys = json.loads((operator.data_dir / "keyring.json").read_text())["keys"]
    assert [key for key in keys if key["secret"] in done.stdout + done.stderr] == []


def test_keys_init_never_overwrites(operator: RunningService) -> None:
    operator.leadkeep_here("keys", "init")
    made = (operator.data_dir / "keyring.json").read_bytes()
    done = operator.leadkeep_here("keys", "init")
    assert done.returncode == REFUSED
    assert "stays as it is" in done.stderr
    assert (operator.data_dir / "keyring.json").read_bytes() == made


def test_keys_init_where_nothing_can_be_written_is_refused(operator: RunningService) -> None:
    done = operator.leadkeep_here("keys", "init", env={"LEADKEEP_KEYRING": "/proc/leadkeep/keyring.json"})
    assert done.returncode == REFUSED
    assert "Traceback" not in done.stderr


def test_serve_on_a_database_of_ones_own_says_that_the_keyring_is_missing(
    database: TestDatabase, tmp_path: Path
) -> None:
    service = RunningService(tmp_path / "leadkeep", database_url=database.serve_url)
    (service.data_dir / "keyring.json").unlink()
    done = service.leadkeep("serve")
    assert done.returncode == REFUSED
    assert "leadkeep keys init" in done.stderr
    assert not (service.data_dir / "keyring.json").exists()


def test_serve_starts_without_the_database_and_says_so(tmp_path: Path) -> None:
    nobody = "postgresql://serve:hunter2@127.0.0.1:1/leadkeep"
    service = RunningService(tmp_path / "leadkeep", database_url=nobody).start()
    assert service.stop() == 0
    assert "cannot be reached" in service.log()
    assert "hunter2" not in service.log()


# doctor


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, bool]:
    return {check["check"]: check["ok"] for check in json.loads(done.stdout)["checks"]}


ALL_WELL = dict.fromkeys(
    [
        *("data folder", "keyring", "tokens", "spool", "daily files", "database", "schema"),
        *("statements of the service", "standbys", "rights of serve", "canary", "conversation ids", "e-mail index"),
        *("person index", "erasures"),
    ],
    True,
)


def test_doctor_finds_a_running_embedded_service_well(embedded: RunningService) -> None:
    done = embedded.leadkeep("doctor", "--json")
    assert done.returncode == 0
    assert checks(done) == ALL_WELL
    assert json.loads(done.stdout)["healthy"] is True
    assert create(embedded, embedded.token()).id, "doctor disturbed the service"


def test_doctor_finds_a_stopped_embedded_service_well_and_leaves_no_server(start_service: StartService) -> None:
    service = start_service()
    service.stop()
    done = service.leadkeep("doctor", "--json")
    assert done.returncode == 0
    assert checks(done) == ALL_WELL
    assert processes_in(embedded_home(service.data_dir) / "postgres") == []


def test_doctor_before_the_first_serve_finds_nothing_wrong_and_makes_nothing(operator: RunningService) -> None:
    done = operator.leadkeep_here("doctor", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["healthy"] is True
    assert not operator.data_dir.exists()


def test_doctor_between_the_first_token_and_the_first_serve_finds_nothing_wrong(operator: RunningService) -> None:
    operator.leadkeep_here("token", "--role", "agent")
    assert operator.leadkeep_here("doctor").returncode == 0


def test_doctor_prints_a_line_for_each_check(embedded: RunningService) -> None:
    lines = embedded.leadkeep_here("doctor").stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"ok    {check}" for check in ALL_WELL]


def test_doctor_finds_another_keyring(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    service.stop()
    (service.data_dir / "keyring.json").unlink()
    service.leadkeep_here("keys", "init")
    done = service.leadkeep_here("doctor", "--json")
    assert done.returncode == FAULT_FOUND
    assert checks(done) == ALL_WELL | {"canary": False, "person index": False}


def test_doctor_finds_another_schema(database: TestDatabase, tmp_path: Path) -> None:
    service = RunningService(tmp_path / "leadkeep", database_url=database.serve_url)
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    done = service.leadkeep_here("doctor", "--json")
    assert done.returncode == FAULT_FOUND
    assert not checks(done)["schema"]


def test_doctor_finds_more_rights_than_serve_needs(database: TestDatabase, tmp_path: Path) -> None:
    service = RunningService(tmp_path / "leadkeep", database_url=database.admin_url)
    done = service.leadkeep_here("doctor")
    assert done.returncode == FAULT_FOUND
    assert "FAIL  rights of serve" in done.stdout
    assert "be a superuser" in done.stdout


def test_doctor_finds_an_unreachable_database_and_goes_on(tmp_path: Path) -> None:
    service = RunningService(tmp_path / "leadkeep", database_url="postgresql://serve:hunter2@127.0.0.1:1/leadkeep")
    done = service.leadkeep_here("doctor", "--json")
    assert done.returncode == FAULT_FOUND
    assert checks(done)["database"] is False
    assert checks(done)["keyring"] is True
    assert "hunter2" not in done.stdout + done.stderr


def test_doctor_finds_secrets_that_others_may_read(database: TestDatabase, tmp_path: Path) -> None:
    service = RunningService(tmp_path / "leadkeep", database_url=database.serve_url)
    (service.data_dir / "keyring.json").chmod(0o644)
    service.data_dir.chmod(0o755)
    done = service.leadkeep_here("doctor", "--json")
    assert done.returncode == FAULT_FOUND
    assert (checks(done)["data folder"], checks(done)["keyring"]) == (False, False)


# The first output of serve.


@pytest.fixture(scope="module")
def first_output(tmp_path_factory: pytest.TempPathFactory, postgres_server: TestServer) -> Iterator[RunningService]:
    """A service that has just had its first start, and whose output was not read yet."""
    folder = tmp_path_factory.mktemp("first") / "with a space"
    service = RunningService(folder, database_url=postgres_server.fresh_database().serve_url)
    service.start()
    yield service
    service.stop()


def pasted(service: RunningService, program: str) -> str:
    """The line of the output that begins with this program."""
    (line,) = [line for line in service.out_path.read_text().splitlines() if line.startswith(f"{program} ")]
    return line


def test_the_curl_line_creates_the_storys_lead_when_it_is_pasted(first_output: RunningService) -> None:
    command = ["sh", "-c", pasted(first_output, "curl") + " --silent --write-out '\\n%{http_code}'"]
    body, _, code = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    assert code == "201"
    assert json.loads(body)["message"] == "Lead created successfully"


def test_the_grpcurl_line_creates_a_lead_when_it_is_pasted(first_output: RunningService) -> None:
    # grpcurl is a Go program; what it would do with these arguments is done here.
    program, plaintext, h, header, d, data, address, method = shlex.split(pasted(first_output, "grpcurl"))
    assert (program, plaintext, h, d) == ("grpcurl", "-plaintext", "-H", "-d")
    assert method == "leadkeep.v1.LeadService/CreateLead"
    name, _, value = header.partition(": ")
    request = json_format.Parse(data, pb.CreateLeadRequest())
    with grpc.insecure_channel(address) as channel:
        response = first_output.stub(channel).CreateLead(request, metadata=[(name, value)], timeout=10)
    assert response.id


def test_a_later_start_prints_no_token(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    assert "Bearer" in service.out_path.read_text()
    service.stop()
    service.start()
    assert "Bearer" not in service.out_path.read_text()
    assert "Leadkeep is ready" in service.out_path.read_text()


def test_a_second_service_on_the_same_data_folder_is_refused(embedded: RunningService) -> None:
    done = embedded.leadkeep("serve")
    assert done.returncode == REFUSED
    assert "in use by another Leadkeep" in done.stderr
    assert str(embedded.pid) in done.stderr
    assert create(embedded, embedded.token()).id, "the first service was disturbed"


def test_serve_ends_in_order_on_sigterm(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    assert service.stop() == 0
    assert "Traceback" not in service.log()


def test_the_data_folder_is_its_owners_alone(embedded: RunningService) -> None:
    assert stat.S_IMODE(embedded.data_dir.stat().st_mode) == 0o700
