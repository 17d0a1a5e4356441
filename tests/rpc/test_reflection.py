"""Server reflection: what grpcurl, ghz and buf learn from the running service, and that they do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FieldOptions, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)
from leadkeep.v1 import options_pb2

from service.rpc.call import SERVICE
from tests.harness.leads import MARKED, STORY, somebody
from tests.harness.running_service import RunningService

BOTH = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
OPTION: Any = options_pb2.sensitive
TOOLS = Path(__file__).parents[2] / ".venv-tools/bin"
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]


class Reflection:
    """A client of one version of the reflection service."""

    def __init__(self, channel: grpc.Channel, version: str) -> None:
        self._ask: Any = channel.stream_stream(
            f"/{version}.ServerReflection/ServerReflectionInfo",
            ServerReflectionRequest.SerializeToString,
            ServerReflectionResponse.FromString,
        )

    def ask(self, **request: Any) -> ServerReflectionResponse:
        answer: ServerReflectionResponse
        [answer] = self._ask(iter([ServerReflectionRequest(**request)]), timeout=10)
        return answer

    def files(self, **request: Any) -> dict[str, FileDescriptorProto]:
        answer = self.ask(**request)
        files = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
        return {file.name: file for file in files}


@pytest.fixture(params=BOTH)
def reflection(request: pytest.FixtureRequest, service: RunningService) -> Iterator[Reflection]:
    with service.channel() as channel:
        yield Reflection(channel, request.param)


def test_services_are_listed(reflection: Reflection) -> None:
    listed = reflection.ask(list_services="").list_services_response.service
    expected = {SERVICE.full_name, "grpc.health.v1.Health", *(f"{version}.ServerReflection" for version in BOTH)}
    assert {each.name for each in listed} == expected


@pytest.mark.parametrize(
    "symbol",
    [
        *(f"{SERVICE.full_name}.{method.name}" for method in SERVICE.methods),
        "leadkeep.v1.LeadService",
        "leadkeep.v1.Lead",
        "leadkeep.v1.Lead.phone",
        "leadkeep.v1.LeadStatus",
        "leadkeep.v1.LEAD_STATUS_NEW",
        "leadkeep.v1.LeadStatus.LEAD_STATUS_NEW",
    ],
)
def test_file_of_a_symbol_is_found(reflection: Reflection, symbol: str) -> None:
    files = reflection.files(file_containing_symbol=symbol)
    assert set(files) >= {SERVICE.file.name, options_pb2.DESCRIPTOR.name, "google/protobuf/descriptor.proto"}


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (OPTION.full_name, options_pb2.DESCRIPTOR.name),
        ("google.rpc.ErrorInfo", "google/rpc/error_details.proto"),
        ("google.rpc.Status", "google/rpc/status.proto"),
        ("grpc.health.v1.Health.Watch", "grpc_health/v1/health.proto"),
    ],
)
def test_file_of_another_symbol_is_found(reflection: Reflection, symbol: str, file: str) -> None:
    assert file in reflection.files(file_containing_symbol=symbol)


@pytest.mark.parametrize("version", BOTH)
def test_reflection_describes_itself(reflection: Reflection, version: str) -> None:
    [file] = reflection.files(file_containing_symbol=f"{version}.ServerReflection.ServerReflectionInfo").values()
    [service] = file.service
    assert (file.package, service.name) == (version, "ServerReflection")
    assert service.method[0].input_type == f".{version}.ServerReflectionRequest"


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        "leadkeep",
        "leadkeep.v1.LeadService.Nothing",
        "leadkeep.v1.LeadService.CreateLead.lead",
        "leadkeep.v1.LeadStatus.NOTHING",
        "leadkeep.v1.Lead.nothing",
    ],
)
def test_symbol_that_does_not_exist_is_not_found(reflection: Reflection, symbol: str) -> None:
    assert reflection.ask(file_containing_symbol=symbol).error_response.error_code == NOT_FOUND


def test_file_of_the_option_is_found_by_its_number(reflection: Reflection) -> None:
    extension = ExtensionRequest(containing_type="google.protobuf.FieldOptions", extension_number=OPTION.number)
    assert options_pb2.DESCRIPTOR.name in reflection.files(file_containing_extension=extension)


def test_number_of_the_option_is_listed(reflection: Reflection) -> None:
    answer = reflection.ask(all_extension_numbers_of_type="google.protobuf.FieldOptions")
    assert list(answer.all_extension_numbers_response.extension_number) == [OPTION.number]


def test_files_are_complete_and_mark_the_sensitive_fields(reflection: Reflection) -> None:
    pool = DescriptorPool()
    files = reflection.files(file_containing_symbol=SERVICE.full_name)
    while files:
        # Each file after those that it needs.
        for name in [name for name, file in files.items() if not set(file.dependency) & set(files)]:
            pool.Add(files.pop(name))
    lead = pool.FindMessageTypeByName("leadkeep.v1.Lead")
    options = {field.name: field.GetOptions().SerializeToString() for field in lead.fields}
    marked = FieldOptions()
    marked.Extensions[OPTION] = True
    assert {name for name, each in options.items() if each == marked.SerializeToString()} == MARKED


# Tools


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def buf_curl(*arguments: str) -> str:
    buf = Path(sys.executable).with_name("buf")
    return run(str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments)


def test_buf_lists_the_methods_without_a_token(service: RunningService) -> None:
    listed = buf_curl("--list-methods", f"http://{service.grpc_address}")
    assert {f"{SERVICE.full_name}/{method.name}" for method in SERVICE.methods} <= set(listed.split())


def test_buf_creates_a_lead(service: RunningService) -> None:
    url = f"http://{service.grpc_address}/leadkeep.v1.LeadService/CreateLead"
    header = f"authorization: Bearer {service.token('chatbot')}"
    answer = json.loads(buf_curl("-H", header, "-d", json.dumps({"lead": STORY}), url))
    assert answer["id"]
    assert answer["message"] == "Lead created successfully"


def tool(name: str) -> str:
    """A program of `make tools`, or one that is installed."""
    found = shutil.which(name, path=f"{TOOLS}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed; what it asks for is asked above")
    return found


def grpcurl(*arguments: str) -> str:
    return run(tool("grpcurl"), "-plaintext", *arguments)


def test_grpcurl_describes_everything(service: RunningService) -> None:
    described = grpcurl(service.grpc_address, "describe")
    assert described.count(" is a service:") == 4


@pytest.mark.parametrize(
    ("symbol", "kind"),
    [
        ("leadkeep.v1.LeadService.CreateLead", "a method"),
        ("leadkeep.v1.Lead", "a message"),
        ("leadkeep.v1.Lead.phone", "a field"),
        ("leadkeep.v1.LeadStatus", "an enum"),
        ("leadkeep.v1.LeadStatus.LEAD_STATUS_NEW", "an enum value"),
        ("leadkeep.v1.sensitive", "an extension"),
    ],
)
def test_grpcurl_describes_a_symbol(service: RunningService, symbol: str, kind: str) -> None:
    assert grpcurl(service.grpc_address, "describe", symbol).startswith(f"{symbol} is {kind}:")


def test_grpcurl_shows_which_fields_are_sensitive(service: RunningService) -> None:
    described = grpcurl(service.grpc_address, "describe", "leadkeep.v1.Lead")
    assert "string phone = 3 [(.leadkeep.v1.sensitive) = true];" in described


def test_grpcurl_creates_a_lead(service: RunningService) -> None:
    lead = {field.name: value for field, value in somebody().ListFields()}
    header = f"authorization: Bearer {service.token('chatbot')}"
    data = json.dumps({"lead": lead})
    answer = grpcurl("-H", header, "-d", data, service.grpc_address, "leadkeep.v1.LeadService/CreateLead")
    assert "Lead created successfully" in answer


def test_ghz_calls_without_a_file(service: RunningService) -> None:
    metadata = json.dumps({"authorization": f"Bearer {service.token('agent')}"})
    options = ["--insecure", "--call", "leadkeep.v1.LeadService.ListLeads", "--metadata", metadata]
    load = ["--data", '{"page_size": 1}', "--total", "20", "--concurrency", "2", "--format", "json"]
    report = json.loads(run(tool("ghz"), *options, *load, service.grpc_address))
    assert report["statusCodeDistribution"] == {"OK": 20}


def test_lines_of_the_guide_run(service: RunningService) -> None:
    for name in ("grpcurl", "ghz"):
        tool(name)
    blocks = re.findall(r"```sh\n(.*?)```", (TOOLS.parents[1] / "docs/grpcurl.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("127.0.0.1:50051", service.grpc_address)
    lines = lines.replace("http://127.0.0.1:8080", service.http_url)
    # The tokens are of this service, and the lead is the one that the guide saves.
    lines = re.sub(r"^\w+=\$\(.venv/bin/leadkeep token.*\n", "", lines, flags=re.MULTILINE)
    [placeholder] = re.findall(r"^LEAD=.*$", lines, flags=re.MULTILINE)
    lines = lines.replace(placeholder, r"""LEAD=$(grep -m 1 -o '[0-9a-f]\{8\}-[0-9a-f-]*' saved)""")
    save = "leadkeep.v1.LeadService/CreateLead\n"
    lines = lines.replace(save, f"{save.rstrip()} > saved\n")
    roles = {role.upper(): service.token(role) for role in ("chatbot", "agent", "admin")}
    path = f"{TOOLS}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", lines],
        cwd=service.data_dir,
        env=os.environ | roles | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    assert "LEAD_STATUS_CONTACTED" in done.stdout
