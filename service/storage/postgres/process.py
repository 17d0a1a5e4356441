"""PostgreSQL's programs: starting the server and the client programs, and finding a server at work in a data folder.

No password and no address is on a command line, where every user of the machine could read it; client programs get
libpq's environment variables. What one prints is reduced before it is shown: an error in a row prints its values.

PostgreSQL writes its process id into `postmaster.pid` and leaves it there when it is killed. The number may belong
to an unrelated process by now, so the process itself is asked before it is waited for or sent a signal.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg

from service.errors import StartRefusedError
from service.storage.postgres.folders import ServerUser, find_binaries

_WAIT_SECONDS = 30
# A killed service's server has got SIGINT from the kernel and needs a moment for its checkpoint. One that did not
# get it is asked after 3 s, and ended without a checkpoint after 15 s (the next start recovers).
_ASK_AFTER = ((3, signal.SIGINT), (15, signal.SIGQUIT))

_ERROR = re.compile(r"^(pg_\w+): error: (.*)$", re.MULTILINE)
# COPY's errors quote the faulty value, and so do all errors that have a colon behind the input.
_QUOTING = re.compile(r"COPY failed for table \"\w+\"|could not execute query: ERROR:  [^:\n\"]*")

_DISK_FULL = "No space left on device"

# Runs in place of Popen's preexec_fn, which may deadlock in a process that has threads. It drops root itself, because
# the other user may not be able to read this Python, and because setuid clears the death signal. Python ignores these
# signals; a program of PostgreSQL must not inherit that.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid, *command = sys.argv[1:]
PR_SET_PDEATHSIG = 1
prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
for ignored in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
if uid:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if prctl is not None and prctl(PR_SET_PDEATHSIG, int(signal.SIGINT)) != 0:
    sys.exit("the kernel refused PR_SET_PDEATHSIG")
if os.getppid() != int(parent):  # it died before the signal was asked for
    sys.exit(1)
try:
    os.execv(command[0], command)
except OSError as error:
    sys.exit(f"{command[0]} cannot be run: {error.strerror}")
"""


class ProgramFailedError(Exception):
    """A program of PostgreSQL failed; the text names it and its error, without any row's value."""


@dataclass(frozen=True, slots=True)
class PidFile:
    """Content of `postmaster.pid`."""

    pid: int
    socket_dir: Path
    ready: bool

    @staticmethod
    def read(data: Path) -> PidFile | None:
        """The file in this data folder; None when it is absent or not written to its end yet."""
        try:
            # 1 pid, 2 data folder, 3 start time, 4 port, 5 socket folder, 6 address, 7 shared memory, 8 state
            lines = (data / "postmaster.pid").read_bytes().split(b"\n")
            return PidFile(
                pid=abs(int(lines[0])),  # a single-user server writes it negative
                socket_dir=Path(os.fsdecode(lines[4])) if len(lines) > 4 else Path(),
                ready=len(lines) > 7 and lines[7].strip() == b"ready",
            )
        except (FileNotFoundError, ValueError):
            return None

    @staticmethod
    def disown(data: Path) -> None:
        """Make a file that was left behind acceptable to the server that this process starts next.

        PostgreSQL refuses to start when the number in it is alive, even as somebody else's process. It takes its
        parent's number for stale, so ours is written. Removing the file would also switch off its look at the
        shared memory, by which it notices a killed server's last backends.
        """
        path = data / "postmaster.pid"
        if PidFile.read(data) is None:
            path.unlink(missing_ok=True)  # a power cut emptied it: PostgreSQL would refuse it
            return
        content = path.read_bytes()
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"\n".join([b"%d" % os.getpid(), *content.split(b"\n")[1:]]))


def running_server(data: Path) -> PidFile | None:
    """The server that is at work in this data folder now."""
    found = PidFile.read(data)
    if found is None:
        return None
    command = _command_line(found.pid)
    is_server = Path(command.partition(" -D ")[0]).name == "postgres" and f" -D {data} " in f"{command} "
    return found if is_server else None


