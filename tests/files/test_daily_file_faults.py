"""What keeps the daily files from being written is an alarm, is tried again, and reaches no caller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from service.files.daily_file import FileStorageService, Render
from service.files.renderer_process import USUAL_SILENCE_SECONDS, FileRendering
from service.files.worker import LOOK_SECONDS, FileWorker
from service.storage.daily.daily_leads import DailyLeads, Days
from service.supervisor import Component, Supervisor
from tests.conftest import StartService
from tests.harness.daily_files import create, file_of, read, soon_in, store_lead, today
from tests.harness.disks import remount
from tests.harness.faults import execute
from tests.harness.postgres import TestDatabase
from tests.harness.processes import children_running, eventually
from tests.harness.running_service import RunningService


async def test_a_process_that_cannot_be_started_is_an_alarm_and_a_fault_of_its_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def cannot_start(*_args: object, **_kwargs: object) -> None:
        raise OSError("no memory for another process")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", cannot_start)
    rendering = FileRendering(
        url="",
        replica="a",
        folder=tmp_path,
        timezone="UTC",
        identity=lambda: UUID(int=1),
        on_render=lambda _size, _seconds: None,
    )
    with pytest.raises(OSError, match="no memory"):
        await rendering.run()
    assert rendering.alarm == "the process that renders the daily files ended"


async def test_a_process_that_cannot_be_started_for_many_hours_is_still_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = asyncio.Semaphore(0)

    async def cannot_start(*_args: object, **_kwargs: object) -> None:
        starts.release()
        raise OSError("no memory for another process")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", cannot_start)
    rendering = FileRendering(
        url="",
        replica="a",
        folder=tmp_path,
        timezone="UTC",
        identity=lambda: UUID(int=1),
        on_render=lambda _size, _seconds: None,
    )
    supervisor = Supervisor(on_death=lambda: None, first_wait=0.0)
    supervisor.start([Component(name="daily files", run=rendering.run, finish=rendering.finish)])
    async with asyncio.timeout(60):
        for _ in range(1100):  # at half a minute each: nine hours
            await starts.acquire()
        await supervisor.stop(1)


@pytest.fixture
def without_folder(service: RunningService) -> Iterator[Path]:
    """The folder of the files, taken away from a service that runs: a file lies in its place."""
    assert soon_in(file_of(service), create(service))
    folder = file_of(service).parent
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("no folder")
    yield aside
    if folder.is_file():
        folder.unlink()
        aside.rename(folder)
        assert eventually(lambda: service.metric("leadkeep_files_alarm") == 0, within=60)


def test_a_folder_that_is_gone_is_an_alarm(service: RunningService, without_folder: Path) -> None:
    create(service)
    assert eventually(lambda: service.readiness["reasons"] == ["files_behind"], within=30)
    assert service.readiness["degraded"]
    assert service.metric("leadkeep_files_alarm") == 1
    assert "daily files cannot be written" in service.log()


def test_a_fault_of_the_files_reaches_no_caller(service: RunningService, without_folder: Path) -> None:
    assert eventually(lambda: service.metric("leadkeep_files_alarm") == 1, within=30)
    assert create(service)


def test_files_are_written_again_when_the_fault_is_over(service: RunningService, without_folder: Path) -> None:
    created = create(service)
    assert eventually(lambda: service.metric("leadkeep_files_alarm") == 1, within=30)
    folder = file_of(service).parent
    folder.unlink()
    without_folder.rename(folder)
    assert soon_in(file_of(service), created, within=60)
    assert eventually(lambda: not service.readiness["degraded"], within=60)


def test_a_database_that_refuses_the_renderer_is_an_alarm(
    service: RunningService, service_database: TestDatabase
) -> None:
    assert soon_in(file_of(service), create(service))
    execute(service_database.admin_url, "REVOKE SELECT ON lead_touch FROM leadkeep_app")
    assert eventually(lambda: "daily files cannot be rendered: SQLSTATE 42501" in service.log(), within=30)
    execute(service_database.admin_url, "GRANT SELECT ON lead_touch TO leadkeep_app")
    assert eventually(lambda: not service.readiness["degraded"], within=60)


def test_a_file_that_is_deleted_the_moment_it_appears_comes_back(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, minutes = Days("UTC"), iter(range(0, 600, 60))
    leads = DailyLeads(database.serve_url, days)
    files = FileStorageService(tmp_path, days, leads)
    store_lead(database, f"{today()}T00:00Z")
    worker = FileWorker(
        files, leads, days, report=lambda _: None, stopped=threading.Event(), clock=lambda: next(minutes)
    )
    render = files.render

    def rendered_and_gone(*arguments: Any, **named: Any) -> Render:
        made = render(*arguments, **named)
        files.path(today()).unlink()
        return made

    monkeypatch.setattr(files, "render", rendered_and_gone)
    worker.step()
    monkeypatch.undo()
    worker.step()
    assert read(files.path(today()))["lead_count"] == 1
    leads.close()


class Rests(threading.Event):
    """Never set; it notes for how long it was waited for, and lets that time pass at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.rests = 0.0, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.rests.append(timeout)
        self.now += timeout
        return False


