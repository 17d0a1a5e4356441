"""`leadkeep person`, as a privacy officer uses it."""

from __future__ import annotations

import json
import os
import pty
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import service as package
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client
from tests.rpc.test_person import Life, live

SCHEMA = Path(package.__file__).parents[1] / "docs" / "person-export.schema.json"


@pytest.fixture
def life(service: RunningService) -> Iterator[Life]:
    with service.channel() as channel:
        yield live(Client(service, channel))


def found(service: RunningService, life: Life) -> list[dict[str, str]]:
    done = service.leadkeep_here("person", "find", "--email", "-", "--json", stdin=f"{life.email}\n")
    assert done.returncode == 0, done.stderr
    matches: list[dict[str, str]] = json.loads(done.stdout)["matches"]
    return matches


def test_find_prints_a_numbered_list_with_masked_values(service: RunningService, life: Life) -> None:
    done = service.leadkeep_here("person", "find", "--email", "-", stdin=f"{life.email}\n")

    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["kind", "id", "lead", "has", "name", "phone"]
    assert [line.split()[:2] for line in lines] == [
        *(["1", "lead"], ["2", "lead"], ["3", "resubmission"], ["4", "resubmission"], ["5", "resubmission"]),
        ["6", "conflict"],
    ]
    assert "•••" in lines[0]
    assert life.email not in done.stdout
    assert [each["kind"] for each in found(service, life)][2:4] == ["PERSON_MATCH_KIND_RESUBMISSION"] * 2


def test_an_export_is_one_document_of_its_schema_with_nothing_of_the_stranger(
    service: RunningService, life: Life, tmp_path: Path
) -> None:
    path = tmp_path / "person.json"
    arguments = ("--email", life.email, "--all", "--yes", "--reason", "asked by letter", "--output", str(path))

    done = service.leadkeep_here("person", "export", *arguments)

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    assert document["asked"] == {"email": life.email}
    assert (document["reason"], document["exported_by"].startswith("cli:")) == ("asked by letter", True)
    own = [each for each in document["records"] if each["part"] != "PERSON_PART_HISTORY"]
    assert len({each["id"] for each in own}) == 6
    shown = json.dumps(own)
    stranger = life.stranger_with
    assert shown.count(life.stranger) == 1  # beside which one of the resubmissions is kept
    assert not any(value in shown for value in (stranger.name, stranger.nid, stranger.address, stranger.email))
    leads = [each["lead"] for each in own if "lead" in each]
    assert [lead["email"] for lead in leads] == [life.email] * 2
    looks = [each["event"] for each in document["records"] if each["part"] == "PERSON_PART_HISTORY"]
    assert "asked by letter" in {each.get("reason") for each in looks if each["type"] == "LEAD_EVENT_TYPE_REVEALED"}


def test_erase_takes_numbers_and_ids_and_leaves_the_rest(service: RunningService, life: Life) -> None:
    before = found(service, life)

    done = service.leadkeep_here(
        "person", "erase", "--email", life.email, "5", before[5]["id"], "--yes", "--reason", "asked", "--json"
    )

    assert done.returncode == 0, done.stderr
    assert {each["id"] for each in json.loads(done.stdout)["erased"]} == {before[4]["id"], before[5]["id"]}
    assert found(service, life) == before[:4]


@pytest.mark.parametrize(
    ("chosen", "numbers"), [(["2"], [2]), (["1,3-5"], [1, 3, 4, 5]), (["4-6", "5", "2,2"], [2, 4, 5, 6])]
)
def test_what_is_chosen_is_exported_once(
    service: RunningService, life: Life, chosen: list[str], numbers: list[int]
) -> None:
    listed = found(service, life)

    done = service.leadkeep_here("person", "export", "--email", life.email, *chosen, "--yes")

    assert done.returncode == 0, done.stderr
    assert [each["id"] for each in json.loads(done.stdout)["chosen"]] == [listed[each - 1]["id"] for each in numbers]


@pytest.mark.parametrize("beyond", ["0", "7", "0-2", "5-7", "3-1", "2,9"])
def test_a_number_that_is_not_in_the_list_is_refused(service: RunningService, life: Life, beyond: str) -> None:
    done = service.leadkeep_here("person", "erase", "--email", life.email, beyond, "--yes")

    assert (done.returncode, "does not find" in done.stderr) == (1, True)
    assert len(found(service, life)) == 6


def test_nothing_is_erased_where_nobody_can_be_asked(service: RunningService, life: Life) -> None:
    done = service.leadkeep_here("person", "erase", "--email", life.email, "--all")

    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert len(found(service, life)) == 6


def test_on_a_terminal_an_erasure_is_confirmed_or_does_nothing(service: RunningService, life: Life) -> None:
    terminal, its_end = pty.openpty()
    command = ("person", "erase", "--email", life.email, "3")
    with service.begin(*command, stdin=its_end, stdout=its_end, stderr=its_end) as process:
        os.close(its_end)
        shown = b""
        while b"?" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"n\n")
        process.wait(timeout=60)
    os.close(terminal)

    assert b"Erase 1 of 6: 3?" in shown
    assert len(found(service, life)) == 6


def test_neither_everything_nor_something_is_wrong_usage(service: RunningService, life: Life) -> None:
    assert service.leadkeep_here("person", "erase", "--email", life.email).returncode == 2
    assert service.leadkeep_here("person", "erase", "--email", life.email, "1", "--all").returncode == 2
    assert service.leadkeep_here("person", "find").returncode == 2
    unknown = service.leadkeep_here("person", "erase", "--email", life.email, "7", "--yes")
    assert (unknown.returncode, "does not find 7" in unknown.stderr) == (1, True)
