"""Races of two operations on one person at two replicas: `python -m tests.faults.race_trial [RACES] [SEED] [OF]`.

Each pair of operations that erase, decide, correct, drain, submit, remove what is old or restore is raced RACES times,
each time about a person of its own: a lead, another id of it, a conflict, a lead that shares its phone by decision, a
resubmission, and a submission that waits in the second replica's spool. Afterwards the spool is drained, and every
answer and every id is checked. It prints a table of what went wrong, which should be nothing, and how many races had
both operations under way at the same moment. With OF only the pairs of that operation are raced.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path

import psycopg
import structlog

from service.errors import LeadkeepError, StorageUnavailableError
from tests.faults.race_replicas import AT_ONCE, Replicas, two_replicas
from tests.faults.race_rules import DECIDING, WHOLE, Person, is_right, left_of
from tests.harness import histories
from tests.harness.faults import value_of
from tests.harness.postgres import TestDatabase, own_postgres
from tests.storage.leads.replicas import late
from tests.storage.leads.test_handing_over import ORPHANS

REPEATS = 20
"""How often a caller repeats what was answered UNAVAILABLE: a machine may be busy."""

DEADLOCK_MILLISECONDS = 20
"""After this PostgreSQL looks for deadlocks: before `lock_timeout` would undo one unseen."""

ANALYZED_AFTER = 20 * AT_ONCE
"""Races after which PostgreSQL counts its rows anew, as autovacuum does it elsewhere: its plans change meanwhile."""

Pair = tuple[str, str]


@dataclass
class Faults:
    """What went wrong in the races of one pair."""

    wrong_answers: int = 0
    persons_left: int = 0
    lost: int = 0
    overlapped: int = 0
    """Races in which both operations were under way at the same moment: no fault, but what a race is for."""
    examples: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """What a trial found."""

    races: int = 0
    pairs: dict[tuple[str, str], Faults] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    wrong_histories: int = 0
    deadlocks: int = 0

    def sum_of(self, column: str) -> int:
        return sum(getattr(each, column) for each in self.pairs.values())

    @property
    def clean(self) -> bool:
        return not any([self.duplicates, self.wrong_histories, self.deadlocks, *map(self.sum_of, _COLUMNS)])

    def table(self) -> str:
        """A row for each pair, and the sums."""
        columns = (*_COLUMNS, "overlapped")
        rows = [f"{'pair':32} {'  '.join(columns)}"]
        for (one, other), each in self.pairs.items():
            counts = (f"{getattr(each, name):>{len(name)}}" for name in columns)
            rows.append(f"{one} x {other}".ljust(33) + "  ".join(counts))
            rows += [f"    {example}" for example in each.examples[:3]]
        sums = {name: self.sum_of(name) for name in columns}
        sums |= {name: getattr(self, name) for name in ("duplicates", "wrong_histories", "deadlocks")}
        rows.append(f"{self.races} races of {len(self.pairs)} pairs: {sums}")
        rows.append(f"answers: {dict(self.answers)}")
        return "\n".join(rows)


_COLUMNS = ("wrong_answers", "persons_left", "lost")


@dataclass(frozen=True)
class Answered:
    """What a caller was answered who repeats what was UNAVAILABLE: a word, or the name of an error."""

    word: str
    began: float
    ended: float


async def answer(operation: Callable[[Person], Awaitable[str]], person: Person, wait: float) -> Answered:
    """Call until it is answered, after `wait` seconds."""
    await asyncio.sleep(wait)
    word, began = "unavailable", time.monotonic()
    for _ in range(REPEATS):
        try:
            word = await operation(person)
            break
        except StorageUnavailableError:
            continue
        except LeadkeepError as error:
            word = type(error).__name__
            break
    return Answered(word, began, time.monotonic())


class Races:
    """Races at two replicas, several at once."""

    def __init__(self, replicas: Replicas, rng: random.Random, verdict: Verdict) -> None:
        self._replicas, self._rng, self._verdict = replicas, rng, verdict
        self._took: dict[str, float] = {}
        """Seconds that each operation took last."""

    async def run(self, pairs: Sequence[Pair]) -> None:
        """A race of each pair, all at once, and what is wrong afterwards."""
        replicas = self._replicas
        undecided = ["retention" not in pair or bool({*pair} & {*DECIDING, "erase conflict"}) for pair in pairs]
        people = await replicas.people(self._rng, undecided)
        answered = await asyncio.gather(*map(self._race, pairs, people))
        await replicas.drain()
        await replicas.store([late(each.conflict) for each, was in zip(people, undecided, strict=True) if not was])
        where = await replicas.places(people)
        for pair, person, answers in zip(pairs, people, answered, strict=True):
            self._took |= {name: each.ended - each.began for name, each in zip(pair, answers, strict=True)}
            self._note(pair, person, answers, {name: where[each] for name, each in person.ids().items()})

    async def _race(self, names: Pair, person: Person) -> list[Answered]:
        """Both operations at two replicas, chosen at random; the quicker one begins at some moment of the other one."""
        first, second = self._rng.sample(self._replicas.operations, 2)
        longest = max(self._took.get(name, 0) for name in names)
        waits = [self._rng.uniform(0, max(0.004, longest - self._took.get(name, 0))) for name in names]
        return await asyncio.gather(*map(answer, (first[names[0]], second[names[1]]), (person, person), waits))

    def _note(self, pair: Pair, person: Person, answers: Sequence[Answered], where: Mapping[str, set[str]]) -> None:
        one, other = answers
        self._verdict.races += 1
        self._verdict.answers.update(f"{name}: {each.word}" for name, each in zip(pair, answers, strict=True))
        found = self._verdict.pairs.setdefault(pair, Faults())
        found.overlapped += max(one.began, other.began) < min(one.ended, other.ended)
        judge(found, pair, (one.word, other.word), person, where)


def judge(found: Faults, names: Pair, words: tuple[str, str], person: Person, where: Mapping[str, set[str]]) -> None:
    """Note what is wrong after a race. `where`: the tables in which each of the person's ids is, by its name."""
    example = f"{dict(zip(names, words, strict=True))} { ({name: sorted(tables) for name, tables in where.items()}) }"
    for name, word, other in zip(names, words, reversed(names), strict=True):
        if not is_right(name, word, other):
            found.wrong_answers += 1
            found.examples.append(f"wrong answer: {example}")
    if left := left_of(person, names, where):
        found.persons_left += 1
        found.examples.append(f"left {left}, same {person.is_same}, copy {person.waits_as_copy}: {example}")
    if lost := [name for name, tables in where.items() if tables not in WHOLE]:
        found.lost += 1
        found.examples.append(f"lost or twice {lost}: {example}")
    if "lead" not in where["sharing"]:
        found.lost += 1
        found.examples.append(f"another person's lead is gone: {example}")


