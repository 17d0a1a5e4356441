"""The contract: its form, its stability, its stubs, and every method, field and enum value that it has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped] # the package carries no types
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import options_pb2

from tests.contract.pin import PINNED, contract, facts
from tests.harness.leads import MARKED, is_marked

ROOT = Path(__file__).parents[2]
PROTO = Path("protos/leadkeep/v1/lead_service.proto")
OPTIONS = PROTO.with_name("options.proto")
BUF = Path(sys.executable).with_name("buf")
INCLUDES = f"-I{Path(protoc.__file__).with_name('_proto')}"


def buf(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contract in a folder where it can be changed."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def replace(folder: Path, pattern: str, replacement: str, *, proto: Path = PROTO) -> None:
    text, count = re.subn(pattern, replacement, (folder / proto).read_text(), flags=re.MULTILINE)
    assert count == 1, f"{pattern} is there {count} times"
    (folder / proto).write_text(text)


def compiled(folder: Path, output: Path) -> list[FileDescriptorProto]:
    """The contract of a folder, as the compiler describes it."""
    files = [str(folder / proto) for proto in (OPTIONS, PROTO)]
    assert protoc.main(["protoc", f"-I{folder / 'protos'}", INCLUDES, f"-o{output}", *files]) == 0
    return list(FileDescriptorSet.FromString(output.read_bytes()).file)


def test_buf_finds_nothing_to_complain_about() -> None:
    found = buf("lint")
    assert (found.returncode, found.stdout) == (0, "")


def test_a_field_without_a_comment_is_found(copy: Path) -> None:
    replace(copy, r"^  // The lead's identifier, a UUID\.\n(  string id = 1;\n  // \"Lead created)", r"\1")
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
        pytest.param(r"^  string assignee = 15;", "  string owner = 15;", id="renamed field"),
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
    # `make check-generated` compares their text, with the compiler that makes them.
    assert facts(compiled(ROOT, tmp_path / "contract.binpb")) == facts(contract()), "run: make generate"


def test_contract_is_the_pinned_one() -> None:
    changes = unified_diff(
        PINNED.read_text().splitlines(), facts(contract()), "contract.txt", "contract", n=0, lineterm=""
    )
    changed = "\n".join(changes)
    assert not changed, f"{changed}\nIf this is meant, and only adds, run: python -m tests.contract.pin"


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        pytest.param(r"^  rpc ListAssignments\(.*\n", "", id="removed rpc"),
        pytest.param(r"^(service .*)", r"\1\n  rpc New(Lead) returns (Lead);", id="new rpc"),
        pytest.param(r"^  rpc EraseLead\(\w+", "  rpc EraseLead(GetLeadRequest", id="rpc with another request"),
        pytest.param(r"(rpc EraseLead.*) \(\w+", r"\1 (Lead", id="rpc with another response"),
        pytest.param(r"^  rpc CreateLead\(", "  rpc CreateLead(stream ", id="streamed requests"),
        pytest.param(r"(rpc ListLeads\(.*) \(", r"\1 (stream ", id="streamed responses"),
        pytest.param(r"^(message Access )", r"message New {}\n\1", id="new message"),
        pytest.param(r"^(message Lead {)", r"\1\n  message New {}", id="new nested message"),
        pytest.param(r"^  string assignee = 15;\n", "", id="removed field"),
        pytest.param(r"^(message Lead {)", r"\1\n  string new = 999;", id="new field"),
        pytest.param(r"^  repeated Access accesses = 1;", "  repeated Access accesses = 9;", id="renumbered field"),
        pytest.param(r"^  string assignee = 15;", "  string owner = 15;", id="renamed field"),
        pytest.param(r"^  int64 version = 14;", "  string version = 14;", id="field of another type"),
        pytest.param(r"^  LeadStatus status = 11;", "  LeadView status = 11;", id="field of another enum"),
        pytest.param(r"^  repeated Access accesses", "  Access accesses", id="field that is repeated no more"),
        pytest.param(r"^  string assignee = 15;", "  optional string assignee = 15;", id="field with presence"),
        pytest.param(r"^  (string assignee = 15;)", r"  oneof either { \1 }", id="field in a oneof"),
        pytest.param(r"^  string nid = 4 .*;", "  string nid = 4;", id="field without its mark"),
        pytest.param(r"^(message Lead {)", r"\1\n  reserved 999;", id="reserved field number"),
        pytest.param(r"^(message Lead {)", r'\1\n  reserved "new";', id="reserved field name"),
        pytest.param(r"^  LEAD_STATUS_CONVERTED = 3;", "  LEAD_STATUS_SOLD = 3;", id="renamed enum value"),
        pytest.param(r"^  LEAD_STATUS_CONVERTED = 3;", "  LEAD_STATUS_CONVERTED = 9;", id="renumbered enum value"),
        pytest.param(r"^(enum SaveState {)", r"enum New { NEW = 0; }\n\1", id="new enum"),
        pytest.param(r"^(message Lead {)", r"\1\n  enum New { NEW = 0; }", id="new nested enum"),
        pytest.param(r"^(enum SaveState {)", r"\1\n  reserved 9;", id="reserved enum number"),
        pytest.param(r"^(enum SaveState {)", r'\1\n  reserved "NEW";', id="reserved enum name"),
        pytest.param(r"^(service LeadService {)", r"\1\n  option deprecated = true;", id="service with an option"),
        pytest.param(r"(rpc EraseLead.*);", r"\1 { option deprecated = true; }", id="rpc with an option"),
        pytest.param(r"^(message Lead {)", r"\1\n  option deprecated = true;", id="message with an option"),
        pytest.param(r"^(enum SaveState {)", r"\1\n  option deprecated = true;", id="enum with an option"),
        pytest.param(r"(SAVE_STATE_SAVED = 1);", r"\1 [deprecated = true];", id="enum value with an option"),
    ],
)
def test_pin_notices(copy: Path, pattern: str, replacement: str) -> None:
    replace(copy, pattern, replacement)
    assert facts(compiled(copy, copy / "contract.binpb")) != facts(contract())


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        pytest.param(r"sensitive = \d+;", "sensitive = 50001;", id="option with another number"),
        pytest.param(r"^  bool sensitive", "  string sensitive", id="option of another type"),
        pytest.param(r"FieldOptions {", "MessageOptions {", id="option of something else"),
        pytest.param(r"^option go_package.*\n", "", id="file without an option"),
    ],
)
def test_pin_notices_changes_of_the_options(copy: Path, pattern: str, replacement: str) -> None:
    replace(copy, pattern, replacement, proto=OPTIONS)
    # As compiled alone: some of these changes leave fields that use the option without it.
    made = copy / "options.binpb"
    assert protoc.main(["protoc", f"-I{copy / 'protos'}", INCLUDES, f"-o{made}", str(copy / OPTIONS)]) == 0
    assert facts(FileDescriptorSet.FromString(made.read_bytes()).file) != facts(contract()[:1])


def test_the_option_is_numbered_where_no_other_project_is_likely_to_be() -> None:
    number = options_pb2.sensitive.number
    assert 50_000 <= number <= 99_999
    assert number % 10


def test_sensitive_fields_are_marked_so_that_every_compiler_reads_it() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "protos").rglob("*.proto")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"debug_redact\s*=", line)
    ]
    assert not wrong, (
        f"{', '.join(wrong)}: write [(leadkeep.v1.sensitive) = true] in place of [debug_redact = true]: "
        "protoc 3.21 of Debian 12, Ubuntu and Maven refuses debug_redact"
    )


def test_every_field_that_carries_a_sensitive_value_is_marked() -> None:
    fields = [field for message in pb.DESCRIPTOR.message_types_by_name.values() for field in message.fields]
    marked = {field.full_name for field in fields if is_marked(field)}
    assert marked == {field.full_name for field in fields if field.name in MARKED}
    assert len(marked) >= len(MARKED)
