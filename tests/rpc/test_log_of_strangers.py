"""What a stranger sends over HTTP/2 stands in no log, where it could forge lines or fill the disk, and ends nothing."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.harness.running_service import RunningService
from tests.harness.strangers import CREATE_LEAD, call_headers, frame, preface

FORGED = b'x\n{"event": "forged", "level": "error"}\n\x1b[31m+8801711000028\xb4'
"""A line of its own, what changes a terminal, a customer's phone, and no UTF-8."""

GOAWAY = frame(7, 0, 0, struct.pack(">LL", 0, 2) + FORGED)


def header(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def frames() -> Iterator[tuple[str, bytes]]:
    yield "a thousand farewells", GOAWAY * 1000
    yield "a call and a farewell", frame(1, 4, 1, call_headers(CREATE_LEAD)) + GOAWAY
    for name in (b"x-a", b":path", b":status", b"te", b"grpc-timeout", b"grpc-status", b"grpc-message", b"x-\n\x1b"):
        yield f"a header {name!r}", frame(1, 5, 1, call_headers(CREATE_LEAD) + header(name, FORGED))
    yield "no HTTP/2 behind the preface", FORGED * 100
    yield "a method that is not UTF-8", frame(1, 5, 1, call_headers(b"/" + FORGED))
    yield "a method of no characters", frame(1, 4, 1, call_headers(CREATE_LEAD + b"\xff")) + frame(0, 1, 1, bytes(5))


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in frames()])
def test_it_is_not_logged_and_the_endpoint_lives(service: RunningService, sent: bytes) -> None:
    before = service.log_path.stat().st_size
    host, _, port = service.grpc_address.rpartition(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection, suppress(OSError):
            connection.settimeout(0.1)
            connection.sendall(preface() + sent)
            while connection.recv(65_536):
                pass
    service.create()
    written = service.log_path.read_bytes()[before:]
    assert b"forged" not in written
    assert b"01711000028" not in written
    assert len(written) < 20_000
    for line in written.splitlines():
        assert line.decode().isprintable()
        assert not line.startswith(b"{") or json.loads(line)["event"]
