"""Runs a plan: closed loop (each caller waits for its answer) or open loop (calls come at random, whoever waits)."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

from bench.load.http1 import HttpConnection
from bench.load.http2 import GrpcConnection
from bench.load.plan import Load, Result

CALLERS_PER_CHANNEL = 8
"""A chatbot service has one channel for its own callers; 8 of ours share one."""

PATIENCE = 30.0
"""Seconds after which calls without an answer are given up, as failures."""

Connection = GrpcConnection | HttpConnection


async def _connect(load: Load, count: int) -> list[Connection]:
    host, _, port = load.address.rpartition(":")

    def protocol() -> Connection:
        if load.protocol == "http":
            return HttpConnection()
        return GrpcConnection(((b":path", load.path), (b":authority", load.address.encode()), *load.headers))

    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(protocol, host, int(port)))[1] for _ in range(count)]


class Run:
    """One run of one plan."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._latencies: list[float] = []
        self._failures = 0
        self._number = load.start
        self._open = 0
        self._over = asyncio.Event()
        self._sending = True

    async def result(self) -> Result:
        """Load, and what came of it."""
        load = self._load
        shared = CALLERS_PER_CHANNEL if load.protocol == "grpc" else 1
        connections = await _connect(load, -(-load.callers // shared))
        cpu, began = time.process_time(), time.perf_counter()
        if load.rate is None:
            self._closed_loop(connections, began + load.seconds)
        else:
            await self._open_loop(connections, began, load.rate)
        try:
            await asyncio.wait_for(self._over.wait(), load.seconds + PATIENCE)
        except TimeoutError:
            self._failures += self._open
        return Result(
            latencies=self._latencies,
            failures=self._failures,
            seconds=time.perf_counter() - began,
            generator_seconds=time.process_time() - cpu,
            next_start=self._number,
        )

    def _take(self) -> bytes:
        request = self._load.requests.at(self._number)
        self._number += 1
        return request

    def _count(self, due: float, *, answered: bool) -> None:
        self._open -= 1
        if answered != self._load.refusals:
            self._latencies.append(time.perf_counter() - due)
        else:
            self._failures += 1

    def _closed_loop(self, connections: list[Connection], until: float) -> None:
        load = self._load
        last = load.start + load.calls if load.calls is not None else None

        def caller(connection: Connection) -> Callable[[], None]:
            began = 0.0

            def send() -> None:
                nonlocal began
                request = self._take()
                self._open += 1
                began = time.perf_counter()
                connection.call(request, done)

            def done(answered: bool) -> None:
                self._count(began, answered=answered)
                wanted = self._number < last if last is not None else time.perf_counter() < until
                if wanted and connection.usable:  # a lost one would fail at once, for ever
                    send()
                elif self._open == 0:
                    self._over.set()

            return send

        for number in range(load.callers):
            caller(connections[number % len(connections)])()

    async def _open_loop(self, connections: list[Connection], began: float, rate: float) -> None:
        """Send when a call is due. Over HTTP/1.1 a call without a free connection waits, and its latency grows."""
        pauses = random.Random(1)  # the same arrivals for every contender
        free, waiting = deque(connections), deque[float]()
        shared = self._load.protocol == "grpc"

        def send(due: float, connection: Connection) -> None:
            def done(answered: bool) -> None:
                self._count(due, answered=answered)
                if not shared:
                    if waiting:
                        send(waiting.popleft(), connection)
                    else:
                        free.append(connection)
                if not self._sending and self._open == 0:
                    self._over.set()

            connection.call(self._take(), done)

        due = began
        while (due := due + pauses.expovariate(rate)) < began + self._load.seconds:
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            else:
                await asyncio.sleep(0)  # late already: what has come in is read first
            self._open += 1
            if shared:
                free.rotate(-1)
                send(due, free[0])
            elif free:
                send(due, free.popleft())
            else:
                waiting.append(due)
        self._sending = False
        if self._open == 0:
            self._over.set()
