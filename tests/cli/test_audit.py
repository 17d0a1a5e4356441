"""`leadkeep audit`, as an operator meets it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.faults import execute
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService


@pytest.fixture(scope="module")
def service(service: RunningService) -> RunningService:
    """A service whose one lead `ann` read twice and `joe` once, started again: the chain of these looks has ended."""
    with service.channel() as channel:
        stub = service.stub(channel)
        lead = pb.CreateLeadRequest(lead=somebody())
        lead_id = stub.CreateLead(lead, metadata=service.metadata("chatbot"), timeout=10).id
        for subject in ("ann", "joe", "ann"):
            metadata = [*service.metadata(subject=subject), ("leadkeep-reason", f"for {subject}")]
            stub.GetLead(pb.GetLeadRequest(id=lead_id), metadata=metadata, timeout=10)
    service.data_dir.with_name("lead").write_text(lead_id)
    service.stop()
    return service.start()


def lead_id_of(service: RunningService) -> str:
    return (service.data_dir.parent / "lead").read_text()


def listed(service: RunningService, *arguments: str) -> list[dict[str, object]]:
    done = service.leadkeep_here("audit", "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_looks_are_listed_newest_first(service: RunningService) -> None:
    entries = listed(service, "--lead", lead_id_of(service), "--from", str(datetime.now(UTC).date()))
    assert [entry["subject"] for entry in entries] == ["ann", "joe", "ann"]
    assert entries[0]["operation"] == "GetLead"
    assert entries[0]["reason"] == "for ann"
    assert entries[0]["fields"] == ["phone", "nid", "address", "email", "notes"]


def test_a_subject_and_a_span_can_be_asked_for(service: RunningService) -> None:
    assert len(listed(service, "--subject", "joe")) == 1
    assert listed(service, "--to", "2026-01-01T00:00:00+06:00") == []


def test_a_line_for_each_look(service: RunningService) -> None:
    lines = service.leadkeep_here("audit", "list", "--subject", "joe").stdout.splitlines()
    assert [line.split("\t")[1:4] for line in lines] == [["joe", "GetLead", lead_id_of(service)]]


@pytest.mark.parametrize("wrong", [["--from", "yesterday"], ["--lead", "7"]])
def test_what_makes_no_sense_is_wrong_usage(wrong: list[str], service: RunningService) -> None:
    assert service.leadkeep_here("audit", "list", *wrong).returncode == 2


def test_what_nobody_touched_is_unchanged(service: RunningService) -> None:
    done = service.leadkeep_here("audit", "verify", "--heads", str(service.log_path))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Unchanged.")


@pytest.mark.parametrize("content", [None, '{"event": "call"}\n'])
def test_without_heads_nothing_is_proven(content: str | None, service: RunningService, tmp_path: Path) -> None:
    file = tmp_path / "heads.log"
    if content is not None:
        file.write_text(content)
    done = service.leadkeep_here("audit", "verify", "--heads", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(file) in done.stderr


def test_another_keyring_checks_nothing(service: RunningService, tmp_path: Path) -> None:
    env = {"LEADKEEP_KEYRING": str(tmp_path / "other.json")}
    assert service.leadkeep_here("keys", "init", env=env).returncode == 0
    assert service.leadkeep_here("audit", "verify", env=env).returncode == 1


def test_a_record_that_was_cut_in_all_tables_is_found_with_heads(
    service: RunningService, service_database: TestDatabase
) -> None:
    execute(
        service_database.admin_url,
        "DELETE FROM access_record WHERE number = 3",
        "DELETE FROM access_head WHERE number = 3",
    )
    assert service.leadkeep_here("audit", "verify").returncode == 0
    done = service.leadkeep_here("audit", "verify", "--json", "--heads", str(service.log_path))
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["unchanged"] is False
    assert [(fault["kind"], fault["number"]) for fault in report["faults"]] == [("cut", 3)]
