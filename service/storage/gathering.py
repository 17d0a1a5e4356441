"""How long work that goes to the database together waits for more of its kind.

Under load a process gets its calls one by one: each must be accepted and read before the next, while a statement takes
less time than that. A batch that begins as soon as it can would then hold one or two of sixty that are on their way,
and the statement costs as much as all else about a call. So while several are about, a batch begins when the event
loop has come to rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager

QUIET_TURNS = 40
"""Turns of the event loop that bring nobody before a batch begins: of an idle loop, a tenth of a millisecond
(docs/performance.md)."""

QUIET_TURNS_EACH = 5
"""For each one who is about, while they are few: two callers have waited long enough after 10 turns."""

LONGEST_SECONDS = 0.02
"""Under load each call takes a fraction of a millisecond to come this far: with 5 ms a batch held nine of 64 callers,
with 15 ms 22. The bound is for turns in which other calls do heavy work: each takes milliseconds and brings nobody."""


class Gathering:
    """What decides it for the batches that are taken from `waiting`, one after the other, of `largest` entries at most.

    Who comes alone never waits: nobody else was in the batch before, or came while that was under way. What counts is
    not only how many wait. A busy process would write one by one for ever: what a statement of one costs keeps the next
    entry from being accepted meanwhile.
    """

    def __init__(self, waiting: Sized, largest: int) -> None:
        self._waiting = waiting
        self._largest = largest
        self._company = 0

    async def wait(self) -> None:
        """Wait for as long as more come, until a batch is full, and for LONGEST_SECONDS at most."""
        if self._about() <= 1:
            return
        quiet, over_at = 0, time.monotonic() + LONGEST_SECONDS
        while (
            quiet < min(QUIET_TURNS, QUIET_TURNS_EACH * self._about())
            and len(self._waiting) < self._largest
            and time.monotonic() < over_at
        ):
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == before else 0

    def _about(self) -> int:
        """How many there are at least, as far as can be told."""
        return max(self._company, len(self._waiting))

    @contextmanager
    def under_way(self, count: int) -> Iterator[None]:
        """A batch of so many, from its beginning to its end."""
        try:
            yield
        finally:
            self._company = count + len(self._waiting)
