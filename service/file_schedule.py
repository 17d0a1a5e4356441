"""When is which daily file rendered? Often enough to be current, seldom enough not to be felt.

After each render there is a pause that grows with what was written: 5,000 leads (8 MB) pause for half a second, 100,000
(160 MB) for 50 seconds. Today has a pace of its own, so that it does not wait behind older days; those share
another one. So at most 36 MB a second are ever written, whatever is touched, and 6 MB a second from 100,000
leads on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

SHORTEST_PAUSE = 0.3
"""Seconds: with a render of a tenth of that, a small day is current within half a second."""

_BYTES = 12_000_000
_POWER = 1.5
"""Pause in seconds = (bytes / 12 MB) ^ 1.5: chosen so that 5,000 leads stay within 2 s, and 100,000 within 60 s."""


def pause_after(size: int) -> float:
    """Seconds of rest after a render of `size` bytes."""
    rest: float = (size / _BYTES) ** _POWER
    return max(SHORTEST_PAUSE, rest)


class Schedule:
    """Which of the days that changed is due. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._today_from = 0.0
        self._others_from = 0.0

    def due(self, changed: Mapping[date, float], today: date, now: float) -> date | None:
        """The day to render now: today first, then the one that changed first; None to wait."""
        if today in changed and now >= self._today_from:
            return today
        others = [day for day in changed if day != today]
        if others and now >= self._others_from:
            return min(others, key=lambda day: (changed[day], day))
        return None

    def rendered(self, day: date, today: date, size: int, now: float) -> None:
        """A render of `day` ended now."""
        if day == today:
            self._today_from = now + pause_after(size)
        else:
            self._others_from = now + pause_after(size)
