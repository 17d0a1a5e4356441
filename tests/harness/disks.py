"""Disks of their own for tests that fill one; only root can mount them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.processes import eventually


class NoMountError(Exception):
    """This machine lets us mount nothing."""


@contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """A file system of one megabyte at `folder`, which is made. Raises NoMountError."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "leadkeep", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        raise NoMountError
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def memory_disk() -> str | None:
    """A file system in memory that is large enough for a run of the tests; None where there is none."""
    shared = "/dev/shm"
    try:
        found = os.statvfs(shared)
    except FileNotFoundError:
        return None
    # Tests run scripts of their own; a container's may forbid that.
    large = found.f_bavail * found.f_frsize > 4_000_000_000
    return shared if large and not found.f_flag & os.ST_NOEXEC else None


def remount(folder: Path, option: str) -> None:
    """Mount the disk again with another option, such as `ro`: refused while somebody writes to a file on it."""
    command = ["mount", "-o", f"remount,{option}", str(folder)]
    assert eventually(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, within=30)
