"""Server reflection: the contract as grpcurl, ghz, buf and Postman read it from the running service.

grpcio-reflection serves `grpc.reflection.v1alpha`. `grpc.reflection.v1`, which clients ask for first, has the same
messages in another package, so one servicer answers for both. protobuf's pool does not find the file of a method or of
an enum's value (github.com/grpc/grpc/issues/34743); this one does.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA: str = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")


def reflection_handlers(files: Iterable[FileDescriptor]) -> dict[str, dict[str, Any]]:
    """The method of both reflection services, by service, for the services of some files and for themselves."""
    files = tuple(files)
    names = [service.full_name for file in files for service in file.services_by_name.values()]
    servicer = reflection.aio.ReflectionServicer((*names, V1ALPHA, V1), _Pool(files))
    answer = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {name: {"ServerReflectionInfo": answer} for name in (V1ALPHA, V1)}


class _Pool:
    """A descriptor pool with some files, those of the status details and those of reflection, and nothing else."""

    def __init__(self, files: Iterable[FileDescriptor]) -> None:
        self._pool = DescriptorPool()
        # grpcurl and ghz read the details of an error with the service's own description of them.
        for file in (*files, status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            self._add(file)
        self._pool.AddSerializedFile(_v1_file().SerializeToString())

    def _add(self, file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            self._add(dependency)
        self._pool.AddSerializedFile(file.serialized_pb)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 # protobuf's name
        with suppress(KeyError):
            return self._pool.FindFileContainingSymbol(symbol)
        parent, _, name = symbol.rpartition(".")
        with suppress(KeyError):
            service = self._pool.FindServiceByName(parent)
            if name in service.methods_by_name:
                return service.file
        # protobuf names a value beside its enum; grpcurl and ghz name it inside.
        enum = self._pool.FindEnumTypeByName(parent)
        if name in enum.values_by_name:
            return enum.file
        raise KeyError(symbol)


def _v1_file() -> FileDescriptorProto:
    alpha = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    alpha.options.ClearField("deprecated")
    return text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto())