def test_a_render_rests_as_long_as_it_works_until_it_has_taken_three_seconds(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, rests = Days("UTC"), Rests()
    leads = DailyLeads(database.serve_url, days)
    files = FileStorageService(tmp_path, days, leads)
    store_lead(database, f"{today()}T00:00Z")
    worker = FileWorker(files, leads, days, report=lambda _: None, stopped=rests, clock=lambda: rests.now)
    render = files.render

    def in_ten_pieces(*arguments: Any, nap: Callable[[], None], **named: Any) -> Render:
        for _ in range(10):
            rests.now += 0.4
            nap()
        return render(*arguments, **named)

    monkeypatch.setattr(files, "render", in_ten_pieces)
    worker.step()
    assert rests.rests == pytest.approx([0.4] * 4)
    leads.close()


def renderers(service: RunningService) -> list[int]:
    return children_running(service.pid, "service.files.worker")


def test_a_renderer_that_is_killed_is_started_again(database: TestDatabase, start_service: StartService) -> None:
    # A service of its own: its tasks count as failing for a while.
    service = start_service(database_url=database.serve_url)
    assert soon_in(file_of(service), create(service))
    (killed,) = renderers(service)
    os.kill(killed, signal.SIGKILL)
    assert soon_in(file_of(service), create(service), within=60)
    assert renderers(service) != [killed]


def test_a_frozen_renderer_shows_as_lag(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    assert soon_in(file_of(service), create(service))
    # The file is there a moment before the renderer reports that it has the turn.
    assert eventually(lambda: "this replica renders the daily files" in service.log(), within=30)
    (renderer,) = children_running(service.pid, "service.files.worker")
    os.kill(renderer, signal.SIGSTOP)
    try:
        assert eventually(lambda: service.metric("leadkeep_files_lag_seconds") > USUAL_SILENCE_SECONDS, within=30)
    finally:
        os.kill(renderer, signal.SIGCONT)
    assert eventually(lambda: service.metric("leadkeep_files_lag_seconds") == 0, within=30)


def test_the_renderer_ends_with_a_service_that_is_killed(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    assert soon_in(file_of(service), create(service))
    (renderer,) = renderers(service)
    service.kill()
    assert eventually(lambda: not Path(f"/proc/{renderer}").exists(), within=30)


def test_the_renderers_command_line_and_environment_hold_no_secret(service: RunningService) -> None:
    assert soon_in(file_of(service), create(service))
    (renderer,) = renderers(service)
    seen = Path(f"/proc/{renderer}/cmdline").read_bytes() + Path(f"/proc/{renderer}/environ").read_bytes()
    assert b"postgresql:" not in seen


@pytest.fixture
def on_small_disk(database: TestDatabase, start_service: StartService, small_disk: Path) -> RunningService:
    """A service whose files lie on a disk of one megabyte, with one lead."""
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_FILES_DIR": str(small_disk)})
    assert soon_in(small_disk / file_of(service).name, create(service))
    return service


def test_a_full_disk_is_an_alarm_until_it_has_room(on_small_disk: RunningService, small_disk: Path) -> None:
    path = small_disk / file_of(on_small_disk).name
    before = path.read_bytes()
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    created = create(on_small_disk)
    assert eventually(lambda: "No space left" in on_small_disk.log(), within=30)
    assert path.read_bytes() == before
    ballast.unlink()
    assert soon_in(path, created, within=60)
    assert eventually(lambda: not on_small_disk.readiness["degraded"], within=60)
    on_small_disk.stop()


def test_a_folder_that_may_not_be_written_is_an_alarm(on_small_disk: RunningService, small_disk: Path) -> None:
    remount(small_disk, "ro")
    created = create(on_small_disk)
    assert eventually(lambda: on_small_disk.metric("leadkeep_files_alarm") == 1, within=30)
    remount(small_disk, "rw")
    assert soon_in(small_disk / file_of(on_small_disk).name, created, within=60)
    on_small_disk.stop()


def put_folder(path: Path) -> None:
    path.mkdir()


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_wild_header(path: Path) -> None:
    header = {"format": "leadkeep-daily-file", "version": 1, "date": "2026-03-02", "timezone": "UTC"}
    header |= {"snapshot_at": "2026-03-02", "key_ids": [], "lead_count": 0}
    path.write_text(json.dumps(header)[:-2] + '1e999,\n"leads":[\n]}\n')


@pytest.mark.parametrize("put", [put_pipe, put_loop, put_device, put_wild_header])
def test_whatever_lies_in_the_place_of_a_file_is_replaced(
    put: Callable[[Path], None], database: TestDatabase, start_service: StartService
) -> None:
    service = start_service(database_url=database.serve_url)
    store_lead(database, "2026-03-02T10:00Z")
    path = file_of(service, date(2026, 3, 2))
    assert eventually(path.exists, within=30)
    lines = path.read_bytes().partition(b'"leads"')[2]
    for stopped in (False, True):
        if stopped:
            service.stop()
        path.unlink()
        put(path)
        if stopped:
            service.start()
        assert eventually(lambda: path.is_file() and path.read_bytes().endswith(lines), within=60), stopped
        assert not path.is_symlink()
    service.stop()


def test_a_day_that_cannot_be_written_holds_up_no_other(database: TestDatabase, start_service: StartService) -> None:
    service = start_service(database_url=database.serve_url)
    bad = [file_of(service, date(2026, 3, 2)), file_of(service)]
    assert eventually(bad[0].parent.is_dir, within=30)
    for path in bad:
        path.mkdir()
    bad[0].with_name(f".{bad[0].name}.tmp").mkdir()
    for number, day in enumerate(("2026-03-02", "2026-03-03", "2026-03-04", f"{today()}")):
        store_lead(database, f"{day}T00:00Z", number)
    good = [file_of(service, date(2026, 3, day)) for day in (3, 4)]
    assert eventually(lambda: all(path.is_file() for path in good), within=60)
    assert eventually(lambda: service.readiness["reasons"] == ["files_behind"], within=60)
    store_lead(database, "2026-03-05T10:00Z", 9)
    assert eventually(file_of(service, date(2026, 3, 5)).is_file, within=30)
    assert service.metric("leadkeep_files_alarm") == 1
    for folder in (*bad, bad[0].with_name(f".{bad[0].name}.tmp")):
        folder.rmdir()
    assert eventually(lambda: all(path.is_file() for path in bad), within=60)
    assert eventually(lambda: service.is_well, within=60)
    service.stop()


def test_a_lock_that_leads_elsewhere_is_not_followed(database: TestDatabase, tmp_path: Path) -> None:
    days = Days("UTC")
    leads = DailyLeads(database.serve_url, days)
    files = FileStorageService(tmp_path, days, leads)
    lock = tmp_path / ".rendering.lock"
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        files.render(today(), settles=False)
    assert not (tmp_path / "elsewhere").exists()
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(OSError, match="No such device"):
        files.render(today(), settles=False)
    leads.close()


def test_a_render_that_fails_is_tried_again_after_pauses_that_double_to_a_quarter_of_a_minute(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, rests = Days("UTC"), Rests()
    leads = DailyLeads(database.serve_url, days)
    worker = FileWorker(
        FileStorageService(tmp_path, days, leads),
        leads,
        days,
        report=lambda _: None,
        stopped=rests,
        clock=lambda: rests.now,
    )

    def turn() -> bool:
        if len(rests.rests) == 6:
            return False
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leads, "take_turn", turn)
    monkeypatch.setattr(rests, "is_set", lambda: len(rests.rests) == 8)
    worker.run()
    assert rests.rests == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, LOOK_SECONDS, 1.0]
