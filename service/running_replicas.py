"""The replicas that run, and waiting until all of them have followed a change of keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import StartRefusedError
from service.storage.database import Database
from service.storage.replicas import Replica, known_name, replicas
from service.storage.spool import has_owner

LOOK_SECONDS = 0.5
"""How often it is looked whether the replicas have followed."""


class RunningReplicas:
    """`spool` is the folder of this machine's own replica. `tell` hears who is waited for, for `timeout` seconds."""

    def __init__(self, database: Database, *, spool: Path, tell: Callable[[str], None], timeout: float) -> None:
        self._database = database
        self._spool = spool
        self._tell = tell
        self._timeout = timeout

    async def follow(self, followed: Callable[[Replica], bool], what: str) -> None:
        """Wait until this is true of every running replica. Raises StartRefusedError."""
        deadline = time.monotonic() + self._timeout
        told: set[str] = set()
        while late := [each for each in await self._running() if not followed(each)]:
            if time.monotonic() > deadline:
                named = ", ".join(f"{each.name} (heard of {each.silent_seconds:.0f} s ago)" for each in late)
                raise StartRefusedError(
                    f"waited {self._timeout:g} s in vain for {named} {what}. Nothing is lost: run the same command "
                    "again; a replica that is gone for good is left out with --forget NAME"
                )
            for each in late:
                if each.name not in told:
                    told.add(each.name)
                    self._tell(f"waiting for replica {each.name} {what}")
            await asyncio.sleep(LOOK_SECONDS)

    async def _running(self) -> list[Replica]:
        """As far as is known; of this machine's own it is known for sure."""
        said = [each for each in await replicas(self._database) if each.running]
        if has_owner(self._spool):
            return said
        # It was killed and could not say so. When it starts it takes its spool first, and reads what was changed.
        return [each for each in said if each.name != known_name(self._spool)]
