"""The process that renders the daily files: `python -m service.files.worker`, started by files/renderer_process.py.

It is a process of its own so that no call ever waits for a render, and it stays small: it knows neither gRPC nor
SQLAlchemy. Its order is the first line of standard input (JSON, with the database's URL, which no other process can
read there); the end of standard input is the order to stop. It reports in JSON, one event a line:

    {"event": "state", "renders": true, "lag": 0.4, "alarm": null}    about once a second
    {"event": "rendered", "bytes": 8000000, "seconds": 0.4}

`lag` is the seconds for which the oldest change has waited for its file.

After each render there is a pause that grows with what was written: 5,000 leads (8 MB) pause for half a second, 100,000
(160 MB) for 50 seconds. Today has a pace of its own, so that it does not wait behind older days; those share
another one. So at most 36 MB a second are ever written, whatever is touched, and 6 MB a second from 100,000
leads on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

from service.files.daily_file import (
    DailyFileError,
    FileStorageService,
    Identity,
    RenderingStoppedError,
    read_header,
)
from service.storage.daily.daily_leads import DailyLeads, DailyLeadsError, Days

LOOK_SECONDS = 0.3
"""How often the database is asked for touched days."""

REPORT_SECONDS = 1.0
DISK_SECONDS = 1.0
"""How often the folder is compared with what was rendered."""

LAST_BYTES = 20_000_000
"""On the order to stop, a changed file of today is rendered once more if it is smaller: that takes about a second."""

GIVES_WAY_SECONDS = 3.0
"""For so long a render rests after each piece as long as that took: the server that reads for it waits with it, and a
day of 100,000 leads, which takes some 1.5 s of two cores, leaves them half of the time to the calls."""

SHORTEST_PAUSE = 0.3
"""Seconds: with a render of a tenth of that, a small day is current within half a second."""

_FIRST_RETRY, _LONGEST_RETRY = 1.0, 15.0  # seconds before a failed render is tried again


def pause_after(size: int) -> float:
    """Seconds of rest after a render of `size` bytes: (size / 12 MB) ^ 1.5.

    Chosen so that 5,000 leads stay within 2 s, and 100,000 within 60 s.
    """
    return max(SHORTEST_PAUSE, math.pow(size / 12_000_000, 1.5))


class Schedule:
    """Which of the days that changed is due. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        # For today and for the others: when their pause ends.
        self._rests_until = {True: 0.0, False: 0.0}

    def due(
        self,
        changed: Mapping[date, float],
        today: date,
        now: float,
        failed: Mapping[date, float] = MappingProxyType({}),
    ) -> date | None:
        """The day to render now: today first, then the one that changed first; None to wait.

        Days that failed, given with their times, come after all others, the one that failed last at the end.
        """
        rested = [day for day in changed if now >= self._rests_until[day == today]]
        return min(rested, key=lambda day: (failed.get(day, -math.inf), day != today, changed[day], day), default=None)

    def rendered(self, day: date, today: date, size: int, now: float) -> None:
        """A render of `day` ended now."""
        self._rests_until[day == today] = now + pause_after(size)


