"""The write path of the spool on a disk that fails and loses power at every step."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from service.keys.encryption import KeyCanary
from service.storage.spool import file as spool_file
from service.storage.spool.file import SpoolError, SpoolFile
from service.storage.spool.rows import FILE_NAME, SpoolRow
from tests.harness.power import (
    Disk,
    Fault,
    Operation,
    acknowledged,
    after_power_cut,
    first_unsynced,
    nothing_unsynced,
    some_unsynced,
)

MAX_BYTES = 10_000_000
EIO, ENOSPC = errno.errorcode[errno.EIO], errno.errorcode[errno.ENOSPC]


def row(number: int) -> SpoolRow:
    key = number.to_bytes(32, "big")
    return SpoolRow(
        id=UUID(int=number),
        accepted_at=datetime(2026, 1, 1, tzinfo=UTC),
        request=key,
        content=key,
        phone=key,
        nid=key,
        conversation=None,
        refused=False,
        payload=f"payload {number} " * 300,
        key_ids="",
    )


def put(file: SpoolFile, numbers: range, disk: Disk) -> None:
    """Put a batch; what returns without an error is acknowledged."""
    try:
        with file.transaction():
            for number in numbers:
                file.insert(row(number))
    except SpoolError:
        return
    for number in numbers:
        disk.acknowledge(str(number))


def remove(file: SpoolFile, numbers: range, disk: Disk) -> None:
    """Remove rows; from now on nobody asks for them."""
    disk.operations[:] = [each for each in disk.operations if each.path not in {str(number) for number in numbers}]
    try:
        file.remove([UUID(int=number) for number in numbers])
    except SpoolError:
        return


def live(folder: Path, disk: Disk) -> None:
    """A life of a spool: made, filled past a checkpoint, partly drained, closed, opened again, filled."""
    with disk.recording():
        try:
            file = SpoolFile(folder, max_bytes=MAX_BYTES)
        except SpoolError:
            file = SpoolFile(folder, max_bytes=MAX_BYTES)  # as the next use of the spool does
        try:
            file.remember(KeyCanary("canary", b"index"), "normaliser")
        except SpoolError:
            file.remember(KeyCanary("canary", b"index"), "normaliser")
        for start in range(1, 36, 6):
            put(file, range(start, start + 6), disk)
        remove(file, range(1, 7), disk)
        put(file, range(100, 103), disk)
        file.close()
        file = SpoolFile(folder, max_bytes=MAX_BYTES)
        put(file, range(200, 203), disk)
        put(file, range(300, 301), disk)
        file.close()


def stored(folder: Path) -> set[str]:
    """The numbers that a new process finds."""
    file = SpoolFile(folder, max_bytes=MAX_BYTES)
    try:
        found = {str(each.id.int) for each in file.oldest(1000)}
    finally:
        file.close()
    with sqlite3.connect(folder / FILE_NAME) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    return found


def lost_after_power_cut(operations: list[Operation], keep: Callable[[int], list[int]], folder: Path) -> set[str]:
    """What was acknowledged and is not there when the power comes back."""
    files = after_power_cut(operations, keep)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in files.items():
        (folder / Path(path).name).write_bytes(content)
    if not files and not acknowledged(operations):
        return set()
    return acknowledged(operations) - stored(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ballast, which is no part of this promise, and its own test."""
    monkeypatch.setattr(SpoolFile, "_load_ballast", lambda *_: None)


def every_step(disk: Disk) -> list[list[Operation]]:
    return [disk.operations[:end] for end in range(1, len(disk.operations) + 1)]


@pytest.fixture
def lived(folder: Path) -> Disk:
    disk = Disk()
    live(folder, disk)
    return disk


def test_the_record_sees_writes_syncs_and_checkpoints(lived: Disk) -> None:
    kinds = {(each.kind, Path(each.path).suffix) for each in lived.operations if each.kind != "acknowledge"}
    assert {("write", ".sqlite-wal"), ("sync", ".sqlite-wal"), ("write", ".sqlite"), ("sync", ".sqlite")} <= kinds
    assert len(acknowledged(lived.operations)) > 30


