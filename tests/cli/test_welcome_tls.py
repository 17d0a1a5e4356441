"""The calls that `serve` prints at its first start work as they are pasted, also with TLS and mutual TLS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.certificates import Authority
from tests.harness.postgres import TestServer
from tests.harness.running_service import RunningService

GRPCURL = Path(__file__).parents[2] / ".venv-tools/bin/grpcurl"


@pytest.fixture(scope="module", params=["tls", "mutual tls", "mutual tls, own client certificate", "another host"])
def service(
    request: pytest.FixtureRequest, postgres_server: TestServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("with a space")
    authority = Authority(folder, "authority")
    own = authority.issue("service")
    settings = {"LEADKEEP_TLS_CERT": str(own.certificate), "LEADKEEP_TLS_KEY": str(own.key)}
    if request.param.startswith("mutual"):
        settings["LEADKEEP_TLS_CLIENT_CA"] = str(authority.path)
    if request.param.endswith("own client certificate"):
        # Of another authority than the service's, which could not be shown in its place.
        callers = Authority(folder, "callers")
        client = callers.issue("client")
        pem = folder / "client.pem"
        pem.write_bytes(client.certificate.read_bytes() + client.key.read_bytes())
        settings |= {"LEADKEEP_TLS_CLIENT_CA": str(callers.path), "LEADKEEP_TLS_CLIENT_CERT": str(pem)}
    if request.param == "another host":
        # The certificate is for 127.0.0.1 and localhost.
        settings |= {"LEADKEEP_GRPC_ADDRESS": "127.0.0.2:0", "LEADKEEP_HTTP_ADDRESS": "127.0.0.2:0"}
    url = postgres_server.fresh_database().serve_url
    running = RunningService(folder / "leadkeep", database_url=url, settings=settings).start()
    yield running
    running.stop()


def run(service: RunningService, program: str, *more: str, path: Path | None = None) -> str:
    """Paste the line of the output that begins with this program."""
    (line,) = [line for line in service.out_path.read_text().splitlines() if line.startswith(f"{program} ")]
    pasted = line if path is None else line.replace(program, str(path), 1)
    done = subprocess.run(["sh", "-c", " ".join([pasted, *more])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_line_creates_a_lead_by_tls(service: RunningService) -> None:
    printed = run(service, "curl", "--silent --show-error --fail --max-time 20")
    assert json.loads(printed)["message"] == "Lead created successfully"


@pytest.mark.skipif(not GRPCURL.exists(), reason="no grpcurl: `make tools` gets it")
def test_the_grpcurl_line_creates_a_lead_by_tls(service: RunningService) -> None:
    assert json.loads(run(service, "grpcurl", path=GRPCURL))["state"] == "SAVE_STATE_SAVED"
