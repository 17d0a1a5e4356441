"""A malformed argument is named before anything else happens: no connection, no embedded server, no new file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import processes_in, remove_embedded_database
from tests.harness.running_service import RunningService

ID = "01a21a33-6568-70bb-808a-91746da5b973"
SPAN = ("--from", "2026-02-02", "--to", "2026-02-01")

MALFORMED = {
    "erase ID": (("erase", "nope"), "valid UUID"),
    "erase --from": (("erase", "--from", "no-such-file"), "no-such-file"),
    "conflicts resolve ID": (("conflicts", "resolve", "nope", "keep-first"), "valid UUID"),
    "conflicts resolve resolution": (("conflicts", "resolve", ID, "nope"), "keep-first"),
    "conflicts resolve --lead": (("conflicts", "resolve", ID, "keep-first", "--lead", "nope"), "--lead"),
    "conflicts list --reason": (("conflicts", "list", "--unmask", "--reason", "two\nlines"), "--reason"),
    "audit list --lead": (("audit", "list", "--lead", "nope"), "--lead"),
    "audit list --from": (("audit", "list", "--from", "nope"), "--from"),
    "audit verify --heads": (("audit", "verify", "--heads", "no-such-file"), "no-such-file"),
    "files render --day": (("files", "render", "--day", "nope"), "--day"),
    "files render span": (("files", "render", *SPAN), "--from"),
    "files verify span": (("files", "verify", *SPAN), "--from"),
    "files verify --day and --from": (("files", "verify", "--day", "2026-02-01", "--from", "2026-02-01"), "--day"),
    "files render long span": (("files", "render", "--from", "1900-01-01", "--to", "2026-01-01"), "3660"),
    "export span": (("export", "--format", "json", *SPAN), "--from"),
    "export --output": (("export", "--format", "json", "--output", "no-such-folder/leads.json"), "no-such-folder"),
    "import FILE": (("import", "no-such-file.csv"), "no-such-file.csv"),
    "import a later FILE": (("import", "good.csv", "no-such-file.csv"), "no-such-file.csv"),
    "import --map": (("import", "good.csv", "--map", "nope"), "--map"),
    "import --map of no column": (("import", "good.csv", "--map", "Nowhere=notes"), "Nowhere"),
    "import --results": (("import", "good.csv", "--results", "good.csv"), "--results"),
    "retention --older-than": (("retention", "--status", "new", "--older-than", "nope"), "--older-than"),
    "retention --status": (("retention", "--status", "nope", "--older-than", "90d"), "--status"),
    "keys promote KEY_ID": (("keys", "promote", "nope"), "no key nope"),
    "keys retire KEY_ID": (("keys", "retire", "nope"), "no key nope"),
    "keys promote --timeout": (("keys", "promote", "nope", "--timeout", "nope"), "--timeout"),
    "keys reseal --timeout": (("keys", "reseal", "--timeout", "nope"), "--timeout"),
    "keys reindex --timeout": (("keys", "reindex", "--timeout", "nope"), "--timeout"),
    "backup DIR": (("backup", "full"), "full is not empty"),
    "backup --verify of no backup": (("backup", "full", "--verify"), "full"),
    "restore DIR": (("restore", "no-such-folder"), "no-such-folder"),
    "token --subject": (("token", "--role", "agent", "--subject", "a\nb"), "--subject"),
    "token --ttl": (("token", "--role", "agent", "--ttl", "nope"), "--ttl"),
}


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[RunningService]:
    """An operator beside a data folder that was never used; only a keyring is there, apart from it."""
    keyring = tmp_path / "keyring.json"
    service = RunningService(tmp_path / "leadkeep", settings={"LEADKEEP_KEYRING": str(keyring)})
    assert service.leadkeep_here("keys", "init", "--output", str(keyring)).returncode == 0
    (tmp_path / "good.csv").write_text("name,phone,nid,address,interested_policy\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    yield service
    assert not processes_in(service.data_dir)
    remove_embedded_database(service.data_dir)


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_argument_is_named_and_nothing_is_made(operator: RunningService, case: str) -> None:
    arguments, named = MALFORMED[case]
    folder = operator.data_dir.parent
    before = sorted(folder.rglob("*"))
    refused = operator.leadkeep_here(*arguments)
    assert refused.returncode in (1, 2)
    assert named in " ".join(refused.stderr.replace("│", " ").split())
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("case", MALFORMED)
def test_a_database_elsewhere_is_not_connected_to(operator: RunningService, case: str) -> None:
    arguments, _ = MALFORMED[case]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://leadkeep@127.0.0.1:{server.getsockname()[1]}/leadkeep?connect_timeout=2"
        operator.leadkeep_here(*arguments, env={"LEADKEEP_DATABASE_URL": url})
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
