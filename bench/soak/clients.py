"""The clients: each a process of its own with a steady, open load. They take turns in being killed with SIGKILL, in
whatever they do just then, and a successor with a new token comes in each one's place.

What may grow rightly is kept from growing, so that whatever grows is a fault:

- The service remembers up to 50,000 request_ids (service/storage/intake/outage.py). New leads are sent without one;
  those who send one repeat the same 1,000 requests all the time, which are all remembered before the load begins.
- Verified tokens are remembered, 4,096 of them. Every client brings one more, some hundreds in half an hour.
- Series of metrics are as many as there are rpcs, doors and codes. All of them have been met when the warm-up is over.
- The database grows, by about 70 leads a second. The service keeps none of them; the process that renders the
  daily files reads all leads of a day each time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from leadkeep.v1 import lead_service_pb2 as pb

from bench.contenders import leadkeep_over_grpc
from bench.generator import run, start
from bench.load.plan import PLACE, Load, Requests
from bench.operations import Operation, http_requests, known_numbers
from bench.samples import CREATE_LEAD
from service.storage.postgres.embedded import EmbeddedPostgres
from tests.harness.running_service import RunningService

RATES = {
    Operation.CREATE: 25.0,
    Operation.GET: 40.0,
    Operation.GET_FULL: 15.0,
    Operation.BY_CONVERSATION: 20.0,
    Operation.MOVE: 15.0,
    Operation.LIST: 5.0,
    Operation.DUPLICATE: 10.0,
}
"""Calls a second of each client; with the two below 150, a fifth of what two cores can do."""

HTTP_RATE = 15.0
REPEAT_RATE = 5.0

APART = 1_000_000
"""Between the numbers that clients count from: no two of them ever mean the same new person."""

REPEATED = tuple(b"%010d" % (9_000_000_000 + number) for number in range(1000))
"""The people whose requests have a request_id and are repeated."""

LONGEST_LIFE = 600.0
"""Seconds. Every client is killed long before."""

POOL_CALLERS = 32
"""Twice the connections of the service's pool."""

LOCKED_SECONDS = 1.0
"""Enough for a client to start and for the pool to connect; after two the service would take the database for lost."""

WARM_CALLERS = 8
"""As many as a storm has. More would leave the heap with free room that hides the first megabytes of a leak."""

STORM_CALLERS = 8
STORM_SECONDS = 1.0
"""From the start of the process: it has sent some hundred calls when it is killed."""


Start = Callable[[], subprocess.Popen[bytes]]


@dataclass(kw_only=True)
class Clients:
    """All clients of one service. `close` ends them, with SIGKILL like all the others."""

    service: RunningService
    postgres: EmbeddedPostgres
    ids: tuple[bytes, ...]

    def __post_init__(self) -> None:
        self._kinds: list[Start] = [
            *((lambda operation=operation: start(self._steady(operation))) for operation in RATES),
            lambda: start(self._repeats(rate=REPEAT_RATE)),
            lambda: start(self._over_http()),
            self._rude,
        ]
        self._running: deque[tuple[Start, subprocess.Popen[bytes]]] = deque()
        self._started = 0
        self.killed = 0
        self.ended: list[int] = []
        """Exit codes of clients that ended by themselves: none should."""

    def warm(self) -> None:
        """Make every kind of call for a second: pool, threads and caches are full afterwards."""
        self._fill_pool()
        run(self._repeats(calls=len(REPEATED)))
        for operation in RATES:
            run(self._load(operation, callers=WARM_CALLERS, seconds=1.0))
        run(replace(self._over_http(), seconds=1.0, rate=None))

    def begin(self) -> None:
        """Start one of each kind."""
        self._running.extend((kind, kind()) for kind in self._kinds)

    def replace_one(self) -> None:
        """Kill the oldest client and start its successor."""
        kind, process = self._running.popleft()
        self._kill(process)
        self._running.append((kind, kind()))

    def storm(self) -> None:
        """A client with many calls under way at every moment, killed in the middle of them."""
        operation = Operation.CREATE if self._started % 2 else Operation.GET_FULL
        process = start(self._load(operation, callers=STORM_CALLERS, seconds=LONGEST_LIFE))
        time.sleep(STORM_SECONDS)
        self._kill(process)

    def close(self) -> None:
        """Kill whoever is left."""
        while self._running:
            self._kill(self._running.popleft()[1])

    def _fill_pool(self) -> None:
        """Have the service open every connection that it may have: it keeps them, so that later none looks like a leak.

        While the leads are locked, each call waits for them with a connection of its own.
        """
        with psycopg.connect(self.postgres.url(user="postgres", database="bench")) as connection:
            connection.execute("LOCK TABLE lead IN ACCESS EXCLUSIVE MODE")
            process = start(self._load(Operation.BY_CONVERSATION, callers=POOL_CALLERS, seconds=LONGEST_LIFE))
            time.sleep(LOCKED_SECONDS)
        process.kill()
        process.wait()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            self.ended.append(process.returncode)
            return
        process.kill()
        process.wait()
        self.killed += 1

    def _next_number(self) -> int:
        self._started += 1
        return self._started * APART

    def _load(self, operation: Operation, *, callers: int, seconds: float, rate: float | None = None) -> Load:
        asked = leadkeep_over_grpc(self.service, self.postgres, ids=self.ids)
        load = asked.load(operation, callers=callers, seconds=seconds, rate=rate)
        return replace(load, start=self._next_number())

    def _steady(self, operation: Operation) -> Load:
        return self._load(operation, callers=8, seconds=LONGEST_LIFE, rate=RATES[operation])

    def _repeats(self, *, rate: float | None = None, calls: int | None = None) -> Load:
        """New leads in the first round, the same answer in all others."""
        message = CREATE_LEAD + pb.CreateLeadRequest(request_id=f"soak-{PLACE.decode()}").SerializeToString()
        load = self._load(Operation.CREATE, callers=8, seconds=LONGEST_LIFE, rate=rate)
        return replace(load, requests=Requests(templates=(message,), values=REPEATED), start=0, calls=calls)

    def _over_http(self) -> Load:
        address = self.service.http_address
        headers = f"host: {address}\r\nauthorization: Bearer {self.service.token('chatbot')}\r\n"
        return Load(
            protocol="http",
            address=address,
            requests=http_requests(Operation.CREATE, ids=(), numbers=known_numbers(0), headers=headers, ours=True),
            callers=8,
            seconds=LONGEST_LIFE,
            rate=HTTP_RATE,
            start=self._next_number(),
        )

    def _rude(self) -> subprocess.Popen[bytes]:
        service = self.service
        endpoints = (service.grpc_address, service.http_address)
        return subprocess.Popen(
            [sys.executable, "-m", "bench.soak.rude", *endpoints, service.token(), str(self._next_number())],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
        )
