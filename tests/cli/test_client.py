"""Operators' commands as callers of the running service: its masks, its record, its errors."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.cli.main import REFUSED
from service.config_values import Address
from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import ROLES, Scope
from tests.conftest import StartService
from tests.harness.certificates import Authority, Certificate
from tests.harness.faults import conflict_with, value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused

LIST = ("conflicts", "list", "--json")


@pytest.fixture(scope="module")
def person() -> pb.Lead:
    return somebody()


@pytest.fixture(scope="module")
def conflict_id(service: RunningService, admin: Client, person: pb.Lead) -> str:
    """The one conflict of the service: the person's lead and a copy of it."""
    lead_id = admin.create(person).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.create(person, request_id="another")
    return conflict_with(service.environment["LEADKEEP_DATABASE_URL"], lead_id)


def refusal(service: RunningService, *arguments: str, **env: str) -> str:
    """The one line that a refused command prints."""
    done = service.leadkeep_here(*arguments, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (REFUSED, "", 1)
    return done.stderr


# what is shown


@pytest.mark.usefixtures("conflict_id")
@pytest.mark.parametrize("role", [None, "admin"])
def test_a_list_is_masked_and_not_recorded_whatever_the_token(
    role: str | None, service: RunningService, service_database: TestDatabase, person: pb.Lead
) -> None:
    env = {"LEADKEEP_TOKEN": service.token(role)} if role else {}
    done = service.leadkeep_here(*LIST, env=env)
    assert done.returncode == 0, done.stderr
    (conflict,) = json.loads(done.stdout)
    assert conflict["submission"]["nid"] == f"•••{person.nid[-2:]}"
    assert conflict["leads"][0]["masked"]
    looks = "SELECT count(*) FROM access_record WHERE operation = 'ListConflicts'"
    assert value_of(service_database.admin_url, looks) == 0


@pytest.mark.usefixtures("conflict_id")
def test_an_unmasked_list_is_recorded_with_user_and_reason(
    service: RunningService, service_database: TestDatabase, person: pb.Lead
) -> None:
    done = service.leadkeep_here(*LIST, "--unmask", "--reason", "call back")
    assert done.returncode == 0, done.stderr
    (conflict,) = json.loads(done.stdout)
    assert (conflict["submission"]["nid"], conflict["leads"][0]["phone"]) == (person.nid, person.phone)
    recorded = value_of(
        service_database.admin_url,
        "SELECT array_agg(DISTINCT split_part(subject, ':', 1) || ' | ' || operation || ' | ' || reason)"
        " FROM access_record WHERE operation = 'ListConflicts'",
    )
    assert recorded == ["cli | ListConflicts | call back"]


@pytest.mark.usefixtures("conflict_id")
def test_a_list_shows_and_records_the_fields_that_are_revealed(
    service: RunningService, service_database: TestDatabase, person: pb.Lead
) -> None:
    done = service.leadkeep_here(*LIST, "--reveal", "phone,email", "--reason", "গ্রাহক")
    assert done.returncode == 0, done.stderr
    (conflict,) = json.loads(done.stdout)
    assert (conflict["submission"]["phone"], conflict["leads"][0]["email"]) == (person.phone, person.email)
    assert "nid" in conflict["leads"][0]["masked_fields"]
    recorded = value_of(
        service_database.admin_url,
        "SELECT array_agg(DISTINCT array_to_string(fields, ',')) FROM access_record WHERE reason = 'গ্রাহক'",
    )
    assert recorded == ["phone,email"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--reveal", "phone,name"), "may name only: phone, nid, email"),
        (("--unmask", "--reveal", "phone"), "is not needed"),
    ],
)
def test_what_cannot_be_revealed_is_wrong_usage(options: tuple[str, ...], told: str, service: RunningService) -> None:
    done = service.leadkeep_here(*LIST, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_the_subject_of_the_token_is_the_actor(service: RunningService, admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    erased = service.leadkeep_here("erase", lead_id, env={"LEADKEEP_TOKEN": service.token(subject="rahima")})
    assert erased.returncode == 0, erased.stderr
    (tombstone,) = json.loads(service.leadkeep_here("erase", "--list", "--json").stdout)
    assert (tombstone["id"], tombstone["erased_by"]) == (lead_id, "rahima")


def test_a_list_is_read_to_its_end(service: RunningService, admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    for _ in range(102):
        admin.get(lead_id)
    done = service.leadkeep_here("audit", "list", "--lead", lead_id)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(lead_id) == 103  # the first shows what was created


# what is refused


def expired_token(service: RunningService) -> str:
    key = LocalSigningKey.load(service.data_dir / "signing-key.pem")
    return key.issue("rahima", ROLES["admin"], timedelta(seconds=1), now=time.time() - 3600)


@pytest.mark.parametrize(
    ("command", "scopes", "missing"),
    [
        (("audit", "list"), {Scope.READ, Scope.UNMASK}, Scope.OPERATE),
        (("conflicts", "list"), {Scope.READ, Scope.UNMASK}, Scope.OPERATE),
        (("conflicts", "list", "--unmask"), {Scope.OPERATE}, Scope.UNMASK),
        (("conflicts", "list", "--reveal", "nid"), {Scope.OPERATE, Scope.UNMASK_PHONE}, Scope.UNMASK_NID),
        (("conflicts", "resolve", str(uuid4()), "own-lead"), {Scope.ERASE}, Scope.OPERATE),
        (("erase", str(uuid4())), {Scope.OPERATE}, Scope.ERASE),
    ],
)
def test_a_token_without_the_scope_is_refused(
    command: tuple[str, ...], scopes: set[Scope], missing: Scope, service: RunningService
) -> None:
    printed = refusal(service, *command, LEADKEEP_TOKEN=service.token(scopes=scopes))
    assert printed == f"leadkeep: the token lacks the scope {missing}\n"


def test_an_expired_token_is_refused(service: RunningService) -> None:
    assert "expired" in refusal(service, *LIST, LEADKEEP_TOKEN=expired_token(service))


def test_what_is_no_token_is_not_sent_and_not_printed(service: RunningService) -> None:
    printed = refusal(service, *LIST, LEADKEEP_TOKEN="se\ncret")
    assert printed == "leadkeep: LEADKEEP_TOKEN holds no token\n"


def test_where_an_issuer_is_set_its_token_is_asked_for(service: RunningService, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text('{"keys": []}')
    issuer = {"LEADKEEP_AUTH_JWKS": str(keys), "LEADKEEP_AUTH_ISSUER": "i", "LEADKEEP_AUTH_AUDIENCE": "a"}
    printed = refusal(service, "erase", str(uuid4()), **issuer)
    assert "LEADKEEP_TOKEN" in printed
    assert Scope.ERASE in printed


def test_a_reason_that_is_too_long_is_named_and_nothing_is_erased(service: RunningService, admin: Client) -> None:
    lead_id = admin.create(somebody()).id
    assert "reason is too long" in refusal(service, "erase", lead_id, "--reason", "x" * 501)
    assert admin.get(lead_id).id == lead_id


def test_without_a_service_the_address_and_what_to_do_are_named(service: RunningService) -> None:
    printed = refusal(service, *LIST, LEADKEEP_GRPC_ADDRESS="127.0.0.1:1")
    assert "the service does not answer at 127.0.0.1:1: start it with leadkeep serve" in printed


def test_before_the_first_start_nothing_is_made(tmp_path: Path) -> None:
    operator = RunningService(tmp_path / "leadkeep")
    assert "start it with leadkeep serve" in refusal(operator, *LIST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("listens", "reached"),
    [("0.0.0.0:1", "127.0.0.1:2"), ("[::]:1", "[::1]:2"), ("db.example:1", "db.example:2")],
)
def test_a_wildcard_address_is_reached_on_this_machine(listens: str, reached: str) -> None:
    assert Address.parse(listens).reachable(2) == reached


def test_a_client_loads_no_database_and_no_web_server(service: RunningService) -> None:
    script = """import sys
from service.cli.main import app
app(["audit", "list", "--json"], standalone_mode=False)
print(sorted({"sqlalchemy", "alembic", "starlette", "uvicorn"} & set(sys.modules)))"""
    # psycopg is loaded where a URL is set, which libpq reads.
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=service.operators_environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# TLS


@pytest.fixture(scope="module")
def tls_service(
    authority: Authority,
    postgres_server: TestServer,
    start_shared: StartService,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningService:
    """A service that asks for client certificates of another authority than its own."""
    own = Authority(tmp_path_factory.mktemp("tls"), "own").issue("server")
    settings = {
        "LEADKEEP_TLS_CERT": str(own.certificate),
        "LEADKEEP_TLS_KEY": str(own.key),
        "LEADKEEP_TLS_CLIENT_CA": str(authority.path),
    }
    return start_shared("tls", database_url=postgres_server.fresh_database().serve_url, settings=settings)


def pem_of(certificate: Certificate, folder: Path) -> dict[str, str]:
    path = folder / "operator.pem"
    path.write_bytes(certificate.certificate.read_bytes() + certificate.key.read_bytes())
    return {"LEADKEEP_TLS_CLIENT_CERT": str(path)}


def test_a_client_certificate_is_shown_where_one_is_required(
    tls_service: RunningService, authority: Authority, tmp_path: Path
) -> None:
    done = tls_service.leadkeep_here(*LIST, env=pem_of(authority.issue("operator"), tmp_path))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_certificate_of_another_authority_is_refused(tls_service: RunningService) -> None:
    assert "does not answer" in refusal(tls_service, *LIST)


def test_without_a_client_certificate_the_services_own_is_shown(
    service_database: TestDatabase, service: RunningService, start_service: StartService, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "one-for-all")
    own = authority.issue("server")
    settings = {
        "LEADKEEP_TLS_CERT": str(own.certificate),
        "LEADKEEP_TLS_KEY": str(own.key),
        "LEADKEEP_TLS_CLIENT_CA": str(authority.path),
        "LEADKEEP_KEYRING": str(service.data_dir / "keyring.json"),
    }
    second = start_service("second", database_url=service_database.serve_url, settings=settings)
    done = second.leadkeep_here(*LIST)
    assert done.returncode == 0, done.stderr


def test_another_certificate_than_the_configured_one_gets_no_token(
    tls_service: RunningService, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other").issue("server")
    configured = {"LEADKEEP_TLS_CERT": str(other.certificate), "LEADKEEP_TLS_KEY": str(other.key)}
    printed = refusal(tls_service, *LIST, **configured, **pem_of(authority.issue("operator-2"), tmp_path))
    assert "does not answer" in printed
