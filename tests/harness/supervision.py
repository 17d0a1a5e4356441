"""Components run in tests as the service runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.supervisor import Component, Supervisor


def nothing_to_do() -> None:
    """No process ends in a test when a vital task does."""


@asynccontextmanager
async def running(*components: Component) -> AsyncIterator[Supervisor]:
    """The components, stopped in order at the end."""
    supervisor = Supervisor(on_death=nothing_to_do)
    supervisor.start(components)
    try:
        yield supervisor
    finally:
        await supervisor.stop(20)
