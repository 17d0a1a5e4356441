"""A client of the service that notes every call in a history, and behaves as docs/clients.md asks: it repeats a failed
CreateLead with the same request_id until it knows what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from random import Random
from time import monotonic
from typing import Any, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from tests.faults.chaos.history import SETTLED, Call, Content, History

CHANNELS = 8
OPTIONS = (
    # Else channels to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    # A service that is restarted is found again within half a second; the default waits for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
)
LONGEST_PAUSE = 0.3
"""Seconds between a failed call and its repeat, at most."""

PATIENCE = 90.0
"""Seconds for which a request is repeated; every fault of a scenario is over before."""


class Client:
    """Several channels to one service. To be made, used and closed in one event loop."""

    def __init__(self, address: str, token: list[tuple[str, str]], history: History) -> None:
        self.history = history
        self._token = token
        self._channels = [grpc.aio.insecure_channel(address, options=OPTIONS) for _ in range(CHANNELS)]
        self._stubs = [lead_service_pb2_grpc.LeadServiceStub(channel) for channel in self._channels]
        self._next = 0

    async def close(self) -> None:
        """Give up the channels."""
        for channel in self._channels:
            await channel.close(None)

    async def submit(
        self, rng: Random, request_id: str, content: Content, *, hang_up_after: float | None = None
    ) -> Call:
        """CreateLead until it is acknowledged or refused; the last call. The first one may hang up."""
        give_up_at = monotonic() + PATIENCE
        attempt = 1
        while True:
            call = await self.create(request_id, content, rng.uniform(2, 5), attempt, hang_up_after)
            if call.code in SETTLED or monotonic() > give_up_at:
                return call
            attempt, hang_up_after = attempt + 1, None
            await asyncio.sleep(rng.uniform(0.02, LONGEST_PAUSE))

    async def create(
        self, request_id: str, content: Content, patience: float, attempt: int = 1, hang_up_after: float | None = None
    ) -> Call:
        """One CreateLead with so many seconds until its deadline."""
        call = Call("CreateLead", monotonic(), patience, request_id=request_id, content=content, attempt=attempt)
        request = pb.CreateLeadRequest(lead=content.lead(), request_id=request_id)
        response = await self._noted(call, request, hang_up_after)
        if isinstance(response, pb.CreateLeadResponse):
            call.id = response.id
            call.state = pb.SaveState.Name(response.state).removeprefix("SAVE_STATE_")
        self.history.calls.append(call)
        return call

    async def get(self, lead_id: str, patience: float) -> tuple[Call, pb.Lead | None]:
        """One GetLead, and the lead if it is shown."""
        call = Call("GetLead", monotonic(), patience, asked=lead_id)
        response = await self._noted(call, pb.GetLeadRequest(id=lead_id), None)
        self.history.calls.append(call)
        return call, response.lead if isinstance(response, pb.GetLeadResponse) else None

    async def _noted(self, call: Call, request: Message, hang_up_after: float | None) -> Message | None:
        self._next = (self._next + 1) % CHANNELS
        method = getattr(self._stubs[self._next], call.rpc)
        # Else a call that begins before the channel has found the restarted service again would fail at once.
        running = method(request, timeout=call.patience, metadata=self._token, wait_for_ready=True)
        response: Message | None = None
        trailing: Mapping[str, str | bytes] = {}
        timer = None
        if hang_up_after is not None:
            timer = asyncio.get_running_loop().call_later(hang_up_after, _hang_up, call, running)
        try:
            response = await running
            trailing = dict(await running.trailing_metadata())
            call.code = "OK"
        except grpc.aio.AioRpcError as error:
            trailing = dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()))
            call.code, call.reason = error.code().name, _reason(trailing.get("grpc-status-details-bin"))
        except asyncio.CancelledError:
            if not call.hung_up:
                raise
            call.code = "CANCELLED"
        finally:
            call.ended = monotonic()
            if timer is not None:
                timer.cancel()
        call.hung_up = call.code == "CANCELLED"
        call.by_server = "x-request-id" in trailing
        return response


def _hang_up(call: Call, running: Any) -> None:
    call.hung_up = True
    running.cancel()


def _reason(status: str | bytes | None) -> str:
    info = error_details_pb2.ErrorInfo()
    if isinstance(status, bytes):
        any(detail.Unpack(info) for detail in status_pb2.Status.FromString(status).details)
    return str(info.reason)
