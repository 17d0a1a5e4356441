"""`python -m bench.protocols`: what a call costs by Connect and by the story's route, beside the same call by gRPC.

All go to one service on a PostgreSQL of its own, in turns, from 64 callers; what is compared is CPU of the service
process a call. Exit code 1: one is dearer than its limit, or is not shown to stay within it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.arithmetic import pair_ratios
from bench.contenders import Contender, leadkeep_on_postgres, leadkeep_over_grpc, with_known_leads
from bench.generator import run
from bench.goals import GOALS_HEAD, Goal, Verdict
from bench.load.plan import PLACE, Requests
from bench.operations import METHODS, Operation, grpc_requests, http_requests
from bench.samples import PERSON
from bench.sampling import SECONDS, in_turns, sample
from tests.harness.running_service import RunningService

CALLERS = 64
PAIRS = 20
LIMITS = {"Connect, binary": 0.8, "Connect, JSON": 0.95, "route": 0.95}
OPERATIONS = {Operation.CREATE: "chatbot", Operation.GET: "agent"}


def contenders(service: RunningService, by_grpc: Contender, ids: tuple[bytes, ...]) -> dict[str, Contender]:
    """The same service, asked in each way."""
    heads = {
        operation: f"host: {service.http_address}\r\nauthorization: Bearer {service.token(role)}\r\n"
        for operation, role in OPERATIONS.items()
    }

    def connect(operation: Operation, kind: str, body: bytes, at: bytes, values: tuple[bytes, ...] | None) -> Requests:
        head = (
            f"POST /leadkeep.v1.LeadService/{METHODS[operation]} HTTP/1.1\r\n{heads[operation]}"
            f"content-type: {kind}\r\nconnect-timeout-ms: 20000\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return Requests(templates=(head.encode() + body,), values=values, place=at)

    masked = {"id": "#" * 36, "view": "LEAD_VIEW_MASKED"}
    binary = {o: grpc_requests(o, ids=ids, numbers=()) for o in OPERATIONS}
    ways = {
        "Connect, binary": {
            o: connect(o, "application/proto", asked.templates[0], asked.place, asked.values)
            for o, asked in binary.items()
        },
        "Connect, JSON": {
            Operation.CREATE: connect(
                Operation.CREATE, "application/json", json.dumps({"lead": PERSON}).encode(), PLACE, None
            ),
            Operation.GET: connect(Operation.GET, "application/json", json.dumps(masked).encode(), b"#" * 36, ids),
        },
        "route": {o: http_requests(o, ids=ids, numbers=(), headers=heads[o], ours=True) for o in OPERATIONS},
    }
    # Who creates takes the next person, whatever the way: the places where each goes on are shared.
    return {
        name: replace(by_grpc, name=name, protocol="http", address=service.http_address, requests=requests)
        for name, requests in ways.items()
    }


def measure(operation: Operation, ways: Sequence[Contender], *, pairs: int, seconds: float) -> list[Goal]:
    """CPU a call of each way, divided by that of the first."""
    used: dict[str, list[float]] = {way.name: [] for way in ways}
    for way in ways:
        way.starts[operation] = run(way.load(operation, callers=CALLERS, seconds=1)).next_start
    for number in range(pairs):
        for way in in_turns(ways, number):
            load = way.load(operation, callers=CALLERS, seconds=seconds)
            done = sample(way, load, operation, number, way.starts)
            if done.failures or done.service_cpu is None:
                raise AssertionError(f"{operation}: {done.failures} calls failed")
            used[way.name].append(done.service_cpu)
    first = used.pop(ways[0].name)
    return [Goal(f"{operation}: {name} / gRPC", pair_ratios(cpu, first), LIMITS[name]) for name, cpu in used.items()]


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.protocols", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    found: list[Goal] = []
    with tempfile.TemporaryDirectory() as folder, leadkeep_on_postgres(Path(folder) / "service") as (service, postgres):
        first = leadkeep_over_grpc(service, postgres, ids=())
        ids = with_known_leads(first, "SELECT id FROM lead ORDER BY conversation_id")
        by_grpc = replace(leadkeep_over_grpc(service, postgres, ids=ids), starts=first.starts)
        ways = (by_grpc, *contenders(service, by_grpc, ids).values())
        print(GOALS_HEAD)
        for operation in OPERATIONS:
            for goal in measure(operation, ways, pairs=options.pairs, seconds=options.seconds):
                found.append(goal)
                print(goal.row(), flush=True)
    return int(not all(goal.verdict is Verdict.MET for goal in found))


if __name__ == "__main__":
    sys.exit(main())
