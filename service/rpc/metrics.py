"""What is counted and measured. Labels are names from the contract and fixed words, never a caller's values."""

from __future__ import annotations

import asyncio

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from service.files.renderer_process import FileRendering
from service.log import log_stream
from service.storage.intake.all_spools import AllSpools
from service.storage.spool.spool import Spool

# Seconds: from a call that needs no database (half a millisecond) to the longest one that is waited for.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.calls = Counter(
            "leadkeep_calls", "Calls by rpc, door and status code.", ["rpc", "door", "code"], registry=registry
        )
        self.latency = Histogram(
            "leadkeep_call_seconds", "Time to answer.", ["rpc", "door"], buckets=BUCKETS, registry=registry
        )
        self.in_flight = Gauge("leadkeep_calls_in_flight", "Calls that are being answered.", registry=registry)
        self.client_retries = Counter(
            "leadkeep_client_retries", "Calls that a client had tried before.", ["rpc"], registry=registry
        )
        self.storage_retries = Counter(
            "leadkeep_storage_retries", "Repeated storage calls by SQLSTATE.", ["rpc", "cause"], registry=registry
        )
        self.ready = Gauge("leadkeep_ready", "1 while the service can be used.", registry=registry)
        self.degraded = Gauge("leadkeep_degraded", "1 while it can be used but all is not well.", registry=registry)
        self.commits_wait_for = Gauge(
            "leadkeep_commits_wait_for",
            "Standbys that a commit waits for, when the database was last asked; 0: its own disk only.",
            registry=registry,
        )
        self.batches = Histogram(
            "leadkeep_batch_leads", "Leads a transaction.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.delayed = Counter("leadkeep_delayed", "Leads that were acknowledged as DELAYED.", registry=registry)
        self.drained = Counter(
            "leadkeep_drained", "Spooled submissions by what became of them.", ["outcome"], registry=registry
        )
        self.file_renders = Counter("leadkeep_file_renders", "Daily files that were rendered.", registry=registry)
        self.file_bytes = Counter("leadkeep_file_bytes", "Bytes written into daily files.", registry=registry)
        self.file_seconds = Histogram(
            "leadkeep_file_seconds", "Time to render a daily file.", buckets=BUCKETS, registry=registry
        )
        self.task_failures = Counter(
            "leadkeep_task_failures", "Failures of background tasks by task.", ["task"], registry=registry
        )
        self.refusals = Counter(
            "leadkeep_refusals",
            "Connections, messages, streams and answers closed at a limit of what callers hold.",
            ["door", "reason"],
            registry=registry,
        )
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def set_readiness(self, ready: bool, degraded: bool) -> None:
        """Show whether the service can be used, and whether all is well."""
        self.ready.set(ready)
        self.degraded.set(degraded)

    def on_render(self, size: int, seconds: float) -> None:
        """Count one render of a daily file."""
        self.file_renders.inc()
        self.file_bytes.inc(size)
        self.file_seconds.observe(seconds)

    def watch_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the loop's tasks whenever somebody asks; in that loop, for a set of tasks is not safe elsewhere."""
        Gauge("leadkeep_tasks", "Tasks of the event loop.", registry=self.registry).set_function(
            lambda: len(asyncio.all_tasks(loop))
        )

    def watch(self, spool: Spool, files: FileRendering, spools: AllSpools) -> None:
        """Measure the spool, the daily files, the erasures that wait and the log whenever somebody asks."""
        for name, meaning, value in (
            ("spool_entries", "Leads that wait in the spool.", lambda: spool.size.waiting),
            ("spool_damaged", "Spooled leads that were set aside.", lambda: spool.size.damaged),
            ("spool_bytes", "Bytes in the spool.", lambda: spool.size.bytes),
            ("spool_oldest_seconds", "Age of the oldest spooled lead.", lambda: spool.size.age),
            ("spool_usable", "1 while the spool takes leads.", lambda: float(spool.usable)),
            (
                "open_erasures",
                "Erasures that wait for some replica to apply them to its spool.",
                lambda: sum(each.erasures for each in spools.waiting),
            ),
            ("files_lag_seconds", "How long the oldest change has waited for its file.", lambda: files.lag),
            ("log_lines_lost", "Lines that could not be written to the log.", lambda: log_stream().lost),
            ("files_alarm", "1 while the daily files cannot be rendered.", lambda: float(files.alarm is not None)),
        ):
            Gauge(f"leadkeep_{name}", meaning, registry=self.registry).set_function(value)
