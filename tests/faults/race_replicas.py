"""Two replicas on one database, the people of a race, and the operations that are raced about them."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from service.factories import new_id
from service.keys.encryption import EncryptionService, IndexPlan, IndexScheme
from service.keys.keyring import Keyring
from service.lead import ConflictResolution, CustomerFields, LeadStatus, SealedSubmission
from service.lead_sealer import LeadSealer
from service.scopes import ROLES, Caller
from service.storage.database.database import Database
from service.storage.database.failures import RetryScope, retry_scope, with_retries
from service.storage.intake import all_spools
from service.storage.intake import drain as drain_module
from service.storage.keys.replicas import ReplicaReport
from service.storage.leads.conflicts import ConflictRepository
from service.storage.leads.decision import Created, Delayed, DuplicateMatch
from service.storage.leads.erasures import RetentionRule, erase_due
from service.storage.leads.import_export import restore_leads
from service.storage.leads.persons import Ref
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.supervisor import Component
from service.use_cases.conflict_service import ConflictService
from service.validation import ValidationService
from tests.faults.race_rules import Person
from tests.harness.postgres import TestDatabase
from tests.harness.supervision import running
from tests.storage.conftest import everyone
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import PLACES, drain, late, own_lead, replica

OPERATOR = Caller("operator", ROLES["admin"])

AT_ONCE = 16
"""Races at once: as many as each replica has connections."""

SET_UP_SECONDS = 60
"""How long a set-up may take: the machine may be busy."""

LOOK_SECONDS = 0.1
"""How often replicas look for each other's questions, answers and erasures. Looking more often is most of the work."""

DRAINED_AT_ONCE = 4
"""Submissions a transaction of the drain: several of those drains race with the same persons."""

_WHERE = " UNION ALL ".join(
    f"SELECT '{table}', {column} FROM {table} WHERE {column} = ANY(%(ids)s)"  # our own names
    for table, column in PLACES.items()
)
_numbers = count(1)


