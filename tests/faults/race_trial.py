"""Races of two operations on one person at two replicas: `python -m tests.faults.race_trial [RACES] [SEED]`.

Each pair of operations that erase, decide, correct, drain, submit, remove what is old or restore is raced RACES times,
each time about a person of its own: a lead, another id of it, a conflict, a lead that shares its phone by decision, a
resubmission, and a submission that waits in the second replica's spool. Afterwards the spool is drained, and every
answer and every id is checked. It prints a table of what went wrong, which should be nothing.
"""

from __future__ import annotations

import asyncio
import base64
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import combinations_with_replacement, count
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from service.access import ROLES, Caller
from service.errors import LeadkeepError, StorageUnavailableError
from service.factories import new_id
from service.keys.encryption import EncryptionService, IndexPlan, IndexScheme
from service.keys.keyring import Keyring
from service.lead import ConflictResolution, CustomerFields, LeadStatus, SealedConflict, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.intake import all_spools
from service.storage.keys.replicas import ReplicaReport
from service.storage.leads.conflicts import ConflictRepository, OwnLead
from service.storage.leads.decision import Created, Delayed, DuplicateMatch
from service.storage.leads.erasures import RetentionRule, erase_due
from service.storage.leads.history import LeadHistory
from service.storage.leads.lead_import import restore_leads
from service.storage.leads.persons import Persons, Ref
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.supervisor import Component
from service.use_cases.conflict_service import ConflictService
from service.use_cases.person_service import ErasureService, PersonService
from service.validation import ValidationService
from tests.faults.race_rules import DECIDING, WHOLE, Person, is_right, left_of
from tests.harness import histories
from tests.harness.postgres import TestDatabase, own_postgres
from tests.harness.supervision import running
from tests.storage.conftest import everyone
from tests.storage.intake.test_writer import World
from tests.storage.leads.test_handing_over import ORPHANS
from tests.storage.leads.test_tombstones import replica

OPERATOR = Caller("operator", ROLES["admin"])
REPEATS = 20
"""How often a caller repeats what was answered UNAVAILABLE: a machine may be busy."""

DEADLOCK_MILLISECONDS = 20
"""After this PostgreSQL looks for deadlocks: before `lock_timeout` would undo one unseen."""

PLACES = {"lead": "id", "lead_alias": "id", "lead_conflict": "id", "resubmission": "submission_id", "tombstone": "id"}
_WHERE = " UNION ALL ".join(
    f"SELECT '{table}', {column} FROM {table} WHERE {column} = ANY(%(ids)s)"  # our own names
    for table, column in PLACES.items()
)
_numbers = count(1)


@dataclass
class Faults:
    """What went wrong in the races of one pair."""

    wrong_answers: int = 0
    persons_left: int = 0
    duplicates: int = 0
    lost: int = 0
    wrong_histories: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not any(getattr(self, name) for name in _COLUMNS)


@dataclass
class Verdict:
    """What a trial found."""

    pairs: dict[tuple[str, str], Faults]
    deadlocks: int
    answers: Counter[str]

    @property
    def clean(self) -> bool:
        return self.deadlocks == 0 and all(each.clean for each in self.pairs.values())

    def table(self) -> str:
        """A row for each pair, and the sums."""
        rows = [f"{'pair':32} {'  '.join(_COLUMNS)}"]
        for (one, other), each in self.pairs.items():
            counts = (f"{getattr(each, name):>{len(name)}}" for name in _COLUMNS)
            rows.append(f"{one} x {other}".ljust(33) + "  ".join(counts))
            rows += [f"    {example}" for example in each.examples[:3]]
        sums = [sum(getattr(each, name) for each in self.pairs.values()) for name in _COLUMNS]
        rows.append(f"{len(self.pairs)} pairs: {dict(zip(_COLUMNS, sums, strict=True))}, deadlocks {self.deadlocks}")
        rows.append(f"answers: {dict(self.answers)}")
        return "\n".join(rows)


_COLUMNS = ("wrong_answers", "persons_left", "duplicates", "lost", "wrong_histories")


