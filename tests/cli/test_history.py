"""`leadkeep leads history`, as an operator sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.leads import somebody
from tests.harness.running_service import RunningService


@pytest.fixture(scope="module")
def lead_id(service: RunningService) -> str:
    """A lead that was corrected, moved and assigned."""
    with service.channel() as channel:
        stub = service.stub(channel)
        made = stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=service.metadata("chatbot"), timeout=10)
        metadata = service.metadata("admin")
        corrected = pb.UpdateLeadRequest(lead=pb.Lead(id=made.id, name="R", notes="calls back"), reason="by\tphone")
        stub.UpdateLead(corrected, metadata=metadata, timeout=10)
        stub.UpdateStatus(
            pb.UpdateStatusRequest(id=made.id, status=pb.LEAD_STATUS_CONTACTED), metadata=metadata, timeout=10
        )
        stub.AssignLead(pb.AssignLeadRequest(id=made.id, assignee="rahima"), metadata=metadata, timeout=10)
    return str(made.id)


def test_a_line_for_each_event_in_columns(service: RunningService, lead_id: str) -> None:
    done = service.leadkeep_here("leads", "history", lead_id)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    starts = [lines[0].index(name) for name in ("version", "what", "who", "details", "reason")]
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines[1:]]
    assert cells == [
        ["1", "created", "chatbot", "-", "-"],
        ["2", "corrected", "admin", "name, notes", "by phone"],
        ["3", "status changed", "admin", "new → contacted", "-"],
        ["4", "assigned", "admin", "nobody → rahima", "-"],
    ]


def test_looks_are_shown_to_who_asks(service: RunningService, lead_id: str) -> None:
    shown = service.leadkeep_here("leads", "history", lead_id, "--accesses", "--json")
    events = json.loads(shown.stdout)
    looks = [each for each in events if each["type"] == "LEAD_EVENT_TYPE_REVEALED"]
    assert looks
    assert all(each["actor"] == "admin" and "phone" in each["fields"] for each in looks)
    assert len(events) - len(looks) == 4


def test_an_unknown_lead_is_refused(service: RunningService) -> None:
    done = service.leadkeep_here("leads", "history", "01900000-0000-7000-8000-000000000001")
    assert done.returncode == 1
    assert "no lead" in done.stderr


def test_it_needs_a_service(tmp_path: Path, lead_id: str) -> None:
    away = RunningService(tmp_path / "leadkeep").leadkeep_here("leads", "history", lead_id)
    assert away.returncode == 1
