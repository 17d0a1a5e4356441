"""Work of key rotation on stored rows: open, seal and index their tokens, in as many processes as there are cores.

Rows are read, worked on and stored batch by batch. The processes get the keyring through a pipe, never through their
command line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

from service.errors import FieldUnreadableError
from service.executors import WorkerPool, worked_ahead
from service.keys.encryption import EncryptionService, IndexScheme
from service.keys.keyring import Keyring
from service.lead import scheme_text
from service.storage.keys.rekeying import EMAILS, LEADS, NO_INDEX, Indexes, Rekeying, RowFilter, SealedTable, Stored
from service.validation import IndexRule
from service.validation.email import email_key

FEW_ROWS = 2000
"""A fifth of a second's work; a process takes a second to start."""

NICE = 10
"""Niceness of the command, which its processes inherit: the live service gets the processor first."""

MOST_PASSES = 20
"""Each pass works on what was changed during the one before. More than a few happen only if a replica goes on sealing
with the old key, which the report then shows."""

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
    """The tokens sealed with the primary key; those that are already come back as they are."""
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


def index_text(
    table: SealedTable, key_id: str, encryption: EncryptionService, bound_to: UUID, tokens: Tokens
) -> Tokens:
    """What is found by a blind index: sealed with the primary key, and that index made with the key `key_id`."""
    [name], [column] = table.sealed, table.indexes
    try:
        value = encryption.open(bound_to, name, tokens[name])
    except FieldUnreadableError:
        if table != EMAILS or column in tokens:
            raise
        return tokens | {column: NO_INDEX}
    made = encryption.text_index(name, _key_of(name, value), key_id=key_id)
    return reseal(encryption, bound_to, {name: tokens[name]}) | {column: made}