class FileWorker:
    """Keeps the files equal to the database, as long as it is this replica's turn."""

    def __init__(
        self,
        files: FileStorageService,
        leads: DailyLeads,
        days: Days,
        *,
        report: Callable[[dict[str, Any]], None],
        stopped: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._leads = leads
        self._days = days
        self._report = report
        self._stopped = stopped
        self._clock = clock
        self._schedule = Schedule()
        self._known: dict[date, Identity | None] = {}
        self._changed: dict[date, float] = {}
        self._failed: dict[date, float] = {}
        self._renders = False
        self._alarm: str | None = None
        self._retry_in = _FIRST_RETRY
        self._reported_at = self._looked_at = -math.inf

    def run(self) -> None:
        """Work until the order to stop."""
        self._try(self._files.make_folder)
        while not self._stopped.is_set():
            pause = self._try(self.step)
            self._report_state()
            self._stopped.wait(pause)
        self._finish()

    def step(self) -> None:
        """Take the turn if it is free; see what changed; render at most one file."""
        if not self._leads.take_turn():
            self._renders = False
            self._changed.clear()
            self._failed.clear()
            return
        if not self._renders:
            self._survey()
            self._renders = True
        now = self._clock()
        for day in self._leads.touched():
            self._changed.setdefault(day, now)
        if now - self._looked_at >= DISK_SECONDS:
            self._looked_at = now
            self._compare_with_disk(now)
        due = self._schedule.due(self._changed, self._today(), now, self._failed)
        if due is not None:
            try:
                self._render(due)
            except OSError:
                # Such as a folder in the place of its file: the other days must not wait for that.
                self._failed[due] = self._clock()
                raise
            self._failed.pop(due, None)

    def _survey(self) -> None:
        """Find out, at the beginning of the turn, which files are missing or not the newest that was rendered."""
        now = self._clock()
        rendered = self._leads.rendered()
        self._known.clear()
        for day in {*self._leads.days_with_leads(), *rendered}:
            self._known[day] = self._files.identity(day)
            # What cannot be read, such as a file of another user, is rendered anew.
            with contextlib.suppress(OSError, DailyFileError):
                header = read_header(self._files.path(day))
                newest = rendered[day].snapshot_at if day in rendered else None
                if (header.snapshot_at, header.timezone) == (newest, self._days.zone):
                    continue
            self._changed.setdefault(day, now)

    def _compare_with_disk(self, now: float) -> None:
        for day, identity in self._known.items():
            if self._files.identity(day) != identity:
                self._changed.setdefault(day, now)

    def _render(self, day: date) -> None:
        began = resumed = self._clock()

        def give_way() -> None:
            nonlocal resumed
            self._report_state()
            now = self._clock()
            if now - began < GIVES_WAY_SECONDS:
                self._stopped.wait(now - resumed)
            resumed = self._clock()

        render = self._files.render(day, settles=True, stopped=self._stopped.is_set, nap=give_way)
        ended = self._clock()
        self._changed.pop(day, None)
        self._known[day] = render.identity
        self._schedule.rendered(day, self._today(), render.size, ended)
        self._report({"event": "rendered", "bytes": render.size, "seconds": round(ended - began, 3)})

    def _finish(self) -> None:
        today = self._today()
        with contextlib.suppress(DailyLeadsError, OSError):
            identity = self._known.get(today) if self._renders else None
            if identity is not None and identity[2] < LAST_BYTES and today in self._leads.touched():
                self._files.render(today, settles=True)
        with contextlib.suppress(DailyLeadsError):
            self._leads.give_turn()
        self._leads.close()

    def _try(self, work: Callable[[], None]) -> float:
        """Do the work; the seconds to wait before the next attempt. What fails is an alarm, and is retried for ever."""
        try:
            work()
        except RenderingStoppedError:
            return 0.0
        except DailyLeadsError as error:
            self._renders = False
            # A database that is away is the service's own alarm.
            self._alarm = None if error.away else f"the daily files cannot be rendered: SQLSTATE {error.cause}"
        except OSError as error:
            self._alarm = f"the daily files cannot be written: {error.strerror or 'the folder cannot be used'}"
            if isinstance(error, FileNotFoundError):
                # The alarm first; the next attempt may find it again, or make it.
                with contextlib.suppress(OSError):
                    self._files.make_folder()
        else:
            # A day that failed is still one, while others are rendered.
            self._alarm, self._retry_in = self._alarm if self._failed else None, _FIRST_RETRY
            return LOOK_SECONDS
        pause, self._retry_in = self._retry_in, min(2 * self._retry_in, _LONGEST_RETRY)
        return pause

    def _today(self) -> date:
        return self._days.day_of(datetime.now(UTC))

    def _report_state(self) -> None:
        now = self._clock()
        if now - self._reported_at < REPORT_SECONDS and self._alarm is None:
            return
        self._reported_at = now
        lag = now - min(self._changed.values()) if self._renders and self._changed else 0.0
        self._report({"event": "state", "renders": self._renders, "lag": round(lag, 3), "alarm": self._alarm})


def main() -> None:
    """Take the order, and work until standard input ends."""
    order = json.loads(sys.stdin.readline())
    os.nice(10)  # calls come first on a busy machine
    stopped = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stopped.set()

    def report(event: dict[str, Any]) -> None:
        try:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()
        except (BrokenPipeError, ValueError):
            stopped.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    days = Days(order["timezone"])
    leads = DailyLeads(order["url"], days, identity=UUID(order["database"]), holder=UUID(order["holder"]))
    files = FileStorageService(Path(order["folder"]), days, leads)
    FileWorker(files, leads, days, report=report, stopped=stopped).run()


if __name__ == "__main__":
    main()
