"""What an operator does with keys while the service runs: promote, reseal, retire, reindex, verify.

Each use case may be stopped at any moment and run again: it looks at what there is and goes on. The order of its steps
is what makes it safe, see docs/architecture.md: every replica can open with a key before any seals with it, every
replica writes new blind indexes before the old leads get theirs, and nothing is retired that something still needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from service.encryption import EncryptionService, IndexScheme
from service.errors import StartRefusedError
from service.key_batches import BATCH_ROWS, in_batches, pace, pump
from service.key_reports import Progress, Reindexed, Resealed, Verified
from service.key_workers import Orders, indexed, resealed, unreadable, workers_for
from service.keyring import Keyring, KeyState, Purpose, RootKey
from service.running_replicas import LOOK_SECONDS, RunningReplicas
from service.storage import key_state
from service.storage.canary import KeyState as StoredKeys
from service.storage.canary import plan_of, read_key_state
from service.storage.database import Database
from service.storage.rekeying import LEADS, TABLES, Rekeying, SealedTable, Stored
from service.storage.replicas import forget, replicas
from service.storage.spool_rows import peek_key_ids

MOST_PASSES = 20
"""Each pass meets what the one before found changed under its hands. More than a few happen only if a replica goes on
sealing with the old key, which then is to be told."""


class KeyService:
    """The use cases. `tell` hears what is waited for, `on_progress` how far it is; `rate` bounds rows a second.

    `spool` is the folder of this machine's own replica.
    """

    def __init__(
        self,
        *,
        database: Database,
        rekeying: Rekeying,
        encryption: EncryptionService,
        tell: Callable[[str], None],
        on_progress: Callable[[Progress], None],
        spool: Path,
        timeout: float,
        rate: float = 0.0,
    ) -> None:
        self._database = database
        self._rekeying = rekeying
        self._encryption = encryption
        self._tell = tell
        self._on_progress = on_progress
        self._spool = spool
        self._timeout = timeout
        self._rate = rate
        self._replicas = RunningReplicas(database, spool=spool, tell=tell, timeout=timeout)

    async def forget(self, names: Sequence[str]) -> None:
        """Take replicas out that are gone for good. Raises StartRefusedError for one that there is not."""
        gone = await forget(self._database, names)
        if unknown := set(names) - set(gone):
            there = ", ".join(each.name for each in await replicas(self._database)) or "none"
            raise StartRefusedError(f"there is no replica {', '.join(sorted(unknown))}; there is: {there}")

    async def prepare_promotion(self, key: RootKey) -> None:
        """Wait until every running replica can open with a key; then no replica starts any more that cannot.

        Raises StartRefusedError when they do not follow in time.
        """
        await self._replicas.follow(lambda each: key.id in each.said.opens, f"to load the key {key.id}: send it SIGHUP")
        state = await self._database.read(read_key_state)
        if key.purpose is Purpose.ENCRYPTION and state is not None:
            # A canary that only the new key opens refuses a keyring that lacks it at its start.
            promoted = EncryptionService(self._encryption.keyring.with_primary(key.id))
            await key_state.seal_canary(self._database, promoted, state)
            # One may have come up meanwhile, with a keyring that was good a moment ago.
            await self._replicas.follow(
                lambda each: key.id in each.said.opens, f"to load the key {key.id}: send it SIGHUP"
            )

    async def reseal(self) -> Resealed:
        """Seal everything with the primary encryption key. Raises StartRefusedError."""
        began = time.monotonic()
        primary = self._encryption.keyring.primary(Purpose.ENCRYPTION).id
        await self._replicas.follow(
            lambda each: primary in each.said.opens, f"to load the key {primary}: send it SIGHUP"
        )
        report = Resealed(primary)
        if not self._encryption.is_sealed_with_primary((await self._state()).canary.sealed):
            await key_state.seal_canary(self._database, self._encryption, await self._state())
        rows = max([await self._rekeying.count(table, but=primary) for table in TABLES])
        with workers_for(Orders(self._encryption.keyring.to_json()), rows) as workers:
            for table in TABLES:
                done, faults = await self._reseal_table(table, primary, workers)
                report.sealed_anew[table.plural] = done
                report.unreadable += faults
        report.left = sum([await self._rekeying.count(table, but=primary) for table in TABLES])
        report.seconds = time.monotonic() - began
        return report

    async def _reseal_table(self, table: SealedTable, primary: str, workers: Executor) -> tuple[int, list[str]]:
        total = await self._rekeying.count(table, but=primary)
        done, faults = 0, dict[str, None]()

        async def store(rows: list[Stored], worked: list[dict[str, str] | None]) -> int:
            nonlocal done
            faults.update(
                (_named(table, row), None) for row, tokens in zip(rows, worked, strict=True) if tokens is None
            )
            opened = [(row, tokens) for row, tokens in zip(rows, worked, strict=True) if tokens is not None]
            replaced = await self._rekeying.replace_tokens(table, opened) if opened else 0
            done += replaced
            self._on_progress(Progress(table.plural, done, max(done, total)))
            return replaced

        for _ in range(MOST_PASSES):
            faults.clear()
            batches = in_batches(lambda after: self._rekeying.rows(table, after=after, limit=BATCH_ROWS, but=primary))
            if await pump(batches, resealed, store, workers, rate=self._rate) == 0:
                break
        return done, list(faults)

    async def reindex(self, normaliser: str) -> Reindexed:
        """Compute the blind indexes with the primary index key, of values under this normaliser's rules.

        Duplicates are refused by the old and the new ones until the new ones are whole, and by the new ones from then
        on. Raises StartRefusedError.
        """
        began = time.monotonic()
        wanted = IndexScheme(self._encryption.index_primary_id, normaliser)
        state = await self._state()
        current, following = self._schemes(state)
        if following is not None and following != wanted:
            raise StartRefusedError(
                f"another rotation is under way, to the index key {following.key_id} and '{following.normaliser}': "
                "finish it first, with that key as the primary one and those settings"
            )
        if current == wanted and not state.clearing:
            return Reindexed(needed=False)
        report = Reindexed(needed=True)
        if current != wanted:
            if state.clearing:
                await self._clear(state)
                state = await self._state()
            if following is None:
                load = f"to load the key {wanted.key_id}: send it SIGHUP"
                await self._replicas.follow(lambda each: wanted.key_id in each.said.opens, load)
                canary = self._encryption.make_canary(wanted.key_id)
                await key_state.write_both(self._database, state, canary, wanted.normaliser)
                state = await self._state()
            await self._followed(state)
            report.leads = await self._fill_and_check(state, wanted)
            await key_state.flip(self._database, state)
            state = await self._state()
        await self._clear(state)
        report.beside = await self._rekeying.standing_beside(state.pair)
        report.seconds = time.monotonic() - began
        return report

    def _schemes(self, state: StoredKeys) -> tuple[IndexScheme, IndexScheme | None]:
        pairs = plan_of(state, self._encryption).pairs
        current, other = pairs if state.pair == 1 else pairs[::-1]
        assert current is not None  # noqa: S101 # the pair in use has a scheme
        return current, other

    async def _followed(self, state: StoredKeys) -> None:
        """Wait until every running replica follows the plan; nothing that follows an older one is stored any more."""
        if state.accepts_from < state.epoch:
            wait = "to follow the change of the blind indexes"
            await self._replicas.follow(lambda each: each.said.epoch >= state.epoch, wait)
            await key_state.refuse_older_plans(self._database, state)

    async def _fill_and_check(self, state: StoredKeys, scheme: IndexScheme) -> int:
        pair = 3 - state.pair
        total = await self._rekeying.count_to_index(pair)
        done = 0
        faults: dict[str, None] = {}

        async def fill(rows: list[Stored], worked: list[tuple[bytes, bytes] | None]) -> int:
            nonlocal done
            faults.update((_named(LEADS, row), None) for row, made in zip(rows, worked, strict=True) if made is None)
            ready = [(row, *made) for row, made in zip(rows, worked, strict=True) if made is not None]
            if ready:
                await self._rekeying.fill_indexes(pair, state.epoch, ready)
            done += len(ready)
            self._on_progress(Progress("leads", min(done, total), total))
            return len(ready)

        every = await self._rekeying.count(LEADS)
        with workers_for(Orders(self._encryption.keyring.to_json(), scheme), every) as workers:
            for _ in range(MOST_PASSES):
                faults.clear()
                batches = in_batches(lambda after: self._rekeying.leads_to_index(pair, after=after, limit=BATCH_ROWS))
                if await pump(batches, indexed, fill, workers, rate=self._rate) == 0:
                    break
            if faults:
                raise StartRefusedError(
                    f"{len(faults)} leads cannot be opened, so that nobody can tell whether they are duplicates: "
                    f"{', '.join(list(faults)[:10])}. See leadkeep keys verify; the old blind indexes stay in use"
                )
            if await self._rekeying.count_to_index(pair):
                raise StartRefusedError("leads without new blind indexes are left: run leadkeep keys reindex again")
            wrong = await self._wrong_indexes(pair, workers)
        if wrong:
            raise StartRefusedError(
                f"{len(wrong)} leads have new blind indexes that are not theirs: {', '.join(wrong[:10])}. Nothing is "
                "flipped; report this"
            )
        return total

    async def _wrong_indexes(self, pair: int, workers: Executor) -> list[str]:
        wrong: list[str] = []
        total, done = await self._rekeying.count(LEADS), 0

        async def compare(rows: list[Stored], worked: list[tuple[bytes, bytes] | None]) -> int:
            nonlocal done
            done += len(rows)
            wrong.extend(_named(LEADS, row) for row, made in zip(rows, worked, strict=True) if made != row.indexes)
            self._on_progress(Progress("leads checked", min(done, total), total))
            return len(rows)

        batches = in_batches(lambda after: self._rekeying.indexed_leads(pair, after=after, limit=BATCH_ROWS))
        await pump(batches, indexed, compare, workers, rate=self._rate)
        return wrong

    async def _clear(self, state: StoredKeys) -> None:
        await self._followed(state)
        began, cleared = time.monotonic(), 0
        while count := await self._rekeying.clear_indexes(3 - state.pair, limit=BATCH_ROWS):
            cleared += count
            self._on_progress(Progress("old indexes cleared", cleared, cleared))
            await pace(cleared, began, rate=self._rate)
        await key_state.cleared(self._database, state)

    async def retire(self, key: RootKey, *, files: Callable[[], dict[str, list[str]]]) -> None:
        """See that nothing needs a key any more, and that nothing will.

        `files` answers which daily files of this machine name which keys. Raises StartRefusedError that names what
        still needs it and what to run.
        """
        if key.purpose is Purpose.AUDIT:
            return  # it goes on verifying what it signed, in whatever state
        opens = f"to stop sealing with {key.id}: send it SIGHUP"
        await self._replicas.follow(lambda each: key.id not in each.said.seals, opens)
        holders = await self._spools_with(key.id)
        if key.purpose is Purpose.INDEX:
            current, following = self._schemes(state := await self._state())
            if key.id in {current.key_id, following.key_id if following else None} or state.clearing:
                holders.append("the blind indexes of leads: run leadkeep keys reindex")
        if key.purpose is Purpose.ENCRYPTION:
            # Refused first and looked for then: nothing can come in between.
            await key_state.refuse_key(self._database, key.id)
            nothing_left = False
            try:
                holders += await self._rows_with(key.id)
                holders += [] if holders else await self._files_with(key.id, files)
                nothing_left = not holders
            finally:
                if not nothing_left:
                    await key_state.accept_key(self._database, key.id)
        if holders:
            raise StartRefusedError(f"the key {key.id} is still needed, by\n  " + "\n  ".join(holders))

    async def _rows_with(self, key_id: str) -> list[str]:
        counts = (await self._rekeying.sealed_counts()).get(key_id, {})
        return [f"{count} tokens of {holder}: run leadkeep keys reseal" for holder, count in counts.items()]

    async def _spools_with(self, key_id: str) -> list[str]:
        holders = [
            f"the spool of the replica {each.name}: let it drain (leadkeep spool status there), or, if it is gone for "
            f"good, --forget {each.name}"
            for each in await replicas(self._database)
            if key_id in each.said.spool_keys
        ]
        if not holders and key_id in peek_key_ids(self._spool):
            holders.append(f"the spool {self._spool}: run leadkeep spool drain")
        return holders

    async def _files_with(self, key_id: str, files: Callable[[], dict[str, list[str]]]) -> list[str]:
        """Files follow by themselves, so they get the time that replicas get."""
        deadline = time.monotonic() + self._timeout
        told = False
        while True:
            left = files().get(key_id, [])
            if not left:
                return []
            if time.monotonic() > deadline:
                named = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
                return [
                    f"{len(left)} daily files ({named}): a running service renders them anew by itself, else run "
                    "leadkeep files render"
                ]
            if not told:
                told = True
                self._tell(f"waiting for {len(left)} daily files to be rendered anew")
            await asyncio.sleep(LOOK_SECONDS)

    async def verify(self) -> Verified:
        """Open everything, and compute every blind index anew. Raises StartRefusedError."""
        report = Verified()
        state = await self._state()
        schemes = plan_of(state, self._encryption).pairs
        keyring = self._encryption.keyring.to_json()
        rows = max([await self._rekeying.count(table) for table in TABLES])
        with workers_for(Orders(keyring), rows) as workers:
            for table in TABLES:
                report.rows[table.plural] = await self._verify_table(table, workers, report.faults)
        for pair, scheme in enumerate(schemes, start=1):
            in_use = pair == state.pair
            if scheme is not None and in_use:
                with workers_for(Orders(keyring, scheme), rows) as workers:
                    wrong = await self._wrong_indexes(pair, workers)
                report.faults += [f"{each}: its blind indexes are not those of its phone and nid" for each in wrong]
        for key_id, where in (await self._rekeying.sealed_counts()).items():
            if not self._encryption.opens_with(key_id):
                held = ", ".join(f"{count} tokens of {holder}" for holder, count in where.items())
                report.faults.append(f"{held} are sealed with {key_id}, with which this keyring does not open")
        return report

    async def _verify_table(self, table: SealedTable, workers: Executor, faults: list[str]) -> int:
        total, done = await self._rekeying.count(table), 0

        async def note(rows: list[Stored], worked: list[list[str]]) -> int:
            nonlocal done
            done += len(rows)
            for row, fields in zip(rows, worked, strict=True):
                if fields:
                    faults.append(f"{_named(table, row)}: does not open: {', '.join(fields)}")
            self._on_progress(Progress(table.plural, done, max(done, total)))
            return len(rows)

        batches = in_batches(lambda after: self._rekeying.rows(table, after=after, limit=BATCH_ROWS))
        await pump(batches, unreadable, note, workers, rate=self._rate)
        return done

    async def _state(self) -> StoredKeys:
        state = await self._database.read(read_key_state)
        if state is None:
            raise StartRefusedError("no service has started with this database yet: there is nothing to change")
        return state


def _named(table: SealedTable, row: Stored) -> str:
    kind = table.plural.removesuffix("s")
    return f"{kind} {row.bound_to}" if table is LEADS else f"{kind} {'/'.join(map(str, row.key))}"


def usable_key(keyring: Keyring, key_id: str) -> RootKey:
    """The key of this id that is not retired. Raises StartRefusedError."""
    key = keyring.find(key_id)
    if key is None:
        raise StartRefusedError(f"there is no key {key_id} in the keyring; see leadkeep keys status")
    if key.state is KeyState.RETIRED:
        raise StartRefusedError(f"the key {key_id} is retired already")
    return key
