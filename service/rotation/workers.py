"""Worker processes of key rotation: open, seal and index tokens, in as many processes as there are cores.

The processes get the keyring through a pipe, never through their command line.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

from service.errors import FieldUnreadableError
from service.keys.encryption import EncryptionService, IndexScheme
from service.keys.keyring import Keyring
from service.storage.keys.rekeying import Indexes, Stored
from service.validation.index_rule import IndexRule
from service.worker_processes import WorkerPool

FEW_ROWS = 2000
"""A fifth of a second's work; a process takes a second to start."""

NICE = 10
"""Niceness of the command, which its processes inherit: the live service gets the processor first."""

BATCHES_AHEAD = 4
"""Batches that are worked on while one is stored: two for each of two processes."""

Tokens = dict[str, str]
"""Tokens by their field."""

T = TypeVar("T")

Task = Callable[[EncryptionService, UUID, Tokens], T]
"""The work on one row, given the id that its tokens are bound to. Raises FieldUnreadableError. It is sent to a process,
so it is a function of a module, or a partial of one."""

_rule_of = cache(IndexRule.of)

_encryption: EncryptionService
"""Of this process; `_load_keyring` sets it."""


def reseal(encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> Tokens:
    """The tokens sealed with the primary key, also those that were already."""
    return {
        name: token
        if encryption.is_sealed_with_primary(token)
        else encryption.seal(bound_to, name, encryption.open(bound_to, name, token))
        for name, token in tokens.items()
    }


def index(scheme: IndexScheme, encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> Indexes:
    """The blind indexes of a lead's phone and nid."""
    rule = _rule_of(scheme.normaliser)
    phone = rule.phone_key(encryption.open(bound_to, "phone", tokens["phone"]))
    phone_index = encryption.blind_index("phone", phone, key_id=scheme.key_id)
    if "nid" not in tokens:
        return phone_index, None
    nid = rule.nid_key(encryption.open(bound_to, "nid", tokens["nid"]))
    return phone_index, encryption.blind_index("nid", nid, key_id=scheme.key_id)


def conversation(key_id: str, encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> Tokens:
    """The link of a conversation: its id sealed with the primary key, its blind index made with the key `key_id`."""
    value = encryption.open(bound_to, "conversation_id", tokens["conversation_id"])
    sealed = reseal(encryption, bound_to, {"conversation_id": tokens["conversation_id"]})
    return sealed | {"conversation_index": encryption.conversation_indexes(value, key_id=key_id)[0]}


def fault(encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> str:
    """The fields that do not open, in words; empty when all do."""
    fields = []
    for name, token in tokens.items():
        try:
            encryption.open(bound_to, name, token)
        except FieldUnreadableError:
            fields.append(name)
    return f"does not open: {', '.join(fields)}" if fields else ""


def conversation_fault(encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> str:
    """What is wrong with the link of a conversation, in words; empty when nothing is."""
    token, stored = tokens["conversation_id"], tokens.get("conversation_index")
    if unreadable := fault(encryption, bound_to, {"conversation_id": token}):
        return unreadable
    value = encryption.open(bound_to, "conversation_id", token)
    wrong = stored is not None and stored not in encryption.conversation_indexes(value)
    return "its blind index is not that of its conversation id" if wrong else ""


def _load_keyring(keyring: str) -> None:
    global _encryption
    _encryption = EncryptionService(Keyring.from_json(keyring))


def workers_for(keyring: Keyring, rows: int) -> Executor:
    """The processes, or a thread of this one for so few rows that processes would take longer to start."""
    if rows <= FEW_ROWS:
        return ThreadPoolExecutor(1, initializer=_load_keyring, initargs=(keyring.to_json(),))
    return WorkerPool(_load_keyring, keyring.to_json())


def _work(task: Task[T], rows: Sequence[tuple[UUID, Tokens]]) -> list[T | None]:
    results: list[T | None] = []
    for bound_to, tokens in rows:
        try:
            results.append(task(_encryption, bound_to, tokens))
        except FieldUnreadableError:
            results.append(None)
    return results


async def map_batches(
    read: Callable[[tuple[Any, ...] | None], Awaitable[list[Stored]]], task: Task[T], workers: Executor, *, rate: float
) -> AsyncIterator[list[tuple[Stored, T | None]]]:
    """Read rows in batches, work on them ahead, and yield each batch with its results, in the order of reading.

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
