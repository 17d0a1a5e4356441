"""What `make dist` makes, which the release workflow publishes."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("release") / "dist"
    # The environment is this one: it must not be made anew while tests run in it.
    command = ["make", "--no-print-directory", "--old-file=.venv/.installed", "dist", f"DIST={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(listed.splitlines())


def test_a_release_is_four_files(dist: Path) -> None:
    # The workflow publishes dist/*, which leaves the hidden file of the build out.
    assert {path.name for path in dist.glob("[!.]*")} == {
        f"leadkeep-{VERSION}-py3-none-any.whl",
        f"leadkeep-protos-{VERSION}.tar.gz",
        f"leadkeep-{VERSION}.binpb",
        f"leadkeep-{VERSION}.openapi.json",
    }


def test_the_wheel_has_the_service_and_its_stubs_and_nothing_else(dist: Path) -> None:
    names = zipfile.ZipFile(dist / f"leadkeep-{VERSION}-py3-none-any.whl").namelist()
    own = {name for name in names if ".dist-info/" not in name}
    assert own == {name.removeprefix("generated/") for name in tracked("service", "generated/leadkeep")}


def test_the_archive_has_the_contract_and_what_its_clients_need(dist: Path) -> None:
    with tarfile.open(dist / f"leadkeep-protos-{VERSION}.tar.gz") as archive:
        names = {name for name in archive.getnames() if "." in Path(name).name}
    policy = {name for name in tracked("clients/policy") if name.endswith(".json")}
    contract = {name for name in tracked("protos/leadkeep", "third_party/googleapis") if "." in Path(name).name}
    assert names == contract | policy


def test_the_descriptor_set_has_every_rpc_its_comments_and_the_details_of_errors(dist: Path) -> None:
    files = {
        file.name: file for file in FileDescriptorSet.FromString((dist / f"leadkeep-{VERSION}.binpb").read_bytes()).file
    }
    assert {"google/rpc/error_details.proto", "google/rpc/status.proto", "google/protobuf/descriptor.proto"} <= set(
        files
    )
    contract = files["leadkeep/v1/lead_service.proto"]
    source = (ROOT / "protos/leadkeep/v1/lead_service.proto").read_text()
    [service] = contract.service
    assert {method.name for method in service.method} == set(re.findall(r"^  rpc (\w+)", source, re.MULTILINE))
    # 6 is the field `service` of a file, 2 the field `method` of a service.
    commented = {
        location.path[3]
        for location in contract.source_code_info.location
        if list(location.path[:3]) == [6, 0, 2] and len(location.path) == 4 and location.leading_comments
    }
    assert commented == set(range(len(service.method)))


def test_what_the_workflows_run_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {
        target
        for workflow in (ROOT / ".github/workflows").glob("*.yml")
        for target in re.findall(r"make ([a-z-]+)", workflow.read_text())
    }
    assert {"dist", "interop"} <= called <= targets