class Replicas:
    """Two replicas on one database, and what callers do there."""

    def __init__(
        self, worlds: Sequence[World], sealer: LeadSealer, encryption: EncryptionService, looking: AsyncConnection[Any]
    ) -> None:
        self.first, self.second = worlds
        self.drained = SubmissionStore(self.first.database)
        """As a third replica's drain stores."""
        self.sealer = sealer
        self.looking = looking
        self._encryption = encryption

    def at(self, world: World) -> dict[str, Callable[[Person], Awaitable[str]]]:
        """Each operation at a replica. What is submitted goes to the first one: in the second a submission waits."""
        repository = LeadRepository(world.database, world.spool, world.writer)
        conflicts = ConflictService(
            conflicts=ConflictRepository(world.database),
            sealer=self.sealer,
            validation=ValidationService(),
            page_token_tags=self._encryption.page_token_tags,
        )
        erasures = ErasureService(
            erasures=world.erasures,
            spool=world.spool,
            recent=world.recent,
            validation=ValidationService(),
            reseal=world.reseal,
        )

        async def erase(name: str, person: Person) -> str:
            await erasures.erase_lead(OPERATOR, person.ids()[name], reason="asked for it")
            return "erased"

        persons = PersonService(
            persons=Persons(world.database, world.reseal),
            history=LeadHistory(world.database),
            erasures=world.erasures,
            erasing=erasures,
            spools=world.spools,
            sealer=self.sealer,
            validation=ValidationService(),
            page_token_tags=self._encryption.page_token_tags,
        )

        async def erase_person(person: Person) -> str:
            number = person.row["number"]
            wanted = {"phone": f"+88015{number:08d}", "nid": f"77{number:011d}"}
            matches, _, _ = await persons.find(wanted, page_token="", hidden=())
            # By one of them: the other one may be corrected just now. A lead that shares the phone is another person's.
            own = {person.lead.id, person.resubmission.id, *([person.conflict.id] if person.is_same else [])}
            refs = [Ref(each.match.kind, each.match.id) for each in matches]
            if chosen := [
                ref for ref, each in zip(refs, matches, strict=True) if ref.id in own or "nid" in each.match.fields
            ]:
                await persons.erase(OPERATOR, chosen, reason="asked for it")
            return "erased"

        async def decide(resolution: ConflictResolution, person: Person) -> str:
            await conflicts.resolve_conflict(OPERATOR, person.conflict.id, resolution, lead_id=None, reason="")
            return "decided"

        async def correct(name: str, person: Person) -> str:
            number = person.lead.id.int % 10**8
            values = {"phone": f"+88016{number:08d}"} if name == "phone" else {"nid": f"55{number:011d}"}
            correction = self.sealer.correction(person.lead.id, values, actor=OPERATOR.subject)
            changed = await repository.correct(person.lead.id, lambda _: correction, everyone)
            return "duplicate" if isinstance(changed, DuplicateMatch) else "corrected"

        async def submit(name: str, person: Person) -> str:
            again = replace(person.lead, id=new_id())
            if name == "same person":
                again = replace(again, request_id=None)
            elif name == "relative":
                again = self.sealed(phone=person.row["number"], nid=None)
            outcome = await self.first.create(again)
            if isinstance(outcome, Created | Delayed):
                return "created" if isinstance(outcome, Created) and outcome.is_new else "repeat"
            return "duplicate"

        async def retain(person: Person) -> str:
            rule = RetentionRule(LeadStatus.NEW, datetime.now(UTC) + timedelta(minutes=1))
            due = await erase_due(world.database, rule, [person.lead.id], actor="cli:ops", reason=None)
            return "removed" if due else "not due"

        async def restore(person: Person) -> str:
            found = await restore_leads(world.database, [person.row["line"]], dry_run=False)
            return "restored" if found[person.lead.id].inserted else "not restored"

        async def drain(_: Person) -> str:
            await self.drain()
            return "drained"

        return {
            "erase lead": partial(erase, "lead"),
            "erase alias": partial(erase, "alias"),
            "erase conflict": partial(erase, "conflict"),
            "erase person": erase_person,
            "keep first": partial(decide, ConflictResolution.KEEP_FIRST),
            "take new": partial(decide, ConflictResolution.TAKE_NEW),
            "own lead": partial(decide, ConflictResolution.OWN_LEAD),
            "correct phone": partial(correct, "phone"),
            "correct nid": partial(correct, "nid"),
            "create": partial(submit, "same person"),
            "repeat": partial(submit, "request"),
            "resubmit": partial(submit, "relative"),
            "drain": drain,
            "retention": retain,
            "restore": restore,
        }

    async def drain(self) -> None:
        """Empty the second replica's spool."""
        async with asyncio.timeout(60):
            while self.second.spool.size.waiting:
                await self.second.drain.step()

    def sealed(self, *, phone: int, nid: int | None, request: str | None = None) -> SealedSubmission:
        """A submission of a person, by the numbers of its phone and nid; None: a nid of its own."""
        number = next(_numbers) if nid is None else nid
        details = CustomerFields(
            name="Somebody",
            phone=f"+88015{phone:08d}",
            nid=f"{'66' if nid is None else '77'}{number:011d}",
            address="1 Lake Road",
            interested_policy="Term Life",
        )
        return self.sealer.seal(new_id(), details, created_by="bot", request_id=request)

    async def person(self, rng: random.Random, *, undecided: bool) -> Person:
        """Somebody new. Without `undecided` its conflict comes to be only after the race: retention waits for it."""
        number = next(_numbers)
        seal = partial(self.sealed, phone=number)
        is_same, as_copy = rng.random() < 0.5, rng.random() < 0.5
        person = Person(
            lead=seal(nid=number, request=f"r{number}"),
            alias=seal(nid=number, request=f"r{number}"),
            conflict=seal(nid=number if is_same else None),
            sharing=seal(nid=None),
            resubmission=seal(nid=number),
            waiting=seal(nid=number, request=f"r{number}" if as_copy else None),
            is_same=is_same,
            waits_as_copy=as_copy,
        )
        store = self.drained
        for each in (person.lead, _late(person.sharing), _late(person.alias)):
            await store.create(each)  # retried, unlike create_all_once: the machine may be busy
        await ConflictRepository(self.first.database).resolve(
            person.sharing.id,
            ConflictResolution.OWN_LEAD,
            partial(_own_lead, person.sharing),
            actor="boss",
            reason=None,
        )
        await store.create(person.resubmission)
        if undecided:
            await store.create(_late(person.conflict))
        self.second.spool.clock.measured(self.second.spool.clock.read(), datetime.now(UTC))  # as a heartbeat does it
        await self.second.spool.put([person.waiting])
        person.row = {"number": number, "line": await self._line(person.lead.id)}
        return person

    async def _line(self, lead_id: UUID) -> dict[str, Any]:
        cursor = self.looking.cursor(row_factory=dict_row)
        row = await (await cursor.execute("SELECT * FROM lead WHERE id = %s", [lead_id])).fetchone()
        assert row is not None
        line = {
            name: base64.b64encode(each).decode() if isinstance(each, bytes) else each for name, each in row.items()
        }
        line |= {name: str(each) for name, each in line.items() if isinstance(each, datetime | UUID)}
        details = ("conversations", "events", "kept_resubmissions", "aliases")
        return line | {name: [] for name in details}


