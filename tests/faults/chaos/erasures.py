"""Erasures among families that share phones and national IDs, with two replicas that each have a spool of their own.

A mix is one family: some of its submissions are saved, some wait in the spools of an outage, with and without a
request_id, some are sent to both replicas; then some are erased at either replica, while the spools are drained or
while the replica that holds them is down.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from random import Random
from time import monotonic
from typing import Any

import grpc
import psycopg
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from tests.faults.chaos.background import Background
from tests.faults.chaos.client import OPTIONS
from tests.faults.chaos.erasure_history import Erased, Kept, Sent, Submission, broken, evidence
from tests.faults.chaos.history import Content, History
from tests.faults.chaos.launcher import Launcher
from tests.faults.chaos.postgres import FaultyPostgres
from tests.faults.chaos.service import KilledService
from tests.faults.chaos.stage import SUBJECT, Result, Tell
from tests.harness.postgres import folder_for_postgres

FAMILIES_AT_ONCE = 20
"""Mixes that share one outage."""

SHARED = 3
"""Phones of a family, and national IDs."""

DEADLINE = 8.0
SETTLED = ("OK", "ALREADY_EXISTS", "NOT_FOUND")
CALLERS = 32

_ROWS = """
    SELECT 'lead', id::text, name FROM lead
    UNION ALL SELECT 'lead_alias', id::text, '' FROM lead_alias
    UNION ALL SELECT 'lead_conflict', id::text, name FROM lead_conflict
    UNION ALL SELECT 'resubmission', submission_id::text, name FROM resubmission
