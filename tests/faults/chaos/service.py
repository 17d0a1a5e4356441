"""The service under test: on ports that stay, killed and started again, every time without it noted."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from tests.faults.chaos.history import SERVICE_DOWN, History
from tests.harness.ports import free_port
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

ROLE = "admin"


class KilledService:
    """A RunningService with a history."""

    def __init__(
        self, folder: Path, database_url: str, history: History, *, settings: Mapping[str, str] | None = None
    ) -> None:
        self._history = history
        addresses = {f"LEADKEEP_{endpoint}_ADDRESS": f"127.0.0.1:{free_port()}" for endpoint in ("GRPC", "HTTP")}
        # One line a call would be most of the work of a loaded service, and hundreds of megabytes.
        quiet = {"LEADKEEP_LOG_LEVEL": "warning"}
        self.running = RunningService(
            folder / "leadkeep", database_url=database_url, settings=addresses | quiet | dict(settings or {})
        )
        self.kills = 0

    @property
    def address(self) -> str:
        """Of the gRPC endpoint."""
        return self.running.grpc_address

    @property
    def spool_folder(self) -> Path:
        """Where its spool lies."""
        return Path(self.running.environment.get("LEADKEEP_SPOOL_DIR", str(self.running.data_dir / "spool")))

    def start(self) -> None:
        """Start it; ready when this returns."""
        self.running.start()

    def token(self) -> list[tuple[str, str]]:
        """For every call."""
        return self.running.metadata(ROLE, subject=self._history.subject)

    def kill_and_start(self, before_start: Callable[[], None] = lambda: None) -> None:
        """kill -9, and a new start."""
        with self._history.window(SERVICE_DOWN):
            self.running.kill()
            self.kills += 1
            before_start()
            self.running.start()

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        values = self._values(name)
        assert values, f"there is no metric {name}"
        return values[0]

    def spooled(self) -> int:
        """How many leads wait in its spool."""
        return int(self.metric("leadkeep_spool_entries"))

    def wait_until_drain_begins(self) -> None:
        """Until this process has drained something, if it does so soon."""
        eventually(lambda: sum(self._values(r"leadkeep_drained_total\{.*\}")) > 0, within=5)

    def undrained(self, within: float = 60) -> list[str]:
        """Wait until nothing is in the spool any more; what is there still, in words."""
        if not eventually(lambda: self.spooled() == 0, within=within):
            return [f"{self.spooled()} leads wait in the spool for good"]
        aside = int(self.metric("leadkeep_spool_damaged"))
        return [f"the drain has set {aside} leads aside"] if aside else []

    def stop(self) -> None:
        """End it, in order if it can."""
        process = self.running.process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            self.running.stop()

    def _values(self, pattern: str) -> list[float]:
        text = httpx.get(f"{self.running.http_url}/metrics", timeout=10).text
        return [float(found[1]) for found in re.finditer(rf"^{pattern} (\S+)$", text, re.MULTILINE)]