def _own_lead(submission: SealedSubmission, _: SealedConflict) -> OwnLead:
    return OwnLead(submission)


def _late(submission: SealedSubmission) -> SealedSubmission:
    now = datetime.now(UTC)
    return replace(submission, accepted_at=now, accepted_between=(now, now))


async def answer(operation: Callable[[Person], Awaitable[str]], person: Person, wait: float) -> str:
    """What a caller is answered who repeats what was UNAVAILABLE: a word, or the name of an error."""
    await asyncio.sleep(wait)
    for _ in range(REPEATS):
        try:
            return await operation(person)
        except StorageUnavailableError:
            continue
        except LeadkeepError as error:
            return type(error).__name__
    return "unavailable"


async def race(
    replicas: Replicas, names: tuple[str, str], rng: random.Random, found: Faults, answers: Counter[str]
) -> None:
    """One race, and what is wrong afterwards."""
    undecided = "retention" not in names or bool(DECIDING & {*names}) or "erase conflict" in names
    person = await replicas.person(rng, undecided=undecided)
    worlds = [replicas.first, replicas.second]
    rng.shuffle(worlds)
    operations = [replicas.at(world)[name] for world, name in zip(worlds, names, strict=True)]
    waits = [rng.uniform(0, 0.004), rng.uniform(0, 0.004)]
    heard = await asyncio.gather(*map(answer, operations, [person, person], waits))
    await replicas.drain()
    if not undecided:
        await replicas.drained.create(_late(person.conflict))
    ids = person.ids()
    where: dict[UUID, set[str]] = {each: set() for each in ids.values()}
    for table, each in await (await replicas.looking.execute(_WHERE.encode(), {"ids": list(where)})).fetchall():
        where[each].add(table)
    answers.update(f"{name}: {word}" for name, word in zip(names, heard, strict=True))
    example = f"{dict(zip(names, heard, strict=True))} { ({name: sorted(where[each]) for name, each in ids.items()}) }"
    for name, word, other in zip(names, heard, reversed(names), strict=True):
        if not is_right(name, word, other):
            found.wrong_answers += 1
            found.examples.append(f"wrong answer: {example}")
    if left := left_of(person, names, where):
        found.persons_left += 1
        found.examples.append(f"left {left}, same {person.is_same}, copy {person.waits_as_copy}: {example}")
    if lost := [name for name, each in ids.items() if where[each] not in WHOLE]:
        found.lost += 1
        found.examples.append(f"lost or twice {lost}: {example}")
    if where[person.sharing.id] != {"lead", "lead_conflict"} and "lead" not in where[person.sharing.id]:
        found.lost += 1
        found.examples.append(f"another person's lead is gone: {example}")


