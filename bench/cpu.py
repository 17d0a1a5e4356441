"""CPU seconds that a process and its children have used, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

from tests.harness.processes import family

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int, *, reaped: bool = False) -> float:
    """User and system time of all threads of a process; with `reaped` that of its children that have ended, too."""
    # Behind the name in brackets: utime, stime, cutime, cstime are the fields 14 to 17 of the whole line.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, fields if reaped else fields[:2])) * _TICK


def cpu_nanoseconds(pid: int) -> int:
    """The CPU time of a process with one thread, much finer than the ticks of `cpu_seconds`."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def family_cpu_seconds(pid: int) -> float:
    """The same for a process with all of its children, those that have ended too."""
    total = 0.0
    for each in family(pid):
        try:
            total += cpu_seconds(each, reaped=True)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile, and is in its parent's sum from the next look on
    return total
