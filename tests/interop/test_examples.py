"""Each example saves, repeats, reads and is refused as its README promises, in clear, by TLS and by mutual TLS."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartService
from tests.faults import times
from tests.harness.certificates import Authority
from tests.harness.postgres import TestServer
from tests.harness.running_service import RunningService
from tests.interop.build import LANGUAGES, Language, environment

PROMISED = re.compile(
    r"created  (?P<id>[0-9a-f-]{36}) SAVE_STATE_SAVED LK-\S+\n"
    r"repeated (?P<same>[0-9a-f-]{36}) is_repeat\n"
    r"read     (?P<read>[0-9a-f-]{36}) LEAD_STATUS_NEW masked: phone,nid,address\n"
    r"refused  \w+ DUPLICATE_PHONE phone,nid do not repeat\n"
    r"refused  \w+ LEAD_INVALID  do not repeat\n"
    r"(?P<violations>(?: {9}lead\.\w+ [A-Z_]+\n)+)"
)

KINDS = ("plain", "mutual tls", *("tls",)[: times(0, whole=1)])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def service(kind: str, server: TestServer, authority: Authority, start_shared: StartService) -> RunningService:
    settings = {}
    if kind != "plain":
        own = authority.issue("service")
        settings = {"LEADKEEP_TLS_CERT": str(own.certificate), "LEADKEEP_TLS_KEY": str(own.key)}
    if kind == "mutual tls":
        settings["LEADKEEP_TLS_CLIENT_CA"] = str(authority.path)
    return start_shared(kind.replace(" ", "-"), database_url=server.fresh_database().serve_url, settings=settings)


@pytest.fixture(scope="module")
def options(kind: str, service: RunningService, authority: Authority, token_file: Path) -> list[str]:
    """The arguments of the example."""
    given = ["--address", service.grpc_address, "--token-file", str(token_file)]
    if kind != "plain":
        given += ["--ca", str(authority.path)]
    if kind == "mutual tls":
        own = authority.issue("caller")
        given += ["--cert", str(own.certificate), "--key", str(own.key)]
    return given


def run(language: Language, options: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the example by the command of its README, with other options."""
    command = language.commands()[1].partition(" --token-file")[0]
    return subprocess.run(
        ["bash", "-euc", f'{command} "$@"', "example", *options],
        cwd=language.folder, env=environment() | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda each: each.name)
def test_the_example_does_what_it_promises(language: Language, options: list[str], service: RunningService) -> None:
    done = run(language, options)
    found = PROMISED.fullmatch(done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert found["id"] == found["same"] == found["read"]
    assert found["violations"].split()[::2] == ["lead.phone", "lead.nid", "lead.address", "lead.interested_policy"]
    # Nothing of the lead, and no token: the ids are random, so they may hold digits in a row.
    assert not re.search(r"\d{5}", re.sub(r"[0-9a-f-]{36}", "", done.stdout))
    assert not re.search(r"Anika|Lake Road|Bearer|eyJ|\+880", done.stdout + done.stderr)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda each: each.name)
def test_a_token_file_that_is_not_there_is_named(language: Language, service: RunningService, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    done = run(language, ["--address", service.grpc_address, "--token-file", missing])
    assert done.returncode != 0
    assert missing in done.stderr
