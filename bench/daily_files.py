"""`python -m bench.daily_files [leads] [minutes]`: what the daily file of a large day costs, and whom.

A day gets its leads (100,000 by default) through `leadkeep import`. Then leads are created at a steady pace, open loop,
while the service renders the day again and again at the pace that it chooses itself. Each call belongs to a render or
to the time between two renders, by whether its latency overlaps with one; so both are measured in the same minutes on
the same database. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import asyncio
import csv
import json
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from bench.databases import database, fresh_postgres
from tests.harness.daily_files import file_of
from tests.harness.leads import somebody
from tests.harness.processes import eventually, family, resident_megabytes
from tests.harness.running_service import RunningService

LEADS = 100_000
MINUTES = 6.0
PER_SECOND = 40
"""Calls a second: a busy day's peak for 100,000 leads, and little enough that a queue never forms without a render."""

SECONDS_GOAL = 6.0
MEMORY_GOAL = 64.0
LATENCY_GOAL = 1.5
LAG_GOAL = 120.0


@dataclass
class Watch:
    """What was seen from outside, every 50 ms: renders by their temporary file, and the memory of all processes."""

    folder: Path
    pid: int
    renders: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each finished render."""
    resting: list[float] = field(default_factory=list)
    """Megabytes of the service and its processes, between two renders."""
    rendering: list[float] = field(default_factory=list)
    snapshots: list[tuple[float, float]] = field(default_factory=list)
    """When each new file appeared, and the time of its snapshot."""

    def run(self, stopped: threading.Event) -> None:
        began: float | None = None
        last: object = None
        processes = family(self.pid)  # looked for once: reading all of /proc would be felt by the callers
        while not stopped.wait(0.05):
            at_work = bool(list(self.folder.glob(".leads_*.tmp")))
            now = time.time()
            memory = sum(map(resident_megabytes, processes))
            (self.rendering if at_work else self.resting).append(memory)
            if at_work and began is None:
                began = now
            elif not at_work and began is not None:
                self.renders.append((began, now))
                began = None
            for path in self.folder.glob("leads_*.json"):
                with suppress(FileNotFoundError):
                    if (found := path.stat().st_ino) != last:
                        last = found
                        with path.open() as file:
                            header = json.loads(file.readline().rstrip(",\n") + "}")
                        self.snapshots.append((now, datetime.fromisoformat(header["snapshot_at"]).timestamp()))


async def steady(service: RunningService, seconds: float) -> list[tuple[float, float]]:
    """Create leads at a steady pace, whatever becomes of the ones before. Begin and end of each call."""
    token = service.metadata("chatbot")
    calls: list[tuple[float, float]] = []
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)

        async def call() -> None:
            began = time.time()
            await stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=token, timeout=20)
            calls.append((began, time.time()))

        tasks, first = [], time.monotonic()
        for number in range(int(seconds * PER_SECOND)):
            await asyncio.sleep(max(0.0, first + number / PER_SECOND - time.monotonic()))
            tasks.append(asyncio.ensure_future(call()))
        await asyncio.gather(*tasks)
    return calls


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def import_leads(service: RunningService, folder: Path, leads: int) -> None:
    path = folder / "leads.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "phone", "nid", "address", "interested_policy", "email", "notes"])
        for number in range(leads):
            writer.writerow(
                [
                    f"Person {number}",
                    f"+88018{number:08d}",
                    f"20{number:011d}",
                    f"{number} Lake Road, Dhaka",
                    "Term Life 20-Year",
                    f"person{number}@example.org",
                    f"note {number}",
                ]
            )
    began = time.monotonic()
    service.leadkeep("import", str(path))
    print(f"imported {leads} leads at {leads / (time.monotonic() - began):.0f} a second")


def report(watch: Watch, calls: list[tuple[float, float]], written: float, minutes: float) -> bool:
    """Print the table; whether every goal was reached."""
    during = [end - begin for begin, end in calls if any(begin < b and end > a for a, b in watch.renders)]
    between = [end - begin for begin, end in calls if not any(begin < b and end > a for a, b in watch.renders)]
    renders = [end - begin for begin, end in watch.renders]
    # A lead that was created just after a snapshot waits for the next file.
    gaps = [at - taken for (at, _), (_, taken) in zip(watch.snapshots[1:], watch.snapshots, strict=False)]
    memory = max(watch.rendering) - statistics.median(watch.resting)
    rows = (
        ("longest render, s", max(renders), SECONDS_GOAL),
        ("more memory in a render, MB", memory, MEMORY_GOAL),
        ("longest lag, s", max(gaps), LAG_GOAL),
        ("p99 of CreateLead in renders / between", p99(during) / p99(between), LATENCY_GOAL),
    )
    print(f"{len(renders)} renders, {len(during)} calls in them, {len(between)} between, {minutes:g} minutes")
    print(f"p99: {p99(during) * 1000:.1f} ms in renders, {p99(between) * 1000:.1f} ms between")
    print(f"written: {written / 1e9 * 60 / minutes:.1f} GB an hour")
    print("| what | measured | goal |\n|---|---|---|")
    for what, value, goal in rows:
        print(f"| {what} | {value:.2f} | ≤ {goal:g} |")
    return all(value <= goal for _, value, goal in rows)


def main(leads: int, minutes: float) -> int:
    """Measure and report."""
    with fresh_postgres({}) as postgres, tempfile.TemporaryDirectory() as folder:
        service = RunningService(Path(folder) / "leadkeep", database_url=database(postgres, "daily"))
        try:
            import_leads(service, Path(folder), leads)
            service.start()
            path = file_of(service, datetime.now(UTC).date())
            assert eventually(path.exists, within=60)
            asyncio.run(steady(service, 5.0))  # warm
            watch, stopped = Watch(path.parent, service.pid), threading.Event()
            watching = threading.Thread(target=watch.run, args=(stopped,))
            watching.start()
            before = service.metric("leadkeep_file_bytes_total")
            calls = asyncio.run(steady(service, minutes * 60))
            written = service.metric("leadkeep_file_bytes_total") - before
            stopped.set()
            watching.join()
            return 0 if report(watch, calls, written, minutes) else 1
        finally:
            service.stop()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(int(arguments[0]) if arguments else LEADS, float(arguments[1]) if len(arguments) > 1 else MINUTES))
