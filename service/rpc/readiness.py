"""Readiness of the service: checked every second and published to every endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from service.rpc.metrics import Metrics
from service.storage.health import Condition, ReadinessReason, tasks_fail

CHECK_SECONDS = 1.0
"""How often the database is asked, and how long it may take to answer. A load balancer asks about as often."""


class Readiness:
    """Ready while leads can be made durable anywhere and nobody has asked the service to stop.

    `probe` asks the database; `assess` turns its answer into a condition.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[bool]],
        assess: Callable[[bool], Condition],
        listener: Callable[[bool], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._probe = probe
        self._assess = assess
        self._listener = listener
        self._metrics = metrics
        self._stopping = False
        self._asking: asyncio.Task[bool] | None = None
        self.ready = False
        self.degraded = False
        self.reasons: tuple[ReadinessReason, ...] = (ReadinessReason.STARTING,)

    async def run(self) -> None:
        """Check every second."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.check()

    async def stop(self) -> None:
        """Be not ready for good."""
        self._stopping = True
        await self._set(Condition(False, {ReadinessReason.STOPPING: "the service was told to stop"}))

    async def check(self) -> None:
        """Ask the database and publish the condition that follows from its answer."""
        # A frozen server never answers, and waiting on its connection cannot be bounded from within: the question is
        # left where it is, and not asked again before it ends.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._probe())
        await asyncio.wait({self._asking}, timeout=CHECK_SECONDS)
        if self._stopping:
            return
        try:
            condition = self._assess(self._asking.done() and self._asking.result())
        except Exception:
            # The last condition may have changed meanwhile.
            await self._set(Condition(self.ready, tasks_fail(["readiness"])))
            raise
        await self._set(condition)

    async def _set(self, condition: Condition) -> None:
        reasons = condition.reasons
        degraded = condition.usable and bool(reasons)
        changed = (condition.usable, reasons) != (self.ready, self.reasons)
        if condition.usable != self.ready:
            # First: when it fails, the next check finds that nothing was published yet.
            await self._listener(condition.usable)
        self.ready, self.degraded, self.reasons = condition.usable, degraded, reasons
        if changed:
            self._metrics.ready.set(self.ready)
            self._metrics.degraded.set(degraded)
            state = "degraded" if degraded else "ready" if self.ready else "not ready"
            # The details stay here: /readyz is open to everybody and shows the words alone.
            detail = "; ".join(condition.details.values())
            structlog.get_logger("leadkeep.readiness").info(state, reasons=reasons, detail=detail or None)
