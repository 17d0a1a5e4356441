"""Who is measured: how each contender is started, and how each operation is asked of it.

Leadkeep is `leadkeep serve` as an operator starts it, with tokens; nothing is switched off for the measurement.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench.databases import empty_database, fresh_postgres
from bench.generator import run
from bench.load.plan import Load, Requests
from bench.operations import BY_HTTP, METHODS, Operation, grpc_requests, http_requests, known_numbers
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import OWN_LOGIN
from tests.harness.ports import free_port
from tests.harness.running_service import RunningService, clean_environment

KNOWN = 2000
"""Leads that are there before anything is measured: what is read, moved and met by duplicates."""

LEADKEEP = ("a", "b")
"""The contenders that are Leadkeep."""

PEER_PYTHON = Path(__file__).parents[1] / ".venv-peer" / "bin" / "python"

_ROLES = {Operation.CREATE: "chatbot", Operation.DUPLICATE: "chatbot", Operation.GET_FULL: "admin"}
"""Whose token is sent; an agent's where nothing is said."""


@dataclass(kw_only=True)
class Contender:
    """One running contender."""

    name: str
    protocol: str
    address: str
    pid: int
    postgres: EmbeddedPostgres | None
    requests: Mapping[Operation, Requests]
    headers: Mapping[Operation, tuple[tuple[bytes, bytes], ...]] = field(default_factory=dict)
    starts: dict[Operation, int] = field(default_factory=dict)
    """Where each operation's requests go on: no run sends a new person twice."""
    database_url: str | None = None

    def load(
        self,
        operation: Operation,
        *,
        callers: int,
        seconds: float = 0.0,
        calls: int | None = None,
        rate: float | None = None,
    ) -> Load:
        """The plan of one run."""
        return Load(
            protocol=self.protocol,
            address=self.address,
            requests=self.requests[operation],
            headers=self.headers.get(operation, ()),
            path=f"/leadkeep.v1.LeadService/{METHODS[operation]}".encode(),
            callers=callers,
            seconds=seconds,
            calls=calls,
            rate=rate,
            start=self.starts.get(operation, 0),
            refusals=operation is Operation.DUPLICATE,
        )


def grpc_headers(token: str | None) -> tuple[tuple[bytes, bytes], ...]:
    """What a client of gRPC sends with each call; the deadline is always the same, which spares nobody anything."""
    headers = [
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-bench/1"),
        (b"grpc-timeout", b"20S"),
    ]
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    return tuple(headers)


@contextmanager
def leadkeep_on_postgres(
    folder: Path, checkout: Path | None = None
) -> Iterator[tuple[RunningService, EmbeddedPostgres]]:
    """A service on a PostgreSQL of its own, with a database `bench`; its code from another checkout if one is named."""
    with fresh_postgres() as postgres:
        code = {} if checkout is None else {"PYTHONPATH": f"{checkout}:{checkout / 'generated'}"}
        owner = empty_database(postgres, "bench")
        service = RunningService(folder, database_url=postgres.url(user=OWN_LOGIN, database="bench"), settings=code)
        migration = service.environment | {"LEADKEEP_ADMIN_DATABASE_URL": owner}
        subprocess.run([sys.executable, "-m", "service", "migrate"], env=migration, cwd=folder.parent, check=True)
        try:
            # Forked, it would run the code of this checkout.
            yield service.start(forked=False), postgres
        finally:
            service.stop()


def leadkeep_over_grpc(service: RunningService, postgres: EmbeddedPostgres, *, ids: tuple[bytes, ...]) -> Contender:
    """How (a) is asked."""
    numbers = known_numbers(len(ids) or KNOWN)
    return Contender(
        name="a",
        protocol="grpc",
        address=service.grpc_address,
        pid=service.pid,
        postgres=postgres,
        requests={o: grpc_requests(o, ids=ids, numbers=numbers) for o in Operation},
        headers={o: grpc_headers(service.token(_ROLES.get(o, "agent"))) for o in Operation},
        database_url=postgres.url(user="postgres", database="bench"),
    )


@contextmanager
def contender_a(folder: Path, *, checkout: Path | None = None) -> Iterator[Contender]:
    """Leadkeep over gRPC."""
    with leadkeep_on_postgres(folder / "a", checkout) as (service, postgres):
        first = leadkeep_over_grpc(service, postgres, ids=())
        ids = with_known_leads(first, "SELECT id FROM lead ORDER BY conversation_id")
        ready = leadkeep_over_grpc(service, postgres, ids=ids)
        ready.starts = first.starts
        yield ready


