"""kill -9 of a service, again and again under load, while somebody reads today's file all the time.

The suite tries it a few times; `python -m tests.faults.daily_file_trial 100 [seconds between two calls of a caller]`
tries it a hundred times and prints what came of it.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.files.daily_file import FileStorageService, content_of
from service.storage.daily.daily_leads import DailyLeads, Days
from tests.harness.daily_files import file_of, today
from tests.harness.leads import somebody
from tests.harness.postgres import own_postgres
from tests.harness.processes import eventually, until
from tests.harness.running_service import RunningService

CALLERS = 64


@dataclass(frozen=True)
class Trial:
    """What a trial found. Times in seconds."""

    reads: int
    failures: list[int]
    """What did not parse, or did not hold as many leads as its header says."""
    versions: int
    acknowledged: int
    missing: int
    """Acknowledged leads that never came into the file."""
    broken_snapshots: int
    """Leads that a version lacks although they were acknowledged before its snapshot."""
    lags: list[float]
    """From each acknowledgement to the first look that found the lead, sorted."""
    equal: bool
    """Whether the file at the end is what the database holds."""


async def load(service: RunningService, acknowledged: dict[str, float], seconds: float, pause: float) -> None:
    """Keep 64 callers busy, and kill the service while they are."""
    token = service.metadata("chatbot")
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        killed = False

        async def caller() -> None:
            await asyncio.sleep(random.random() * pause)  # spreads the load
            while not killed:
                try:
                    request = pb.CreateLeadRequest(lead=somebody())
                    made = await stub.CreateLead(request, metadata=token, timeout=20)
                except grpc.RpcError:
                    continue
                if made.state == pb.SAVE_STATE_SAVED:
                    acknowledged[made.id] = time.time()
                await asyncio.sleep(pause)

        before = len(acknowledged)
        callers = [asyncio.ensure_future(caller()) for _ in range(CALLERS)]
        await asyncio.sleep(seconds)
        await until(lambda: len(acknowledged) > before + CALLERS // 2)  # a busy machine needs longer
        killed = True
        service.kill()
        for each in callers:
            each.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


def run(service: RunningService, database_url: str, *, kills: int, pause: float, longest_lag: float) -> Trial:
    """Kill the service that often. `service` runs at the beginning and at the end."""
    path = file_of(service, today())
    reader = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.file_reader", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    acknowledged: dict[str, float] = {}
    chance = random.Random(4)
    for _ in range(kills):
        asyncio.run(load(service, acknowledged, 0.3 + chance.random() * 2.0, pause))
        service.start()
    leads = DailyLeads(database_url, Days("UTC"))
    files = FileStorageService(path.parent, Days("UTC"), leads)
    equal = eventually(lambda: content_of(path) == files.content_in_database(today()), within=longest_lag)
    time.sleep(1.0)  # the reader looks once more
    leads.close()
    told, _ = reader.communicate()
    found = json.loads(told)
    first_versions = {lead: version for lead, (_, version) in found["seen"].items()}
    broken = sum(
        any(snapshot > at for snapshot in found["snapshots"][: first_versions.get(lead, 0)])
        for lead, at in acknowledged.items()
    )
    return Trial(
        reads=found["reads"],
        failures=found["failures"],
        versions=len(found["snapshots"]),
        acknowledged=len(acknowledged),
        missing=len(set(acknowledged) - set(found["seen"])),
        broken_snapshots=broken,
        lags=sorted(found["seen"][lead][0] - at for lead, at in acknowledged.items() if lead in found["seen"]),
        equal=equal,
    )


def main(kills: int, pause: float) -> None:
    """Try it on a PostgreSQL of its own, and print what came of it."""
    with own_postgres() as server, tempfile.TemporaryDirectory() as base:
        database = server.fresh_database()
        service = RunningService(Path(base) / "leadkeep", database_url=database.serve_url).start()
        trial = run(service, database.serve_url, kills=kills, pause=pause, longest_lag=120)
        service.stop()
    lags = trial.lags
    print(f"{kills} kills, {trial.acknowledged} leads acknowledged, {trial.versions} versions of the file")
    print(f"{trial.reads} reads, {len(trial.failures)} did not parse or count, {trial.missing} leads missing")
    print(f"{trial.broken_snapshots} leads lacking in a later snapshot; equal at the end: {trial.equal}")
    print(
        f"lag: median {lags[len(lags) // 2]:.2f} s, p99 {lags[int(len(lags) * 0.99)]:.2f} s, longest {lags[-1]:.2f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
