"""The writer of the access record: commits waiting accesses together in one transaction (group commit).

Promises: `record` returns only when the entries are committed, all of a call in one transaction; whatever it raises
means that no value may be shown. A call whose time is over fails alone. No caller cancels a transaction.

A transaction whose end is not known is not repeated: its entries may be committed, so the next attempt begins a chain
of its own and records them again. An access may be recorded twice, but is never missing.

The limit: a subject's entries of the last hour are counted and added to in one transaction, under a lock of the
subject, so that no subject has more than `limit` entries in any hour, whatever the number of replicas and of calls at
once (by the services' clocks, and over entries that were recorded twice: these count twice).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import LeadkeepError, StorageUnavailableError, UnmaskLimitError
from service.foreign_text import parse_json
from service.log import log_whatever_the_level
from service.storage.access.record import HOUR, Access, AccessRecords, Chain, Head
from service.storage.database.batcher import Batcher, Entry
from service.storage.database.database import Database
from service.storage.database.failures import (
    LONGEST_RETRY,
    RecentRefusal,
    StorageFaultError,
    cause_of,
    is_driver_error,
    is_refused,
    is_transient,
    leaves_nothing,
    retry_scope,
    with_retries,
)

LARGEST_BATCH = 1000
"""Entries of one transaction, if more than one call waits: it takes about 30 ms."""

FAILING_SECONDS = 1.0
"""Seconds after a failed attempt in which impatient callers are refused at once."""

REFUSED_SECONDS = 30.0
"""Seconds for which a refusal is reported, unless entries are added before."""

_EVENT = "access head"
HEAD_SECONDS = 60.0
"""Seconds between two heads in the log: so much of a tail can be cut unnoticed, when the tables of the database are cut
alike."""


@dataclass(frozen=True, slots=True)
class _Look:
    """The accesses of one call, which are recorded together or not at all."""

    accesses: Sequence[Access]
    limited: bool


_Call = Entry[_Look, None]


class AccessWriter:
    """Writes the access record of one process, as chains of this `writer` (`serve@host`, or a command).

    With `limit`, that many leads a subject may be shown unmasked within an hour. `on_chain` gets each chain that
    has got its first entries; `on_refusal` the cause of a permanent failure: an SQLSTATE, or the type of another
    error.
    """

    def __init__(
        self,
        database: Database,
        records: AccessRecords,
        *,
        writer: str,
        new_id: Callable[[], UUID],
        limit: int | None = None,
        on_chain: Callable[[Chain], None] = lambda _: None,
        on_refusal: Callable[[str], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._records = records
        self._writer = writer
        self._new_id = new_id
        self._limit = limit
        self._on_chain = on_chain
        self._on_refusal = on_refusal
        self._now = now
        self.chain: Chain | None = None
        """The chain that is being written, or was when the writer ended."""
        self._batches = Batcher[_Look, None](self._write, largest=LARGEST_BATCH, size=lambda look: len(look.accesses))
        self._failed_at = float("-inf")
        self._refused = RecentRefusal(REFUSED_SECONDS)

    @property
    def refused(self) -> str | None:
        """The cause with which the database has refused the last entries, for some time; None: it has not."""
        return self._refused.cause

    async def run(self) -> None:
        """Write until `finish`."""
        await self._batches.run()

    def finish(self) -> None:
        """Take no new accesses; `run` returns when none waits."""
        self._batches.finish()

    async def stop(self) -> None:
        """Refuse waiting and new accesses."""
        self._batches.finish()
        self._batches.fail_all()

    async def end_chain(self) -> None:
        """Write the head that ends the chain; to be called when `run` has ended.

        A chain without an end is one whose writer was killed: nothing is lost with it.
        """
        if self.chain is not None:
            with contextlib.suppress(Exception):
                self.chain = await self._records.end_chain(self.chain)

    async def record(
        self, accesses: Sequence[Access], *, patience: float = LONGEST_RETRY, limited: bool = True
    ) -> None:
        """Commit the entries before a value is shown.

        Args:
            patience: seconds to wait; less than a storage call's gives up at once after a fresh failure.
            limited: False for entries that count for the limit, but are recorded beyond it.

        Raises:
            StorageUnavailableError: not committed in time.
            UnmaskLimitError: too many entries in the hour.
        """
        now, scope = time.monotonic(), retry_scope.get()
        if patience < LONGEST_RETRY and now < self._failed_at + FAILING_SECONDS:
            raise StorageUnavailableError
        try:
            async with asyncio.timeout(patience if scope is None else min(patience, scope.deadline - now)):
                await with_retries(partial(self._batches.submit, _Look(accesses, limited)))
        except TimeoutError:
            raise StorageUnavailableError from None

    async def require_room(self, subject: str, leads: int) -> None:
        """Raise UnmaskLimitError if a subject may not be shown so many more leads within this hour."""
        if self._limit is None:
            return

        async def work(connection: AsyncConnection) -> None:
            [error] = await self._limit_errors(connection, [(subject, leads)], self._now())
            if error is not None:
                raise error

        await self._database.read(work)

    async def _write(self, batch: list[_Call]) -> None:
        try:
            refused = await self._add(batch)
        except Exception as error:  # noqa: BLE001 # whatever it is, it is reported to the callers whom it concerns
            # IntegrityError: another writer has taken the chain's next number, and no entry of ours fits there.
            if not leaves_nothing(error) or isinstance(error, IntegrityError):
                self.chain = None
            failure: Exception = error
            if not is_transient(error):
                known = is_driver_error(error) or is_refused(error)
                cause = cause_of(error) if known else type(error).__qualname__
                self._refused.note(cause)
                self._on_refusal(cause)
                failure = StorageUnavailableError()
            else:
                self._failed_at = time.monotonic()
            for call in batch:
                call.fail(failure)
        else:
            self._refused.note(None)
            for call in batch:
                if call in refused:
                    call.fail(refused[call])
                else:
                    call.resolve(None)

    async def _add(self, batch: Sequence[_Call]) -> dict[_Call, UnmaskLimitError]:
        """Add a batch to the record; what is beyond the limit is left out and returned."""
        now = self._now()

        async def work(connection: AsyncConnection) -> tuple[Chain | None, dict[_Call, UnmaskLimitError]]:
            looks = [(call.item.accesses[0].subject, len(call.item.accesses)) for call in batch]
            errors = await self._limit_errors(connection, looks, now, alone=True)
            refused = {call: error for call, error in zip(batch, errors, strict=True) if error and call.item.limited}
            accesses = [access for call in batch if call not in refused for access in call.item.accesses]
            if not accesses:
                return self.chain, refused
            chain = self.chain or await self._records.begin_chain(connection, self._new_id(), self._writer, now)
            return await self._records.extend_chain(connection, chain, accesses, now), refused

        before = self.chain
        alone = self._limit is None and before is not None
        self.chain, refused = await self._database.write_once(work, alone=alone)
        if self.chain is not None and before is None:
            self._on_chain(self.chain)
        return refused

    async def _limit_errors(
        self, connection: AsyncConnection, looks: Sequence[tuple[str, int]], now: datetime, *, alone: bool = False
    ) -> list[UnmaskLimitError | None]:
        """For each subject and how many leads it looks at: the error if that is beyond the limit.

        `alone`: nobody else counts the looks of these subjects before this transaction ends.
        """
        if self._limit is None:
            return [None] * len(looks)
        used = await self._records.count_in_hour(connection, {subject for subject, _ in looks}, now, alone=alone)
        errors: list[UnmaskLimitError | None] = []
        for subject, leads in looks:
            excess = used[subject] + leads - self._limit
            if excess <= 0:
                used[subject] += leads
                errors.append(None)
                continue
            leaves = None
            if excess <= self._limit:
                leaves = await self._records.leaves_hour_at(connection, subject, now, behind=excess - 1)
            errors.append(UnmaskLimitError(self._limit, max(1.0, ((leaves or now + HOUR) - now).total_seconds())))
        return errors


def log_head(chain: Chain) -> None:
    """Log how far a chain reaches."""
    log_whatever_the_level(
        _EVENT,
        chain=str(chain.head.chain_id),
        chain_number=chain.number,
        number=chain.head.number,
        digest=chain.head.digest.hex(),
        ended=chain.head.ended,
    )


def logged_heads(lines: Iterable[str]) -> Iterator[Chain]:
    """The chains whose heads are among the lines of a log, which may hold other lines and prefixes of lines.

    Raises ValueError for a head that is damaged.
    """
    for number, line in enumerate(lines, start=1):
        if _EVENT not in line:
            continue
        try:
            logged = parse_json(line[line.index("{") :])
        except ValueError:
            continue  # a line of somebody else, or one that was cut by the end of the file
        if not isinstance(logged, dict) or logged.get("event") != _EVENT:
            continue
        try:
            head = Head(
                chain_id=UUID(logged["chain"]),
                number=int(logged["number"]),
                digest=bytes.fromhex(logged["digest"]),
                ended=bool(logged["ended"]),
            )
            yield Chain(int(logged["chain_number"]), head)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"line {number} is a damaged head") from None


class AccessHeads:
    """Logs heads: of this process's chain, and of what other writers (replicas, commands) added meanwhile."""

    def __init__(self, records: AccessRecords, writer: AccessWriter) -> None:
        self._records = records
        self._writer = writer
        self._known: list[Chain] = []

    async def run(self) -> None:
        """Log the heads every minute."""
        while True:
            await asyncio.sleep(HEAD_SECONDS)
            await self.log_own()
            await self.log_others()

    async def log_own(self) -> None:
        """Log how far this process's chain reaches."""
        if self._writer.chain is not None:
            log_head(self._writer.chain)

    async def log_others(self) -> None:
        """Log the chains of other writers that are not logged yet."""
        own = self._writer.chain
        # While the database is away there is nothing new in it.
        with contextlib.suppress(LeadkeepError, StorageFaultError):
            newest = await self._records.newest_heads()
            for chain in newest:
                mine = own is not None and chain.head.chain_id == own.head.chain_id
                if not mine and chain not in self._known:
                    log_head(chain)
            self._known = newest