@contextmanager
def contender_b(folder: Path) -> Iterator[Contender]:
    """Leadkeep's JSON endpoint, with a service and a PostgreSQL of its own."""
    with leadkeep_on_postgres(folder / "b") as (service, postgres):
        numbers = known_numbers(KNOWN)

        def requests(ids: tuple[bytes, ...]) -> dict[Operation, Requests]:
            tokens = {o: service.token(_ROLES.get(o, "agent")) for o in Operation}
            return {
                o: http_requests(
                    o,
                    ids=ids,
                    numbers=numbers,
                    headers=f"host: {service.http_address}\r\nauthorization: Bearer {tokens[o]}\r\n",
                    ours=True,
                )
                for o in BY_HTTP
            }

        contender = Contender(
            name="b",
            protocol="http",
            address=service.http_address,
            pid=service.pid,
            postgres=postgres,
            requests=requests(()),
            database_url=postgres.url(user="postgres", database="bench"),
        )
        contender.requests = requests(with_known_leads(contender, "SELECT id FROM lead ORDER BY conversation_id"))
        yield contender


@contextmanager
def contender_c(_folder: Path) -> Iterator[Contender]:
    """The story's own design: see bench/peer/app.py."""
    with fresh_postgres() as postgres:
        url = empty_database(postgres, "bench")
        port = free_port()
        environment = clean_environment() | {
            "DATABASE_URL": url.replace("postgresql://", "postgresql+psycopg://", 1),
            "ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
            "INDEX_KEY": secrets.token_hex(16),
        }
        # Without an access log, as Leadkeep is without one line a call.
        command = ["-m", "uvicorn", "bench.peer.app:app", "--workers", "1", "--port", str(port), "--no-access-log"]
        with _process([PEER_PYTHON, *command, "--log-level", "warning"], environment) as server:
            _wait_for_port(port, server)
            address = f"127.0.0.1:{port}"
            numbers = known_numbers(KNOWN)

            def requests(ids: tuple[bytes, ...]) -> dict[Operation, Requests]:
                return {
                    o: http_requests(o, ids=ids, numbers=numbers, headers=f"host: {address}\r\n", ours=False)
                    for o in BY_HTTP
                }

            contender = Contender(
                name="c",
                protocol="http",
                address=address,
                pid=server.pid,
                postgres=postgres,
                requests=requests(()),
                database_url=url,
            )
            contender.requests = requests(with_known_leads(contender, "SELECT id FROM leads ORDER BY conversation_id"))
            yield contender


@contextmanager
def contender_d(_folder: Path) -> Iterator[Contender]:
    """The empty call: see bench/empty.py."""
    with _process([sys.executable, "-m", "bench.empty"], clean_environment(), piped=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        operations = (Operation.CREATE, Operation.GET)
        ids = (b"01900000-0000-7000-8000-000000000000",)
        yield Contender(
            name="d",
            protocol="grpc",
            address=f"127.0.0.1:{port}",
            pid=server.pid,
            postgres=None,
            requests={o: grpc_requests(o, ids=ids, numbers=known_numbers(1)) for o in operations},
            # The same token travels, and nobody looks at it.
            headers={o: grpc_headers("x" * 300) for o in operations},
        )


def require_refusals(contender: Contender) -> None:
    """Raise AssertionError unless Leadkeep kept every duplicate: the generator cannot tell why a call was refused."""
    assert contender.database_url is not None
    with psycopg.connect(contender.database_url) as connection:
        ((kept,),) = connection.execute("SELECT sum(resubmissions) FROM lead").fetchall()
    if kept != contender.starts[Operation.DUPLICATE]:
        raise AssertionError(
            f"{contender.name}: {contender.starts[Operation.DUPLICATE]} sent, {kept} kept as duplicates"
        )


def with_known_leads(contender: Contender, ids: str) -> tuple[bytes, ...]:
    """Create the known leads, and read their ids in the order of their numbers."""
    result = run(contender.load(Operation.CREATE, callers=16, calls=KNOWN, seconds=60))
    if result.failures:
        raise AssertionError(f"{contender.name}: {result.failures} of {KNOWN} leads could not be created")
    contender.starts[Operation.CREATE] = result.next_start
    assert contender.database_url is not None
    with psycopg.connect(contender.database_url) as connection:
        found = tuple(str(row[0]).encode() for row in connection.execute(ids.encode()))
    return found[:KNOWN]


@contextmanager
def _process(
    command: list[str | Path], environment: Mapping[str, str], *, piped: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if piped else None
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the peer did not start")