def index_submission(scheme: IndexScheme, encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> Tokens:
    """A resubmission or conflict with its blind indexes; the tokens stay.

    The index of a value that does not open stays if it is made by the same rules. Raises FieldUnreadableError if
    nothing changes.
    """
    made = _submission_indexes(scheme, encryption, bound_to, tokens)
    changed = {
        column: NO_INDEX if text is None else text
        for column, text in made.items()
        if text is not None or not _has_rules_of(scheme, tokens.get(column))
    }
    if all(tokens.get(column) == text for column, text in changed.items()):
        raise FieldUnreadableError(list(made))
    return tokens | changed


def _submission_indexes(
    scheme: IndexScheme, encryption: EncryptionService, bound_to: UUID, tokens: Tokens
) -> dict[str, str | None]:
    """The blind indexes of a resubmission or conflict, by column; None: the value does not open."""
    rule = _rule_of(scheme.normaliser)
    keys = {"phone": rule.phone_key, "nid": rule.nid_key, "email": email_key}
    made: dict[str, str | None] = {}
    for name in keys.keys() & tokens.keys():
        try:
            key = keys[name](encryption.open(bound_to, name, tokens[name]))
        except FieldUnreadableError:
            made[f"{name}_index"] = None
            continue
        if name == "email":
            made["email_index"] = encryption.text_index(name, key, key_id=scheme.key_id)
        else:
            digest = encryption.blind_index(name, key, key_id=scheme.key_id)
            made[f"{name}_index"] = scheme_text(scheme.text, digest)
    return made


def _has_rules_of(scheme: IndexScheme, text: str | None) -> bool:
    """Whether a blind index was made by the rules of a scheme, with whatever key; that of an e-mail knows no rules."""
    if text in (None, NO_INDEX):
        return False
    parts = text.split(".")
    return len(parts) == 2 or parts[1] == scheme.text.split(".")[1]


def fault(encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> str:
    """The fields that do not open, in words; empty when all do."""
    fields = []
    for name, token in tokens.items():
        try:
            encryption.open(bound_to, name, token)
        except FieldUnreadableError:
            fields.append(name)
    return f"does not open: {', '.join(fields)}" if fields else ""


def index_fault(table: SealedTable, encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> str:
    """Whether a blind index is not that of its value, in words; empty also where it cannot be compared."""
    [name], [column] = table.sealed, table.indexes
    try:
        key = _key_of(name, encryption.open(bound_to, name, tokens[name]))
    except FieldUnreadableError:
        return ""
    if tokens[column] in encryption.text_indexes(name, key):
        return ""
    return f"its blind index is not that of its {name}"


def submission_index_fault(scheme: IndexScheme, encryption: EncryptionService, bound_to: UUID, tokens: Tokens) -> str:
    """Like `index_fault` of a resubmission or conflict that is indexed by this scheme."""
    if not tokens["phone_index"].startswith(scheme.text):
        return ""
    made = _submission_indexes(scheme, encryption, bound_to, tokens)
    wrong = sorted(column for column, text in made.items() if text is not None and text != tokens[column])
    return f"not that of its value: {', '.join(wrong)}" if wrong else ""


def _key_of(name: str, value: str) -> str:
    """What the blind index of a field is computed of."""
    return email_key(value) if name == "email" else value


def _load_keyring(keyring: str) -> None:
    global _encryption
    _encryption = EncryptionService(Keyring.from_json(keyring))


def _work(task: Task[T], rows: Sequence[tuple[UUID, Tokens]]) -> list[T | None]:
    results: list[T | None] = []
    for bound_to, tokens in rows:
        try:
            results.append(task(_encryption, bound_to, tokens))
        except FieldUnreadableError:
            results.append(None)
    return results


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes over the rows of tables, each batch by batch."""

    rekeying: Rekeying
    keyring: Keyring
    rate: float
    """Rows a second at most; 0 is no bound."""
    on_progress: Callable[[str], None]
    """Gets a line about progress after each batch."""

    async def repeat(
        self,
        table: SealedTable,
        where: RowFilter,
        task: Task[T],
        store: Callable[[list[tuple[Stored, T]]], Awaitable[int]],
    ) -> tuple[int, list[str]]:
        """Work on rows and store the results until none is left; how many were stored, and which do not open."""
        done, unreadable = 0, list[str]()
        for _ in range(MOST_PASSES):
            found, unreadable = 0, []
            async for batch in self.batches(table, where, task):
                unreadable += [name_of(table, row) for row, result in batch if result is None]
                results = [(row, result) for row, result in batch if result is not None]
                found += len(results)
                done += await store(results)
            if not found:
                break
        return done, unreadable

    async def batches(
        self, table: SealedTable, where: RowFilter, task: Task[T], *, pair: int | None = None
    ) -> AsyncIterator[list[tuple[Stored, T | None]]]:
        """Work on the rows that match a condition, batches ahead of the caller; each batch with its results.

        A result is None when a token does not open. With `pair`, leads come with their indexes of that pair.
        """
        began, done, total = time.monotonic(), 0, await self.rekeying.count(table, where)
        with self._workers(total) as workers:

            def begin(rows: list[Stored]) -> Future[list[T | None]]:
                return workers.submit(_work, task, [(row.bound_to, row.tokens) for row in rows])

            async for rows, results in worked_ahead(self._rows(table, where, pair), begin):
                yield list(zip(rows, results, strict=True))
                done += len(rows)
                self.on_progress(f"{done} of {max(done, total)} {table.plural}{' checked' if pair else ''}")
                await pace(done, began, rate=self.rate)

    async def _rows(self, table: SealedTable, where: RowFilter, pair: int | None) -> AsyncIterator[list[Stored]]:
        after: tuple[Any, ...] | None = None
        while rows := await self.rekeying.read(table, where, after, pair=pair):
            yield rows
            after = rows[-1].key

    def _workers(self, rows: int) -> Executor:
        """The processes, or a thread of this one for so few rows that processes would take longer to start."""
        if rows <= FEW_ROWS:
            return ThreadPoolExecutor(1, initializer=_load_keyring, initargs=(self.keyring.to_json(),))
        return WorkerPool(_load_keyring, self.keyring.to_json())


def name_of(table: SealedTable, row: Stored) -> str:
    """What a row is called in reports."""
    kind = table.plural.removesuffix("s")
    return f"{kind} {row.bound_to}" if table is LEADS else f"{kind} {'/'.join(map(str, row.key))}"


async def pace(done: int, began: float, *, rate: float) -> None:
    """Wait until `done` rows since `began` (monotonic) are no more than `rate` a second; 0 is no bound."""
    if rate:
        await asyncio.sleep(max(0.0, done / rate - (time.monotonic() - began)))
