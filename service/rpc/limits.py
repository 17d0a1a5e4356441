"""Limits of what callers hold open: connections, half-received messages, streams, answers that they do not take.

A caller without a token costs memory only by what it holds, so that is bounded in number, bytes and time. At a limit
the newcomer gets in and something older is closed: first what no token was ever accepted on, of the peer that holds
most, the oldest first. Each refusal is counted by a fixed reason, and logged at most once in ten seconds for each peer.

docs/security.md has the sum of all limits, and what was measured.
"""

from __future__ import annotations

import heapq
import ipaddress
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, Literal, TypeVar

import structlog

from service.errors import StartRefusedError

RefusalReason = Literal[
    "connections",
    "connections_of_peer",
    "messages_arriving",
    "message_late",
    "message_missing",
    "streams",
    "answers_not_taken",
    "answer_late",
]

SPARE = 20
"""At a limit one part in so many more is closed than must be, so that the choice is made once for many newcomers."""

KEPT_FILES = 264
"""Open files for everything but callers at both endpoints: 64 connections at LEADKEEP_OPS_ADDRESS, 32 to the database,
spool, daily files, log, child processes, and as many again."""

FEWEST_CONNECTIONS = 64
"""Connections at each endpoint below which a service is not worth starting."""

HEADROOM = 1.25
"""gRPC accepts by itself, and its connections are counted afterwards: this many times the limit at most."""

LOG_SECONDS = 10.0
MOST_LOGGED_PEERS = 1000
"""Seconds between two lines about one peer, and peers that have lines."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What callers may hold at one endpoint."""

    connections: int = 1000
    connections_of_peer: int = 800
    messages_arriving: int = 128
    """Messages or bodies that are half received: 32 MB. An honest one is complete within milliseconds."""
    arrival_seconds: float = 10.0
    """For a message to arrive after its headers: 256 kB at the speed of a poor mobile line."""
    streams: int = 128
    """Health watches and reflection streams. A load balancer needs one for each replica of its own."""
    untaken_bytes: int = 32 * 1024 * 1024
    """Of answers that callers have not taken: eight of the largest."""
    untaken_answers: int = 16
    """Of one connection, for a second or longer: until they are taken, its calls are refused unread."""
    unclosed_calls: int = 1000
    """Calls that are over, but whose callers do not take the end: 10 MB of tasks."""
    answer_seconds: float = 30.0
    """For an answer to be taken: 4 MB at 1 Mbit/s."""
    connection_seconds: float = 600.0
    """Age at which a connection takes no new calls, so that callers behind a balancer come to new replicas. gRPC varies
    it by a tenth: not all come at once."""
    connection_grace_seconds: float = 30.0
    """For the calls of such a connection to end: the longest LEADKEEP_DEFAULT_DEADLINE."""


DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """Something that a caller holds open and that may be closed."""

    item: T
    peer: str
    """The caller's address, without port."""
    is_proven: bool
    """Whether a token was accepted on it."""
    since: float
    is_at_work: bool = False


def to_evict(
    held: Iterable[Held[T]], in_all: int, of_one_peer: int, *, busy: int = 0
) -> list[tuple[Held[T], RefusalReason]]:
    """What to close to keep both limits; `busy` more are open that must not be closed."""
    of_peer: dict[str, list[Held[T]]] = defaultdict(list)
    # The first to be closed stands last, and of equals the one that was given first.
    for each in sorted(held, key=lambda each: (each.is_proven, each.is_at_work, each.since))[::-1]:
        of_peer[each.peer].append(each)
    evicted: list[tuple[Held[T], RefusalReason]] = []
    for group in of_peer.values():
        if (excess := len(group) - of_one_peer) > 0:
            evicted += [(group.pop(), "connections_of_peer") for _ in range(excess + of_one_peer // SPARE)]
    excess = busy + sum(map(len, of_peer.values())) - in_all
    if excess > 0:
        wanted = excess + in_all // SPARE
        for is_proven in (False, True):
            victims = _of_the_largest(of_peer, wanted, is_proven=is_proven)
            evicted += [(each, "connections") for each in victims]
            wanted -= len(victims)
    return evicted


def _of_the_largest(of_peer: dict[str, list[Held[T]]], wanted: int, *, is_proven: bool) -> list[Held[T]]:
    counts = ((sum(each.is_proven == is_proven for each in group), peer) for peer, group in of_peer.items())
    heap = [(-count, peer) for count, peer in counts if count]
    heapq.heapify(heap)
    victims: list[Held[T]] = []
    while heap and len(victims) < wanted:
        left, peer = heap[0]
        victims.append(of_peer[peer].pop())
        if left + 1:
            heapq.heapreplace(heap, (left + 1, peer))
        else:
            heapq.heappop(heap)
    return victims


@lru_cache(maxsize=4096)
def peer_of(host: str) -> str:
    """Whom an address counts for: an IPv4 address for itself, an IPv6 address for its network of 64 bits, which one
    machine commonly has whole."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Refusals:
    """Counts what was refused at a limit, and logs it."""

    def __init__(self, count: Callable[[str, RefusalReason], None] = lambda _door, _reason: None) -> None:
        """`count` gets door and reason of each refusal."""
        self._count = count
        self._logged: dict[tuple[str, RefusalReason, str], tuple[float, int]] = {}
        self._log = structlog.get_logger("leadkeep.limits")

    def add(self, door: str, reason: RefusalReason, peer: str) -> None:
        """Count one refusal; log it unless the same was logged a moment ago."""
        self._count(door, reason)
        now, key = time.monotonic(), (door, reason, peer)
        logged_at, unlogged = self._logged.get(key, (-LOG_SECONDS, 0))
        if now - logged_at < LOG_SECONDS:
            self._logged[key] = (logged_at, unlogged + 1)
            return
        if len(self._logged) >= MOST_LOGGED_PEERS:
            self._logged = {k: v for k, v in self._logged.items() if now - v[0] < LOG_SECONDS}
        # Many peers at once are shown by the metric alone.
        if len(self._logged) < MOST_LOGGED_PEERS:
            self._logged[key] = (now, 0)
            self._log.warning("refused at a limit", door=door, reason=reason, peer=peer, times=unlogged + 1)


def raise_open_files() -> int:
    """Raise the limit of open files as far as this process may; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def limits_within(limits: Limits, open_files: int) -> Limits:
    """The limits that this many open files allow, for each of both endpoints.

    Raises StartRefusedError when they allow too few connections.
    """
    if open_files == resource.RLIM_INFINITY:
        return limits
    possible = int((open_files - KEPT_FILES) / (1 + HEADROOM))
    if possible >= limits.connections:
        return limits
    if possible < FEWEST_CONNECTIONS:
        needed = int(KEPT_FILES + FEWEST_CONNECTIONS * (1 + HEADROOM)) + 1
        raise StartRefusedError(
            f"this process may open {open_files} files, too few to serve callers; raise the hard limit (ulimit -Hn, "
            f"LimitNOFILE, --ulimit nofile) to {needed} or more"
        )
    structlog.get_logger("leadkeep.limits").warning(
        "fewer connections are accepted than LEADKEEP_MAX_CONNECTIONS: the hard limit of open files is too low",
        open_files=open_files,
        connections=possible,
    )
    return replace(limits, connections=possible, connections_of_peer=min(limits.connections_of_peer, possible))