class Replicas:
    """Two replicas on one database, and what callers do there."""

    def __init__(
        self, worlds: Sequence[World], sealer: LeadSealer, encryption: EncryptionService, looking: AsyncConnection[Any]
    ) -> None:
        self.first, self.second = worlds
        self.sealer = sealer
        self._looking = looking
        self._encryption = encryption
        self._drains = asyncio.Semaphore(2)
        """At a time: more would only read the same submissions."""
        self.operations = [self._at(world) for world in worlds]

    def _at(self, world: World) -> dict[str, Callable[[Person], Awaitable[str]]]:
        """Each operation at a replica. What is submitted goes to the first one: in the second a submission waits."""
        repository = LeadRepository(world.database, world.spool, world.writer)
        conflicts = ConflictService(
            conflicts=ConflictRepository(world.database),
            sealer=self.sealer,
            validation=ValidationService(),
            page_token_tags=self._encryption.page_token_tags,
        )

        async def erase(name: str, person: Person) -> str:
            await world.erasing.erase_lead(OPERATOR, person.ids()[name], reason="asked for it")
            return "erased"

        async def erase_person(person: Person) -> str:
            number = person.number
            wanted = {"phone": f"+88015{number:08d}", "nid": f"77{number:011d}"}
            matches, _, _ = await world.persons.find(wanted, page_token="", hidden=())
            # By one of them: the other one may be corrected just now. A lead that shares the phone is another person's.
            own = {person.lead.id, person.resubmission.id, *([person.conflict.id] if person.is_same else [])}
            refs = [Ref(each.match.kind, each.match.id) for each in matches]
            if chosen := [
                ref for ref, each in zip(refs, matches, strict=True) if ref.id in own or "nid" in each.match.fields
            ]:
                await world.persons.erase(OPERATOR, chosen, reason="asked for it")
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
                again = self.sealed(phone=person.number, nid=None)
            outcome = await self.first.create(again)
            if isinstance(outcome, Created | Delayed):
                return "created" if isinstance(outcome, Created) and outcome.is_new else "repeat"
            return "duplicate"

        async def retain(person: Person) -> str:
            rule = RetentionRule(LeadStatus.NEW, datetime.now(UTC) + timedelta(minutes=1))
            due = await erase_due(world.database, rule, [person.lead.id], actor="cli:ops", reason=None)
            return "removed" if due else "not due"

        async def restore(person: Person) -> str:
            found = await restore_leads(world.database, [person.line], dry_run=False)
            return "restored" if found[person.lead.id].inserted else "not restored"

        async def drain_all(_: Person) -> str:
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
            "drain": drain_all,
            "retention": retain,
            "restore": restore,
        }

    async def drain(self) -> None:
        """Empty the second replica's spool."""
        async with self._drains:
            await drain(self.second)

    async def store(self, submissions: Sequence[SealedSubmission]) -> None:
        """Store as a third replica's drain does."""
        if submissions:
            drained = SubmissionStore(self.first.database)
            await with_retries(partial(drained.create_all_once, submissions))

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

    async def people(self, rng: random.Random, undecided: Sequence[bool]) -> list[Person]:
        """Somebody new for each. Without `undecided` the conflict comes to be only after the race: retention waits."""
        people = [self._person(rng) for _ in undecided]
        scope = retry_scope.set(RetryScope(time.monotonic() + SET_UP_SECONDS, lambda _: None))
        await self.store([each.lead for each in people])
        await self.store([late(entry) for each in people for entry in (each.sharing, each.alias)])
        await asyncio.gather(*(own_lead(self.first, each.sharing) for each in people))
        await self.store([each.resubmission for each in people])
        await self.store([late(each.conflict) for each, is_it in zip(people, undecided, strict=True) if is_it])
        self.second.spool.clock.measured(self.second.spool.clock.read(), datetime.now(UTC))  # as a heartbeat does it
        await self.second.spool.put([each.waiting for each in people])
        cursor = self._looking.cursor(row_factory=dict_row)
        await cursor.execute("SELECT * FROM lead WHERE id = ANY(%s)", [[each.lead.id for each in people]])
        rows = {row["id"]: row for row in await cursor.fetchall()}
        for each in people:
            each.line = _line(rows[each.lead.id])
        retry_scope.reset(scope)
        return people

    def _person(self, rng: random.Random) -> Person:
        number = next(_numbers)
        seal = partial(self.sealed, phone=number)
        is_same, as_copy = rng.random() < 0.5, rng.random() < 0.5
        return Person(
            lead=seal(nid=number, request=f"r{number}"),
            alias=seal(nid=number, request=f"r{number}"),
            conflict=seal(nid=number if is_same else None),
            sharing=seal(nid=None),
            resubmission=seal(nid=number),
            waiting=seal(nid=number, request=f"r{number}" if as_copy else None),
            is_same=is_same,
            waits_as_copy=as_copy,
            number=number,
        )

    async def analyze(self) -> None:
        """Let PostgreSQL count its rows and choose its plans anew."""
        await self._looking.execute("ANALYZE")

    async def places(self, people: Sequence[Person]) -> dict[UUID, set[str]]:
        """The tables in which each id of theirs is."""
        found: dict[UUID, set[str]] = {each: set() for person in people for each in person.ids().values()}
        for table, each in await (await self._looking.execute(_WHERE.encode(), {"ids": list(found)})).fetchall():
            found[each].add(table)
        return found


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A lead as a daily file holds it."""
    line = {name: base64.b64encode(each).decode() if isinstance(each, bytes) else each for name, each in row.items()}
    line |= {name: str(each) for name, each in line.items() if isinstance(each, datetime | UUID)}
    return line | {name: [] for name in ("conversations", "events", "kept_resubmissions", "aliases")}


@asynccontextmanager
async def two_replicas(database: TestDatabase, folder: Path) -> AsyncIterator[Replicas]:
    """Two replicas with one keyring, each with connections and a spool of its own."""
    encryption = EncryptionService(Keyring.generate(now=datetime.now(UTC)))
    scheme = IndexScheme(encryption.index_primary_id, ValidationService().normaliser_identity)
    encryption.plan = IndexPlan(1, (scheme, None))
    sealer = LeadSealer(encryption, ValidationService(), transcript_url=None)
    async with AsyncExitStack() as stack:
        # Else most of a race is the wait for the other one's next look.
        stack.enter_context(patch.object(all_spools, "LOOK_SECONDS", LOOK_SECONDS))
        # Else all that waits is drained in one transaction, and all races with it have one moment.
        stack.enter_context(patch.object(drain_module, "BATCH", DRAINED_AT_ONCE))
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
