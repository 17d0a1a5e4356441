"""How long work that goes to the database together waits for more of its kind.

Under load a process gets its calls one by one: each must be accepted and read before the next, while a statement takes
less time than that. A batch that begins as soon as it can would then hold one or two of sixty that are on their way,
and the statement costs as much as all else about a call. So while several are about, a batch begins when the event
loop has come to rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sized

QUIET_TURNS = 10
"""Turns of the event loop that bring nobody before a batch begins: of an idle loop, a tenth of a millisecond. With 6, a
batch held half as many reads at 64 callers, and with 2 a fifth (docs/performance.md)."""

LONGEST_SECONDS = 0.005
"""A turn in which other calls do heavy work takes milliseconds; ten of those are more than a batch is worth."""


class Gathering:
    """What decides it for the batches of one kind, of `largest` entries at most.

    After a batch of one the next does not wait, so that who always comes alone never does.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._came_alone = True

    def took(self, count: int) -> None:
        """A batch of so many begins."""
        self._came_alone = count <= 1

    async def wait(self, waiting: Sized) -> None:
        """Wait for as long as more come, until a batch is full, and for a few milliseconds at most."""
        if self._came_alone:
            return
        quiet, over_at = 0, time.monotonic() + LONGEST_SECONDS
        while quiet < QUIET_TURNS and len(waiting) < self._largest and time.monotonic() < over_at:
            before = len(waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(waiting) == before else 0
