"""No value of a customer's field gets out: not to callers who may not see it, not into a log, metric or process title.

One lead with unmistakable values is sent through every kind of failure, the database driver's included, at both
endpoints. Everything that was answered, logged and measured meanwhile is searched for these values: in clear, as the
service normalises them, percent-encoded, in hex, and in base64 at each of its three offsets.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import grpc
import httpx
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.lead import REQUIRED_FIELDS
from tests.harness import faults
from tests.harness.answers import Failure, failure_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestServer, own_postgres
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

SENSITIVE = {
    "phone": "+8801731597246",
    "nid": "QZX7793156820",
    "email": "canary.mailbox.kolibri@zaunkoenig-domain.example",
    "address": "77 Kanarienvogel Allee, Papageienstadt 90817",
    "notes": "Wellensittich im Wohnzimmer, bitte nach sechs anrufen",
}
"""The canary lead's sensitive fields."""

NAMES = {
    "name": "Zephyrine Quibbleworth",
    "preferred_contact_time": "Montags beim Glockenschlag",
}
"""Fields that every reader may see, but no log."""

SENT = {**SENSITIVE, "phone": "+880 1731-597246", "nid": "qzx-7793-156820"}
"""The same as a customer may write it."""

POLICY = "Ornithologist Life 30-Year"
DEADLINE = 4.0


def forms(value: str) -> set[str]:
    """How a value may look when it leaks."""
    raw = value.encode()
    found = {value, value.lower(), value.upper(), value.removeprefix("+"), quote(value), quote_plus(value)}
    found |= {raw.hex(), raw.hex().upper(), repr(raw)[2:-1], json.dumps(value)[1:-1]}
    for offset in range(3):
        # The first and last characters of base64 depend on the neighbours.
        encoded = base64.b64encode(b"\0" * offset + raw).decode().rstrip("=")
        inner = encoded[4 if offset else 0 : -1]
        found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return found


def leaks(text: str, fields: dict[str, str]) -> set[str]:
    """The names of the fields whose values are somewhere in the text."""
    return {name for name, value in fields.items() if any(form in text for form in forms(value))}


ALL = {**SENSITIVE, **NAMES, "phone as sent": SENT["phone"], "nid as sent": SENT["nid"], "policy": POLICY}


@dataclass
class World:
    """A service that logs all it can, on a PostgreSQL of its own, and what its callers were told."""

    service: RunningService
    server: TestServer
    admin_url: str
    told: dict[str, str] = field(default_factory=dict)
    """What each failed call told, by what was done."""
    processes: str = ""
    """Command lines of the service and of PostgreSQL, and the statements under way, while a lead was inserted."""

    def log_of_postgres(self) -> str:
        return self.server.postgres.log_file.read_text(errors="replace")

    def metrics(self) -> str:
        return httpx.get(f"{self.service.http_url}/metrics").text


def canary(**changes: str) -> pb.Lead:
    return pb.Lead(**({**SENT, **NAMES, "interested_policy": POLICY} | changes))  # type: ignore[arg-type]


def as_json(lead: pb.Lead) -> dict[str, str]:
    return {sent.name: value for sent, value in lead.ListFields()}


