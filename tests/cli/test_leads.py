"""`leadkeep leads`, as an operator uses it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.cli.leads import COLUMNS, Order
from tests.harness.faults import value_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService

AGENT = "sam"


@pytest.fixture(scope="module")
def people(service: RunningService) -> list[pb.Lead]:
    """Three leads: the first is contacted, the second is the agent's, the third has a name that could forge a line."""
    with service.channel() as channel:
        stub, metadata = service.stub(channel), service.metadata("admin")
        made = [
            somebody(name="Rahima Begum", source="web", conversation_id="talk-1"),
            somebody(name="Rahim Uddin", source="ad", interested_policy="Whole Life"),
            somebody(name="Tabea\u00a0\u202eT."),
        ]
        for lead in made:
            lead.id = stub.CreateLead(pb.CreateLeadRequest(lead=lead), metadata=metadata, timeout=10).id
        moved = pb.UpdateStatusRequest(id=made[0].id, status=pb.LEAD_STATUS_CONTACTED)
        stub.UpdateStatus(moved, metadata=metadata, timeout=10)
        stub.AssignLead(pb.AssignLeadRequest(id=made[1].id, assignee=AGENT), metadata=metadata, timeout=10)
    return made


def ids(service: RunningService, *arguments: str, stdin: str | None = None) -> list[str]:
    done = service.leadkeep_here("leads", "list", "--json", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return [lead["id"] for lead in json.loads(done.stdout)]


def test_a_table_with_a_line_for_each_lead_newest_first_and_masked(
    service: RunningService, people: list[pb.Lead]
) -> None:
    done = service.leadkeep_here("leads", "list")
    head, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert (tuple(head), done.stderr) == (COLUMNS, "")
    assert [line[0] for line in lines] == [lead.id for lead in reversed(people)]
    assert {len(line) for line in lines} == {len(COLUMNS)}
    assert all("•••" in line[COLUMNS.index("phone")] for line in lines)
    assert not [lead.phone for lead in people if lead.phone in done.stdout]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--status", "contacted"], [0]),
        (["--status", "contacted", "--status", "new"], [2, 1, 0]),
        (["--assignee", AGENT], [1]),
        (["--unassigned"], [2, 0]),
        (["--policy", "Whole Life"], [1]),
        (["--source", "web"], [0]),
        (["--created-by", "admin"], [2, 1, 0]),
        (["--created-by", "bot"], []),
        (["--created-after", "2026-01-31"], [2, 1, 0]),
        (["--created-before", "2026-01-31T09:00:00+06:00"], []),
        (["--updated-after", "2026-01-31T09:00:00"], [2, 1, 0]),
        (["--updated-before", "2026-01-31"], []),
        (["--name-prefix", "rahim"], [1, 0]),
        (["--conversation-id", "talk-1"], [0]),
        (["--order", "created-asc"], [0, 1, 2]),
        (["--order", "updated-desc"], [1, 0, 2]),
        (["--order", "resubmitted-desc"], []),
        (["--unassigned", "--name-prefix", "Rahim"], [0]),
    ],
)
def test_each_filter_and_order_is_an_option(
    service: RunningService, people: list[pb.Lead], arguments: list[str], found: list[int]
) -> None:
    assert ids(service, *arguments) == [people[number].id for number in found]


def test_every_filter_of_the_contract_is_an_option(service: RunningService) -> None:
    others = {"page_size", "page_token", "view", "order_by"}
    names = set(pb.ListLeadsRequest.DESCRIPTOR.fields_by_name) - others
    options = {"statuses": "status", "interested_policy": "policy"}
    help_text = service.leadkeep_here("leads", "list", "--help").stdout
    wanted = [f"--{options.get(name, name).replace('_', '-')} " for name in names]
    assert [option for option in wanted if option not in help_text] == []


def test_the_reference_of_a_confirmation_finds_its_lead(service: RunningService, people: list[pb.Lead]) -> None:
    reference = service.get(people[1].id).reference
    assert ids(service, "--reference", reference.lower()) == [people[1].id]


