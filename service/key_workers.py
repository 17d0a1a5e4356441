"""The work on tokens that takes time (open, seal, index, compare), in as many processes as there are cores.

The processes get the keyring through a pipe, never through their command line, and leave Ctrl-C to their parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from service.encryption import EncryptionService, IndexScheme
from service.errors import FieldUnreadableError
from service.keyring import Keyring
from service.validation.index_rule import IndexRule
from service.worker_processes import end_with_the_parent

MOST_WORKERS = 4

FEW_ROWS = 2000
"""A fifth of a second's work; a process takes a second to start."""

NICE = 10
"""How far who makes the processes steps back, and they with it: the live service gets the processor first."""

Item = tuple[UUID, dict[str, str]]
"""What tokens are bound to, and the tokens by their field."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker needs to know; plain values, for they are sent to another process."""

    keyring: str
    scheme: IndexScheme | None = None
    """How indexes are to be computed."""


class _Worker:
    def __init__(self, orders: Orders) -> None:
        self.encryption = EncryptionService(Keyring.from_json(orders.keyring))
        self.scheme = orders.scheme
        self.rule = IndexRule.of(orders.scheme.normaliser) if orders.scheme else None

    def indexes(self, bound_to: UUID, tokens: dict[str, str]) -> tuple[bytes, bytes]:
        assert self.scheme is not None  # noqa: S101 # whoever asks for indexes has said which
        assert self.rule is not None  # noqa: S101
        phone = self.rule.phone_key(self.encryption.open(bound_to, "phone", tokens["phone"]))
        nid = self.rule.nid_key(self.encryption.open(bound_to, "nid", tokens["nid"]))
        index = self.encryption.blind_index
        return index("phone", phone, key_id=self.scheme.key_id), index("nid", nid, key_id=self.scheme.key_id)


_worker: _Worker | None = None


def _begin(orders: Orders) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_the_parent()
    _begin_here(orders)


def _begin_here(orders: Orders) -> None:
    global _worker
    _worker = _Worker(orders)


def workers_for(orders: Orders, rows: int) -> Executor:
    """The processes, or a thread of this one for so few rows that processes would take longer to start.

    Started afresh, not forked: the parent has threads.
    """
    if rows <= FEW_ROWS:
        return ThreadPoolExecutor(1, initializer=_begin_here, initargs=(orders,))
    return ProcessPoolExecutor(
        max_workers=max(1, min(MOST_WORKERS, os.cpu_count() or 1)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(orders,),
    )


def resealed(items: Sequence[Item]) -> list[dict[str, str] | None]:
    """The tokens of each row sealed with the primary key, also those that were already; None: one does not open."""
    assert _worker is not None  # noqa: S101 # the pool's initializer ran
    encryption = _worker.encryption
    done: list[dict[str, str] | None] = []
    for bound_to, tokens in items:
        try:
            done.append(
                {
                    name: token
                    if encryption.is_sealed_with_primary(token)
                    else encryption.seal(bound_to, name, encryption.open(bound_to, name, token))
                    for name, token in tokens.items()
                }
            )
        except FieldUnreadableError:
            done.append(None)
    return done


def indexed(items: Sequence[Item]) -> list[tuple[bytes, bytes] | None]:
    """The blind indexes of phone and nid of each lead; None: one does not open."""
    assert _worker is not None  # noqa: S101 # the pool's initializer ran
    done: list[tuple[bytes, bytes] | None] = []
    for bound_to, tokens in items:
        try:
            done.append(_worker.indexes(bound_to, tokens))
        except FieldUnreadableError:
            done.append(None)
    return done


def unreadable(items: Sequence[Item]) -> list[list[str]]:
    """The fields of each row that do not open."""
    assert _worker is not None  # noqa: S101 # the pool's initializer ran
    encryption = _worker.encryption
    done: list[list[str]] = []
    for bound_to, tokens in items:
        faults = []
        for name, token in tokens.items():
            try:
                encryption.open(bound_to, name, token)
            except FieldUnreadableError:
                faults.append(name)
        done.append(faults)
    return done