def wait_for_previous_server(data: Path) -> None:
    """Return when no server is at work in this data folder, which the caller owns: one that is there is an orphan.

    Raises StartRefusedError when it does not end.
    """
    began = time.monotonic()
    to_send = list(_ASK_AFTER)
    while (server := running_server(data)) is not None:
        waited = time.monotonic() - began
        if waited > _WAIT_SECONDS:
            raise StartRefusedError(
                f"an earlier PostgreSQL (process {server.pid}) still works in {data} and does not end: stop it first"
            )
        if to_send and waited > to_send[0][0]:
            os.kill(server.pid, to_send.pop(0)[1])
        time.sleep(0.05)


def spawn(command: Sequence[str | Path], cwd: Path, user: ServerUser | None, output: int) -> subprocess.Popen[bytes]:
    """Start a program of PostgreSQL that gets SIGINT when the calling thread dies, in whatever way."""
    return subprocess.Popen(  # noqa: S603 # PostgreSQL's own programs, without a shell
        dying_with_parent(command, user),
        cwd=cwd,
        # Only what it needs: the service's environment may hold secrets, and PGPORT and the like would be obeyed.
        env={"PATH": os.defpath, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the service alone, which then stops the server in order
    )


def dying_with_parent(command: Sequence[str | Path], user: ServerUser | None = None) -> list[str | Path]:
    """The command line that runs a command as this user and lets it get SIGINT when the thread that starts it dies.

    Only Linux has such a signal. Elsewhere the next start waits for the orphan and stops it.
    """
    identity = [str(user.uid), str(user.gid)] if user else ["", ""]
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *identity, *command]


def program(name: str, server_major: int) -> Path:
    """The program of the server's own major version, else of any that is there. Raises StartRefusedError.

    A program reads and writes servers of its own version for certain; an older one refuses a newer server.
    """
    try:
        found = find_binaries(major=server_major)
    except StartRefusedError:
        found = find_binaries()
        if found.major < server_major:
            raise StartRefusedError(
                f"the server is PostgreSQL {server_major} and the newest {name} here is {found.major}: install the "
                f"system package postgresql-{server_major}"
            ) from None
    path = found.bin_dir / name
    if not path.exists():
        raise StartRefusedError(f"{path} is missing: install PostgreSQL's client programs of version {server_major}")
    return path


def environment(connection: psycopg.Connection) -> dict[str, str]:
    """The environment in which libpq finds the database of a connection, and no other: by what that one went by.

    A service is left out: what it says is among the rest, and would come before what the URL chose instead. HOME is
    where libpq looks for certificates and .pgpass. Nothing else of ours is in it: no secret.
    """
    kept = {"PATH": os.defpath, "LC_ALL": "C"}
    if home := os.environ.get("HOME"):
        kept["HOME"] = home
    for option in connection.pgconn.info:
        if option.val is not None and option.envvar is not None and option.keyword != b"service":
            kept[option.envvar.decode()] = option.val.decode()
    return kept


def run_program(
    path: Path,
    arguments: Sequence[str],
    env: dict[str, str],
    *,
    given: IO[bytes] | int = subprocess.DEVNULL,
    output: IO[bytes] | int = subprocess.DEVNULL,
) -> None:
    """Run a program in an `environment`, to its end, with these files as its standard input and output.

    It ends with us: a restore that was killed must not go on. Raises ProgramFailedError.
    """
    done = subprocess.run(  # noqa: S603 # a program of PostgreSQL, with arguments of our own
        dying_with_parent([path, *arguments]),
        env=env,
        stdin=given,
        stdout=output,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise ProgramFailedError(_reduced(done.stderr.decode(errors="replace")))


def _reduced(output: str) -> str:
    error = _ERROR.search(output)
    if error is None:
        return "PostgreSQL's program failed and gave no reason"
    quoting = _QUOTING.match(error[2])
    text = (quoting[0] if quoting else error[2])[:300].strip()
    full = f", {_DISK_FULL}" if quoting and error[2].endswith(_DISK_FULL) else ""
    return f"{error[1]} failed: {text}{full}"


def _command_line(pid: int) -> str:
    """How this process was started; empty when it is gone. Its folder would be private to its user, this is not."""
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip())
        except (FileNotFoundError, ProcessLookupError):
            return ""
    ps = ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)]
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 # a number
