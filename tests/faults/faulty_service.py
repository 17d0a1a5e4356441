"""`python -m tests.faults.faulty_service serve`: the service with faults of ours in it.

Each is named in FAULTS, a comma-separated list, and begins when the file FAULT_FILE exists.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from service.rpc import connections
from service.rpc.readiness import Readiness
from service.storage.access.writer import AccessWriter
from service.storage.intake.drain import Drain
from service.storage.intake.writer import LeadWriter
from service.storage.spool.spool import Spool

VALUE = "+8801711000028"
"""In the text of each fault; it must not reach a log."""


def under_fault() -> bool:
    """Whether the file is there."""
    return Path(os.environ["FAULT_FILE"]).exists()


def failing(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which fails while the file is there."""

    @wraps(method)
    async def fails(*args: Any, **kwargs: Any) -> Any:
        if under_fault():
            raise KeyError(VALUE)
        return await method(*args, **kwargs)

    return fails


def dying(writer: type[Any], submit: str, run_name: str = "run") -> None:
    """Let a task of a writer fail as soon as something is submitted while the file is there."""
    fault = asyncio.Event()
    submits, runs = getattr(writer, submit), getattr(writer, run_name)

    @wraps(submits)
    async def submit_and_die(*args: Any, **kwargs: Any) -> Any:
        if under_fault():
            fault.set()
        return await submits(*args, **kwargs)

    @wraps(runs)
    async def run(self: Any) -> None:
        running = asyncio.ensure_future(runs(self))
        dead = asyncio.ensure_future(fault.wait())
        try:
            await asyncio.wait({running, dead}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()
            dead.cancel()
        if fault.is_set():
            raise KeyError(VALUE)
        await running

    setattr(writer, submit, submit_and_die)
    setattr(writer, run_name, run)


def accepting_nothing() -> None:
    """Let a connection wait in the queue of gRPC's listener while the file is there."""
    connections._waiting = lambda listener: int(under_fault() and bool(listener))  # noqa: SLF001
    connections.LISTENER_SECONDS = 0.05


FAULTS: dict[str, Callable[[], None]] = {
    "lead writer": lambda: dying(LeadWriter, "create"),
    "access writer": lambda: dying(AccessWriter, "record"),
    "spool writer": lambda: dying(LeadWriter, "create", "run_spooling"),
    "spool": lambda: setattr(Spool, "put", failing(Spool.put)),
    "gRPC listener": accepting_nothing,
    "drain": lambda: setattr(Drain, "step", failing(Drain.step)),
    "readiness": lambda: setattr(Readiness, "check", failing(Readiness.check)),
}

if __name__ == "__main__":
    from service.__main__ import main

    for fault in os.environ["FAULTS"].split(","):
        FAULTS[fault]()
    main()