"""


def erasures(seed: int, mixes: int = 200, tell: Tell = lambda _: None) -> Result:
    """So many mixes, and what is stored in the end."""
    with ExitStack() as ending:
        folder = ending.enter_context(folder_for_postgres())
        background = ending.enter_context(Background())
        launcher = ending.enter_context(Launcher())
        history = History(SUBJECT)
        postgres = FaultyPostgres(folder, history, background, launcher)
        ending.callback(postgres.close)
        replicas = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            settings = {"LEADKEEP_KEYRING": str(folder / "keyring.json")}
            replica = KilledService(folder / name, postgres.serve_url, history, settings=settings)
            replica.start()
            ending.callback(replica.stop)
            replicas.append(replica)
        trial = _Trial(Random(seed), postgres, replicas, background)
        ending.callback(trial.close)
        for first in range(0, mixes, FAMILIES_AT_ONCE):
            trial.play(range(first, min(first + FAMILIES_AT_ONCE, mixes)))
            tell(f"{min(first + FAMILIES_AT_ONCE, mixes)} of {mixes} mixes")
        undrained = [words for replica in replicas for words in replica.undrained()]
        rows, sent = _rows(postgres.admin_url), trial.sent
        codes = Counter(erased.code for erased in trial.erased)
        counts = {
            "mixes": mixes,
            "submitted": len(sent),
            "acknowledged": sum(each.acknowledged for each in sent),
            "of these without request_id": sum(
                each.acknowledged and not each.submission.request_id for each in trial.sent
            ),
            "refused as duplicates": sum(each.code == "ALREADY_EXISTS" for each in sent),
            "erased": codes["OK"],
            "erased where nobody knew the id": codes["NOT_FOUND"],
            "kept of others": len({kept for erased in trial.erased for kept in erased.kept_ids}),
            **{f"in {table} in the end": times for table, times in Counter(row.table for row in rows).items()},
        }
        violations = broken(sent, trial.erased, rows)
        for words in violations:
            tell(words)
            for line in evidence(sent, trial.erased, words):
                tell(f"  {line}")
    done = "families that share phones and national IDs, two replicas with spools, erasures at either of them"
    return Result("erasures", done, counts, undrained + violations)


class _Trial:
    def __init__(
        self, rng: Random, postgres: FaultyPostgres, replicas: Sequence[KilledService], background: Background
    ) -> None:
        self._rng = rng
        self._postgres = postgres
        self._replicas = replicas
        self._background = background
        self._numbers = 0
        self.sent: list[Sent] = []
        self.erased: list[Erased] = []
        self._clients = [background.run(_connect(replica)) for replica in replicas]

    def close(self) -> None:
        for client in self._clients:
            self._background.run(client.close())

    def play(self, families: range) -> None:
        """One outage for these families."""
        saved = [self._submission(family) for family in families for _ in range(self._rng.randint(0, 2))]
        self._submit(saved)
        delayed = [self._submission(family) for family in families for _ in range(self._rng.randint(2, 6))]
        repeated = [each for each in (*saved, *delayed) if each.request_id and self._rng.random() < 0.3]
        known = len(self.sent) - len(saved)
        down = self._rng.choice([None, *range(len(self._replicas))])
        with self._postgres.away(signal.SIGINT):
            self._submit(delayed)
            self._submit(repeated)
            if down is not None:
                self._replicas[down].running.kill()
        ids = list({each.id for each in self.sent[known:] if each.acknowledged})
        wanted = self._rng.sample(sorted(ids), len(ids) // 4)
        self._erase(wanted, [number for number in range(len(self._replicas)) if number != down])
        if down is not None:
            self._replicas[down].running.start()
        for replica in self._replicas:
            assert not replica.undrained()
        left = sorted(set(ids) - set(wanted))
        self._erase(self._rng.sample(left, len(left) // 8), range(len(self._replicas)))

    def _submission(self, family: int) -> Submission:
        self._numbers += 1
        content = Content(*(family * SHARED + self._rng.randrange(SHARED) for _ in ("phone", "nid")))
        return Submission(self._numbers, content, f"r{self._numbers}" if self._rng.random() < 0.5 else "")

    def _submit(self, submissions: Sequence[Submission]) -> None:
        plans = [(each, self._rng.randrange(len(self._replicas)), self._rng.uniform(0, 0.3)) for each in submissions]

        async def one(submission: Submission, replica: int, pause: float) -> Sent:
            await asyncio.sleep(pause)
            request = pb.CreateLeadRequest(lead=submission.lead(), request_id=submission.request_id)
            # Without a request_id a repeat would be another submission.
            code, answer = await self._clients[replica].call("CreateLead", request, repeats=bool(submission.request_id))
            return Sent(submission, code, answer.id if answer else "", replica, monotonic())

        self.sent += self._together([one(*plan) for plan in plans])

    def _erase(self, ids: Sequence[str], replicas: Sequence[int]) -> None:
        plans = [(each, self._rng.choice(replicas), self._rng.uniform(0, 1.5)) for each in ids]

        async def one(lead_id: str, replica: int, pause: float) -> Erased:
            await asyncio.sleep(pause)
            code, answer = await self._clients[replica].call("EraseLead", pb.EraseLeadRequest(id=lead_id))
            return Erased(lead_id, code, tuple(answer.kept_ids) if answer else (), replica, monotonic())

        self.erased += self._together([one(*plan) for plan in plans])

    def _together(self, work: Sequence[Any]) -> list[Any]:
        async def all_of_it() -> list[Any]:
            free = asyncio.Semaphore(CALLERS)

            async def one(each: Any) -> Any:
                async with free:
                    return await each

            return await asyncio.gather(*(one(each) for each in work))

        return self._background.run(all_of_it(), within=300)


class _Client:
    """Repeats a call until it is settled."""

    def __init__(self, address: str, token: list[tuple[str, str]]) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = lead_service_pb2_grpc.LeadServiceStub(self._channel)
        self._token = token

    async def call(self, rpc: str, request: Any, *, repeats: bool = True) -> tuple[str, Any]:
        """The status that settled it, or that of the last attempt, and the answer."""
        for _ in range(20 if repeats else 1):
            try:
                answer = await getattr(self._stub, rpc)(
                    request, timeout=DEADLINE, metadata=self._token, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                if code in SETTLED:
                    return code, None
                await asyncio.sleep(0.2)
            else:
                return "OK", answer
        return code, None

    async def close(self) -> None:
        await self._channel.close(None)


async def _connect(replica: KilledService) -> _Client:
    return _Client(replica.address, replica.token())


def _rows(admin_url: str) -> list[Kept]:
    with psycopg.connect(admin_url) as connection:
        return [Kept(*row) for row in connection.execute(_ROWS.encode())]
