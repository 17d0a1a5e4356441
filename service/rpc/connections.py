"""The gRPC endpoint's connections: counted, and closed where a limit demands it.

gRPC's core accepts them itself, counts them only in all, and when it is full refuses the newcomer, whoever it is. But
they are descriptors of this process: each is found there, with its peer, and shut down as if the peer had hung up. That
costs calls nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections.abc import Iterator

from service.rpc.limits import Held, Limits, RefusalReason, Refusals, peer_of, to_evict

SCAN_SECONDS = 1.0
BUSY_SCAN_SECONDS = 0.1
"""Seconds between two counts, and when more than three quarters of the limit are in use."""

DESCRIPTORS = "/dev/fd"

_Descriptor = tuple[int, int]
"""Number and inode: the same number may be another socket a moment later."""


class GrpcConnections:
    """Connections of the gRPC endpoint at `port`."""

    def __init__(self, port: int, limits: Limits, refusals: Refusals) -> None:
        self._port, self._limits, self._refusals = port, limits, refusals
        self._known: dict[_Descriptor, tuple[str, float] | None] = {}
        self.proven: dict[str, float] = {}
        """When a token was last accepted on a connection, by gRPC's name of its peer, such as `ipv4:127.0.0.1:4711`."""
        self._open: set[str] = set()
        self._to_cut: dict[str, RefusalReason] = {}
        self._wanted = asyncio.Event()

    def has(self, peer: str) -> bool:
        """Whether a connection is open, by gRPC's name of its peer, as far as was counted lately."""
        return peer in self._open

    def cut(self, peer: str, reason: RefusalReason) -> None:
        """Close the connection of a peer, by gRPC's name of it, soon."""
        self._to_cut[peer] = reason
        self._wanted.set()

    async def run(self) -> None:
        """Keep the limits."""
        while True:
            many = len(self._known) > self._limits.connections * 3 // 4
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), BUSY_SCAN_SECONDS if many else SCAN_SECONDS)
            self._wanted.clear()
            self._scan()

    def _scan(self) -> None:
        now, known = time.monotonic(), self._known
        self._known = {key: known[key] if key in known else self._seen_first(key[0], now) for key in _sockets()}
        open_now = {each[0]: (key, each[1]) for key, each in self._known.items() if each is not None}
        self._open = set(open_now)
        self.proven = {peer: at for peer, at in self.proven.items() if peer in open_now}
        to_cut, self._to_cut = self._to_cut, {}
        for peer, reason in to_cut.items():
            if peer in open_now:
                self._shut(open_now.pop(peer)[0], peer, reason)
        held = [
            Held((key, peer), peer_of(host_of(peer)), peer in self.proven, self.proven.get(peer, since))
            for peer, (key, since) in open_now.items()
        ]
        for each, reason in to_evict(held, self._limits.connections, self._limits.connections_of_peer):
            key, peer = each.item
            self._shut(key, peer, reason)

    def _seen_first(self, descriptor: int, now: float) -> tuple[str, float] | None:
        with _duplicate(descriptor) as connection:
            peer = self._peer(connection) if connection is not None else None
            return (peer, now) if peer is not None else None

    def _peer(self, connection: socket.socket) -> str | None:
        """gRPC's name of the peer; None when it is no connection of the endpoint."""
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return None
        try:
            if connection.getsockname()[1] != self._port:
                return None
            host, port = connection.getpeername()[:2]
        except OSError:
            return None
        host = host.removeprefix("::ffff:")
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def _shut(self, key: _Descriptor, peer: str, reason: RefusalReason) -> None:
        with _duplicate(key[0]) as connection:
            # gRPC may have closed it meanwhile, and something else may have its number.
            if connection is None or self._peer(connection) != peer:
                return
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._refusals.add("grpc", reason, peer_of(host_of(peer)))


def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer."""
    host = peer.partition(":")[2].rpartition(":")[0]
    return host.removeprefix("%5B").removesuffix("%5D")


def _sockets() -> list[_Descriptor]:
    found = []
    for name in os.listdir(DESCRIPTORS):  # noqa: PTH208 # a Path for each would cost more than the rest
        with contextlib.suppress(OSError):  # closed since it was listed
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                found.append((int(name), status.st_ino))
    return found


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    try:
        connection = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        yield None
        return
    with connection:
        yield connection
