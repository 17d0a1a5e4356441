"""Requests in Connect and gRPC-Web with faults of every kind, and what an answer to one may be.

`python -m tests.faults.malformed_http [requests] [seed]` sends 10,000 to a real service and prints what was answered:
no fault of the service (UNKNOWN, INTERNAL, DATA_LOSS; 5xx but 501, 503, and 504 where a valid time was sent), no value
of a request in an error, no connection that is reset, and memory that does not grow. `tests/http/test_malformed.py`
sends a few hundred.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import random
import struct
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from leadkeep.v1 import lead_service_pb2 as pb

from service.http.protocols import TRAILERS, enveloped
from service.rpc.call import SERVICE
from tests.harness.postgres import own_postgres
from tests.harness.running_service import RunningService

CANARY = "8801798765432"
"""Stands in values, and must stand in no error."""

SECONDS = 20.0
"""For an answer; the service gives half-sent requests ten."""

AT_ONCE = 8

GROWTH = 16 * 1024
"""kB by which the service may grow during all requests but the first thousand: the allocator's own swing."""

_BOMB = gzip.compress(bytes(8_000_000))

_TYPES = (
    *("application/proto", "application/json", "application/grpc-web", "application/grpc-web+proto"),
    *("application/grpc-web+json", "application/grpc-web-text", "application/grpc-web-text+proto"),
    *(
        "application/connect+proto",
        "application/grpc",
        "text/plain",
        "application/json; charset=utf-16",
        "",
        ";;",
        "\xff",
    ),
)
_TIMES = {
    "connect-timeout-ms": ("1", "5000", "0", "9999999999", "10000000000", "-1", "1.5", "", "x", CANARY),
    "grpc-timeout": ("5S", "1n", "0S", "99999999H", "999999999S", "5", "S", "-5S", "", CANARY),
}
_VALID_TIMES = {("connect-timeout-ms", sent) for sent in ("1", "5000", "0", "9999999999")} | {
    ("grpc-timeout", sent) for sent in ("5S", "1n", "0S", "99999999H")
}
_CODINGS = ("gzip", "identity", "br", "deflate", "gzip, gzip", "", CANARY)
_ORIGINS = ("https://sales.example", "https://evil.example", "null", "", CANARY, "\xff")


@dataclass(frozen=True, slots=True)
class Malformed:
    """One request as it goes to the socket."""

    sent: bytes
    may_be_late: bool
    """Whether it holds a valid time, so that the answer may be DEADLINE_EXCEEDED."""
    may_be_cut: bool
    """Whether its framing is broken, so that the connection may end without an answer."""


def malformed(rng: random.Random, token: str) -> Malformed:
    """A request with some faults; few have none."""
    headers = [("host", "x"), ("connection", "close")]
    times = [(name, rng.choice(sent)) for name, sent in _TIMES.items() if rng.random() < 0.3]
    headers += times
    if rng.random() < 0.8:
        headers.append(("authorization", f"Bearer {token if rng.random() < 0.9 else CANARY}"))
    if rng.random() < 0.95:
        headers.append(("content-type", rng.choice(_TYPES)))
    for name in ("content-encoding", "grpc-encoding"):
        if rng.random() < 0.3:
            headers.append((name, rng.choice(_CODINGS)))
    if rng.random() < 0.2:
        headers.append(("connect-protocol-version", rng.choice(("1", "2", "", CANARY))))
    if rng.random() < 0.3:
        headers += [("origin", rng.choice(_ORIGINS)), ("access-control-request-method", rng.choice(("POST", CANARY)))]
    body, framing, cut = _framed(rng, _body(rng))
    rng.shuffle(headers)
    method = rng.choice(("POST",) * 8 + ("OPTIONS", "GET", "PUT"))
    head = "".join(f"{name}: {value}\r\n" for name, value in [*headers, *framing])
    sent = f"{method} {_path(rng)} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
    return Malformed(sent, not _VALID_TIMES.isdisjoint(times), cut)


def _path(rng: random.Random) -> str:
    rpc = rng.choice([*(method.name for method in SERVICE.methods), "Nothing", CANARY])
    service = SERVICE.full_name if rng.random() < 0.95 else rng.choice(("grpc.health.v1.Health", "x", ""))
    return f"/{service}/{rpc}"


def _body(rng: random.Random) -> bytes:
    message = rng.choice(
        (
            b"",
            # Nobody is stored: what is created must be whole, and these lack fields.
            pb.CreateLeadRequest(lead=pb.Lead(phone=f"+{CANARY}", notes=CANARY)).SerializeToString(),
            pb.GetLeadRequest(id=CANARY).SerializeToString(),
            b"\x0a" + CANARY.encode(),
            rng.randbytes(rng.randrange(200)),
            json.dumps({"id": CANARY}).encode(),
            json.dumps({rng.choice(("view", "status", "group_by", "reveal")): f"\ud800{CANARY}"}).encode(),
            json.dumps({"lead": {"phone": CANARY, CANARY: [CANARY]}, "statuses": CANARY}).encode(),
            b'{"lead": ' * rng.randrange(1, 2000),
            b"[" * rng.randrange(1, 100_000),
            bytes(rng.choice((262_143, 262_144, 262_145, 600_000))),
        )
    )
    if rng.random() < 0.3:
        zipped = rng.choice((gzip.compress(message), gzip.compress(message)[:-3], gzip.compress(message) * 2, _BOMB))
        message = zipped
    if rng.random() < 0.5:
        message = _enveloped(rng, message)
    if rng.random() < 0.2:
        message = base64.b64encode(message)[rng.randrange(3) :]
    return message


