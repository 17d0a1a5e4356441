"""Rounds in which the contenders take turns, and the samples that they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from bench.arithmetic import quantile
from bench.contenders import LEADKEEP, Contender, require_refusals
from bench.cpu import cpu_seconds, family_cpu_seconds
from bench.generator import run
from bench.load.plan import Load
from bench.operations import Operation
from bench.pgbench import BATCH, Pgbench

CALLERS = (1, 16, 64, 256)
SECONDS = 10.0
"""Of each run. Runs of 1 s gave the same contender between 0.8 and 1.2 times its median."""

UNPAIRED_ROUNDS = 3
"""Rounds of what no goal compares: the tables and the plots."""

OPEN_LOOP = "CreateLead, open loop"
CAPACITY_SECONDS = 4.0

T = TypeVar("T")

SINGLE, BATCHED = "e1", f"e{BATCH}"
"""pgbench with one row a transaction, and with many."""

PAIRED = {
    (Operation.CREATE, 64): frozenset("acd"),
    (Operation.CREATE, 1): frozenset(("a", "d", SINGLE)),
    (Operation.GET, 64): frozenset("ad"),
}
"""Whose figures the goals compare, by operation and callers: they are measured in every round, the rest in a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one contender. Times in seconds; CPU for each call."""

    operation: str
    contender: str
    callers: int
    round: int
    rate: float
    """Answers a second; of pgbench rows a second."""
    p50: float
    p99: float
    failures: int = 0
    service_cpu: float | None = None
    """Of the process that answers."""
    family_cpu: float | None = None
    """Of that process and its children: Leadkeep renders its daily files in one."""
    postgres_cpu: float | None = None
    generator_cpu: float | None = None


def sample(contender: Contender, load: Load, operation: str, number: int, next_starts: dict[Operation, int]) -> Sample:
    """Run once, and read everybody's CPU before and after."""

    def cpu() -> tuple[float, float, float]:
        postgres = contender.postgres.pid if contender.postgres else None
        return (
            cpu_seconds(contender.pid),
            family_cpu_seconds(contender.pid),
            family_cpu_seconds(postgres) if postgres else 0.0,
        )

    before = cpu()
    result = run(load)
    calls = len(result.latencies)
    used = [(after - earlier) / max(1, calls) for after, earlier in zip(cpu(), before, strict=True)]
    next_starts[Operation(operation) if operation in set(Operation) else Operation.CREATE] = result.next_start
    return Sample(
        operation=operation,
        contender=contender.name,
        callers=load.callers,
        round=number,
        rate=calls / result.seconds,
        p50=quantile(result.latencies, 0.5),
        p99=quantile(result.latencies, 0.99),
        failures=result.failures,
        service_cpu=used[0],
        family_cpu=used[1],
        postgres_cpu=used[2] if contender.postgres else None,
        generator_cpu=result.generator_seconds / max(1, calls),
    )


def in_turns(items: Sequence[T], number: int) -> list[T]:
    """The same items, beginning with another one in each round."""
    first = number % len(items)
    return [*items[first:], *items[:first]]


def closed_loops(
    operation: Operation, contenders: Iterable[Contender], database_floor: Pgbench | None, *, rounds: int
) -> Iterator[Sample]:
    """Callers who wait for their answers, in all numbers, in turns."""
    able = [contender for contender in contenders if operation in contender.requests]
    for contender in able:
        result = run(contender.load(operation, callers=64, seconds=SECONDS / 2))
        contender.starts[operation] = result.next_start
    for number in range(rounds):
        for callers in CALLERS:
            turns = {contender.name: _turn(contender, operation, callers) for contender in able}
            if database_floor is not None and operation is Operation.CREATE:
                turns[SINGLE] = _floor_turn(database_floor, SINGLE, 1, callers)
                if callers < 16:
                    turns[BATCHED] = _floor_turn(database_floor, BATCHED, BATCH, callers)
            compared = PAIRED.get((operation, callers), frozenset())
            chosen = [turn for name, turn in turns.items() if number < UNPAIRED_ROUNDS or name in compared]
            for turn in in_turns(chosen, number) if chosen else ():
                yield turn(number)
    if operation is Operation.DUPLICATE:
        for contender in able:
            if contender.name in LEADKEEP:
                require_refusals(contender)


def _turn(contender: Contender, operation: Operation, callers: int) -> Callable[[int], Sample]:
    def turn(number: int) -> Sample:
        load = contender.load(operation, callers=callers, seconds=SECONDS)
        return sample(contender, load, operation, number, contender.starts)

    return turn


def _floor_turn(floor: Pgbench, name: str, rows: int, callers: int) -> Callable[[int], Sample]:
    def turn(number: int) -> Sample:
        result = floor.run(callers=callers, seconds=SECONDS, rows=rows)
        return Sample(
            operation=Operation.CREATE,
            contender=name,
            callers=callers,
            round=number,
            rate=result.rows_per_second,
            p50=quantile(result.latencies, 0.5),
            p99=quantile(result.latencies, 0.99),
        )

    return turn


def open_loops(contenders: Mapping[str, Contender], *, rounds: int) -> Iterator[Sample]:
    """CreateLead at half of (c)'s capacity, which each round measures anew."""
    for number in range(rounds):
        able = [each for name, each in contenders.items() if name in ("abc" if number < UNPAIRED_ROUNDS else "ac")]
        peer = contenders["c"]
        capacity = run(peer.load(Operation.CREATE, callers=64, seconds=CAPACITY_SECONDS))
        peer.starts[Operation.CREATE] = capacity.next_start
        rate = len(capacity.latencies) / capacity.seconds / 2
        for contender in in_turns(able, number):
            load = contender.load(Operation.CREATE, callers=64, seconds=SECONDS, rate=rate)
            yield sample(contender, load, OPEN_LOOP, number, contender.starts)


def keep(samples: Iterable[Sample], path: Path) -> list[Sample]:
    """Add samples to the ones in the file, in place of the same operations' older ones. All of them."""
    new = list(samples)
    measured = {each.operation for each in new}
    kept = [each for each in kept_samples(path) if each.operation not in measured]
    path.write_text(json.dumps([asdict(each) for each in (*kept, *new)]))
    return kept + new


def kept_samples(path: Path) -> list[Sample]:
    """What the file holds."""
    return [Sample(**each) for each in json.loads(path.read_text())] if path.exists() else []
