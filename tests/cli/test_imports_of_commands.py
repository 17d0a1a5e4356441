"""A command loads no library that it does not need: start times cannot be asserted on a busy machine, imports can."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.running_service import RunningService

PRINT_MODULES = """
import json, sys
from service.__main__ import main
try:
    main()
except SystemExit:
    pass
print(json.dumps(list(sys.modules)))
"""

SERVICE = {"service.serving", "service.http.endpoint", "starlette", "uvicorn", "uvloop", "alembic", "prometheus_client"}
STORAGE = {"sqlalchemy", "psycopg", "structlog", "phonenumbers"}
RPC = {"grpc", "google.protobuf"}


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        (["--help"], SERVICE | STORAGE | RPC | {"rich", "jwt", "cryptography"}),
        (["token", "--role", "admin"], SERVICE | STORAGE | RPC | {"rich"}),
        (["config", "--json"], SERVICE | STORAGE | RPC | {"rich", "jwt", "cryptography"}),
        (["doctor"], SERVICE | RPC),
        (["audit", "list"], SERVICE | STORAGE),
        (["spool", "status"], SERVICE | RPC),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_loads_nothing_that_it_does_not_need(command: list[str], unneeded: set[str], tmp_path: Path) -> None:
    done = subprocess.run(  # our own interpreter
        [sys.executable, "-c", PRINT_MODULES, *command],
        env=RunningService(tmp_path / "leadkeep").environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "typer" in loaded
    assert not loaded & unneeded
