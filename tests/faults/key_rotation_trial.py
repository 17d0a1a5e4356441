"""Both keys rotated under load on two replicas: `python -m tests.faults.key_rotation_trial [KILLS] [CALLERS] [LEADS]`.

Callers create leads, read them, find them by their e-mail, send them again at the other replica (the same request, and
another request with the same phone and nid) while an operator rotates the sealing key and the index key, and moves the
database from index rule 1 to 2. Half of the people have phones that are written in two ways. With KILLS, the operator's
command or a replica is killed at random moments and run again. It prints what went wrong, which should be nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.errors import FieldUnreadableError
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, Purpose
from tests.faults.key_reseal_trial import fill
from tests.harness.faults import execute
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, own_postgres
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

OTHER_FORMS = 50
"""People who are sent once more, with their phone written in the other way."""

FIELDS = ("phone", "nid", "address", "email", "notes")
AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""What a caller hears of a replica that was killed."""


@dataclass
class Seen:
    """What callers saw."""

    acknowledged: dict[str, tuple[pb.Lead, str]] = field(default_factory=dict)
    """Saved leads and their request_id."""
    calls: Counter[str] = field(default_factory=Counter)
    failed_reads: Counter[str] = field(default_factory=Counter)
    let_in: list[str] = field(default_factory=list)
    """Duplicates that became leads."""
    denied: list[str] = field(default_factory=list)
    """Repeats of a request that were not recognised."""


@dataclass
class Verdict:
    """What a trial found; every number but the first two should be 0."""

    calls: dict[str, int]
    kills: int
    failed_reads: dict[str, int]
    duplicates_let_in: int
    other_forms_let_in: int
    repeats_denied: int
    tokens_on_the_old_key: int
    tokens_that_the_old_keyring_opens: int
    indexes_of_the_old_key: int
    persons_twice: int
    missing: int
    refused_commands: list[str]

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not any(value for name, value in vars(self).items() if name not in ("calls", "kills"))


