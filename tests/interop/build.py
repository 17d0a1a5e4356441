"""`python -m tests.interop.build` builds the examples of clients into .venv-interop, for the tests of this folder.

Each is built by the commands of examples/README.md, in a copy that holds what the README says to copy and nothing else.
A driver is built beside it: a program on the same client that makes the calls of a test. What has not changed is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".venv-interop"
DRIVERS = Path(__file__).with_name("drivers")
PROTOC = ROOT / ".venv-tools" / "protoc-newest"
TO_COPY = ("protos", "clients/policy", "third_party/googleapis")
SECONDS = 600


@dataclass(frozen=True)
class Language:
    """How the example of a language, and the driver of the tests, are built and run in its folder."""

    title: str
    name: str
    driver: str
    """The driver's source, in the folder `drivers`."""
    place: str
    """Where it goes in the example's folder."""
    build_driver: str
    """A command; empty where the build of the example builds the driver too."""
    run_driver: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The copy of the example."""
        return BUILT / self.name / "examples" / self.name

    @property
    def is_built(self) -> bool:
        """Whether example and driver are those of this checkout."""
        stamp = self._stamp
        return stamp.exists() and stamp.read_text() == self._digest()

    def commands(self) -> tuple[str, str]:
        """How to build and how to run it, as examples/README.md says."""
        text = (ROOT / "examples/README.md").read_text().partition(f"\n## {self.title}\n")[2].partition("\n## ")[0]
        build, run = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        return build, run.strip()

    def build(self) -> None:
        """Copy and build it. Raises AssertionError with what the build printed."""
        if self.is_built:
            return
        built = self._digest()  # of what is copied now, whatever is edited while it is built
        home = BUILT / self.name
        shutil.rmtree(home, ignore_errors=True)
        for name in TO_COPY:
            shutil.copytree(ROOT / name, home / name)
        for file in self._sources():
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, home / file)
        shutil.copy(DRIVERS / self.driver, self.folder / self.place)
        _run(self.commands()[0], home)
        if self.build_driver:
            _run(self.build_driver, self.folder)
        self._stamp.write_text(built)

    @property
    def _stamp(self) -> Path:
        return BUILT / self.name / ".built"

    def _sources(self) -> list[Path]:
        """What git has, or would take, of the example."""
        listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", f"examples/{self.name}")
        found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        return [Path(path) for path in found if (ROOT / path).exists()]

    def _digest(self) -> str:
        digest = hashlib.sha256((ROOT / "examples/README.md").read_bytes())
        copied = [path for name in TO_COPY for path in (ROOT / name).rglob("*") if path.is_file()]
        own = [ROOT / path for path in self._sources()]
        for path in sorted([*copied, *own, *DRIVERS.iterdir(), Path(__file__)]):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
        return digest.hexdigest()


LANGUAGES = (
    Language("Python", "python", "driver.py", "driver.py", "", (".venv/bin/python", "driver.py")),
    Language(
        *("Go", "go", "driver.go", "driver.txt"),
        "mv driver.txt main.go && go build -o build/driver .",
        ("build/driver",),
    ),
    Language("TypeScript", "typescript", "driver.ts", "driver.ts", "", ("node", "build/driver.js")),
    Language(
        *("Java", "java", "Driver.java", "src/main/java/example/Driver.java", ""),
        # The virtual machine's first compiler alone: it lives for seconds.
        ("java", "-XX:TieredStopAtLevel=1", "-cp", "target/classes:target/dependency/*", "example.Driver"),
    ),
)


def environment() -> dict[str, str]:
    """What a build and an example run with: Go's needs a protoc."""
    # Maven with the first compiler of the virtual machine alone: it lives for seconds.
    maven = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    return os.environ | {"PATH": f"{PROTOC}:{os.environ['PATH']}", "PYTHONPATH": "gen", "MAVEN_OPTS": maven}


def _run(command: str, folder: Path) -> None:
    done = subprocess.run(
        ("bash", "-euc", command), cwd=folder, env=environment(), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def main() -> None:
    """Build those whose tools are here, two at a time. Exit code 1: a build failed."""
    with ThreadPoolExecutor(2) as pool:
        failed = [error for error in pool.map(_failure, LANGUAGES) if error]
    sys.exit("\n".join(failed) or 0)


def _failure(language: Language) -> str:
    try:
        language.build()
    except AssertionError as error:
        return f"{language.title}: {error}"
    return ""


if __name__ == "__main__":
    main()