async def run(database: TestDatabase, folder: Path, *, races: int, seed: int = 1) -> Verdict:
    """Race every pair of operations `races` times."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET deadlock_timeout = '{DEADLOCK_MILLISECONDS}ms'".encode()
        )
    rng = random.Random(seed)
    pairs: dict[tuple[str, str], Faults] = {}
    answers: Counter[str] = Counter()
    async with two_replicas(database, folder) as replicas:
        for names in combinations_with_replacement(replicas.at(replicas.first), 2):
            found = pairs[names] = Faults()
            for _ in range(races):
                await race(replicas, names, rng, found, answers)
            found.duplicates = int(str(value_of(database, ORPHANS)))
            found.wrong_histories = int(str(value_of(database, histories.WRONG)))
    return Verdict(pairs, int(str(value_of(database, _DEADLOCKS))), answers)


_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


def value_of(database: TestDatabase, query: str) -> object:
    """The single value of a query."""
    with psycopg.connect(database.admin_url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@asynccontextmanager
async def two_replicas(database: TestDatabase, folder: Path) -> AsyncIterator[Replicas]:
    """Two replicas with one keyring, each with connections and a spool of its own."""
    encryption = EncryptionService(Keyring.generate(now=datetime.now(UTC)))
    scheme = IndexScheme(encryption.index_primary_id, ValidationService().normaliser_identity)
    encryption.plan = IndexPlan(1, (scheme, None))
    sealer = LeadSealer(encryption, ValidationService(), transcript_url=None)
    async with AsyncExitStack() as stack:
        # Else most of a race is the wait for the other one's next look.
        stack.enter_context(patch.object(all_spools, "LOOK_SECONDS", 0.01))
        worlds = []
        for name in ("first", "second"):
            opened = Database(database.serve_url)
            stack.push_async_callback(opened.close)
            world = await stack.enter_async_context(replica(opened, folder / name, encryption, sealer))
            report = ReplicaReport(name, opened, world.spool, encryption)
            await report.announce(opened)
            for task in (report.run, world.spools.run):
                await stack.enter_async_context(running(Component(name=f"{name} {task.__qualname__}", run=task)))
            worlds.append(world)
        looking = await stack.enter_async_context(await AsyncConnection.connect(database.admin_url, autocommit=True))
        yield Replicas(worlds, sealer, encryption, looking)


if __name__ == "__main__":
    with own_postgres() as server, tempfile.TemporaryDirectory() as made:
        found = asyncio.run(
            run(
                server.fresh_database(),
                Path(made),
                races=int(sys.argv[1]) if len(sys.argv) > 1 else 200,
                seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1,
            )
        )
    print(found.table())
    sys.exit(not found.clean)
