"""`python -m bench.compare CHECKOUT`: what a call costs here, beside another checkout of Leadkeep.

Both services run on a PostgreSQL of their own, each migrated by its own code, and are loaded in turns by 64 callers
(16 of lists); what is compared is CPU a call of the service process and of its PostgreSQL, and bytes a lead. Both use
this installation's packages. Exit code 1: an operation is dearer than the limit, or is not shown to stay within it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psycopg

from bench.arithmetic import pair_ratios
from bench.contenders import Contender, contender_a
from bench.generator import run
from bench.goals import GOALS_HEAD, Goal, Verdict
from bench.operations import Operation
from bench.sampling import SECONDS, in_turns, sample

CALLERS = 64
LIST_CALLERS = 16
"""A page counts as many calls, and more pages at once than these are refused to one subject."""
PAIRS = 20
LIMIT = 1.05
POSTGRES_LIMIT = 1.3


def compare(
    operation: Operation, here: Contender, there: Contender, *, pairs: int, seconds: float, limit: float
) -> tuple[Goal, Goal]:
    """CPU a call, here / there: of the service, and of PostgreSQL."""
    service: dict[int, list[float]] = {here.pid: [], there.pid: []}
    postgres: dict[int, list[float]] = {here.pid: [], there.pid: []}
    callers = LIST_CALLERS if operation is Operation.LIST else CALLERS
    for contender in (here, there):
        warm = run(contender.load(operation, callers=callers, seconds=1))
        contender.starts[operation] = warm.next_start
    for number in range(pairs):
        for contender in in_turns((here, there), number):
            load = contender.load(operation, callers=callers, seconds=seconds)
            done = sample(contender, load, operation, number, contender.starts)
            if done.failures or done.service_cpu is None or done.postgres_cpu is None:
                raise AssertionError(f"{operation}: {done.failures} calls failed")
            service[contender.pid].append(done.service_cpu)
            postgres[contender.pid].append(done.postgres_cpu)
    return (
        Goal(operation, pair_ratios(service[here.pid], service[there.pid]), limit),
        Goal(f"{operation}: PostgreSQL", pair_ratios(postgres[here.pid], postgres[there.pid]), POSTGRES_LIMIT),
    )


def bytes_a_lead(contender: Contender) -> float:
    """What the database takes for a lead, all tables and indexes, when nothing but CreateLead was called."""
    assert contender.database_url is not None
    with psycopg.connect(contender.database_url, autocommit=True) as connection:
        connection.execute("VACUUM")
        ((size, leads),) = connection.execute(
            "SELECT sum(pg_total_relation_size(c.oid)), (SELECT count(*) FROM lead) FROM pg_class c"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall()
    return float(size) / float(leads)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", action="append", choices=[str(operation) for operation in Operation])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--limit", type=float, default=LIMIT, help="of the service's CPU a call, here / there")
    options = parser.parse_args()
    found: list[Goal] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here = stack.enter_context(contender_a(Path(folder) / "here"))
        there = stack.enter_context(contender_a(Path(folder) / "there", checkout=options.checkout.resolve()))
        print(GOALS_HEAD)
        for operation in map(Operation, options.only or Operation):
            goals = compare(operation, here, there, pairs=options.pairs, seconds=options.seconds, limit=options.limit)
            found += goals
            print("\n".join(goal.row() for goal in goals), flush=True)
            if operation is Operation.CREATE:  # the first one
                print(f"| bytes a lead | {bytes_a_lead(here):,.0f} / {bytes_a_lead(there):,.0f} | | |", flush=True)
    return int(not all(goal.verdict is Verdict.MET for goal in found))


if __name__ == "__main__":
    sys.exit(main())
