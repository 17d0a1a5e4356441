"""PostgreSQL's own programs for backups: which ones, how they learn where the database is, and what they say.

No password and no address stands on a command line, where every user of the machine could read it; they get libpq's
environment variables. What a program prints is reduced before it is shown: an error in a row prints its values.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from psycopg import pq

from service.errors import StartRefusedError
from service.storage.postgres_binaries import find_binaries
from service.storage.postgres_process import dying_with_parent

_TOLD_CHARACTERS = 300
_ERROR = re.compile(r"^(pg_\w+): error: (.*)$", re.MULTILINE)
# COPY's errors quote the value that they are about, and so do all that come with a colon behind the input.
_QUOTING = re.compile(r"COPY failed for table \"\w+\"|could not execute query: ERROR:  [^:\n\"]*")


class ProgramFailedError(Exception):
    """A program of PostgreSQL failed; the text names it and its error, without any row's value."""


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


def environment(conninfo: str) -> dict[str, str]:
    """The environment in which libpq finds this database, and no other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LEADKEEP_"))}
    for option in pq.Conninfo.parse(conninfo.encode()):
        if option.val is not None and option.envvar is not None:
            kept[option.envvar.decode()] = option.val.decode()
    return kept


def begin(path: Path, arguments: Sequence[str], conninfo: str) -> subprocess.Popen[bytes]:
    """Start a program that works on this database. It ends with us: a restore that was killed must not go on."""
    return subprocess.Popen(  # noqa: S603 # a program of PostgreSQL, with arguments of our own
        dying_with_parent([path, *arguments]),
        env=environment(conninfo),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the program's end. Raises ProgramFailedError; ends the program when the wait is interrupted."""
    try:
        _, said = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        raise ProgramFailedError(_reduced(said.decode(errors="replace")))


def _reduced(said: str) -> str:
    error = _ERROR.search(said)
    if error is None:
        return "PostgreSQL's program failed and gave no reason"
    quoting = _QUOTING.match(error[2])
    told = (quoting[0] if quoting else error[2])[:_TOLD_CHARACTERS].strip()
    return f"{error[1]} failed: {told}"
