"""`python -m tests.faults.faulty_service serve`: the service with faults of ours in it.

Each is named in FAULTS, a comma-separated list, and begins when the file FAULT_FILE exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from service.http.door import UvicornServer
from service.rpc.readiness import Readiness
from service.storage import access_writer, writer
from service.storage.drain import Drain
from service.storage.gathering import Gathering
from service.storage.spool import Spool

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


class BrokenGathering(Gathering):
    """A gathering that fails while the file is there."""

    wait = failing(Gathering.wait)


FAULTS: dict[str, Callable[[], None]] = {
    "lead writer": lambda: setattr(writer, "Gathering", BrokenGathering),
    "access writer": lambda: setattr(access_writer, "Gathering", BrokenGathering),
    "spool writer": lambda: setattr(Spool, "meeting", failing(Spool.meeting)),
    "spool": lambda: setattr(Spool, "put", failing(Spool.put)),
    "drain": lambda: setattr(Drain, "step", failing(Drain.step)),
    "HTTP endpoint": lambda: setattr(UvicornServer, "on_tick", failing(UvicornServer.on_tick)),
    "readiness": lambda: setattr(Readiness, "look", failing(Readiness.look)),
}

if __name__ == "__main__":
    from service.__main__ import main

    for fault in os.environ["FAULTS"].split(","):
        FAULTS[fault]()
    main()
