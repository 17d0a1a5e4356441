"""Which day a moment belongs to: days of one time zone, half-open, on the days when the clocks change too.

Every moment belongs to exactly one day. Where the clocks jump over midnight, the day begins with the jump; where they
go back to it, with the first of both midnights.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

ONE_DAY = timedelta(days=1)


class Days:
    """The days of the time zone with this IANA name. Raises ZoneInfoNotFoundError or ValueError for another name."""

    def __init__(self, zone: str) -> None:
        self.zone = zone
        self._zone = ZoneInfo(zone)

    def bounds(self, day: date) -> tuple[datetime, datetime]:
        """The first moment of the day, and the first one after it, in UTC."""
        return self._midnight(day), self._midnight(day + ONE_DAY)

    def day_of(self, moment: datetime) -> date:
        """The day of a moment that knows its offset."""
        day = moment.astimezone(self._zone).date()
        # Clocks that go back over midnight show yesterday's date again, within a day that has begun.
        if moment >= self._midnight(day + ONE_DAY):
            return day + ONE_DAY
        return day if moment >= self._midnight(day) else day - ONE_DAY

    def _midnight(self, day: date) -> datetime:
        # fold=0 is the first of two midnights, and the moment of the jump where there is none (PEP 495).
        return datetime(day.year, day.month, day.day, tzinfo=self._zone).astimezone(UTC)
