"""The real service in a process of its own, as a caller and as an operator meet it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

import grpc
import httpx
import structlog
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc
from typer.testing import CliRunner

from service.keys.keyring import create_keyring
from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import ROLES, Scope
from tests.harness.forking import ForkedProcess, fork
from tests.harness.leads import somebody

READY = re.compile(r"gRPC on (\S+), JSON on (https?)://(\S+)\n")
OPS = re.compile(r"apart from callers, on (\S+)\n")
START_SECONDS = 120


class RunningService:
    """`leadkeep serve` with its data in `data_dir`, on free ports.

    With `database_url` None it runs its own embedded PostgreSQL. Without a keyring one is made, as an operator would.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        module: str = "service",
    ) -> None:
        self._module = module
        self.data_dir = data_dir
        self.out_path = data_dir.with_name(data_dir.name + ".out")
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self.environment = clean_environment() | {
            "LEADKEEP_DATA_DIR": str(data_dir),
            "LEADKEEP_GRPC_ADDRESS": "127.0.0.1:0",
            "LEADKEEP_HTTP_ADDRESS": "127.0.0.1:0",
            # Nobody is to notice the stop of most tests' services.
            "LEADKEEP_SHUTDOWN_DELAY": "0",
        }
        if database_url is not None:
            self.environment["LEADKEEP_DATABASE_URL"] = database_url
        self.environment |= settings or {}
        keyring = Path(self.environment.get("LEADKEEP_KEYRING", str(data_dir / "keyring.json")))
        if database_url is not None and not keyring.exists():
            create_keyring(keyring, now=datetime.now(UTC))
        self.grpc_address = self.http_address = self.http_scheme = ""
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None

    def start(self, *, wait: bool = True, forked: bool = True) -> RunningService:
        """Start it, and wait until it says that it is ready. Raises AssertionError with its log when it ends."""
        self.out_path.write_bytes(b"")
        with self.out_path.open("ab") as out, self.log_path.open("ab") as log:
            self.process = self._start("serve", environment=self.environment, out=out, err=log, forked=forked)
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Wait for the line that names the endpoints."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if match := READY.search(self.out_path.read_text()):
                self.grpc_address, self.http_scheme, self.http_address = match.groups()
                _started.add((self._module, "serve"))
                return
            if self.process.poll() is not None:
                raise AssertionError(f"serve ended with {self.process.returncode}: {self.log()[-3000:]}")
            time.sleep(0.02)
        raise AssertionError(f"serve was not ready after {START_SECONDS} s: {self.log()[-3000:]}")

    def log(self) -> str:
        """Every line that it has written to standard error."""
        written = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return written[: written.rfind("\n") + 1]  # another line may be half written

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process is None:
            return 0
        if (code := self.process.poll()) is not None:
            return code
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def token(self, role: str = "admin", *, subject: str | None = None, scopes: set[Scope] | None = None) -> str:
        """A token of this service's own key, by role or by exact scopes."""
        key = LocalSigningKey.load_or_create(self.data_dir / "signing-key.pem")
        granted = ROLES[role] if scopes is None else scopes
        return key.issue(subject or role, granted, timedelta(hours=1), now=time.time())

    def metadata(self, role: str = "admin", **token: object) -> list[tuple[str, str]]:
        """Call metadata with a token."""
        return [("authorization", f"Bearer {self.token(role, **token)}")]  # type: ignore[arg-type]

    def channel(self) -> grpc.Channel:
        """A new channel to the gRPC endpoint."""
        return grpc.insecure_channel(self.grpc_address)

    def stub(self, channel: grpc.Channel) -> lead_service_pb2_grpc.LeadServiceStub:
        """The generated client."""
        return lead_service_pb2_grpc.LeadServiceStub(channel)

    def call(self, rpc: str, request: Message, role: str = "admin", *, timeout: float = 20) -> Any:
        """The answer to one call, on a channel of its own."""
        with self.channel() as channel:
            return getattr(self.stub(channel), rpc)(request, metadata=self.metadata(role), timeout=timeout)

    def create(
        self, lead: pb.Lead | None = None, *, request_id: str = "", role: str = "chatbot", timeout: float = 20
    ) -> pb.CreateLeadResponse:
        """Create a lead; somebody's, unless it is given."""
        request = pb.CreateLeadRequest(lead=lead or somebody(), request_id=request_id)
        response: pb.CreateLeadResponse = self.call("CreateLead", request, role, timeout=timeout)
        return response

    def get(self, lead_id: str, view: pb.LeadView = pb.LEAD_VIEW_FULL, role: str = "admin") -> pb.Lead:
        """The lead of an id."""
        lead: pb.Lead = self.call("GetLead", pb.GetLeadRequest(id=lead_id, view=view), role).lead
        return lead

    @property
    def http_url(self) -> str:
        """The base of the JSON endpoint."""
        return f"{self.http_scheme}://{self.http_address}"

    def metric(self, sample: str) -> float:
        """The value of a sample of /metrics, by its name with its labels; 0 while there is none."""
        lines = httpx.get(f"{self.http_url}/metrics", timeout=10).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{sample} ")), 0.0)

    @property
    def readiness(self) -> dict[str, Any]:
        """What /readyz answers."""
        answered: dict[str, Any] = httpx.get(f"{self.http_url}/readyz", timeout=10).json()
        return answered

    @property
    def is_well(self) -> bool:
        """Whether it is ready and nothing is wrong."""
        return self.readiness == {"ready": True, "degraded": False, "reasons": []}

    @property
    def ops_url(self) -> str:
        """The base of the endpoint for probes; only with LEADKEEP_OPS_ADDRESS."""
        found = OPS.search(self.out_path.read_text())
        assert found is not None
        return found[1]

    @property
    def operators_environment(self) -> dict[str, str]:
        """The settings of an operator's command: those of the service, and the port that it has got."""
        address = {"LEADKEEP_GRPC_ADDRESS": self.grpc_address} if self.grpc_address else {}
        return self.environment | address

    def leadkeep(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run an operator's command with this service's settings."""
        environment = self.operators_environment | dict(env or {})
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self._start(*arguments, environment=environment, out=out, err=err)
            code = process.wait(timeout=120)
            written = [stream.read().decode() for stream in (out, err) if stream.seek(0) == 0]
        if code == 0:
            _started.add(_command("service", arguments))
        return subprocess.CompletedProcess(arguments, code, *written)

    def begin(self, *arguments: str, env: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen[bytes]:
        """Start an operator's command in a new interpreter; `streams` go to Popen."""
        command = [sys.executable, "-m", "service", *arguments]
        environment = self.operators_environment | dict(env or {})
        return subprocess.Popen(command, env=environment, cwd=self.data_dir.parent, **streams)

    def leadkeep_here(
        self, *arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Like `leadkeep`, in this process: the same command without the second in which a new one starts.

        Not for commands that start PostgreSQL or its programs: this process must not fork while gRPC is at work in it.
        """
        from service.cli.main import app

        log = structlog.get_config()
        try:
            with chdir(self.data_dir.parent):
                done = CliRunner(env=self.operators_environment | dict(env or {})).invoke(
                    app, arguments, input=stdin, catch_exceptions=False
                )
        finally:
            # A command has the log write to its standard error, which is closed by now.
            structlog.configure(**log)
        return subprocess.CompletedProcess(
            arguments, done.exit_code, done.stdout_bytes.decode(), done.stderr_bytes.decode()
        )

    def _start(
        self, *arguments: str, environment: Mapping[str, str], out: IO[bytes], err: IO[bytes], forked: bool = True
    ) -> subprocess.Popen[bytes] | ForkedProcess:
        """Start a command: in a new interpreter until that has succeeded once, so that no import of it is missing."""
        folder = self.data_dir.parent
        if forked and _command(self._module, arguments) in _started:
            return fork(
                self._module, arguments, environment=environment, folder=folder, out=out.fileno(), err=err.fileno()
            )
        command = [sys.executable, "-m", self._module, *arguments]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder)


_started: set[tuple[str, ...]] = set()
"""The commands that a new interpreter of their own has run in this process's tests."""


def _command(module: str, arguments: Sequence[str]) -> tuple[str, ...]:
    return (module, *takewhile(str.isalpha, arguments[:2]))


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of Leadkeep, and with modules compiled once."""
    # Without compiled modules each start takes two seconds more.
    unset = ("LEADKEEP_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(unset)}
