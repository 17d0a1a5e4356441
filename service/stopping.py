"""The stop of `serve`: what asks for it, and how the calls that run are ended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from service.rpc.call import Work
from service.supervisor import Supervisor

KEPT_SECONDS = 1.0
"""Seconds of the grace that running calls do not get, for the stop of everything else; at most a quarter of it. When
callers who do not read have used it up, the rest gets as much once more."""


DRAIN_SECONDS = 2.0
"""For callers to notice that the service stops: each that waits for one answer before its next call does so sooner."""

ANSWERING_SHARE = 0.9
"""Of the time for running calls; in the rest, those that are not done are answered that the service stops."""

SHUTDOWN_DELAY = 2.0
"""Seconds: what a load balancer that asks once a second, or a watcher of health, needs to send calls elsewhere."""


class Endpoint(Protocol):
    """What takes calls."""

    async def stop(self, grace: float) -> None:
        """Must take no new calls from its first step on, and wait at most `grace` seconds for those that run."""


def handle_signals(stop: Callable[[], None], reload: Sequence[Callable[[], None]]) -> None:
    """SIGTERM and SIGINT stop the service; SIGHUP makes it read keyring and TLS files again."""
    at_terminal = os.isatty(0)

    def on_hangup() -> None:
        # A terminal that was closed sends it too: then the service ends, because nobody sees it any more.
        for react in [stop] if at_terminal and not os.isatty(0) else reload:
            react()

    loop = asyncio.get_running_loop()
    for number, react in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, on_hangup)):
        loop.add_signal_handler(number, react)


def shutdown_delay(chosen: float | None) -> float:
    """Seconds in which calls are still taken; by default none at a terminal, where somebody waits for the end."""
    if chosen is not None:
        return chosen
    return 0 if os.isatty(0) else SHUTDOWN_DELAY


async def end_calls(endpoints: Sequence[Endpoint], work: Work, supervisor: Supervisor, grace: float) -> float:
    """End the calls in `grace` seconds, less what the rest of the stop needs; the seconds that are left then."""
    end = time.monotonic() + grace
    calls_end = end - min(KEPT_SECONDS, grace / 4)
    if supervisor.died is not None:
        # Callers are answered at once: leads that wait for the database are spooled, accesses are refused.
        await supervisor.stop(_left(calls_end), in_order=False, vital_only=True)
    await work.drain(min(DRAIN_SECONDS, _left(calls_end)))
    stops = [asyncio.create_task(each.stop(_left(calls_end))) for each in endpoints]
    # They have begun now: clients know that this server goes.
    await asyncio.sleep(0)
    work.release()
    await asyncio.wait(stops, timeout=_left(calls_end) * ANSWERING_SHARE)
    work.give_up()
    await asyncio.gather(*stops)
    # A call whose caller has left is finished too: its lead may be half-way into the database.
    await work.finish(_left(calls_end))
    return _left(end)


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