class Caller:
    """Sends the canary and notes what comes back when that fails."""

    def __init__(self, world: World, channel: grpc.Channel, http: httpx.Client) -> None:
        self._world, self._http = world, http
        self._service = world.service
        self._stub = world.service.stub(channel)
        self.channel = channel

    def fails(self, what: str, rpc: str, request: Message, *, reason: str, seconds: float = 10) -> None:
        """A call as a caller without unmask, which must fail for this reason."""
        scopes_of = "agent" if rpc != "CreateLead" else "chatbot"
        metadata = self._service.metadata(scopes_of)
        self._note(
            f"{what} (gRPC)", reason, lambda: getattr(self._stub, rpc)(request, metadata=metadata, timeout=seconds)
        )

    def raw_fails(self, what: str, sent: bytes, *, reason: str) -> None:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            "/leadkeep.v1.LeadService/CreateLead", None, None
        )
        metadata = tuple(self._service.metadata("chatbot"))
        self._note(f"{what} (gRPC)", reason, lambda: method(sent, metadata=metadata, timeout=10))

    def http_fails(
        self,
        what: str,
        *,
        status: int,
        method: str = "POST",
        path: str = "/api/leads/",
        body: bytes | None = None,
        role: str = "chatbot",
        headers: dict[str, str] | None = None,
    ) -> None:
        sent = {"content-type": "application/json", "authorization": f"Bearer {self._service.token(role)}"}
        answer = self._http.request(method, path, content=body, headers=sent | (headers or {}))
        assert answer.status_code == status, f"{what}: {answer.status_code} {answer.text}"
        self._world.told[f"{what} (HTTP)"] = f"{answer.headers} {answer.text}"

    def both_fail(self, what: str, lead: pb.Lead, *, reason: str, status: int, seconds: float = 10) -> None:
        """A submission at both endpoints."""
        self.fails(what, "CreateLead", pb.CreateLeadRequest(lead=lead), reason=reason, seconds=seconds)
        body = json.dumps(as_json(lead)).encode()
        self.http_fails(what, status=status, body=body, headers={"request-timeout": str(seconds)})

    def _note(self, what: str, reason: str, call: Callable[[], object]) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        failure: Failure = failure_of(caught.value)
        if reason:
            assert failure.reason == reason, f"{what}: {failure}"
        # Everything that a client library can show of it.
        self._world.told[what] = f"{failure} {caught.value} {caught.value!r}"


@contextmanager
def changed_schema(admin_url: str, fault: str, undo: str) -> Iterator[None]:
    faults.execute(admin_url, fault)
    yield
    faults.execute(admin_url, undo)


