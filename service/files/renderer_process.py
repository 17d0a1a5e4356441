"""The process that renders the daily files, seen from the service.

Promise: nothing here ever makes a call wait or fail. The process ends when the service does, in whatever way. When it
ends or falls silent before that, the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import structlog

SILENCE_SECONDS = 60.0
"""The process writes an event once a second, during a render too; what hangs longer is ended and started again."""

USUAL_SILENCE_SECONDS = 3.0
"""Longer without an event, on a busy machine too, means that nothing is rendered: that counts as lag."""


class RendererEndedError(Exception):
    """The process ended before it was asked to."""


class FileRendering:
    """The process of `replica` that renders the files of `folder`, and the state that it reports.

    `identity` answers which database was confirmed, None as long as there is none. `on_render` gets the bytes and
    seconds of each render.
    """

    def __init__(
        self,
        *,
        url: str,
        replica: str,
        folder: Path,
        timezone: str,
        identity: Callable[[], UUID | None],
        on_render: Callable[[int, float], None],
    ) -> None:
        self._order = {"url": url, "folder": str(folder), "timezone": timezone}
        self._replica = replica
        self._identity = identity
        self._on_render = on_render
        self._process: asyncio.subprocess.Process | None = None
        self._finishing = False
        self._renders = False
        self._waiting_since: float | None = None
        self._reported_at = time.monotonic()
        self._log = structlog.get_logger("leadkeep.files")
        self.alarm: str | None = None
        """Why the files do not follow; None while they do. Holds no value."""

    @property
    def lag(self) -> float:
        """Seconds for which the oldest change has waited for its file; 0 while another replica renders.

        Of a process that hangs nobody knows what waits: its silence is the lag.
        """
        now = time.monotonic()
        waiting = 0.0 if self._waiting_since is None else now - self._waiting_since
        silence = now - self._reported_at
        return max(waiting, silence) if self._renders and silence > USUAL_SILENCE_SECONDS else waiting

    def finish(self) -> None:
        """Let the process render a small file once more, and end; `run` returns then."""
        self._finishing = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def run(self) -> None:
        """Run the process until `finish`. Raises whatever ended it before, TimeoutError when it fell silent."""
        while (identity := self._identity()) is None:
            if self._finishing:
                return
            await asyncio.sleep(0.2)
        try:
            await self._run_process(identity)
        finally:
            if not self._finishing:
                self._renders, self._waiting_since = False, None
                self._set_alarm("the process that renders the daily files ended")
        if not self._finishing:
            raise RendererEndedError

    async def _run_process(self, identity: UUID) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.files.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A failure's traceback may hold a line of the database.
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
            # Ctrl-C at a terminal is for the service; this process ends with it.
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101 # both are pipes
        assert process.stdout is not None  # noqa: S101
        order = self._order | {"database": str(identity), "holder": str(uuid5(identity, self._replica))}
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
            if self._finishing:
                process.stdin.close()
            while line := await asyncio.wait_for(process.stdout.readline(), SILENCE_SECONDS):
                self._apply(json.loads(line))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _apply(self, event: dict[str, Any]) -> None:
        self._reported_at = time.monotonic()
        if event["event"] == "rendered":
            self._on_render(event["bytes"], event["seconds"])
            return
        if event["renders"] and not self._renders:
            self._log.info("this replica renders the daily files")
        self._renders = event["renders"]
        self._waiting_since = time.monotonic() - event["lag"] if event["lag"] else None
        self._set_alarm(event["alarm"])

    def _set_alarm(self, alarm: str | None) -> None:
        if alarm == self.alarm:
            return
        self.alarm = alarm
        if alarm is None:
            self._log.info("daily files are written again")
        else:
            self._log.error("daily files alarm", reason=alarm)


def _environment() -> dict[str, str]:
    """The environment without our settings, some of which are secrets: the order has all that is needed.

    The PG… variables stay: they belong to the URL. So does how Python finds this package.
    """
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("LEADKEEP_")}
    kept["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return kept
