"""The facts of the contract, one a line, as contract.txt pins them.

`python -m tests.contract.pin` writes that file anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2, options_pb2

PINNED = Path(__file__).with_name("contract.txt")


def contract() -> list[FileDescriptorProto]:
    """The files of the contract that the generated code implements."""
    files = options_pb2.DESCRIPTOR, lead_service_pb2.DESCRIPTOR
    return [FileDescriptorProto.FromString(file.serialized_pb) for file in files]


def facts(files: Iterable[FileDescriptorProto]) -> list[str]:
    """Every option, method, message, field and enum value, in the order of the contract."""
    return [fact for file in files for fact in _file(file)]


def _file(described: FileDescriptorProto) -> list[str]:
    found = [
        f"{described.name} {described.syntax} package {described.package}{_options(described)}",
        *(f"extend {field.extendee}: {_field(field)}" for field in described.extension),
        *(fact for service in described.service for fact in _service(service)),
        *(fact for message in described.message_type for fact in _message(message, "")),
        *(fact for enum in described.enum_type for fact in _enum(enum, "")),
    ]
    return [fact.replace(f".{described.package}.", "") for fact in found]


def _service(service: ServiceDescriptorProto) -> Iterator[str]:
    yield f"service {service.name}{_options(service)}"
    for method in service.method:
        request = "stream " * method.client_streaming + method.input_type
        response = "stream " * method.server_streaming + method.output_type
        yield f"{service.name}.{method.name}({request}) returns ({response}){_options(method)}"


def _message(message: DescriptorProto, parent: str) -> Iterator[str]:
    name = parent + message.name
    yield f"message {name}{_options(message)}"
    for field in message.field:
        yield f"{name}.{_field(field, message)}"
    for span in message.reserved_range:
        yield f"{name} reserves {span.start} to {span.end - 1}"
    for reserved in message.reserved_name:
        yield f"{name} reserves {reserved}"
    for nested in message.nested_type:
        yield from _message(nested, f"{name}.")
    for enum in message.enum_type:
        yield from _enum(enum, f"{name}.")


def _field(field: FieldDescriptorProto, message: DescriptorProto | None = None) -> str:
    return f"{field.name} = {field.number}: {_type(field, message)}{_options(field)}"


def _type(field: FieldDescriptorProto, message: DescriptorProto | None) -> str:
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    if message is not None and field.HasField("oneof_index"):
        return f"oneof {message.oneof_decl[field.oneof_index].name} {kind}"
    return kind


def _enum(enum: EnumDescriptorProto, parent: str) -> Iterator[str]:
    name = parent + enum.name
    yield f"enum {name}{_options(enum)}"
    for value in enum.value:
        yield f"{name}.{value.name} = {value.number}{_options(value)}"
    for span in enum.reserved_range:
        yield f"{name} reserves {span.start} to {span.end}"
    for reserved in enum.reserved_name:
        yield f"{name} reserves {reserved}"


def _options(described: Message) -> str:
    options = text_format.MessageToString(described.options, as_one_line=True)  # type: ignore[attr-defined] # all have them
    return f" [{options}]" if options else ""


if __name__ == "__main__":
    PINNED.write_text("\n".join(facts(contract())) + "\n")
