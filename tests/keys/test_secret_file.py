from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.errors import StartRefusedError
from service.keys.secret_file import create_secret_file, make_private_folder, read_secret_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "secret"


def test_what_is_written_is_read(path: Path) -> None:
    assert create_secret_file(path, b"content")

    assert read_secret_file(path) == b"content"


def test_file_and_folder_are_for_their_owner_only_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        create_secret_file(path, b"content")
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_folders_above_are_for_their_owner_only_too(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private_folder(tmp_path / "data" / "spool")
    finally:
        os.umask(before)

    assert [each.stat().st_mode & 0o777 for each in (tmp_path / "data", tmp_path / "data" / "spool")] == [0o700] * 2


def test_a_file_that_is_there_stays_as_it_is(path: Path) -> None:
    create_secret_file(path, b"first")

    assert not create_secret_file(path, b"second")

    assert read_secret_file(path) == b"first"


def test_no_draft_is_left_behind(path: Path) -> None:
    create_secret_file(path, b"first")
    create_secret_file(path, b"second")

    assert list(path.parent.iterdir()) == [path]


def test_no_draft_is_left_behind_when_the_disk_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="no space left"):
        create_secret_file(path, b"content")

    assert list(path.parent.iterdir()) == []


def test_of_racing_writers_one_makes_the_file_and_all_read_the_same(path: Path) -> None:
    path.parent.mkdir()
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda number: create_secret_file(path, b"%d" % number * 1000), range(16)))

    assert made.count(True) == 1
    assert read_secret_file(path) == b"%d" % made.index(True) * 1000


def test_the_content_is_on_disk_before_the_name_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named_at_fsync: list[bool] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        named_at_fsync.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)

    create_secret_file(path, b"content")

    assert named_at_fsync == [False, True], "the file's content first, then the folder with its name"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o601])
def test_a_file_that_others_may_use_is_refused(path: Path, mode: int) -> None:
    create_secret_file(path, b"content")
    path.chmod(mode)

    with pytest.raises(StartRefusedError, match="chmod 600"):
        read_secret_file(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_for_its_owner_only_is_read(path: Path, mode: int) -> None:
    create_secret_file(path, b"content")
    path.chmod(mode)

    assert read_secret_file(path) == b"content"


def test_a_file_without_end_is_read_to_a_bound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    path.chmod(0o600)
    with pytest.raises(StartRefusedError, match="longer than any secret"):
        read_secret_file(path)


def test_a_missing_file_is_refused_by_name(path: Path) -> None:
    with pytest.raises(StartRefusedError, match="cannot be read") as refused:
        read_secret_file(path)

    assert str(path) in str(refused.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="cannot be read"):
        read_secret_file(tmp_path)
