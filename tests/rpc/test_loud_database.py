"""A PostgreSQL that logs every statement with all of its parameters learns no sensitive value from Leadkeep."""

from __future__ import annotations

from urllib.parse import urlsplit

from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.disguises import disguises, hidden_in
from tests.harness.faults import execute
from tests.harness.postgres import TestServer
from tests.rpc.calls import Client

PERSON = pb.Lead(
    name="Zephyrine Laut",
    phone="+8801731597301",
    nid="QZX7793156301",
    email="kolibri.laut@zaunkoenig-domain.example",
    address="77 Papageien Allee, Lautenstadt 90817",
    notes="Nachtigall im Wohnzimmer, bitte nach sechs anrufen",
    interested_policy="Term Life",
    conversation_id="whatsapp:+8801731597301",
)
SENSITIVE = ("phone", "nid", "email", "address", "notes", "conversation_id")
KEYS = {name: getattr(PERSON, name) for name in ("phone", "nid", "email")}


def test_a_database_that_logs_all_parameters_learns_no_sensitive_value(
    postgres_server: TestServer, start_service: StartService
) -> None:
    database = postgres_server.fresh_database()
    name = urlsplit(database.admin_url).path.removeprefix("/")
    for setting in (
        *("log_min_duration_statement = 0", "log_parameter_max_length = -1"),
        *("log_parameter_max_length_on_error = -1", "log_error_verbosity = verbose"),
    ):
        execute(database.admin_url, f"ALTER DATABASE {name} SET {setting}")
    service = start_service(database_url=database.serve_url)
    with service.channel() as channel:
        admin = Client(service, channel, "admin")
        lead_id = admin.create(PERSON).id
        admin.correct(lead_id, address=f"{PERSON.address}, links")
        assert admin.by_conversation(PERSON.conversation_id).lead.id == lead_id
        for filters in (*({key: value} for key, value in KEYS.items()), {"conversation_id": PERSON.conversation_id}):
            assert admin.listed_ids(**filters) == [lead_id]
        assert admin.reveal(lead_id, "phone").phone == PERSON.phone
        matches = admin.call("FindPerson", pb.FindPersonRequest(**KEYS)).matches
        refs = [pb.PersonRef(kind=match.kind, id=match.id) for match in matches]
        assert admin.call("ExportPerson", pb.ExportPersonRequest(refs=refs)).records
        assert admin.call("ErasePerson", pb.ErasePersonRequest(refs=refs)).erased
    log = postgres_server.postgres.log_file.read_bytes()
    assert PERSON.name.encode() in log
    assert hidden_in(log, {field: tuple(disguises(getattr(PERSON, field))) for field in SENSITIVE}) == set()
