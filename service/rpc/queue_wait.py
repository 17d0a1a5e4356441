"""Estimate of how long gRPC calls waited before this process took them.

gRPC does not report it: a call that waited has little time left, like a call whose caller asked for little. But most
callers ask for about the same time whenever they call. When many calls come, and even the one with the most time left
has less than the usual, they have waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PERIOD_SECONDS = 1.0
"""The last two periods are compared with what is usual."""

MANY = 50
"""Calls in two periods below which none has waited: a process that cannot keep up takes some hundreds a second."""

KEPT = 0.999
"""Of what is usual after each period. It is forgotten within an hour, which no overload should last."""


@dataclass(slots=True)
class _Period:
    calls: int = 0
    longest: float = 0.0


class QueueWait:
    """Asked once for each call that has a deadline."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usual = 0.0
        self._last, self._this = _Period(), _Period()
        self._ends = 0.0

    def seconds(self, left: float) -> float:
        """How long the calls that come now have waited; `left` is the time left for one of them, in seconds."""
        if (now := self._clock()) >= self._ends:
            self._usual = max(self._usual * KEPT, self._this.longest)
            # Nothing of before a pause: what waited meanwhile comes now.
            self._last = self._this if now < self._ends + PERIOD_SECONDS else _Period()
            self._this = _Period()
            self._ends = now + PERIOD_SECONDS
        self._this.calls += 1
        self._this.longest = max(self._this.longest, left)
        if self._last.calls + self._this.calls < MANY:
            return 0.0
        return max(0.0, self._usual - max(self._last.longest, self._this.longest))
