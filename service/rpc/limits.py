"""Limits of what callers hold open: connections, half-received messages, streams, answers that they do not take; and
what keeps one caller from taking what all need: places of calls in flight, and processor time.

A caller without a token costs memory only by what it holds, so that is bounded in number, bytes and time. At a limit
the newcomer gets in and something older is closed: first what no token was ever accepted on, of the peer that holds
most, the oldest first. Each refusal is counted by a fixed reason, and logged at most once in ten seconds for each peer.

docs/security.md has the sum of all limits.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import resource
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Generic, Literal, TypeVar

import structlog
from google.protobuf.message import Message

from service.errors import (
    QueueFullError,
    StartRefusedError,
    TokenExpiredError,
    TokenInvalidError,
    TokenMissingError,
)
from service.rpc.call import Call, Handler, Interceptor

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

SUBJECT_SHARE = 3
"""Calls that a subject may have in flight for each place that is free: a subject alone gets three quarters of the
places, two get three sevenths each, and a newcomer always finds one."""

PAGE_PLACES = 8
"""Places that a page of a list takes: it costs as much as so many calls for one lead. At most an eighth of all."""

PAGES_SHARE = SUBJECT_SHARE / 2
"""What a subject may have of places when it asks for a page: its other calls, such as new leads, still find some."""

FAILURES = 20
FAILURE_SECONDS = 1.0
"""Calls without a good token on a connection, within so many seconds, after which it is slowed down. A client whose
token expires may fail with many calls at once, and has a new one a second later."""

PROVEN_SECONDS = 60.0
"""For which a good token counts for its connection."""

HOLD_SECONDS = 0.5
"""Before the refusal is sent. It occupies one of the connection's own streams meanwhile: that slows the connection down
to 200 calls a second. A refusal at once would not help, because it costs a third of what a CreateLead costs."""

MOST_HELD = 1000
"""Refusals that are held at a time, about 15 kB each; further ones are sent at once."""

MOST_CONNECTIONS = 10_000
"""Connections that are remembered."""

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
    for each in sorted(held, key=lambda each: (each.is_proven, each.is_at_work, each.since)):
        of_peer[each.peer].append(each)
    evicted: list[tuple[Held[T], RefusalReason]] = []
    kept: list[tuple[bool, int, Held[T]]] = []
    for group in of_peer.values():
        excess = len(group) - of_one_peer
        closed = excess + of_one_peer // SPARE if excess > 0 else 0
        evicted += [(each, "connections_of_peer") for each in group[:closed]]
        # The first to be closed is the one with which the peer holds most.
        held_by_kind = Counter[bool]()
        for each in reversed(group[closed:]):
            held_by_kind[each.is_proven] += 1
            kept.append((each.is_proven, -held_by_kind[each.is_proven], each))
    excess = busy + len(kept) - in_all
    if excess > 0:
        kept.sort(key=itemgetter(0, 1))
        evicted += [(each, "connections") for _, _, each in kept[: excess + in_all // SPARE]]
    return evicted


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


class Places:
    """The calls in flight: `limit` in all, and of each subject a share of what is free.

    A call is in flight until its answer is taken, as far as its endpoint can see that: else a caller who takes none
    could have as many as it likes, on as many connections.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._of_subject: Counter[str] = Counter()

    def take(self) -> None:
        """Take a place for a caller who is not known yet. Raises QueueFullError when there is none."""
        if self._taken >= self._limit:
            raise QueueFullError
        self._taken += 1

    def claim(self, call: Call, request: Message) -> None:
        """Count the taken place, and those that the request needs besides, for the subject of a call.

        Raises QueueFullError when it has its share.
        """
        share: float = SUBJECT_SHARE
        if "page_token" in request.DESCRIPTOR.fields_by_name:
            call.places, share = max(1, min(PAGE_PLACES, self._limit // 8)), PAGES_SHARE
            self._taken += call.places - 1
        call.keep_places = self._keep
        subject = _subject(call)
        self._of_subject[subject] += call.places
        if self._of_subject[subject] > share * (self._limit - self._taken + 1):
            raise QueueFullError

    def leave(self, call: Call) -> None:
        """Give the places of a call back."""
        self._taken -= call.places
        if call.keep_places is not None:
            subject = _subject(call)
            self._of_subject[subject] -= call.places
            if not self._of_subject[subject]:
                del self._of_subject[subject]

    def _keep(self, call: Call) -> Callable[[], None]:
        self._taken += call.places
        self._of_subject[_subject(call)] += call.places
        return partial(self.leave, call)


def _subject(call: Call) -> str:
    return call.caller.subject if call.caller is not None else ""


def strangers() -> Interceptor:
    """Slow down connections that send calls without a good token, and refuse them before the token is looked at.

    A proxy may send the calls of many callers on one connection: where a good token came lately, every token is looked
    at.
    """
    failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
    proven: OrderedDict[str, float] = OrderedDict()
    holding = asyncio.Semaphore(MOST_HELD)

    async def hold() -> None:
        if not holding.locked():
            async with holding:
                await asyncio.sleep(HOLD_SECONDS)

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        failures, since = failed.get(call.peer, (0, -math.inf))
        now = time.monotonic()
        flooding = failures >= FAILURES and now <= since + FAILURE_SECONDS
        if flooding and now > proven.get(call.peer, -math.inf) + PROVEN_SECONDS:
            await hold()
            raise QueueFullError
        try:
            return await proceed(call, request)
        except (TokenMissingError, TokenInvalidError, TokenExpiredError):
            failures, since = failed.pop(call.peer, (0, -math.inf))
            failed[call.peer] = (failures + 1, since) if now <= since + FAILURE_SECONDS else (1, now)
            if len(failed) > MOST_CONNECTIONS:
                failed.popitem(last=False)
            if flooding:
                await hold()
            raise
        finally:
            if call.caller is not None and now > proven.get(call.peer, -math.inf) + PROVEN_SECONDS / 2:
                proven.pop(call.peer, None)
                proven[call.peer] = now
                if len(proven) > MOST_CONNECTIONS:
                    proven.popitem(last=False)

    return intercept
