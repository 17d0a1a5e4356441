"""Starts, watches and stops the background tasks of the service; the waits before what failed is tried again.

Promises: a task that fails is logged by the type of its error, counted, and restarted with backoff; `failing` names it
until it has run for a while. A vital task is not restarted: its end is the end of the process. A stop ends the
tasks in the reverse order of their start, and each step of it takes half of the time that is left at most.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import backoff
import structlog

FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
"""Seconds before a restart, at most: after the first failure, and after many."""

HEALTHY_AFTER = 70.0
"""Seconds without a failure after which a restarted task counts as healthy: more than the longest interval between two
pieces of work of one task, which is a minute (the access heads)."""


SAVING_SECONDS = 1.0
"""Seconds that the `stop` of a task may take at least: waiting leads must be spooled, even when no time is left."""

SHUTDOWN_DELAY = 2.0
"""Seconds: what a load balancer that asks once a second, or a watcher of health, needs to send calls elsewhere."""


def longest_wait(failures: int, *, first: float, longest: float) -> float:
    """Upper bound in seconds of the wait after so many failures before this one: doubles from `first` to `longest`."""
    # The exponent is bounded as well: 2.0 ** 1024 overflows, and a task that always fails gets there.
    return min(longest, first * 2.0 ** min(failures, 32))


def jittered_wait(failures: int, *, first: float, longest: float) -> float:
    """A random wait up to `longest_wait` (full jitter), so that those who failed together do not retry together."""
    return backoff.full_jitter(longest_wait(failures, first=first, longest=longest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A background task: `run` is its work, and whatever it raises is a fault."""

    name: str
    run: Callable[[], Awaitable[None]]
    vital: bool = False
    """Whether its end is the end of the process."""
    finish: Callable[[], None] | None = None
    """Asks `run` to return in order; None: it is cancelled."""
    stop: Callable[[], Awaitable[None]] | None = None
    """Cleans up at every stop, after `run` has ended in whatever way."""
    on_clean_stop: Callable[[], Awaitable[None]] | None = None
    """Writes to the database at a stop in order, after everything else."""


@dataclass(slots=True, eq=False)
class _Supervised:
    component: Component
    task: asyncio.Task[None] = field(init=False)
    healthy_at: float = -math.inf
    """When it counts as healthy, on the monotonic clock; infinite while it waits for its restart."""
    ending: bool = False


class Supervisor:
    """The background tasks of one process. `on_failure` gets the name of each task that failed; `on_death` is called
    when a vital one ended, and must end the process by way of `stop`."""

    def __init__(
        self,
        *,
        on_death: Callable[[], None],
        on_failure: Callable[[str], None] = lambda _: None,
        first_wait: float = FIRST_WAIT,
        healthy_after: float = HEALTHY_AFTER,
    ) -> None:
        self._on_death = on_death
        self._on_failure = on_failure
        self._first_wait = first_wait
        self._healthy_after = healthy_after
        self._supervised: list[_Supervised] = []
        self._log = structlog.get_logger("leadkeep.supervisor")
        self.died: str | None = None
        """The vital task that ended."""

    @property
    def failing(self) -> tuple[str, ...]:
        """The tasks that failed and have not run for long enough since."""
        now = time.monotonic()
        return tuple(each.component.name for each in self._supervised if each.healthy_at > now)

    @property
    def idle(self) -> bool:
        """Whether there is no task: none was started, or all are stopped."""
        return not self._supervised

    def start(self, components: Sequence[Component]) -> None:
        """Start tasks, behind those that were started before."""
        for component in components:
            supervised = _Supervised(component)
            supervised.task = asyncio.create_task(self._supervise(supervised), name=component.name)
            self._supervised.append(supervised)

    async def stop(self, seconds: float, *, in_order: bool = True, vital_only: bool = False) -> None:
        """End the tasks, in so many seconds.

        Without `in_order`, as when the database is away, all are cancelled and `on_clean_stop` is left out.
        """
        until = time.monotonic() + seconds
        for each in self._supervised[::-1]:
            if each.component.vital or not vital_only:
                await self._stop_one(each, until, in_order=in_order)
                self._supervised.remove(each)

    async def _stop_one(self, supervised: _Supervised, until: float, *, in_order: bool) -> None:
        component, task = supervised.component, supervised.task
        supervised.ending = True
        if component.finish is not None:
            component.finish()
            if in_order and supervised.healthy_at < math.inf:
                await asyncio.wait({task}, timeout=_half(until))
        task.cancel()
        await asyncio.wait({task}, timeout=_half(until))
        if component.stop is not None:
            await self._run_at_stop(component.stop, component.name, max(_half(until), SAVING_SECONDS))
        if component.on_clean_stop is not None and in_order:
            await self._run_at_stop(component.on_clean_stop, component.name, _half(until))

    async def _run_at_stop(self, work: Callable[[], Awaitable[None]], name: str, seconds: float) -> None:
        doing = asyncio.ensure_future(work())
        await asyncio.wait({doing}, timeout=seconds)
        if not doing.done():
            # Its exception is read, or asyncio would print the text, which may hold values.
            doing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            doing.cancel()
            self._log.error("a stop took too long", task=name)
        elif not doing.cancelled() and (error := doing.exception()) is not None:
            self._log.error("a stop failed", task=name, error=type(error).__qualname__)

    async def _supervise(self, supervised: _Supervised) -> None:
        name, failures = supervised.component.name, 0
        while True:
            began = time.monotonic()
            error = await self._run(supervised.component)
            if supervised.ending and error is not None:
                self._log.error("a stop failed", task=name, error=error)
            if supervised.ending or (error is None and not supervised.component.vital):
                return
            failures = 0 if time.monotonic() - began > self._healthy_after else failures
            failures += 1
            supervised.healthy_at = math.inf
            self._on_failure(name)
            if supervised.component.vital:
                self._log.error("a vital task ended: the service stops", task=name, error=error)
                self.died = self.died or name
                self._on_death()
                return
            wait = jittered_wait(failures - 1, first=self._first_wait, longest=LONGEST_WAIT)
            self._log.error("a background task failed", task=name, error=error, restarts_in=round(wait, 1))
            await asyncio.sleep(wait)
            supervised.healthy_at = time.monotonic() + self._healthy_after

    async def _run(self, component: Component) -> str | None:
        """The type of the error that ended the task; None when it returned."""
        try:
            await component.run()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Something that it waited for was cancelled, not the task.
            return type(error).__qualname__
        except Exception as error:  # noqa: BLE001 # whatever it is, its text stays here: it may hold values
            return type(error).__qualname__
        return None


def _half(until: float) -> float:
    return max(0.0, until - time.monotonic()) / 2


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
