"""The commands and the Python of docs/clients.md run as they are pasted, against the real service.

How to generate a client is tried in tests/contract/test_languages.py, code of the examples in tests/interop.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.running_service import RunningService

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-tools/bin"
GUIDE = (ROOT / "docs/clients.md").read_text().partition("\n## Generate a client\n")[0]

COMMANDS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
TOKENS, *CALLS = COMMANDS

ROLES = dict(re.findall(r"^(\w+)=\$\(.venv/bin/leadkeep token --role (\w+)", TOKENS, re.MULTILINE))
"""The variables that the calls use, and the role of each token."""

# A call that fails must end the block, whose other output is not read.
STRICT = 'curl() { command curl --silent --show-error --fail "$@"; }\n'


@pytest.mark.parametrize(
    "block", CALLS, ids=lambda block: " ".join(re.findall(r"\b[A-Z]\w+[a-z](?=\n|')|/api\S+", block))
)
def test_calls_succeed(service: RunningService, block: str) -> None:
    path = f"{TOOLS}:{os.environ['PATH']}"
    if "grpcurl" in block and shutil.which("grpcurl", path=path) is None:
        pytest.skip("grpcurl is not installed: `make tools` gets it")
    block = block.replace("127.0.0.1:50051", service.grpc_address).replace("127.0.0.1:8080", service.http_address)
    block = block.replace(".venv/bin", str(Path(sys.executable).parent)).replace("LEAD_ID", service.create().id)
    environment = os.environ | {name: service.token(role) for name, role in ROLES.items()} | {"PATH": path}
    done = subprocess.run(
        ["bash", "-euc", STRICT + block], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout[-1000:]


def test_pages_are_read_as_the_guide_says(service: RunningService) -> None:
    [loop] = re.findall(r"^```python\n(request = .*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    expected = {service.create().id for _ in range(3)}
    scope: dict[str, Any] = {"pb": pb}
    exec(f"def every(leads, metadata):\n{indent(loop, '    ')}", scope)
    with service.channel() as channel:
        assert expected <= {lead.id for lead in scope["every"](service.stub(channel), service.metadata("agent"))}