async def run(database: TestDatabase, folder: Path, *, races: int, seed: int = 1, operation: str = "") -> Verdict:
    """Race every pair of operations, or those of one operation, `races` times."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET deadlock_timeout = '{DEADLOCK_MILLISECONDS}ms'".encode()
        )
    verdict = Verdict()
    async with two_replicas(database, folder) as replicas:
        racing = Races(replicas, random.Random(seed), verdict)
        pairs = list(combinations_with_replacement(replicas.operations[0], 2))
        # Apart: a drain takes what waits of all.
        for is_drained in (False, True):
            chosen = [
                pair for pair in pairs if (not operation or operation in pair) and is_drained == ("drain" in pair)
            ]
            left = [pair for pair in chosen for _ in range(races)]
            for start in range(0, len(left), AT_ONCE):
                if start % ANALYZED_AFTER == 0:
                    await replicas.analyze()
                await racing.run(left[start : start + AT_ONCE])
    verdict.duplicates, verdict.wrong_histories, verdict.deadlocks = (
        int(str(value_of(database.admin_url, query))) for query in (ORPHANS, histories.WRONG, _DEADLOCKS)
    )
    return verdict


_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


if __name__ == "__main__":
    races, seed, operation = [*sys.argv[1:], *("200", "1", "")[len(sys.argv) - 1 :]]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with own_postgres() as server, tempfile.TemporaryDirectory() as made:
        found = asyncio.run(
            run(server.fresh_database(), Path(made), races=int(races), seed=int(seed), operation=operation)
        )
    print(found.table())
    sys.exit(not found.clean)
