"""Offset of the database's clock to this machine's, measured by queries that run anyway.

An erasure is dated by the database, a spooled submission by this machine, whose clock may be wrong. With the offset the
two can be compared. It is an interval, never a guess: a measurement is wrong by the time that its query took, and grows
older while the database is away. Between measurements the monotonic clock counts, which nobody sets. It stands still
while a machine sleeps, so where it and the wall clock disagree, both may be right.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

DRIFT = 0.001
"""Seconds a second by which a clock may run wrong: a quartz by a tenth of it, one that NTP slews by half of it."""


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far the database's clock is ahead of this machine's, and by how much at most that is wrong either way."""

    ahead: timedelta
    error: timedelta

    def bounds(self, moment: datetime) -> tuple[datetime, datetime]:
        """A moment of this machine's clock by the database's, at the earliest and at the latest."""
        return moment + self.ahead - self.error, moment + self.ahead + self.error


@dataclass(frozen=True, slots=True)
class Reading:
    """This machine's clocks at one moment, in seconds."""

    wall: float
    monotonic: float


@dataclass(frozen=True, slots=True)
class _Measurement:
    database: float
    began: Reading
    ended: Reading

    def bounds(self, now: Reading) -> tuple[float, float]:
        """The database's time at the earliest and at the latest, in seconds since 1970."""
        drift = DRIFT * (now.monotonic - self.began.monotonic)
        since = [
            now.monotonic - self.began.monotonic,
            now.monotonic - self.ended.monotonic,
            now.wall - self.began.wall,
            now.wall - self.ended.wall,
        ]
        return self.database + min(since) - drift, self.database + max(since) + drift

    def error(self, now: Reading) -> float:
        earliest, latest = self.bounds(now)
        return (latest - earliest) / 2


class DatabaseClock:
    """The database's clock as far as it is known here. `wall` and `monotonic` are this machine's clocks, in seconds."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._best: _Measurement | None = None

    def read(self) -> Reading:
        """This machine's clocks now: to be called before a query that returns the database's time."""
        return Reading(self._wall(), self._monotonic())

    def measured(self, began: Reading, database: datetime) -> None:
        """A query that began at `began` and has just ended returned the database's time.

        A more exact measurement from before is kept, unless the two contradict each other: then a clock was set, or
        another server answers.
        """
        now = self.read()
        found = _Measurement(database.timestamp(), began, now)
        if self._best is not None and self._best.error(now) <= found.error(now):
            (earliest, latest), (least, most) = self._best.bounds(now), found.bounds(now)
            if earliest <= most and least <= latest:
                return
        self._best = found

    def now(self) -> tuple[datetime, ClockOffset | None]:
        """This machine's time, and the offset of the database's clock to it; None when it was never measured."""
        now = self.read()
        moment = datetime.fromtimestamp(now.wall, UTC)
        if self._best is None:
            return moment, None
        earliest, latest = self._best.bounds(now)
        ahead = timedelta(seconds=(earliest + latest) / 2 - now.wall)
        return moment, ClockOffset(ahead, timedelta(seconds=(latest - earliest) / 2))
