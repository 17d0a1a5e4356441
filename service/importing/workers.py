"""The work on rows that takes time (validate and seal, or open and index), in as many processes as there are cores.

The processes get the keyring through a pipe, never through their command line, and leave Ctrl-C to their parent.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from service.encryption import EncryptionService, IndexPlan
from service.errors import FieldUnreadableError, LeadValidationError
from service.importing.daily import DailyRowError, prepared
from service.importing.rows import Result, Told
from service.keyring import Keyring
from service.lead import CUSTOMER_FIELDS, SealedSubmission
from service.sealing import LeadSealer
from service.validation import ValidationService
from service.worker_processes import end_with_the_parent

IMPORTER = "import"
"""The subject of imported leads. The request_id of a row is made of its content, so that a repeat finds its lead."""

MOST_WORKERS = 4

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a worker needs to know; plain values, for they are sent to another process."""

    keyring: str
    default_region: str | None
    phone_rule: str
    nid_rule: str
    policies: tuple[str, ...]
    plan: IndexPlan | None
    """Which blind indexes the database wants."""


class _Worker:
    """What one process keeps."""

    def __init__(self, rules: Rules) -> None:
        self.encryption = EncryptionService(Keyring.from_json(rules.keyring))
        self.encryption.plan = rules.plan
        self.validation = ValidationService(
            default_region=rules.default_region,
            phone_rule=rules.phone_rule,
            nid_rule=rules.nid_rule,
            policies=rules.policies,
        )
        self.sealer = LeadSealer(self.encryption, self.validation, transcript_url=None)


_worker: _Worker | None = None


def _begin(rules: Rules) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_the_parent()
    _worker = _Worker(rules)


class _Pool(ProcessPoolExecutor):
    """Starts its processes with Ctrl-C held back, so that it cannot end them before they ignore it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pool(rules: Rules) -> ProcessPoolExecutor:
    """The processes. Started afresh, not forked: the parent has threads."""
    return _Pool(
        max_workers=max(1, min(MOST_WORKERS, os.cpu_count() or 1)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(rules,),
    )


def sealed_rows(rows: Sequence[tuple[int, dict[str, str], UUID]]) -> list[SealedSubmission | Told]:
    """Each row as a submission that is ready to be stored, or why it cannot be."""
    assert _worker is not None  # noqa: S101 # the pool's initializer ran
    return [_sealed(_worker, *row) for row in rows]


def _sealed(worker: _Worker, number: int, fields: dict[str, str], lead_id: UUID) -> SealedSubmission | Told:
    try:
        details = worker.validation.submission(fields)
    except LeadValidationError as invalid:
        told = "; ".join(f"{each.field.removeprefix('lead.')} {each.description}" for each in invalid.violations)
        return Told(number, Result.INVALID, detail=told)
    # The last one is the oldest key's: a file that is imported again finds its leads also after a rotation.
    *_, digest = worker.encryption.content_digests(getattr(details, name) for name in CUSTOMER_FIELDS)
    return worker.sealer.seal(lead_id, details, created_by=IMPORTER, request_id=f"{IMPORTER}:{digest.hex()}")


def opened_lines(lines: Sequence[tuple[int, bytes]]) -> list[dict[str, Any] | Told]:
    """Each line of a daily file with its blind indexes, or why it cannot be imported."""
    assert _worker is not None  # noqa: S101 # the pool's initializer ran
    done: list[dict[str, Any] | Told] = []
    for number, line in lines:
        try:
            done.append(prepared(json.loads(line), _worker.encryption, _worker.sealer))
        except FieldUnreadableError as unreadable:
            done.append(Told(number, Result.INVALID, detail=f"cannot be opened: {unreadable.metadata['fields']}"))
        except (DailyRowError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            # Whatever stands where this format has something else; the database looks at the values themselves.
            done.append(Told(number, Result.INVALID, detail="it is not a lead of this format"))
    return done
