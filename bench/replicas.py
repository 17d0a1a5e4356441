"""`python -m bench.replicas`: two replicas on one database, against one of them alone, all on the same cores.

Two processes of Python on two cores share them with PostgreSQL and the callers, so the gain is bounded by what those
leave: the report tells how much CPU each had. Then both replicas are sent the same new people at the same time: each
must become one lead. Exit code 1: one did not.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psycopg

from bench.arithmetic import Spread, pair_ratios
from bench.contenders import Contender, leadkeep_over_grpc
from bench.cpu import cpu_seconds, family_cpu_seconds
from bench.databases import database, fresh_postgres
from bench.generator import run
from bench.load.plan import Load, Result
from bench.operations import Operation
from tests.harness.running_service import RunningService

ROUNDS = 5
SECONDS = 2.0
CALLERS = 64
CONTESTED = 500
"""People that are sent to both replicas at once."""

APART = 100_000_000
"""Between the numbers that the two replicas count from, so that they never mean the same person by chance."""


def at_once(loads: Sequence[Load]) -> list[Result]:
    """Several runs side by side."""
    with ThreadPoolExecutor(len(loads)) as pool:
        return list(pool.map(run, loads))


def loaded(replicas: Sequence[Contender], postgres_pid: int) -> tuple[float, list[float]]:
    """Leads a second of these replicas together, and the cores that each of them, PostgreSQL and the callers had."""
    pids = [replica.pid for replica in replicas]
    before = [*map(cpu_seconds, pids), family_cpu_seconds(postgres_pid)]
    began = time.monotonic()
    results = at_once(
        [each.load(Operation.CREATE, callers=CALLERS // len(replicas), seconds=SECONDS) for each in replicas]
    )
    elapsed = time.monotonic() - began
    after = [*map(cpu_seconds, pids), family_cpu_seconds(postgres_pid)]
    for replica, result in zip(replicas, results, strict=True):
        replica.starts[Operation.CREATE] = result.next_start
        if result.failures:
            raise AssertionError(f"{result.failures} calls failed")
    cores = [(late - early) / elapsed for early, late in zip(before, after, strict=True)]
    callers = sum(result.generator_seconds for result in results) / elapsed
    return sum(len(result.latencies) / result.seconds for result in results), [*cores, callers]


def contested(replicas: Sequence[Contender], url: str) -> tuple[int, int]:
    """How often the same people were acknowledged, and how many leads they became."""

    def stored() -> int:
        with psycopg.connect(url) as connection:
            return int(connection.execute("SELECT count(*) FROM lead").fetchall()[0][0])

    before = stored()
    loads = [each.load(Operation.CREATE, callers=CALLERS // 2, calls=CONTESTED, seconds=60) for each in replicas]
    results = at_once([replace(load, start=9 * APART) for load in loads])
    # Both counted from the same number, and may have gone a little beyond the last one.
    people = max(result.next_start for result in results) - 9 * APART
    acknowledged = sum(len(result.latencies) for result in results)
    print(f"the same {people} people to both replicas at once: {acknowledged} acknowledged, {stored() - before} leads")
    return people - acknowledged, people - (stored() - before)


def main() -> int:
    """Measure and report."""
    one: list[float] = []
    two: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        postgres = stack.enter_context(fresh_postgres())
        url = database(postgres, "replicas")
        replicas = []
        for number in (1, 2):
            service = RunningService(
                Path(folder) / f"replica-{number}",
                database_url=url,
                settings={"LEADKEEP_KEYRING": str(Path(folder) / "keyring.json")},
            )
            stack.callback(service.stop)
            replicas.append(leadkeep_over_grpc(service.start(), postgres, ids=()))
            replicas[-1].starts[Operation.CREATE] = number * APART
        assert postgres.pid is not None
        loaded(replicas, postgres.pid)  # warm
        print(
            "| round | one replica, leads/s | its cores, PostgreSQL's, the callers' | two replicas, leads/s | cores |"
        )
        print("|---|---|---|---|---|")
        for number in range(ROUNDS):
            alone, its_cores = loaded(replicas[:1], postgres.pid)
            both, their_cores = loaded(replicas, postgres.pid)
            one.append(alone)
            two.append(both)
            shown = [" + ".join(f"{each:.2f}" for each in cores) for cores in (its_cores, their_cores)]
            print(f"| {number + 1} | {alone:.0f} | {shown[0]} | {both:.0f} | {shown[1]} |")
        print(
            f"one: {Spread.of(one).text(0)}, two: {Spread.of(two).text(0)}, two / one: {pair_ratios(two, one).text(2)}"
        )
        return int(contested(replicas, postgres.url(user="postgres", database="replicas")) != (0, 0))


if __name__ == "__main__":
    sys.exit(main())
