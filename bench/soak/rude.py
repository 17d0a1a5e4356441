"""`python -m bench.soak.rude GRPC HTTP TOKEN NUMBER`: a client without manners, until it is killed.

It cancels calls, sets deadlines too short, cuts health streams, hangs up in the middle of a request, and leaves
connections idle which it resets at last.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from bench.load.plan import Requests
from bench.samples import CREATE_LEAD

LONGEST_CALL = 0.02
"""Seconds after which a call is cancelled at the latest: a quiet service answers most calls in 5 ms."""

LONGEST_DEADLINE = 0.05
WATCHED = 5.0
IDLE = 20.0

HALF_A_REQUEST = b"POST /api/leads/ HTTP/1.1\r\nhost: soak\r\ncontent-length: 400\r\n\r\n{"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
"""Else channels to one address share a connection."""


class Rude:
    """What it does, one thing a method. Each is done again and again."""

    def __init__(self, grpc_address: str, http_address: str, token: str, numbers: Iterator[int]) -> None:
        self._grpc_address, self._http_address = grpc_address, http_address
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._numbers = numbers
        self._people = Requests(templates=(CREATE_LEAD,))
        self._stub = lead_service_pb2_grpc.LeadServiceStub(grpc.aio.insecure_channel(grpc_address, options=OPTIONS))

    def _somebody(self) -> pb.CreateLeadRequest:
        return pb.CreateLeadRequest.FromString(self._people.at(next(self._numbers)))

    async def cancel(self) -> None:
        """A call that its caller does not wait for."""
        request = random.choice((self._somebody(), pb.ListLeadsRequest(page_size=100)))
        method = self._stub.CreateLead if isinstance(request, pb.CreateLeadRequest) else self._stub.ListLeads
        call = method(request, metadata=self._metadata)
        await asyncio.sleep(random.uniform(0, LONGEST_CALL))
        call.cancel()
        with suppress(asyncio.CancelledError, grpc.RpcError):
            await call

    async def hurry(self) -> None:
        """A call with a deadline that is too short for it, most often."""
        with suppress(grpc.RpcError):
            timeout = random.uniform(0.001, LONGEST_DEADLINE)
            await self._stub.CreateLead(self._somebody(), metadata=self._metadata, timeout=timeout)

    async def watch(self) -> None:
        """A health stream that is cut, by its own cancellation or with its whole connection."""
        channel = grpc.aio.insecure_channel(self._grpc_address, options=OPTIONS)
        stream = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined] # its stub is incomplete
            health_pb2.HealthCheckRequest()
        )
        await stream.read()
        await asyncio.sleep(WATCHED)
        if random.random() < 0.5:
            stream.cancel()
        await channel.close(None)

    async def hang_up(self) -> None:
        """Connections that end before anything was asked, or in the middle of a question."""
        for address, said in (
            (self._grpc_address, b""),
            (self._grpc_address, HTTP2_PREFACE),
            (self._http_address, b""),
            (self._http_address, HALF_A_REQUEST),
        ):
            with _connected(address) as connection:
                await asyncio.get_running_loop().sock_sendall(connection, said)
                await asyncio.sleep(0.01)

    async def idle(self) -> None:
        """A connection to each endpoint that says nothing for a while and is then reset."""
        with _connected(self._grpc_address) as one, _connected(self._http_address) as other:
            await asyncio.sleep(IDLE)
            for each in (one, other):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def _connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setblocking(False)
    return connection


async def _again_and_again(deed: Callable[[], Awaitable[None]], every: float) -> None:
    """Begin it so often, whether the one before has ended or not. A failure of one ends the process."""
    async with asyncio.TaskGroup() as deeds:
        while True:
            deeds.create_task(deed())  # type: ignore[arg-type] # each deed is a coroutine
            await asyncio.sleep(every)


async def main(grpc_address: str, http_address: str, token: str, number: str) -> None:
    """Do all of it at once."""
    rude = Rude(grpc_address, http_address, token, itertools.count(int(number)))
    async with asyncio.TaskGroup() as everything:
        for deed, every in ((rude.cancel, 0.25), (rude.hurry, 0.5), (rude.watch, 2.0), (rude.hang_up, 1.0)):
            everything.create_task(_again_and_again(deed, every))
        everything.create_task(_again_and_again(rude.idle, 5.0))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