def _enveloped(rng: random.Random, message: bytes) -> bytes:
    flags = rng.choice((0, 0, 1, 1, 2, 0x7F, TRAILERS, 0xFF))
    length = rng.choice((len(message), len(message), len(message) + 1, 0, 2**32 - 1))
    whole = struct.pack(">BI", flags, length) + message
    return rng.choice((whole, whole, whole[: rng.randrange(6)], whole + enveloped(b""), enveloped(b"") + whole))


def _framed(rng: random.Random, body: bytes) -> tuple[bytes, list[tuple[str, str]], bool]:
    """The body as HTTP/1.1 sends it, the headers that say so, and whether they are wrong."""
    if rng.random() < 0.85:
        return body, [("content-length", str(len(body)))], False
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return rng.choice(
        (
            (chunked, [("transfer-encoding", "chunked")], False),
            (body, [("content-length", str(len(body) + 7))], True),
            (body, [("content-length", CANARY)], True),
            (body, [("content-length", "-1")], True),
            (chunked, [("transfer-encoding", "chunked"), ("content-length", str(len(body)))], True),
            (b"zz\r\n" + body, [("transfer-encoding", "chunked")], True),
            (body, [("transfer-encoding", "gzip, chunked")], True),
            (body, [], True),
        )
    )


def faults_of(request: Malformed, answer: bytes) -> list[str]:
    """What is wrong with an answer."""
    if not answer:
        return [] if request.may_be_cut else ["no answer"]
    found = []
    head, _, body = answer.partition(b"\r\n\r\n")
    if head == b"HTTP/1.1 reset ":
        return [f"a connection that was reset, of {len(request.sent)} bytes"]
    status = int(head.split(b" ", 2)[1])
    code = _web_code(head.lower(), body)
    if status >= 500 and status not in (501, 503) and not (status == 504 and request.may_be_late):
        found.append(f"status {status}")
    # UNKNOWN, INTERNAL, DATA_LOSS; DEADLINE_EXCEEDED where nobody set one.
    if code in (2, 13, 15) or (code == 4 and not request.may_be_late):
        found.append(f"grpc-status {code}")
    if (status >= 400 or code) and CANARY.encode() in answer:
        found.append(f"a value in an error: {status}")
    return found


def _web_code(head: bytes, body: bytes) -> int:
    """The status in the trailers of gRPC-Web; 0 for every other answer."""
    if b"content-type: application/grpc-web" not in head:
        return 0
    if b"application/grpc-web-text" in head:
        body = base64.b64decode(body)
    return int(body.rpartition(b"grpc-status: ")[2].split(b"\r\n", 1)[0])


async def send(port: int, request: Malformed) -> bytes:
    """The whole answer to a request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(SECONDS):
            writer.write(request.sent)
            if request.may_be_cut:
                # Nobody is to wait for the rest.
                writer.write_eof()
            return await reader.read()
    except OSError:
        # Closed before all was read of it: the answer may be lost.
        return b"HTTP/1.1 reset "
    finally:
        writer.close()


async def send_all(port: int, token: str, requests: int, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """How many answers had which status, and every fault."""
    statuses: Counter[str] = Counter()
    faults: list[str] = []

    async def some(count: int) -> None:
        for _ in range(count):
            request = malformed(rng, token)
            answer = await send(port, request)
            statuses[answer.split(b" ", 2)[1].decode() if answer else "none"] += 1
            faults.extend(f"{fault}: {request.sent[:300]!r}" for fault in faults_of(request, answer))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some(requests // AT_ONCE))
    return statuses, faults


def _kilobytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(field.split()[1]) for field in fields if field.startswith("VmRSS:"))


def main(requests: int, seed: int) -> bool:
    """Send them to a service; whether all is well."""
    with own_postgres() as server, tempfile.TemporaryDirectory() as folder:
        settings = {"LEADKEEP_LOG_LEVEL": "error", "LEADKEEP_ALLOWED_ORIGINS": "https://sales.example"}
        url = server.fresh_database().serve_url
        service = RunningService(Path(folder) / "data", database_url=url, settings=settings).start()
        try:
            port, rng = int(service.http_address.rpartition(":")[2]), random.Random(seed)
            asyncio.run(send_all(port, service.token(), min(1000, requests), rng))
            before = _kilobytes(service.pid)
            statuses, faults = asyncio.run(send_all(port, service.token(), requests, rng))
            grown = _kilobytes(service.pid) - before
            log = service.log()
        finally:
            service.stop()
    sys.stdout.write(f"{requests} requests, seed {seed}: {dict(sorted(statuses.items()))}, {grown} kB grown\n")
    if CANARY in log:
        faults.append("a value in the log")
    if grown > GROWTH:
        faults.append(f"{grown} kB more memory")
    sys.stdout.writelines(f"{fault}\n" for fault in faults[:20])
    return not faults


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(not main(*given, *(10_000, 1)[len(given) :]))
