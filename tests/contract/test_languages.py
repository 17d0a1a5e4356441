"""The contract compiles in every language, with the protoc of distributions and of Maven's habits, and with the newest.

`make tools` gets the compilers where Go, Node.js and Maven are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-tools"
LANGUAGES = Path(__file__).with_name("languages")
RELEASES = ("protoc-3.21", "protoc-newest")
OLDEST_PYTHON = ROOT / ".venv-stubs/bin/python"

CONTRACT = sorted(ROOT.glob("protos/leadkeep/v1/*.proto"))
DETAILS = sorted(ROOT.glob("third_party/googleapis/google/rpc/*.proto"))

pytestmark = pytest.mark.skipif(
    not (TOOLS / ".installed").exists(), reason="no compilers: `make tools` gets them with Go, Node.js and Maven"
)


def run(*command: str | Path, folder: Path) -> str:
    environment = os.environ | {"PATH": f"{TOOLS / 'bin'}:{TOOLS / 'node_modules/.bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    """A protoc, and the Java runtime of its time."""
    folder: Path = TOOLS / request.param
    return folder


def generate(release: Path, folder: Path, *outputs: str, files: list[Path] = CONTRACT) -> None:
    includes = [f"-I{ROOT / 'protos'}", f"-I{ROOT / 'third_party/googleapis'}"]
    run(release / "protoc", *includes, *outputs, *files, folder=folder)


def test_python(release: Path, tmp_path: Path) -> None:
    generate(release, tmp_path, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    program = (
        "from leadkeep.v1 import lead_service_pb2 as pb, options_pb2\n"
        "phone = pb.Lead.DESCRIPTOR.fields_by_name['phone']\n"
        "assert phone.GetOptions().Extensions[options_pb2.sensitive]\n"
        "assert pb.Lead.FromString(pb.Lead(phone='1').SerializeToString()).phone == '1'"
    )
    python = OLDEST_PYTHON if release.name == "protoc-3.21" else ROOT / ".venv/bin/python"
    run(python, "-c", program, folder=tmp_path)


def test_go(release: Path, tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum"):
        shutil.copy(LANGUAGES / name, tmp_path)
    (tmp_path / "gen").mkdir()
    outputs = [
        f"--{plugin}_{kind}" for plugin in ("go", "go-grpc") for kind in ("out=gen", "opt=paths=source_relative")
    ]
    generate(release, tmp_path, *outputs)
    run("go", "build", "./gen/...", folder=tmp_path)


def test_typescript(tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")
    for name in ("package.json", "tsconfig.json"):
        shutil.copy(LANGUAGES / name, tmp_path)
    made = []
    for name in RELEASES:
        for plugin in ("es", "ts_proto"):
            shutil.rmtree(tmp_path / plugin, ignore_errors=True)
            (tmp_path / plugin).mkdir()
        outputs = ["--es_out=es", "--es_opt=target=ts,import_extension=js", "--ts_proto_out=ts_proto"]
        options = "--ts_proto_opt=outputServices=grpc-js,esModuleInterop=true,importSuffix=.js"
        generate(TOOLS / name, tmp_path, *outputs, options, files=[*CONTRACT, *DETAILS])
        # ts-proto also makes what comes with protoc; the rest differs by the version that it names.
        own = [path for folder in ("leadkeep", "google/rpc") for path in sorted(tmp_path.glob(f"*/{folder}/**/*.ts"))]
        made.append({path: re.sub(r"^//   protoc .*$", "", path.read_text(), flags=re.MULTILINE) for path in own})
    assert len(made[0]) == 10
    assert made[0] == made[1]
    run("tsc", "--project", ".", folder=tmp_path)


def test_java(release: Path, tmp_path: Path) -> None:
    (tmp_path / "gen").mkdir()
    generate(release, tmp_path, "--java_out=gen", "--grpc-java_out=gen")
    sources = sorted(tmp_path.glob("gen/com/leadkeep/v1/*.java"))
    # The virtual machine's first compiler alone: it lives for seconds.
    quick = ("-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-proc:none", "-nowarn")
    run("javac", *quick, "-cp", f"{release}/*:{TOOLS}/java/*", "-d", tmp_path / "classes", *sources, folder=tmp_path)
    assert (tmp_path / "classes/com/leadkeep/v1/Lead.class").exists()
    assert (tmp_path / "classes/com/leadkeep/v1/LeadServiceGrpc.class").exists()


def test_documented_commands_leave_a_clone_clean(tmp_path: Path) -> None:
    """All but those that install something."""
    text = (ROOT / "docs/clients.md").read_text().partition("\n## Generate a client\n")[2].partition("\n## ")[0]
    [*blocks] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    for name in ("protos", "third_party"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in (".gitignore", "buf.yaml", "buf.gen.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    run("git", "init", "--quiet", folder=tmp_path)
    run("git", "add", "--all", folder=tmp_path)
    (tmp_path / ".git/info/exclude").write_text("node_modules\n")
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")
    installs = re.compile(r"^(python -m pip|go|npm) install .*\n", re.MULTILINE)
    commands = [installs.sub("", block) for block in blocks]
    path = f"{TOOLS / 'protoc-3.21'}:{ROOT / '.venv/bin'}:$PATH"
    run("bash", "-euc", "\n".join([f"PATH={path}", *commands, "buf generate"]), folder=tmp_path)

    assert (tmp_path / "gen/leadkeep/v1/lead_service.pb.go").exists()
    assert (tmp_path / "gen/com/leadkeep/v1/Lead.java").exists()
    assert not re.findall(r"^\?\?", run("git", "status", "--porcelain", folder=tmp_path), re.MULTILINE)
