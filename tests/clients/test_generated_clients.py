"""Clients that are generated from the OpenAPI document call the real service, which answers as the document says.

`make tools` gets the generators and schemathesis.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from tests.harness.leads import somebody
from tests.harness.running_service import RunningService

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-tools"
PROGRAMS = Path(__file__).with_name("generated")

pytestmark = pytest.mark.skipif(
    not (TOOLS / ".installed").exists(),
    reason="no generators: `make tools` gets them with Go, Node.js and Maven",
)


@pytest.fixture
def folder(service: RunningService, tmp_path: Path) -> Path:
    """A folder with the document that the service serves."""
    (tmp_path / "openapi.json").write_bytes(httpx.get(f"{service.http_url}/openapi.json").content)
    return tmp_path


@pytest.fixture
def environment(service: RunningService) -> dict[str, str]:
    """What the programs are given: where the service is, a token, and somebody."""
    lead = MessageToDict(somebody(), preserving_proto_field_name=True)
    return {"LEADKEEP_URL": service.http_url, "LEADKEEP_TOKEN": service.token(), "LEAD": json.dumps(lead)}


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    path = f"{TOOLS / 'python/bin'}:{TOOLS / 'node_modules/.bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
    return done.stdout


def check(answered: str, service: RunningService) -> None:
    """The lead that a program answers is saved."""
    report: dict[str, Any] = json.loads(answered)
    lead_id = report.pop("id")
    assert report == {
        "state": "SAVE_STATE_SAVED", "status": "LEAD_STATUS_NEW", "day": True, "found": 1, "refused": "LEAD_NOT_FOUND"
    }  # fmt: skip
    headers = {"authorization": f"Bearer {service.token()}"}
    assert httpx.get(f"{service.http_url}/api/leads/{lead_id}", headers=headers).json()["lead"]["id"] == lead_id


def test_a_client_in_typescript_saves_a_lead(
    service: RunningService, folder: Path, environment: dict[str, str]
) -> None:
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    for source in (ROOT / "tests/contract/languages/package.json", PROGRAMS / "save_lead.ts"):
        shutil.copy(source, folder)
    run("openapi-typescript", "openapi.json", "--output", "schema.d.ts", folder=folder)
    strict = (
        "--strict",
        "--exactOptionalPropertyTypes",
        "--skipLibCheck",
        "--target",
        "es2022",
        "--module",
        "nodenext",
    )
    run("tsc", *strict, "save_lead.ts", folder=folder)
    check(run("node", "save_lead.js", folder=folder, **environment), service)


def test_a_client_in_python_saves_a_lead(service: RunningService, folder: Path, environment: dict[str, str]) -> None:
    # Without its formatters, which are tools of their own.
    (folder / "config.yml").write_text("post_hooks: []\n")
    made = ("--path", "openapi.json", "--output-path", "leadkeep_client", "--meta", "none", "--config", "config.yml")
    reported = run("openapi-python-client", "generate", "--fail-on-warning", *made, folder=folder)
    assert "WARNING" not in reported
    shutil.copy(PROGRAMS / "save_lead.py", folder)
    check(run("python", "save_lead.py", folder=folder, **environment), service)


# A deadline of some milliseconds is over before the answer: 504 is described, and right. Another method than those of a
# path: tests/http/test_problems.py.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "501", "503", "504"]
[phases.coverage]
unexpected-methods = []
"""

# What is wrong with a message is found by the same code at the routes. `make faults` sends it here, too.
BOUNDS = """
[[operations]]
include-path-regex = "^/leadkeep"
generation.mode = "positive"
"""

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "allow_header_conformance", "ignored_auth",
)  # fmt: skip


@pytest.mark.timeout(1800)
def test_whatever_is_sent_is_answered_as_described(service: RunningService, folder: Path) -> None:
    is_whole = os.environ.get("FAULTS") == "whole"
    (folder / "schemathesis.toml").write_text(CONFIG + ("" if is_whole else BOUNDS))
    phases = (
        "--phases",
        "examples,coverage,fuzzing" if is_whole else "examples,coverage",
        "--generation-deterministic",
    )
    sent = (
        "--url",
        service.http_url,
        "--header",
        f"Authorization: Bearer {service.token()}",
        "--request-timeout",
        "60",
    )
    form = ("--checks", ",".join(CHECKS), "--no-shrink", "--no-color", "--warnings", "off")
    reported = run("schemathesis", "run", "openapi.json", *sent, *phases, *form, folder=folder)
    generated = re.search(r"(\d+) generated, (\d+) passed", reported)
    assert generated is not None, reported[-2_000:]
    assert generated[1] == generated[2]
    assert int(generated[1]) > 1_000, "hardly anything was sent"
