"""Connect's own suite against our adapter, its connections, and the chain's rule for deadlines.

`make tools` gets the suite where Go is. No rpc of ours does what its service does, so four things are exchanged:
statuses and trailers are those that a request asks for, JSON is read by protobuf's own reader, because ours knows the
kinds of fields that are in our contract, and the limit of a message is the suite's.
"""

from __future__ import annotations

import asyncio
import math
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, json_format, message_factory, struct_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2
from starlette.requests import Request
from starlette.responses import Response
from uvicorn import Config
from uvicorn.server import ServerState

from service.errors import LeadkeepError, LeadValidationError, Violation
from service.http.calls import HttpHandler, Paths
from service.http.connections import HttpConnection, HttpConnections
from service.http.protocols import rpc_paths
from service.rpc.call import Call, Handler, Work, compose
from service.rpc.interceptors import deadline, errors
from service.rpc.limits import DEFAULT, Refusals
from service.rpc.status import status_of

TOOLS = Path(__file__).parents[2] / ".venv-tools"
SUITE = Path(__file__).with_name("conformance")
PACKAGE = "connectrpc.conformance.v1"

LIMIT = 200 * 1024
"""Bytes of a message, as the suite sends them."""

KNOWN = (empty_pb2, struct_pb2)
"""What the suite's files import and ours do not: protobuf has to know it."""

pytestmark = pytest.mark.skipif(
    not (TOOLS / ".installed").exists(), reason="no connectconformance: `make tools` gets it with Go"
)


class AskedError(LeadkeepError):
    """The error that a request asks for."""

    reason = "INTERNAL"
    text = ""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__()
        self.status = status


@dataclass
class Asked:
    """The metadata that a request asks for."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)


asked: ContextVar[Asked] = ContextVar("asked")


def message_of(name: str) -> Any:
    """A class of the suite's messages."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{name}"))


async def unary(call: Call, request: Message) -> Message:
    """What ConformanceService.Unary is to do."""
    definition = request.response_definition  # type: ignore[attr-defined] # a class that is made at run time
    info = message_of("ConformancePayload.RequestInfo")()
    info.requests.add().Pack(request)
    for name, value in call.metadata.items():
        info.request_headers.add(name=name, value=[value])
    if call.metadata.keys() & {"connect-timeout-ms", "grpc-timeout"}:
        info.timeout_ms = math.ceil((call.deadline - time.monotonic()) * 1000)
    asked.get().headers += [(header.name, value) for header in definition.response_headers for value in header.value]
    asked.get().trailers |= {header.name.lower(): ", ".join(header.value) for header in definition.response_trailers}
    await asyncio.sleep(definition.response_delay_ms / 1000)
    if definition.HasField("error"):
        error = definition.error
        status = status_pb2.Status(code=error.code, message=error.message, details=error.details)
        status.details.add().Pack(info)
        raise AskedError(status)
    answer: Message = message_of("UnaryResponse")(payload={"data": definition.response_data, "request_info": info})
    return answer


async def refuse_faults(call: Call, request: Message, proceed: Handler) -> Message:
    """What authentication does besides."""
    if call.fault is not None:
        raise call.fault
    return await proceed(call, request)


def asked_status(error: LeadkeepError) -> status_pb2.Status:
    """The status that was asked for, or that of an error of our own, whose details the suite does not expect."""
    if isinstance(error, AskedError):
        return error.status
    own = status_of(error)
    return status_pb2.Status(code=own.code, message=own.message)


def fill_by_protobuf(message: Message, given: Iterable[tuple[str, object]], *_: object) -> None:
    """Read protobuf's JSON."""
    try:
        json_format.ParseDict(dict(given), message)
    except json_format.ParseError:
        raise LeadValidationError([Violation("body", "is no JSON of this message")]) from None


def with_headers(handler: HttpHandler) -> HttpHandler:
    """The answer with the headers that its request asked for."""

    async def answer(request: Request) -> Response:
        asked.set(Asked())
        response = await handler(request)
        for name, value in asked.get().headers:
            response.headers.append(name, value)
        return response

    return answer


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    """The port at which the service is, on connections of ours."""
    service = descriptor_pool.Default().FindServiceByName(f"{PACKAGE}.ConformanceService")
    handle = compose([errors(uuid4), deadline(Work(), 30), refuse_faults], unary)
    paths = Paths(
        {
            path: {verb: with_headers(handler) for verb, handler in by_verb.items()}
            for path, by_verb in rpc_paths(service, {"Unary": handle}).items()
        }
    )

    config = Config(paths, http=HttpConnection, ws="none", lifespan="off", log_config=None, proxy_headers=False)
    connect = partial(HttpConnection, HttpConnections(DEFAULT, Refusals()), config, ServerState())
    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def output_of(*command: str | Path) -> str:
    """What a command prints. It must succeed."""
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    process = await asyncio.create_subprocess_exec(*command, **pipes)  # type: ignore[arg-type] # two pipes
    async with asyncio.timeout(180):
        printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def load_messages(folder: Path) -> None:
    """Make the suite's messages known to protobuf."""
    protos, made = TOOLS / "conformance", folder / "suite.binpb"
    compiler = (sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"--descriptor_set_out={made}")
    await output_of(*compiler, *sorted(protos.rglob("*.proto")))
    files = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file}

    def add(name: str) -> None:
        if file := files.pop(name, None):
            for dependency in file.dependency:
                add(dependency)
            descriptor_pool.Default().Add(file)

    for name in list(files):
        add(name)


async def test_connect_and_grpc_web_are_as_their_suite_wants_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load_messages(tmp_path)
    monkeypatch.setattr("service.http.protocols.status_of", asked_status)
    monkeypatch.setattr("service.http.protocols.fill_from_json", fill_by_protobuf)
    monkeypatch.setattr("service.http.protocols.LARGEST_REQUEST", LIMIT)
    monkeypatch.setattr(Call, "trailers", lambda _call: asked.get().trailers)
    async with served() as port:
        # What the suite takes for the server says where this one is.
        at = message_of("ServerCompatResponse")(host="127.0.0.1", port=port).SerializeToString()
        (tmp_path / "at").write_bytes(struct.pack(">I", len(at)) + at)
        printed = await output_of(
            TOOLS / "bin/connectconformance",
            *("--mode", "server", "--conf", SUITE / "config.yaml"),
            *("--known-failing", f"@{SUITE / 'known_failing.txt'}"),
            *("--", "sh", "-c", f"cat {tmp_path / 'at'}; exec sleep 200"),
        )
    # It also succeeds with nothing to try.
    assert int(printed.split("Total cases: ")[1].split()[0]) >= 100
