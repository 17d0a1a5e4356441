"""Other programs' processes, found in /proc: a server's children, and whoever works in a folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.storage.postgres.embedded import ROOT_BASE
from service.storage.postgres.folders import homes
from service.storage.postgres.process import PidFile


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = [child for child in _pids() if _parent(child) == pid]
    return [pid, *children]


def children_running(pid: int, words: str) -> list[int]:
    """The children of a process whose command line holds these words; one that has just ended is left out."""
    return [child for child in family(pid)[1:] if words in _command_line(child)]


def resident_megabytes(pid: int) -> float:
    """The memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1_000_000


def family_megabytes(pid: int) -> float:
    """The memory that a process and its children hold; of one that ends meanwhile, nothing."""
    held = 0.0
    for each in family(pid):
        with suppress(OSError, IndexError):
            held += resident_megabytes(each)
    return held


def send_all(pid: int, number: signal.Signals) -> list[int]:
    """A signal to a server and to all of its children; who got it.

    The server is stopped first: it starts no more of them, and they do not lose their parent before they are found.
    """
    os.kill(pid, signal.SIGSTOP)
    found = family(pid)
    _signal(found, number)
    return found


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server and its children, stopped in their tracks for a while."""
    stopped = send_all(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(stopped, signal.SIGCONT)


def working_in(folder: Path) -> list[int]:
    """The processes whose working directory is a folder or below it; a server of PostgreSQL works in its data."""
    real = folder.resolve()
    return [pid for pid in _pids() if real in (at := _working_directory(pid), *at.parents)]


def embedded_home(data_dir: Path) -> Path:
    """Where the embedded PostgreSQL of this data folder keeps its data."""
    return homes(data_dir.resolve(), ROOT_BASE)[0]


def postgres_pid(data_dir: Path) -> int:
    """The process id of the embedded PostgreSQL of a running service."""
    (data,) = (embedded_home(data_dir) / "postgres").glob("*/data")
    found = PidFile.read(data)
    assert found is not None
    return found.pid


def processes_in(folder: Path) -> list[int]:
    """The processes whose command line names this folder."""
    return [pid for pid in _pids() if str(folder) in _command_line(pid)]


def remove_embedded_database(data_dir: Path) -> None:
    """Remove what root's embedded PostgreSQL leaves apart from the data folder."""
    home = embedded_home(data_dir)
    if home != data_dir.resolve():
        shutil.rmtree(home, ignore_errors=True)


def eventually(true: Callable[[], bool], *, within: float) -> bool:
    """Whether it becomes true in that many seconds."""
    deadline = time.monotonic() + within
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


async def until(true: Callable[[], object]) -> None:
    """Wait in the event loop until it is true. Raises TimeoutError after half a minute."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 # for what sends no event
            await asyncio.sleep(0.01)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        # A worker of PostgreSQL may end between being found and being told.
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _parent(pid: int) -> int | None:
    try:
        # Behind the name in brackets, which may hold anything: state, parent, …
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _working_directory(pid: int) -> Path:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:  # it has ended, or is another user's
        return Path()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
