"""The contract: its form, its stability, its stubs, and the numbers that the design gives to its fields."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

ROOT = Path(__file__).parents[2]
PROTO = Path("protos/leadkeep/v1/lead_service.proto")
BUF = Path(sys.executable).with_name("buf")

METHODS = {
    "CreateLead",
    "GetLead",
    "UpdateStatus",
    "UpdateLead",
    "GetLeadByConversation",
    "ListLeads",
    "ListStatusChanges",
    "ListAssignments",
    "ListResubmissions",
    "AssignLead",
    "EraseLead",
    "ListConflicts",
    "ResolveConflict",
}

FIELDS = {
    "Lead": """id name phone nid address interested_policy email preferred_contact_time notes conversation_id status
        created_at updated_at version assignee masked transcript_uri resubmissions""",
    "CreateLeadRequest": "lead request_id locale",
    "CreateLeadResponse": "id message state confirmation lead",
    "Confirmation": "text next_steps reference locale",
    "GetLeadRequest": "id view",
    "GetLeadResponse": "lead",
    "UpdateStatusRequest": "id status reason expected_version",
    "UpdateStatusResponse": "lead",
    "UpdateLeadRequest": "lead update_mask expected_version",
    "UpdateLeadResponse": "lead",
    "GetLeadByConversationRequest": "conversation_id view",
    "GetLeadByConversationResponse": "lead other_lead_ids",
    "ListLeadsRequest": """page_size page_token statuses created_after created_before assignee interested_policy
        conversation_id phone nid view""",
    "ListLeadsResponse": "leads next_page_token",
    "ListStatusChangesRequest": "lead_id",
    "ListStatusChangesResponse": "changes",
    "StatusChange": "from_status to_status actor reason changed_at version",
    "ListResubmissionsRequest": "lead_id view",
    "ListResubmissionsResponse": "resubmissions",
    "Resubmission": "lead submitted_at actor verified",
    "AssignLeadRequest": "id assignee reason expected_version",
    "AssignLeadResponse": "lead",
    "EraseLeadRequest": "id reason",
    "EraseLeadResponse": "",
    "Conflict": "id submission leads met_fields accepted_at found_at resolution resolved_by resolved_at reason",
    "ListConflictsRequest": "page_size page_token include_resolved view",
    "ListConflictsResponse": "conflicts next_page_token",
    "ResolveConflictRequest": "id resolution lead_id reason view",
    "ResolveConflictResponse": "lead",
}
"""The design's fields; the first one has number 1, and so on."""

ENUMS = {
    "LeadStatus": "LEAD_STATUS_ UNSPECIFIED NEW CONTACTED CONVERTED NOT_INTERESTED",
    "LeadView": "LEAD_VIEW_ UNSPECIFIED MASKED FULL",
    "SaveState": "SAVE_STATE_ UNSPECIFIED SAVED DELAYED",
}
"""The design's enums: the prefix, and the values from 0 on."""

SENSITIVE = {"phone", "nid", "address", "email", "notes"}


def buf(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contract in a folder where it can be changed."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def replace(folder: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, (folder / PROTO).read_text(), flags=re.MULTILINE)
    assert count == 1, f"{pattern} is there {count} times"
    (folder / PROTO).write_text(text)


def test_buf_finds_nothing_to_complain_about() -> None:
    found = buf("lint")
    assert (found.returncode, found.stdout) == (0, "")


def test_a_field_without_a_comment_is_found(copy: Path) -> None:
    replace(copy, r"^  // The lead's identifier\.\n(  string id = 1;\n  // \"Lead created)", r"\1")
    found = buf("lint", folder=copy)
    assert found.returncode != 0
    assert "comment" in found.stdout


def test_contract_is_formatted() -> None:
    found = buf("format", "--diff", "--exit-code")
    assert (found.returncode, found.stdout) == (0, "")


def test_contract_does_not_break_the_last_release() -> None:
    found = buf("breaking", "--against", "protos/released.binpb")
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        pytest.param(r"^  string nid = 4 ", "  string nid = 40 ", id="field with another number"),
        pytest.param(r"^  string assignee = 15;\n", "", id="removed field"),
        pytest.param(r"^  int64 version = 14;", "  string version = 14;", id="field of another type"),
        pytest.param(r"^  string transcript_uri = 17;", "  string transcript = 17;", id="renamed field"),
        pytest.param(r"^  LEAD_STATUS_CONVERTED = 3;", "  LEAD_STATUS_SOLD = 3;", id="renamed enum value"),
        pytest.param(r"^  rpc AssignLead\(.*\n", "", id="removed rpc"),
    ],
)
def test_breaking_change_is_caught(copy: Path, pattern: str, replacement: str) -> None:
    replace(copy, pattern, replacement)
    found = buf("breaking", "--against", "protos/released.binpb", folder=copy)
    assert found.returncode != 0
    assert PROTO.name in found.stdout


def test_new_field_breaks_nothing(copy: Path) -> None:
    replace(copy, r"^  int64 resubmissions = 18;", "  int64 resubmissions = 18;\n  // New.\n  string new = 999;")
    assert buf("breaking", "--against", "protos/released.binpb", folder=copy).returncode == 0


def test_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=protos"]
    subprocess.run([*compiler, *outputs, PROTO], cwd=ROOT, check=True, timeout=60)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    generated = ROOT / "generated"
    committed = {
        path.relative_to(generated): path.read_text()
        for path in generated.rglob("*.py*")
        if "__pycache__" not in path.parts
    }
    assert made == committed, "run: make generate"


def test_service_has_the_designs_methods() -> None:
    assert {method.name for method in pb.DESCRIPTOR.services_by_name["LeadService"].methods} >= METHODS


@pytest.mark.parametrize("message", FIELDS)
def test_fields_have_the_designs_numbers(message: str) -> None:
    numbers = {field.name: field.number for field in pb.DESCRIPTOR.message_types_by_name[message].fields}
    wanted = {name: number for number, name in enumerate(FIELDS[message].split(), start=1)}
    assert wanted.items() <= numbers.items()


@pytest.mark.parametrize("enum", ENUMS)
def test_enum_values_have_the_designs_numbers(enum: str) -> None:
    prefix, *names = ENUMS[enum].split()
    numbers = {value.name: value.number for value in pb.DESCRIPTOR.enum_types_by_name[enum].values}
    assert numbers == {prefix + name: number for number, name in enumerate(names)}


def test_every_field_that_carries_a_sensitive_value_is_marked() -> None:
    fields = [field for message in pb.DESCRIPTOR.message_types_by_name.values() for field in message.fields]
    marked = {field.full_name for field in fields if field.GetOptions().debug_redact}
    assert marked == {field.full_name for field in fields if field.name in SENSITIVE}
    assert len(marked) >= len(SENSITIVE)
