"""How fast a reseal is, and what live callers feel of it: `python -m tests.faults.key_reseal_trial [LEADS] [RATE]`.

Run by hand on a quiet machine. It fills a database, measures CreateLead alone and while `leadkeep keys reseal` runs at
RATE rows a second (0: as fast as it goes), and prints both.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.factories import new_id
from service.keys.encryption import EncryptionService, IndexPlan, IndexScheme
from service.keys.keyring import Keyring, Purpose
from service.lead import CustomerFields, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.leads.submissions import SubmissionStore
from service.validation import ValidationService
from tests.harness.leads import somebody
from tests.harness.postgres import TestServer, folder_for_postgres
from tests.harness.running_service import RunningService

CALLS_A_SECOND = 40
"""A lively service; what is measured is what a reseal adds, not what a full machine does."""
BASELINE_SECONDS = 20.0
FILL_BATCH = 500


def sealed(keyring: str, numbers: range) -> list[SealedSubmission]:
    """Leads as a chatbot would have sent them."""
    encryption = EncryptionService(Keyring.from_json(keyring))
    validation = ValidationService(default_region=None, phone_rule="e164", nid_rule="any", policies=())
    scheme = IndexScheme(encryption.keyring.primary(Purpose.INDEX).id, validation.normaliser_identity)
    encryption.plan = IndexPlan(1, (scheme, None))
    sealer = LeadSealer(encryption, validation, transcript_url=None)
    return [
        sealer.seal(
            new_id(),
            CustomerFields(
                name=f"Person {number}",
                phone=f"+99517{number:08d}",
                nid=f"77{number:011d}",
                address=f"{number} Lake Road, Dhaka",
                interested_policy="Term Life 20-Year",
                email=f"person{number}@example.com",
                notes=f"Would like to be called about the term, in the evening; number {number}",
            ),
            created_by="filler",
            request_id=None,
        )
        for number in numbers
    ]


async def fill(url: str, keyring: str, leads: int) -> None:
    database = Database(url)
    store = SubmissionStore(database)
    batches = [range(start, min(start + FILL_BATCH, leads)) for start in range(0, leads, FILL_BATCH)]
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        for batch in batches:
            submissions = await loop.run_in_executor(workers, sealed, keyring, batch)
            await store.create_all_once(submissions)
    await database.close()


class Load:
    """Calls at fixed times, whatever the ones before take: a slow service does not slow its callers down."""

    def __init__(self, service: RunningService) -> None:
        self.latencies: list[float] = []
        self.failures = 0
        self._service = service
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        metadata = self._service.metadata("chatbot")
        async with grpc.aio.insecure_channel(self._service.grpc_address) as channel:
            stub = lead_service_pb2_grpc.LeadServiceStub(channel)
            calls: list[asyncio.Task[None]] = []
            began = time.perf_counter()

            async def call() -> None:
                started = time.perf_counter()
                try:
                    await stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=metadata, timeout=20)
                except grpc.RpcError:
                    self.failures += 1
                self.latencies.append(time.perf_counter() - started)

            while not self._stopped.is_set():
                calls.append(asyncio.create_task(call()))
                await asyncio.sleep(max(0.0, began + len(calls) / CALLS_A_SECOND - time.perf_counter()))
            await asyncio.gather(*calls)

    def stop(self) -> None:
        self._stopped.set()

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def measured(service: RunningService, until: asyncio.Future[None] | None = None) -> Load:
    load = Load(service)
    running = asyncio.create_task(load.run())
    await (until if until is not None else asyncio.sleep(BASELINE_SECONDS))
    load.stop()
    await running
    return load


async def reseal(service: RunningService, rate: int) -> tuple[dict[str, object], Load]:
    arguments = [sys.executable, "-m", "service", "keys", "reseal", "--json", "--rate", str(rate)]
    process = await asyncio.create_subprocess_exec(
        *arguments, env=service.environment, stdout=subprocess.PIPE, cwd=service.data_dir.parent
    )
    done: asyncio.Future[tuple[bytes, bytes]] = asyncio.ensure_future(process.communicate())

    async def ended() -> None:
        await asyncio.wait({done})

    load = await measured(service, asyncio.ensure_future(ended()))
    return json.loads((await done)[0]), load


def rotate(service: RunningService, purpose: str = "encryption") -> str:
    """Add and promote a key; the service seals with it then."""
    made = json.loads(service.leadkeep("keys", "add", "--purpose", purpose, "--json").stdout)["id"]
    hang_up(service)
    promoted = service.leadkeep("keys", "promote", made, "--timeout", "30s")
    assert promoted.returncode == 0, promoted.stderr
    hang_up(service)
    return str(made)


def hang_up(service: RunningService) -> None:
    os.kill(service.pid, 1)
    time.sleep(2.5)


def main(leads: int, rate: int) -> None:
    with folder_for_postgres() as folder, tempfile.TemporaryDirectory() as base:
        server = TestServer(folder / "data")
        database = server.fresh_database()
        service = RunningService(Path(base) / "leadkeep", database_url=database.serve_url).start()
        began = time.monotonic()
        asyncio.run(fill(database.serve_url, (service.data_dir / "keyring.json").read_text(), leads))
        print(f"filled {leads} leads in {time.monotonic() - began:.0f} s; load average {os.getloadavg()[0]:.1f}")
        rotate(service)
        before = asyncio.run(measured(service))
        done, during = asyncio.run(reseal(service, rate))
        after = asyncio.run(measured(service))
        service.stop()
        server.stop()
    anew, seconds = done["sealed_anew"], float(str(done["seconds"]))
    print(f"reseal: {anew}, left {done['left']}, {seconds:.1f} s, {leads / seconds:.0f} leads/s")
    for name, load in (("alone", before), ("during the reseal", during), ("alone again", after)):
        print(
            f"CreateLead {name}: {len(load.latencies)} calls, {load.failures} failed,"
            f" p50 {load.percentile(0.5):.1f} ms, p99 {load.percentile(0.99):.1f} ms"
        )
    print(f"p99: {during.percentile(0.99) / min(before.percentile(0.99), after.percentile(0.99)):.2f} x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