def go_through_everything(world: World, caller: Caller) -> None:
    """Send the canary through every failure."""
    admin, stub = world.admin_url, world.service.stub(caller.channel)

    # Accepted once, and shown to somebody who may see it: the proof that the search would find it.
    faults.gated_inserts(admin)
    with ThreadPoolExecutor() as pool, faults.closed_gate(admin):
        slow = canary(name=faults.SLOW)
        created = pool.submit(stub.CreateLead, pb.CreateLeadRequest(lead=slow), metadata=world.service.metadata())
        assert eventually(lambda: faults.waits_at_gate(admin), within=20)
        world.processes = process_titles() + str(faults.value_of(admin, STATEMENTS))
    lead_id = created.result().id
    stub.UpdateLead(
        pb.UpdateLeadRequest(lead=pb.Lead(id=lead_id, name=NAMES["name"])), metadata=world.service.metadata()
    )

    # Duplicates, which are kept as resubmissions.
    caller.both_fail("duplicate", canary(), reason="DUPLICATE_PHONE", status=409)
    caller.both_fail("duplicate nid", canary(phone="+8801700000001"), reason="DUPLICATE_NID", status=409)
    other = stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=world.service.metadata()).lead
    # The unique index refuses it inside the driver, whose error holds the row.
    taken = pb.UpdateLeadRequest(lead=pb.Lead(id=other.id, phone=SENT["phone"], nid=SENT["nid"]))
    caller.fails("unique violation", "UpdateLead", taken, reason="DUPLICATE_PHONE")
    request = pb.CreateLeadRequest(lead=somebody(), request_id="again")
    stub.CreateLead(request, metadata=world.service.metadata("chatbot"))
    request = pb.CreateLeadRequest(lead=canary(), request_id="again")
    caller.fails("request id reused", "CreateLead", request, reason="REQUEST_ID_REUSED")

    # What is not accepted.
    for name, value in {**SENT, **NAMES}.items():
        # The value itself, made unacceptable.
        for how, worse in (("invalid", value + "\x00@@"), ("long", value * 200)):
            checked = pb.ValidateLeadRequest(lead=pb.Lead(**{name: worse}))  # type: ignore[arg-type]
            found = stub.ValidateLead(checked, metadata=world.service.metadata("chatbot"))
            world.told[f"{how} {name} validated"] = f"{found} {found.SerializeToString()!r}"
            if name in REQUIRED_FIELDS:
                caller.both_fail(f"{how} {name}", canary(**{name: worse}), reason="LEAD_INVALID", status=400)
            else:  # in a submission it is left out
                changed = pb.UpdateLeadRequest(lead=pb.Lead(id=lead_id, **{name: worse}))  # type: ignore[arg-type]
                caller.fails(f"{how} {name}", "UpdateLead", changed, reason="LEAD_INVALID")
    masked = pb.UpdateLeadRequest(
        lead=pb.Lead(id=lead_id, notes=SENSITIVE["notes"]), update_mask=FieldMask(paths=[SENSITIVE["notes"]])
    )
    caller.fails("field mask", "UpdateLead", masked, reason="LEAD_INVALID")
    for value in SENSITIVE.values():
        caller.fails("value as an id", "GetLead", pb.GetLeadRequest(id=value), reason="LEAD_INVALID")
        caller.http_fails(
            "value as an id", status=400, method="GET", path=f"/api/leads/{quote(value, '')}", role="agent"
        )
        caller.fails(
            "value as a page token", "ListLeads", pb.ListLeadsRequest(page_token=value), reason="PAGE_TOKEN_INVALID"
        )
    filters = pb.ListLeadsRequest(phone=SENT["phone"], nid=SENT["nid"])
    caller.fails("filter without unmask", "ListLeads", filters, reason="SCOPE_MISSING")
    query = f"/api/leads?phone={quote(SENT['phone'])}&nid={SENT['nid']}"
    caller.http_fails("filter without unmask", status=403, method="GET", path=query, role="agent")
    full = pb.GetLeadRequest(id=lead_id, view=pb.LEAD_VIEW_FULL)
    caller.fails("full view", "GetLead", full, reason="SCOPE_MISSING")

    # What cannot be read.
    whole = pb.CreateLeadRequest(lead=canary()).SerializeToString()
    caller.raw_fails("truncated message", whole[:-3], reason="LEAD_INVALID")
    caller.raw_fails("no UTF-8", whole.replace(b"Zephyrine", b"Zephyri\xff\xfe"), reason="LEAD_INVALID")
    caller.raw_fails("oversize message", whole + b"\x1a" + b"x" * 300_000, reason="")
    body = json.dumps(as_json(canary()))
    caller.http_fails("truncated JSON", status=400, body=body[:-2].encode())
    caller.http_fails("no UTF-8", status=400, body=body.encode().replace(b"Zephyrine", b"Zephyri\xff\xfe"))
    # A name that could be a misspelt field's is repeated to who sent it, so the nid is left out here.
    unlike_names = [value for value in SENSITIVE.values() if not value.isalnum()]
    caller.http_fails("value as a name", status=400, body=json.dumps(dict.fromkeys(unlike_names, "x")).encode())
    caller.http_fails(
        "wrong type", status=400, body=json.dumps({name: [value] for name, value in SENT.items()}).encode()
    )
    caller.http_fails("wrong content type", status=415, body=body.encode(), headers={"content-type": "text/plain"})
    caller.http_fails("oversize body", status=413, body=body.encode() * 700)
    caller.http_fails("value in the path", status=404, method="GET", path=f"/api/{quote(SENSITIVE['address'])}")
    caller.http_fails(
        "value as an id to erase", status=403, method="DELETE", path=f"/api/leads/{quote(SENSITIVE['email'])}"
    )
    caller.http_fails("wrong method", status=405, method="PUT", path=f"/api/leads/{quote(SENSITIVE['email'])}")
    world.told["no HTTP"] = no_http(world.service, f"{SENT['phone']} {SENSITIVE['email']} {body}\r\n\r\n")

    # What the database refuses. DETAIL and the driver's parameters hold the row.
    columns = {
        "check violation": (
            "ALTER TABLE lead ADD CONSTRAINT ck_test CHECK (false) NOT VALID",
            "ALTER TABLE lead DROP CONSTRAINT ck_test",
        ),
        "value too long": (
            "ALTER TABLE lead RENAME COLUMN name TO kept; ALTER TABLE lead ADD COLUMN name varchar(3)",
            "ALTER TABLE lead DROP COLUMN name; ALTER TABLE lead RENAME COLUMN kept TO name",
        ),
        "wrong type": (
            "ALTER TABLE lead RENAME COLUMN notes TO kept; ALTER TABLE lead ADD COLUMN notes integer",
            "ALTER TABLE lead DROP COLUMN notes; ALTER TABLE lead RENAME COLUMN kept TO notes",
        ),
        "missing column": (
            "ALTER TABLE lead RENAME COLUMN conversation_id TO elsewhere",
            "ALTER TABLE lead RENAME COLUMN elsewhere TO conversation_id",
        ),
        "missing right": ("REVOKE INSERT ON lead FROM leadkeep_app", "GRANT INSERT ON lead TO leadkeep_app"),
    }
    fresh = canary(phone="+8801731597247", nid="QZX7793156821")
    # Made-up submissions pass, so that the refusal counts as one of this lead's content.
    only_trial = "ALTER TABLE lead ADD CONSTRAINT ck_test CHECK (created_by = 'leadkeep-trial') NOT VALID"
    with changed_schema(admin, only_trial, "ALTER TABLE lead DROP CONSTRAINT ck_test"):
        caller.both_fail("violation by the row", fresh, reason="INTERNAL", status=500)
    # First what leaves the database in use: after the others it is only tried again and again.
    with faults.failing_inserts(admin, "40P01", times=1000):
        caller.fails("endless deadlocks", "CreateLead", pb.CreateLeadRequest(lead=fresh), reason="", seconds=DEADLINE)
    for what, (fault, undo) in columns.items():
        with changed_schema(admin, fault, undo):
            caller.both_fail(what, fresh, reason="STORAGE_UNAVAILABLE", status=503, seconds=DEADLINE)
    with faults.failing_inserts(admin, "P0001", times=1000):
        caller.both_fail(
            "exception that holds the row", fresh, reason="STORAGE_UNAVAILABLE", status=503, seconds=DEADLINE
        )

    # Damage at rest.
    swapped = f"UPDATE lead SET phone = nid, address = email WHERE id = '{lead_id}'"
    kept = faults.value_of(admin, f"SELECT phone || ' ' || address FROM lead WHERE id = '{lead_id}'")
    phone, address = str(kept).split()
    faults.execute(admin, swapped)
    caller.fails("unreadable", "GetLead", pb.GetLeadRequest(id=lead_id), reason="FIELD_UNREADABLE")
    faults.execute(admin, f"UPDATE lead SET phone = '{phone}', address = '{address}' WHERE id = '{lead_id}'")

    # Time runs out, and the database goes away.
    slow = canary(name=faults.SLOW, phone="+8801731597248", nid="QZX7793156822")
    faults.slow_inserts(admin, DEADLINE + 0.5)
    caller.fails(
        "deadline", "CreateLead", pb.CreateLeadRequest(lead=slow), reason="STORAGE_UNAVAILABLE", seconds=DEADLINE
    )
    full_lead = stub.GetLead(pb.GetLeadRequest(id=lead_id), metadata=world.service.metadata())
    assert leaks(str(full_lead), SENSITIVE) == SENSITIVE.keys()
    resubmissions = pb.ListResubmissionsRequest(lead_id=lead_id)
    for rpc, request_of_all in (
        ("GetLead", pb.GetLeadRequest(id=lead_id)),
        ("ListLeads", pb.ListLeadsRequest()),
        ("ListResubmissions", resubmissions),
    ):
        answer = getattr(stub, rpc)(request_of_all, metadata=world.service.metadata("agent"))
        world.told[f"masked {rpc}"] = f"{answer} {answer.SerializeToString()!r}"
    world.server.stop()
    caller.both_fail("no database", fresh, reason="STORAGE_UNAVAILABLE", status=503, seconds=DEADLINE)


