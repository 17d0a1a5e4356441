"""The work on tokens that takes time (open, seal, index, compare), in as many processes as there are cores.

The processes get the keyring through a pipe, never through their command line.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from service.encryption import EncryptionService, IndexScheme
from service.errors import FieldUnreadableError
from service.keyring import Keyring
from service.validation.index_rule import IndexRule
from service.worker_processes import WorkerPool

if TYPE_CHECKING:
    from service.storage.rekeying import Stored  # a worker needs no SQLAlchemy

FEW_ROWS = 2000
"""A fifth of a second's work; a process takes a second to start."""

NICE = 10
"""Niceness of the command, which its processes inherit: the live service gets the processor first."""

BATCHES_AHEAD = 4
"""Batches that are worked on while one is stored: two for each of two processes."""

Tokens = dict[str, str]
"""Tokens by their field."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker needs; plain values, because they are sent to another process."""

    keyring: str
    scheme: IndexScheme | None = None
    """How indexes are to be computed; for `Worker.index` only."""


class Worker:
    """The work on one row, given the id that its tokens are bound to. Each raises FieldUnreadableError."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._encryption = EncryptionService(Keyring.from_json(settings.keyring))
        self._scheme = settings.scheme
        self._rule = IndexRule.of(settings.scheme.normaliser) if settings.scheme else None

    def reseal(self, bound_to: UUID, tokens: Tokens) -> Tokens:
        """The tokens sealed with the primary key, also those that were already."""
        encryption = self._encryption
        return {
            name: token
            if encryption.is_sealed_with_primary(token)
            else encryption.seal(bound_to, name, encryption.open(bound_to, name, token))
            for name, token in tokens.items()
        }

    def index(self, bound_to: UUID, tokens: Tokens) -> tuple[bytes, bytes]:
        """The blind indexes of a lead's phone and nid."""
        assert self._scheme is not None and self._rule is not None  # noqa: S101, PT018 # given for this task
        phone = self._rule.phone_key(self._encryption.open(bound_to, "phone", tokens["phone"]))
        nid = self._rule.nid_key(self._encryption.open(bound_to, "nid", tokens["nid"]))
        index, key_id = self._encryption.blind_index, self._scheme.key_id
        return index("phone", phone, key_id=key_id), index("nid", nid, key_id=key_id)

    def unreadable(self, bound_to: UUID, tokens: Tokens) -> list[str]:
        """The fields that do not open."""
        fields = []
        for name, token in tokens.items():
            try:
                self._encryption.open(bound_to, name, token)
            except FieldUnreadableError:
                fields.append(name)
        return fields


Task = Callable[[Worker, UUID, Tokens], T]

_worker: Worker | None = None


def _begin(settings: WorkerSettings) -> None:
    global _worker
    _worker = Worker(settings)


def workers_for(settings: WorkerSettings, rows: int) -> Executor:
    """The processes, or a thread of this one for so few rows that processes would take longer to start."""
    if rows <= FEW_ROWS:
        return ThreadPoolExecutor(1, initializer=_begin, initargs=(settings,))
    return WorkerPool(_begin, settings)


def _work(task: Task[T], rows: Sequence[tuple[UUID, Tokens]]) -> list[T | None]:
    assert _worker is not None  # noqa: S101 # the pool's initializer ran
    results: list[T | None] = []
    for bound_to, tokens in rows:
        try:
            results.append(task(_worker, bound_to, tokens))
        except FieldUnreadableError:
            results.append(None)
    return results


async def work_on(
    read: Callable[[tuple[Any, ...] | None], Awaitable[list[Stored]]], task: Task[T], workers: Executor, *, rate: float
) -> AsyncIterator[list[tuple[Stored, T | None]]]:
    """Read rows in batches, work on them ahead, and yield each batch with its results in the order of reading.

    Args:
        read: answers the rows behind a key, none at the end.
        task: the work on one row; its result is None when a token does not open.
        workers: the processes to work in.
        rate: rows a second at most; 0 is no bound.
    """
    pending: deque[tuple[list[Stored], Future[list[T | None]]]] = deque()
    began, done = time.monotonic(), 0
    rows = await read(None)
    while rows or pending:
        if rows:
            pending.append((rows, workers.submit(_work, task, [(row.bound_to, row.tokens) for row in rows])))
            rows = await read(rows[-1].key)
        if not rows or len(pending) > BATCHES_AHEAD:
            batch, working = pending.popleft()
            results = await asyncio.wrap_future(working)
            yield list(zip(batch, results, strict=True))
            done += len(batch)
            await pace(done, began, rate=rate)


async def pace(done: int, began: float, *, rate: float) -> None:
    """Wait until `done` rows since `began` (monotonic) are no more than `rate` a second; 0 is no bound."""
    if rate:
        await asyncio.sleep(max(0.0, done / rate - (time.monotonic() - began)))