class Callers:
    """Load in a thread of its own, at both replicas, until it is stopped."""

    def __init__(self, services: Sequence[RunningService], count: int, *, killing: bool) -> None:
        self.seen = Seen()
        self._services = services
        self._count = count
        self._killing = killing
        self._stopped = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        # All sign with the first one's key: the replicas trust one issuer.
        self._metadata = services[0].metadata("admin")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Seen:
        self._stopped = True
        self._thread.join()
        return self.seen

    async def _run(self) -> None:
        await asyncio.gather(*(self._caller(number) for number in range(self._count)))

    async def _caller(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stopped:
            service = chance.choice(self._services)
            async with grpc.aio.insecure_channel(service.grpc_address) as channel:
                stub = lead_service_pb2_grpc.LeadServiceStub(channel)
                for _ in range(20):
                    if self._stopped or not await self._call(stub, chance, number):
                        break
            await asyncio.sleep(0.05)

    async def _call(self, stub: Any, chance: random.Random, number: int) -> bool:
        """One call; False when the replica is away."""
        known = list(self.seen.acknowledged.items())[-500:]
        kinds = {"create": 4, "read": 3, "find": 2, "repeat": 2, "duplicate": 2}
        kind = chance.choices(list(kinds), list(kinds.values()))[0] if known else "create"
        self.seen.calls[kind] += 1
        try:
            if kind == "create":
                lead, request = somebody(), f"{number}-{chance.random()}"
                if chance.random() < 0.5:
                    lead.phone = f"+52155{lead.phone[-8:]}"
                made = await self._create(stub, lead, request)
                if made.state == pb.SAVE_STATE_SAVED:
                    self.seen.acknowledged[made.id] = (lead, request)
                return True
            lead_id, (lead, request) = chance.choice(known)
            if kind == "read":
                asked = pb.GetLeadRequest(id=lead_id, view=pb.LEAD_VIEW_FULL)
                found = (await stub.GetLead(asked, metadata=self._metadata, timeout=20)).lead
                if (found.phone, found.nid, found.notes) != (lead.phone, lead.nid, lead.notes):
                    self.seen.failed_reads["another value"] += 1
            elif kind == "find":
                wanted = pb.ListLeadsRequest(email=lead.email.upper())
                leads = (await stub.ListLeads(wanted, metadata=self._metadata, timeout=20)).leads
                if lead_id not in {each.id for each in leads}:
                    self.seen.failed_reads["not found by its e-mail"] += 1
            elif kind == "repeat":
                if (again := await self._create(stub, lead, request)).id != lead_id:
                    self.seen.denied.append(f"{lead_id} became {again.id}")
            else:
                made = await self._create(stub, somebody(phone=lead.phone, nid=lead.nid), "")
                if made.state == pb.SAVE_STATE_SAVED:
                    self.seen.let_in.append(lead_id)
        except grpc.aio.AioRpcError as error:
            if error.code() in AWAY and self._killing:
                return error.code() is not grpc.StatusCode.UNAVAILABLE
            if kind in ("read", "find"):
                self.seen.failed_reads[f"{error.code().name} {error.details()}"] += 1
            elif error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                self.seen.calls[f"{kind} {error.code().name}"] += 1
            elif kind == "repeat":
                self.seen.denied.append(f"{lead_id} {error.details()}")
        return True

    async def _create(self, stub: Any, lead: pb.Lead, request: str) -> pb.CreateLeadResponse:
        asked = pb.CreateLeadRequest(lead=lead, request_id=request)
        made: pb.CreateLeadResponse = await stub.CreateLead(asked, metadata=self._metadata, timeout=20)
        return made

    async def let_in_otherwise(self, most: int) -> int:
        """How many known people come in once more when their phone is written in the other way."""
        there = [lead for lead, _ in self.seen.acknowledged.values() if lead.phone.startswith("+521")][:most]
        let_in = 0
        async with grpc.aio.insecure_channel(self._services[0].grpc_address) as channel:
            stub = lead_service_pb2_grpc.LeadServiceStub(channel)
            for lead in there:
                try:
                    await self._create(stub, somebody(phone=lead.phone.replace("+521", "+52")), "")
                    let_in += 1
                except grpc.aio.AioRpcError as error:
                    let_in += error.code() is not grpc.StatusCode.ALREADY_EXISTS
        return let_in if there else most


class Operator:
    """Runs commands; kills them, or a replica, as often as is left to kill, and runs them again."""

    def __init__(self, services: Sequence[RunningService], kills: int) -> None:
        self._services = services
        self._left = kills
        self._chance = random.Random(5)
        self.killed = 0
        self.refused: list[str] = []

    def rotate(self, purpose: str, follow: str, kills: int) -> None:
        """The whole of it, as docs/keys.md describes it."""
        self._left = kills
        old = next(key.id for key in self.keyring().keys if key.purpose == purpose and key.state == "primary")
        new = str(json.loads(self._run("keys", "add", "--purpose", purpose, "--json", killable=False))["id"])
        self._hang_up()
        self._run("keys", "promote", new, "--timeout", "2m")
        self._hang_up()
        self._run("keys", follow, "--timeout", "2m", "--json")
        while self._left:
            # Nothing to do is quick: kills that are left fall on replicas.
            self._kill_replica()
            self._run("keys", follow, "--timeout", "2m", "--json")
        self._hang_up()
        self._run("keys", "retire", old, "--timeout", "3m")
        self._hang_up()

    def keyring(self) -> Keyring:
        return Keyring.from_json(Path(self._services[0].environment["LEADKEEP_KEYRING"]).read_bytes())

    def _hang_up(self) -> None:
        for service in self._services:
            os.kill(service.pid, signal.SIGHUP)
        time.sleep(1.0)

    def _run(self, *arguments: str, killable: bool = True) -> str:
        service = self._services[0]
        for _ in range(100):
            process = service.begin(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            if killable and self._left:
                time.sleep(self._chance.uniform(0.5, 5.0))
                if process.poll() is None:
                    if self._chance.random() < 0.3:
                        self._kill_replica()
                    else:
                        self._left -= 1
                        self.killed += 1
                        process.kill()
                        process.communicate()
                        continue
            out, err = map(str, process.communicate())
            if process.returncode == 0:
                return out
            if "again" not in err + out and "is retired already" not in err:
                self.refused.append(f"{' '.join(arguments)}: {err}")
            if "is retired already" in err:
                return out
            self._hang_up()
        raise AssertionError(f"{arguments} never came to an end: {self.refused[-1:]}")

    def _kill_replica(self) -> None:
        self._left -= 1
        self.killed += 1
        service = self._chance.choice(self._services)
        service.kill()
        service.start()


def run(database: TestDatabase, base: Path, *, kills: int, callers: int, leads: int) -> Verdict:
    """Rotate both keys of two replicas under load, and look at what is left."""
    keyring = base / "keyring.json"
    one = RunningService(base / "one", database_url=database.serve_url, settings={"LEADKEEP_KEYRING": str(keyring)})
    two = RunningService(base / "two", database_url=database.serve_url, settings={"LEADKEEP_KEYRING": str(keyring)})
    one.start().stop()
    # As a release left it that knew no other rule: no lead is in it yet.
    execute(database.admin_url, "UPDATE key_canary SET normaliser = replace(normaliser, '2;', '1;')")
    services = [one.start()]
    two.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    (two.data_dir / "signing-key.pem").write_bytes((one.data_dir / "signing-key.pem").read_bytes())
    (two.data_dir / "signing-key.pem").chmod(0o600)
    services.append(two.start())
    try:
        old = keyring.read_text()
        if leads:
            asyncio.run(fill(database.serve_url, old, leads))
        load = Callers(services, callers, killing=kills > 0)
        load.start()
        operator = Operator(services, kills)
        try:
            time.sleep(2)
            operator.rotate("encryption", "reseal", kills - kills // 2)
            operator.rotate("index", "reindex", kills // 2)
            time.sleep(2)
        finally:
            seen = load.stop()
        for service in services:  # what was spooled while a replica was away is drained
            assert eventually(lambda: service.metric("leadkeep_spool_entries") == 0, within=60)  # noqa: B023
        return judged(database, seen, Keyring.from_json(old), operator, asyncio.run(load.let_in_otherwise(OTHER_FORMS)))
    finally:
        for service in services:
            service.stop()


def judged(database: TestDatabase, seen: Seen, old: Keyring, operator: Operator, other_forms_let_in: int) -> Verdict:
    """What the database holds, seen with the old keyring and with the new one."""
    before, now = EncryptionService(old), EncryptionService(operator.keyring())
    old_key = old.primary(Purpose.ENCRYPTION).id
    on_old = opens = indexes = 0
    phones: Counter[str] = Counter()
    nids: Counter[str] = Counter()
    known = set()
    with psycopg.connect(database.admin_url) as connection:
        for bound, table in (("id", "lead"), ("submission_id", "resubmission"), ("id", "lead_conflict")):
            query = f"SELECT {bound}, {', '.join(FIELDS)} FROM {table}"
            for bound_to, *tokens in connection.execute(query.encode()):
                for name, token in zip(FIELDS, tokens, strict=True):
                    if token is None:
                        continue
                    on_old += token.startswith(f"{old_key}.")
                    try:
                        before.open(bound_to, name, token)
                        opens += 1
                    except FieldUnreadableError:
                        pass
        on_old += connection.execute(
            "SELECT count(*) FROM key_canary WHERE sealed LIKE %s", [f"{old_key}.%"]
        ).fetchone()[0]  # type: ignore[index] # a count has a row
        old_index = [f"{old.primary(Purpose.INDEX).id}.%"]
        for query in (
            "SELECT count(*) FROM lead WHERE email_index LIKE %s",
            "SELECT count(*) FROM lead_conversation WHERE conversation_index LIKE %s",
        ):
            indexes += connection.execute(query, old_index).fetchone()[0]  # type: ignore[index] # a count has a row
        query = "SELECT id, phone, nid, phone_index, nid_index, phone_index_2, nid_index_2 FROM lead"
        for lead_id, phone, nid, *held in connection.execute(query.encode()):
            known.add(str(lead_id))
            number, national = now.open(lead_id, "phone", phone), now.open(lead_id, "nid", nid)
            phones[number] += 1
            nids[national] += 1
            indexes += before.blind_index("phone", number) in held or before.blind_index("nid", national) in held
    return Verdict(
        calls=dict(seen.calls),
        kills=operator.killed,
        failed_reads=dict(seen.failed_reads),
        duplicates_let_in=len(seen.let_in),
        other_forms_let_in=other_forms_let_in,
        repeats_denied=len(seen.denied),
        tokens_on_the_old_key=on_old,
        tokens_that_the_old_keyring_opens=opens,
        indexes_of_the_old_key=indexes,
        persons_twice=sum(times - 1 for times in phones.values()) + sum(times - 1 for times in nids.values()),
        missing=len(set(seen.acknowledged) - known),
        refused_commands=operator.refused,
    )


def main(kills: int, callers: int, leads: int) -> None:
    with own_postgres() as server, tempfile.TemporaryDirectory() as base:
        verdict = run(server.fresh_database(), Path(base), kills=kills, callers=callers, leads=leads)
    for name, value in vars(verdict).items():
        print(f"{name.replace('_', ' ')}: {value}")
    print("clean" if verdict.clean else "NOT CLEAN")


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    main(*(given + [0, 64, 5000][len(given) :]))