@pytest.mark.parametrize(
    "keep", [nothing_unsynced, first_unsynced(1), some_unsynced(2)], ids=["none", "a beginning", "some"]
)
def test_a_power_cut_at_any_step_loses_nothing_acknowledged(
    lived: Disk, tmp_path: Path, keep: Callable[[int], list[int]]
) -> None:
    lost = {len(step): lost_after_power_cut(step, keep, tmp_path / "after") for step in every_step(lived)}
    assert {step: rows for step, rows in lost.items() if rows} == {}


def test_without_the_fsync_a_power_cut_loses_leads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "SYNCHRONOUS", "OFF")
    disk = Disk()
    live(folder, disk)
    lost = [lost_after_power_cut(step, nothing_unsynced, tmp_path / "after") for step in every_step(disk)[::7]]
    assert any(lost), "the simulation would not notice a missing fsync"


def operations_of_a_life(folder: Path) -> int:
    disk = Disk()
    live(folder, disk)
    shutil.rmtree(folder)
    folder.mkdir()
    return disk.asked


@pytest.mark.parametrize("how", [EIO, ENOSPC, "short"])
def test_each_operation_may_fail_once_and_nothing_acknowledged_is_lost(folder: Path, tmp_path: Path, how: str) -> None:
    for number in range(operations_of_a_life(folder)):
        disk = Disk(Fault(number, how))
        live(folder, disk)
        confirmed = acknowledged(disk.operations)
        assert confirmed <= stored(folder), f"lost after {how} of operation {number}"
        assert {"300", "200", "100"} & confirmed, f"nothing was taken any more after {how} of operation {number}"
        # The power goes right after: what the failed operation left unwritten must not have carried anything.
        lost = lost_after_power_cut(disk.operations, nothing_unsynced, tmp_path / "after")
        assert lost == set(), f"lost after {how} of operation {number} and a power cut"
        shutil.rmtree(folder)
        folder.mkdir()


def test_after_a_failed_fsync_a_power_cut_at_any_step_loses_nothing_acknowledged(folder: Path, tmp_path: Path) -> None:
    probe = Disk()
    live(folder, probe)
    asked = [each for each in probe.operations if each.kind != "acknowledge"]
    syncs = [number for number, each in enumerate(asked) if each.kind == "sync"]
    for number in syncs[3::4]:
        shutil.rmtree(folder)
        folder.mkdir()
        disk = Disk(Fault(number, EIO))
        live(folder, disk)
        failed_at = next(place for place, each in enumerate(disk.operations) if each.failed)
        for end in range(failed_at, len(disk.operations) + 1, 3):
            lost = lost_after_power_cut(disk.operations[:end], nothing_unsynced, tmp_path / "after")
            assert lost == set(), f"lost {end - failed_at} steps after the failed sync {number}"


def test_a_log_that_goes_on_behind_a_failed_fsync_would_lose_leads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is moved into the file after a fault. SQLite itself overwrites what failed; a process that dies with the
    failed pages in the log hands them to the next one, and only this keeps that one from building on them."""
    disk = Disk()
    with disk.recording():
        file = SpoolFile(folder, max_bytes=MAX_BYTES)
        put(file, range(1, 3), disk)
        start = len([each for each in disk.operations if each.kind != "acknowledge"])
        file.close()
    shutil.rmtree(folder)
    folder.mkdir()

    def second_life(disk: Disk) -> None:
        with disk.recording():
            file = SpoolFile(folder, max_bytes=MAX_BYTES)
            put(file, range(1, 3), disk)
            put(file, range(3, 5), disk)
            # kill -9: the file is not closed, a copy of it is what the next process finds.
            copy = folder.with_name("copy")
            shutil.copytree(folder, copy)
            file.close()
            shutil.rmtree(folder)
            copy.rename(folder)
            file = SpoolFile(folder, max_bytes=MAX_BYTES)
            put(file, range(5, 7), disk)
            del file

    for number in range(start, start + 12):
        disk = Disk(Fault(number, EIO))
        second_life(disk)
        assert lost_after_power_cut(disk.operations, nothing_unsynced, tmp_path / "after") == set()
        shutil.rmtree(folder)
        folder.mkdir()


def test_a_folder_that_cannot_be_synced_makes_no_spool(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SpoolError, match="Input/output error"):
        SpoolFile(folder, max_bytes=MAX_BYTES)
