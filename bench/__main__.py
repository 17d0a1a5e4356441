"""`make bench`: Leadkeep beside what a user would pick instead, and beside what is physically possible.

Five contenders take turns in interleaved rounds: see contenders.py and pgbench.py. The samples are kept in
`bench/samples.json`, so that a run of some operations (`--only`) renews those and leaves the rest of the report.
Exit code 1: a goal was missed or not shown, or calls failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import report
from bench.contenders import Contender, contender_a, contender_b, contender_c, contender_d
from bench.goals import GOALS_HEAD, Verdict, goals
from bench.operations import Operation
from bench.pgbench import pgbench
from bench.sampling import OPEN_LOOP, Sample, closed_loops, keep, open_loops

ROUNDS = 20
"""Pairs that a goal rests on."""
FOLDER = Path(__file__).parent
MAKERS = {"a": contender_a, "b": contender_b, "c": contender_c, "d": contender_d}


def measure(only: list[str], names: str, rounds: int) -> list[Sample]:
    """Start the contenders, load them in turns, and stop them."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running: dict[str, Contender] = {}
        for name, make in MAKERS.items():
            if name in names:
                running[name] = stack.enter_context(make(Path(folder)))
        floor = stack.enter_context(pgbench()) if "e" in names and Operation.CREATE in only else None
        for operation in Operation:
            if operation in only:
                print(f"{operation} …", file=sys.stderr, flush=True)
                samples += closed_loops(operation, running.values(), floor, rounds=rounds)
        if OPEN_LOOP in only and "c" in running:
            print(f"{OPEN_LOOP} …", file=sys.stderr, flush=True)
            samples += open_loops(running, rounds=rounds)
    return samples


def main() -> int:
    """Measure, keep, report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    every = [*(str(operation) for operation in Operation), OPEN_LOOP]
    parser.add_argument("--only", action="append", choices=every, help="this operation; may be repeated")
    parser.add_argument("--contenders", default="abcde", help="their letters; the report is then left alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    whole = set(options.contenders) == set("abcde")
    samples = measure(options.only or every, options.contenders, options.rounds)
    if whole:
        everything = keep(samples, FOLDER / "samples.json")
        report.write(everything, goals(everything), FOLDER)
    reached = goals(samples)
    print("\n".join((GOALS_HEAD, *(goal.row() for goal in reached))))
    print(report.tables(samples))
    failures = sum(each.failures for each in samples)
    if failures:
        print(f"{failures} calls failed")
    return int(bool(failures) or not all(goal.verdict is Verdict.MET for goal in reached))


if __name__ == "__main__":
    sys.exit(main())
