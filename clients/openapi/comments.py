"""The comments of the contract, by the full name of what they describe."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped] # the package carries no types

PROTOS = Path(__file__).parents[2] / "protos"

CONVENTIONS = "conventions"
"""The name of the comment at the head of the contract."""

_FILE = "leadkeep/v1/lead_service.proto"
_SYNTAX = [FileDescriptorProto.SYNTAX_FIELD_NUMBER]
_DECLARED = {
    FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER,
    FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER,
    FileDescriptorProto.SERVICE_FIELD_NUMBER,
}

_CODE = re.compile(r"^( *)([A-Z_]{6,}) {2,}")
"""A line of a list of errors: a status code and its reasons."""

_HEALTH = {
    "grpc.health.v1.Health.Check": "Check reports whether the service takes calls. It needs no token.\n\n"
    "Errors: NOT_FOUND (there is no service of this name).",
    "grpc.health.v1.HealthCheckRequest": "HealthCheckRequest names a service.",
    "grpc.health.v1.HealthCheckRequest.service": "`leadkeep.v1.LeadService`, or empty for all.",
    "grpc.health.v1.HealthCheckResponse": "HealthCheckResponse is the state of a service.",
    "grpc.health.v1.HealthCheckResponse.status": "Whether it takes calls.",
    "grpc.health.v1.HealthCheckResponse.ServingStatus": "ServingStatus is whether a service takes calls.",
    "grpc.health.v1.HealthCheckResponse.ServingStatus.UNKNOWN": "Not set.",
    "grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING": "It takes calls.",
    "grpc.health.v1.HealthCheckResponse.ServingStatus.NOT_SERVING": "It takes none now.",
    "grpc.health.v1.HealthCheckResponse.ServingStatus.SERVICE_UNKNOWN": "Not used here.",
}
"""Of gRPC's health protocol, which the libraries bring without its comments."""


def comments(protos: Path = PROTOS) -> dict[str, str]:
    """Every comment as Markdown, those of enum values by the name of their enum, and the CONVENTIONS."""
    file = _compiled(protos)
    found = dict(_HEALTH)
    for location in file.source_code_info.location:
        path, comment = list(location.path), location.leading_comments
        if path == _SYNTAX:
            found[CONVENTIONS] = _markdown(comment)
        elif comment and path[0] in _DECLARED:
            found[_name(file, path)] = _markdown(comment)
    return found


def _compiled(protos: Path) -> FileDescriptorProto:
    """The contract with its comments."""
    with TemporaryDirectory() as folder:
        made = Path(folder, "contract.binpb")
        own = Path(protoc.__file__).with_name("_proto")
        arguments = ["protoc", f"-I{protos}", f"-I{own}", "--include_source_info", f"-o{made}", _FILE]
        if protoc.main(arguments) != 0:
            raise ValueError(f"{protos} does not compile")
        return FileDescriptorSet.FromString(made.read_bytes()).file[0]


def _name(file: FileDescriptorProto, path: list[int]) -> str:
    """The full name of what a path of numbers leads to: numbers of fields and places in them, by turns."""
    at, names = file, [file.package]
    for number, index in zip(path[::2], path[1::2], strict=True):
        at = getattr(at, at.DESCRIPTOR.fields_by_number[number].name)[index]
        names.append(at.name)
    return ".".join(names)


def _markdown(comment: str) -> str:
    """A comment with one line for each paragraph and each item of a list."""
    lines = [""]
    for written in comment.splitlines():
        line = _CODE.sub(r"\1- `\2` ", written.removeprefix(" "))
        text = line.strip()
        if lines[-1] and text and not text.startswith("- "):
            lines[-1] += f" {text}"
        else:
            lines.append(line.rstrip())
    return "\n".join(lines).strip()