STATEMENTS = "SELECT string_agg(query || application_name, ' ') FROM pg_stat_activity"


def process_titles() -> str:
    """The command lines of all processes, as every user of the machine can read them."""
    titles = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            titles.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(titles)


def no_http(service: RunningService, sent: str) -> str:
    host, port = service.http_address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent.encode())
        return connection.recv(65536).decode(errors="replace")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The world after everything has gone wrong in it."""
    with own_postgres() as server:
        database = server.fresh_database()
        service = RunningService(
            tmp_path_factory.mktemp("leaks") / "leadkeep",
            database_url=database.serve_url,
            settings={"LEADKEEP_LOG_LEVEL": "debug"},
        )
        faults.broken_spool(service.data_dir)  # else nothing would fail while the database is away
        service.start()
        world = World(service, server, database.admin_url)
        with service.channel() as channel, httpx.Client(base_url=service.http_url, timeout=20) as http:
            go_through_everything(world, Caller(world, channel, http))
            assert eventually(lambda: http.get("/readyz").status_code == 503, within=30)
        yield world
        service.stop()


def test_search_finds_a_value_in_every_form() -> None:
    value = SENSITIVE["email"]
    raw = b"ab" + value.encode() + b"yz"
    for text in (
        value,
        raw.hex(),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(b"1" + raw).decode(),
        quote(value),
    ):
        assert leaks(f"something {text} else", SENSITIVE) == {"email"}


def test_no_failure_tells_its_caller_a_value(world: World) -> None:
    # The masked answers show names to readers, failures show nothing.
    told = {what: leaks(text, ALL) for what, text in world.told.items() if not what.startswith("masked")}
    assert len(told) > 60
    assert {what: found for what, found in told.items() if found} == {}


@pytest.mark.parametrize("rpc", ["GetLead", "ListLeads", "ListResubmissions"])
def test_caller_without_unmask_is_shown_no_sensitive_value(world: World, rpc: str) -> None:
    shown = world.told[f"masked {rpc}"]
    assert leaks(shown, SENSITIVE) == set()
    assert NAMES["name"] in shown


def test_service_log_at_debug_holds_no_value(world: World) -> None:
    log = world.service.log()
    for event in ("storage fault", "storage retried", "call failed", "not ready"):
        assert f'"event":"{event}"' in log
    assert leaks(log, ALL) == set()


def test_every_line_of_the_service_log_is_an_object(world: World) -> None:
    assert all(isinstance(json.loads(line), dict) for line in world.service.log().splitlines())


def test_standard_output_holds_no_value(world: World) -> None:
    assert leaks(world.service.out_path.read_text(), ALL) == set()


def test_metrics_hold_no_value(world: World) -> None:
    metrics = world.metrics()
    assert 'rpc="CreateLead"' in metrics
    assert leaks(metrics, ALL) == set()


def test_log_of_postgres_holds_no_value(world: World) -> None:
    log = world.log_of_postgres()
    assert "ck_test" in log
    assert leaks(log, ALL) == set()


def test_process_titles_and_statements_under_way_hold_no_value(world: World) -> None:
    assert "postgres" in world.processes
    assert "INSERT" in world.processes
    assert leaks(world.processes, ALL) == set()


LIBRARY = """
import logging, sys
from service.log import configure_logging

configure_logging("debug")
log = logging.getLogger("some.library")
log.warning("row %s", sys.argv[1])
log.error("row " + sys.argv[1])
log.debug("sent %s", sys.argv[1])
logging.getLogger("backoff").error("gave up: %s", sys.argv[1])
try:
    raise ValueError(sys.argv[1])
except ValueError:
    log.exception("failed with %s", sys.argv[1])
"""


def test_log_lines_of_libraries_are_reduced_to_their_templates() -> None:
    command = [sys.executable, "-c", LIBRARY, SENSITIVE["email"]]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    lines = [json.loads(line) for line in said.splitlines()]
    assert leaks(said, SENSITIVE) == set()
    assert [(line["template"], line["error"]) for line in lines] == [
        ("row %s", None),
        ("", None),
        ("failed with %s", "ValueError"),
    ]
