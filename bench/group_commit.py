"""`python -m bench.group_commit`: CreateLead with the group commit, and with one transaction a lead.

Both services run on one PostgreSQL that syncs to disk, each on a database of its own, and are loaded in turns, so that
whatever else the machine does concerns both. Each ratio is the median over the rounds. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from bench.arithmetic import pair_ratios
from bench.databases import database, fresh_postgres, prepare_roles
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService

ROUNDS = 7
CALLERS = 64
BUSY_SECONDS = 4.0
SINGLE_CALLS = 150
WARM_UP_CALLS = 200

THROUGHPUT_GOAL = 1.3
LATENCY_GOAL = 1.1


@dataclass
class Measured:
    """What one service did, round by round."""

    service: RunningService
    throughput: list[float] = field(default_factory=list)
    """Leads a second at 64 callers."""
    latency: list[float] = field(default_factory=list)
    """Median milliseconds of a single caller."""


async def create(stub: lead_service_pb2_grpc.LeadServiceStub, token: object) -> None:
    request = pb.CreateLeadRequest(lead=somebody())
    answer = await stub.CreateLead(request, metadata=token, timeout=20)
    if answer.state != pb.SAVE_STATE_SAVED:
        raise AssertionError("a lead was delayed: this measures nothing")


async def busy(service: RunningService, seconds: float) -> float:
    """Leads a second with 64 callers who each wait for their answer."""
    token, count = service.metadata("chatbot"), 0
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        began = time.monotonic()

        async def caller() -> None:
            nonlocal count
            while time.monotonic() - began < seconds:
                await create(stub, token)
                count += 1

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return count / (time.monotonic() - began)


async def single(service: RunningService, calls: int) -> float:
    """The median milliseconds of a caller who is alone."""
    token, took = service.metadata("chatbot"), []
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        for _ in range(calls):
            began = time.perf_counter()
            await create(stub, token)
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def measure(grouped: Measured, one_by_one: Measured) -> None:
    """Load both in turns, the first one changing from round to round."""
    for each in (grouped, one_by_one):
        asyncio.run(single(each.service, WARM_UP_CALLS))
    for number in range(ROUNDS):
        order = (grouped, one_by_one) if number % 2 else (one_by_one, grouped)
        for each in order:
            each.throughput.append(asyncio.run(busy(each.service, BUSY_SECONDS)))
        for each in order:
            each.latency.append(asyncio.run(single(each.service, SINGLE_CALLS)))


def report(grouped: Measured, one_by_one: Measured) -> bool:
    """Print the table; whether both goals were reached."""
    throughput = pair_ratios(grouped.throughput, one_by_one.throughput).median
    latency = pair_ratios(grouped.latency, one_by_one.latency).median
    print("| CreateLead | group commit | one transaction a lead | ratio | goal |")
    print("|---|---|---|---|---|")
    for what, ours, theirs, ratio, goal in (
        (f"{CALLERS} callers, leads/s", grouped.throughput, one_by_one.throughput, throughput, f"≥ {THROUGHPUT_GOAL}"),
        ("1 caller, median ms", grouped.latency, one_by_one.latency, latency, f"≤ {LATENCY_GOAL}"),
    ):
        print(f"| {what} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {ratio:.2f} | {goal} |")
    return throughput >= THROUGHPUT_GOAL and latency <= LATENCY_GOAL


def main() -> int:
    """Measure and report."""
    with fresh_postgres() as postgres, tempfile.TemporaryDirectory() as folder:
        prepare_roles(postgres)
        services = [
            RunningService(Path(folder) / "grouped", database_url=database(postgres, "grouped")),
            RunningService(
                Path(folder) / "one-by-one",
                database_url=database(postgres, "one_by_one"),
                module="bench.one_by_one",
            ),
        ]
        try:
            grouped, one_by_one = (Measured(service.start()) for service in services)
            measure(grouped, one_by_one)
            return 0 if report(grouped, one_by_one) else 1
        finally:
            for service in services:
                service.stop()


if __name__ == "__main__":
    sys.exit(main())