@pytest.mark.parametrize("field", ["phone", "nid", "email"])
def test_a_customers_value_is_read_from_standard_input_and_the_search_is_on_record(
    service: RunningService, people: list[pb.Lead], service_database: TestDatabase, field: str
) -> None:
    value = getattr(people[1], field)
    assert ids(service, f"--{field}", "-", "--reason", f"by {field}", stdin=f"{value}\n") == [people[1].id]
    recorded = f"SELECT array_to_string(fields, ',') FROM access_record WHERE reason = 'by {field}'"
    assert value_of(service_database.admin_url, recorded) == field


@pytest.mark.parametrize("stdin", [b"", b"\n+8801711000028\n", b" \n", b"\xff\n"])
def test_an_input_without_the_value_finds_nobody_rather_than_everybody(
    service: RunningService, people: list[pb.Lead], stdin: bytes
) -> None:
    running = service.begin("leads", "list", "--phone", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    listed, _ = running.communicate(stdin)
    assert running.returncode in (1, 2)
    assert listed == b""


@pytest.mark.parametrize(
    "command",
    [
        ("leads", "list", "--name-prefix", b"\xffab"),
        ("leads", "list", "--source", b"\xffab"),
        ("audit", "list", "--subject", b"\xff"),
        ("erase", "01a221c4-8df6-75ae-bf40-2916b90d26f7", "--reason", b"\xff"),
    ],
)
def test_an_argument_that_is_no_text_is_said(service: RunningService, command: tuple[str, ...]) -> None:
    running = service.begin(*command, stderr=subprocess.PIPE)
    _, told = running.communicate()
    assert (running.returncode, told) == (1, b"leadkeep: an argument or standard input is not UTF-8 text\n")


def test_more_leads_than_asked_for_are_said_to_be_there(service: RunningService, people: list[pb.Lead]) -> None:
    few = service.leadkeep_here("leads", "list", "--limit", "2", "--json")
    assert [lead["id"] for lead in json.loads(few.stdout)] == [lead.id for lead in people[:0:-1]]
    assert "--limit" in few.stderr
    assert service.leadkeep_here("leads", "list", "--limit", "3").stderr == ""


@pytest.mark.parametrize("command", [("leads", "list"), ("stats", "--json"), ("audit", "list", "--json")])
def test_an_output_that_is_full_is_said(
    service: RunningService, people: list[pb.Lead], command: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("w") as full:
        running = service.begin(*command, stdout=full, stderr=subprocess.PIPE)
        _, told = running.communicate()
    assert (running.returncode, told) == (1, b"leadkeep: the output cannot be written: No space left on device\n")


def test_every_order_of_the_contract_is_a_choice() -> None:
    orders = [name.removeprefix("LEAD_ORDER_").lower().replace("_", "-") for name in pb.LeadOrder.keys()[1:]]
    assert set(get_args(Order)) == {"created-desc", *orders}


@pytest.mark.parametrize(
    "wrong", [["--order", "name"], ["--status", "old"], ["--created-after", "x"], ["--limit", "0"]]
)
def test_what_makes_no_sense_is_wrong_usage(service: RunningService, wrong: list[str]) -> None:
    assert service.leadkeep_here("leads", "list", *wrong).returncode == 2


def test_what_the_service_refuses_is_said(service: RunningService) -> None:
    done = service.leadkeep_here("leads", "list", "--unassigned", "--assignee", "sam")
    assert (done.returncode, done.stdout.count("{")) == (1, 0)
    assert "unassigned cannot be sent with assignee" in done.stderr


def test_a_revealed_field_is_a_column_and_on_record(
    service: RunningService, service_database: TestDatabase, people: list[pb.Lead]
) -> None:
    done = service.leadkeep_here("leads", "list", "--limit", "1", "--reveal", "email", "--reason", "reveal test")
    assert done.returncode == 0, done.stderr
    head, line = done.stdout.splitlines()
    assert (head.split("\t")[-1], line.split("\t")[-1]) == ("email", people[-1].email)
    assert people[-1].phone not in line
    recorded = "SELECT json_agg(json_build_array(lead_id, fields)) FROM access_record WHERE reason = 'reveal test'"
    assert value_of(service_database.admin_url, recorded) == [[people[-1].id, ["email"]]]
