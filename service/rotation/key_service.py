"""Use cases of key rotation while the service runs: promote, reseal, retire, reindex, verify.

Each use case may be stopped at any moment and run again: it reads what there is and goes on. The order of its steps
is what makes it safe, see docs/architecture.md: every replica can open with a key before any seals with it, every
replica writes new blind indexes before the old leads get theirs, and nothing is retired that something still needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from service.errors import StartRefusedError
from service.keys.encryption import EncryptionService, IndexScheme
from service.keys.keyring import Purpose, RootKey
from service.rotation.workers import (
    Passes,
    Task,
    Tokens,
    fault,
    index,
    index_fault,
    index_submission,
    index_text,
    name_of,
    pace,
    reseal,
    submission_index_fault,
)
from service.storage.access.record import AccessRecords
from service.storage.database.database import Database
from service.storage.keys import canary
from service.storage.keys.rekeying import (
    CONVERSATIONS,
    EMAILS,
    EVERY_ROW,
    INDEXED,
    LACKS_EMAIL_INDEX,
    LEADS,
    SUBMISSIONS,
    TABLES,
    Rekeying,
    RowFilter,
    SealedTable,
    indexed_otherwise,
    indexed_with,
    is_indexed,
    lacks_index,
    lacks_scheme,
    sealed_otherwise,
)
from service.storage.keys.replicas import ReplicaStatus, forget, known_name, replicas
from service.storage.leads.open_erasures import erasures_with_key
from service.storage.spool.rows import has_owner, peek_key_ids
from service.validation import KNOWS_INDEX_RULE, have_same_settings

CHECK_SECONDS = 0.5
"""How often replicas and files are checked while they are waited for."""


@dataclass(slots=True)
class Resealed:
    """Report of a reseal."""

    key_id: str
    sealed_anew: dict[str, int] = field(default_factory=dict)
    """Rows by kind."""
    emails: int = 0
    """E-mails that could not be found by before."""
    submissions: int = 0
    """Resubmissions and conflicts that could not be found before."""
    unreadable: list[str] = field(default_factory=list)
    """Rows that do not open, which stay as they are."""
    left: int = 0
    """Rows that still are sealed with other keys, the unreadable ones among them."""
    seconds: float = 0.0


@dataclass(slots=True)
class Reindexed:
    """Report of a reindex. `needed` is False when the blind indexes were right already."""

    needed: bool
    leads: int = 0
    conversations: int = 0
    emails: int = 0
    submissions: int = 0
    beside: list[dict[str, str]] = field(default_factory=list)
    """Leads that share a phone or nid with another one, see `Rekeying.sharing_leads`."""
    seconds: float = 0.0


@dataclass(slots=True)
class Verified:
    """Report of a verification: rows checked, by kind, and faults found, in words without any value."""

    rows: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyService:
    """The use cases of key rotation. Each raises StartRefusedError, which names what to do."""

    database: Database
    """The database whose keys change."""
    rekeying: Rekeying
    """Its tables, on a connection of their own."""
    encryption: EncryptionService
    """The keyring to change to."""
    on_wait: Callable[[str], None]
    """Gets a line for each replica or file that is waited for."""
    on_progress: Callable[[str], None]
    """Gets a line about progress after each batch."""
    spool: Path
    """The folder of this machine's own replica."""
    timeout: float
    """Seconds to wait for replicas and files."""
    rate: float
    """Rows a second at most; 0 is no bound."""

    async def forget(self, names: Sequence[str], *, actor: str) -> None:
        """Remove replicas that are gone for good. What they had yet to erase is on record, by `actor`."""
        gone = await forget(self.database, AccessRecords(self.database, self.encryption), names, actor=actor)
        if unknown := set(names) - gone:
            there = ", ".join(each.name for each in await replicas(self.database)) or "none"
            raise StartRefusedError(f"there is no replica {', '.join(sorted(unknown))}; there is: {there}")

    async def prepare_promotion(self, key: RootKey) -> None:
        """Wait until every running replica can open with a key; then no replica starts any more that cannot."""
        await self._wait_until_opens(key.id)
        state = await self.database.read(canary.read_key_state)
        if key.purpose is Purpose.ENCRYPTION and state is not None:
            # A canary that only the new key opens refuses a keyring that lacks it at its start.
            promoted = EncryptionService(self.encryption.keyring.with_primary(key.id))
            await canary.seal_canary(self.database, promoted, state)
            # A replica may have started meanwhile, with a keyring that was good a moment ago.
            await self._wait_until_opens(key.id)

    async def reseal(self) -> Resealed:
        """Seal everything with the primary encryption key, and index the e-mails that are not indexed yet."""
        began = time.monotonic()
        report = Resealed(self.encryption.keyring.primary(Purpose.ENCRYPTION).id)
        await self._wait_until_opens(report.key_id)
        state = await self._state()
        if not self.encryption.is_sealed_with_primary(state.canary.sealed):
            await canary.seal_canary(self.database, self.encryption, state)
        scheme = canary.schemes_of(state, self.encryption)[0]
        for table in TABLES:
            old, store = sealed_otherwise(table, report.key_id), partial(self.rekeying.replace_tokens, table)
            task = partial(index_text, table, scheme.key_id) if table is CONVERSATIONS else reseal
            report.sealed_anew[table.plural], unreadable = await self._passes.repeat(table, old, task, store)
            report.unreadable += unreadable
            report.left += await self.rekeying.count(table, old)
        report.emails = await self._index_texts(EMAILS, LACKS_EMAIL_INDEX, partial(index_text, EMAILS, scheme.key_id))
        report.submissions = await self._index_submissions(scheme)
        report.seconds = round(time.monotonic() - began, 3)
        return report

    async def reindex(self, normaliser: str) -> Reindexed:
        """Compute the blind indexes with the primary index key, of values under this normaliser's rules.

        Duplicates are refused by the old ones until the new ones are whole, and by the new ones from then on.
        """
        began = time.monotonic()
        wanted = IndexScheme(self.encryption.index_primary_id, normaliser)
        state = await self._state()
        current, following = canary.schemes_of(state, self.encryption)
        if following is not None and have_same_settings(following.normaliser, normaliser):
            # A rotation that began under an earlier index rule ends under it; the next reindex moves on.
            wanted = replace(wanted, normaliser=following.normaliser)
        if following is not None and following != wanted:
            raise StartRefusedError(
                f"another rotation is under way, to the index key {following.key_id} and '{following.normaliser}': "
                "finish it first, with that key as the primary one and those settings"
            )
        report = Reindexed(needed=current != wanted or state.clearing)
        if current != wanted:
            if state.clearing:
                state = await self._clear(state)
            if following is None:
                await self._wait_until_opens(wanted.key_id)
                await self._wait_for_replicas(
                    lambda each: KNOWS_INDEX_RULE in each.opens,
                    f"to be replaced: its release does not know {KNOWS_INDEX_RULE}",
                )
                made = self.encryption.make_canary(wanted.key_id)
                state = await canary.write_both_pairs(self.database, state, made, wanted.normaliser)
            await self._wait_until_followed(state)
            report.leads = await self._fill_and_check(state, wanted)
            state = await canary.flip_pairs(self.database, state)
        if report.needed:
            state = await self._clear(state)
            report.beside = await self.rekeying.sharing_leads(state.pair)
        # Last, when no replica indexes conversations and e-mails with another key any more.
        report.conversations, report.emails = [
            await self._index_texts(
                table, indexed_otherwise(table, wanted.key_id), partial(index_text, table, wanted.key_id)
            )
            for table in (CONVERSATIONS, EMAILS)
        ]
        report.submissions = await self._index_submissions(wanted)
        report.seconds = round(time.monotonic() - began, 3)
        return report

    async def _index_submissions(self, scheme: IndexScheme) -> int:
        """Index the resubmissions and conflicts that are not indexed by a scheme; how many those were."""
        make, where = partial(index_submission, scheme), lacks_scheme(scheme.text)
        return sum([await self._index_texts(table, where, make) for table in SUBMISSIONS])

    async def _index_texts(self, table: SealedTable, where: RowFilter, make: Task[Tokens]) -> int:
        """Give rows that match a condition the blind indexes that `make` makes; how many got one."""
        done, _ = await self._passes.repeat(table, where, make, partial(self.rekeying.replace_tokens, table))
        return done

    async def _fill_and_check(self, state: canary.DatabaseKeys, scheme: IndexScheme) -> int:
        """Fill the pair of columns that is not in use; how many leads lacked its indexes."""
        pair = 3 - state.pair
        lacking = lacks_index(pair)
        total = await self.rekeying.count(LEADS, lacking)
        store = partial(self.rekeying.fill_indexes, pair, state.epoch)
        _, faults = await self._passes.repeat(LEADS, lacking, partial(index, scheme), store)
        if faults:
            raise StartRefusedError(
                f"{len(faults)} leads cannot be opened, so that nobody can tell whether they are duplicates: "
                f"{', '.join(faults[:10])}. See leadkeep keys verify; the old blind indexes stay in use"
            )
        if await self.rekeying.count(LEADS, lacking):
            raise StartRefusedError("leads without new blind indexes are left: run leadkeep keys reindex again")
        if wrong := await self._wrong_indexes(pair, scheme):
            raise StartRefusedError(
                f"{len(wrong)} leads have new blind indexes that are not theirs: {', '.join(wrong[:10])}. Nothing is "
                "flipped; report this"
            )
        return total

    async def _wrong_indexes(self, pair: int, scheme: IndexScheme) -> list[str]:
        wrong: list[str] = []
        async for batch in self._passes.batches(LEADS, EVERY_ROW, partial(index, scheme), pair=pair):
            wrong += [name_of(LEADS, row) for row, indexes in batch if indexes != row.indexes]
        return wrong

    @property
    def _passes(self) -> Passes:
        return Passes(self.rekeying, self.encryption.keyring, self.rate, self.on_progress)

    async def _clear(self, state: canary.DatabaseKeys) -> canary.DatabaseKeys:
        """Empty the pair of columns that is not in use."""
        await self._wait_until_followed(state)
        began, cleared = time.monotonic(), 0
        while count := await self.rekeying.clear_indexes(3 - state.pair):
            cleared += count
            self.on_progress(f"{cleared} old indexes cleared")
            await pace(cleared, began, rate=self.rate)
        return await canary.note_cleared(self.database, state)

    async def retire(self, key: RootKey, *, files: Callable[[], dict[str, list[str]]]) -> None:
        """Retire a key: nothing new may use it, and nothing uses it any more, else the error names what does.

        `files` answers which daily files of this machine name which keys.
        """
        if key.purpose is Purpose.AUDIT:
            return  # it goes on verifying what it signed, in whatever state
        wait = f"to stop sealing with {key.id}: send it SIGHUP"
        await self._wait_for_replicas(lambda each: key.id not in each.seals, wait)
        holders = await self._spools_with(key.id)
        if key.purpose is Purpose.INDEX:
            state = await self._state()
            in_use = {scheme.key_id for scheme in canary.schemes_of(state, self.encryption) if scheme}
            if key.id in in_use or state.clearing:
                holders.append("the blind indexes of leads: run leadkeep keys reindex")
            holders += [f"{each}, --forget it" for each in await erasures_with_key(self.database, key.id)]
            for table in INDEXED:
                if count := await self.rekeying.count(table, indexed_with(table, key.id)):
                    holders.append(f"the blind indexes of {count} {table.plural}: run leadkeep keys reindex")
        if key.purpose is not Purpose.ENCRYPTION:
            _require_unneeded(key, holders)
            return
        # Refused first and counted then: no new row can come in between.
        await canary.refuse_key(self.database, key.id)
        try:
            counts = (await self.rekeying.sealed_counts()).get(key.id, {})
            holders += [f"{count} tokens of {holder}: run leadkeep keys reseal" for holder, count in counts.items()]
            _require_unneeded(key, holders)
            _require_unneeded(key, await self._files_with(key.id, files))
        except BaseException:
            await canary.accept_key(self.database, key.id)
            raise

    async def _spools_with(self, key_id: str) -> list[str]:
        holders = [
            f"the spool of the replica {each.name}: let it drain (leadkeep spool status there), or, if it is gone for "
            f"good, --forget {each.name}"
            for each in await replicas(self.database)
            if key_id in each.spool_keys
        ]
        if not holders and key_id in peek_key_ids(self.spool):
            holders.append(f"the spool {self.spool}: run leadkeep spool drain")
        return holders

    async def _files_with(self, key_id: str, files: Callable[[], dict[str, list[str]]]) -> list[str]:
        """A running service renders its files anew by itself, so they get the time that replicas get."""
        deadline = time.monotonic() + self.timeout
        left = files().get(key_id, [])
        if left:
            self.on_wait(f"waiting for {len(left)} daily files to be rendered anew")
        while left and time.monotonic() <= deadline:
            await asyncio.sleep(CHECK_SECONDS)
            left = files().get(key_id, [])
        if not left:
            return []
        named = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        return [
            f"{len(left)} daily files ({named}): a running service renders them anew by itself, else run "
            "leadkeep files render"
        ]

    async def verify(self) -> Verified:
        """Open everything, and compute every blind index anew."""
        report = Verified()
        state = await self._state()
        current, _ = canary.schemes_of(state, self.encryption)
        for table in TABLES:
            report.rows[table.plural] = 0
            async for batch in self._passes.batches(replace(table, indexes=()), EVERY_ROW, fault):
                report.rows[table.plural] += len(batch)
                report.faults += [f"{name_of(table, row)}: {wrong}" for row, wrong in batch if wrong]
        for table in INDEXED:
            check = partial(submission_index_fault, current) if table in SUBMISSIONS else partial(index_fault, table)
            async for batch in self._passes.batches(table, is_indexed(table), check):
                report.faults += [f"{name_of(table, row)}: {wrong}" for row, wrong in batch if wrong]
        report.faults += [
            f"{each}: its blind indexes are not those of its phone and nid"
            for each in await self._wrong_indexes(state.pair, current)
        ]
        report.faults += [
            f"{count} conversation ids of {plural} are in clear: run leadkeep keys reseal"
            for plural, count in (await self.rekeying.in_clear()).items()
        ]
        if lacking := await self.rekeying.count(LEADS, LACKS_EMAIL_INDEX):
            report.faults.append(f"{lacking} leads lack the blind index of their e-mail: run leadkeep keys reseal")
        report.faults += [
            f"{count} {plural} lack the blind indexes by which a person is found: run leadkeep keys reseal"
            for plural, count in (await self.rekeying.not_found(canary.found_by(state, self.encryption))).items()
        ]
        for key_id, where in (await self.rekeying.sealed_counts()).items():
            if not self.encryption.opens_with(key_id):
                held = ", ".join(f"{count} tokens of {holder}" for holder, count in where.items())
                report.faults.append(f"{held} are sealed with {key_id}, with which this keyring does not open")
        return report

    async def _state(self) -> canary.DatabaseKeys:
        state = await self.database.read(canary.read_key_state)
        if state is None:
            raise StartRefusedError("no service has started with this database yet: there is nothing to change")
        return state

    async def _wait_until_opens(self, key_id: str) -> None:
        await self._wait_for_replicas(lambda each: key_id in each.opens, f"to load the key {key_id}: send it SIGHUP")

    async def _wait_until_followed(self, state: canary.DatabaseKeys) -> None:
        """Wait until every running replica follows the plan; then refuse leads that follow an older one."""
        if state.accepts_from < state.epoch:
            wait = "to follow the change of the blind indexes"
            await self._wait_for_replicas(lambda each: each.epoch >= state.epoch, wait)
            await canary.refuse_older_plans(self.database, state)

    async def _wait_for_replicas(self, is_ready: Callable[[ReplicaStatus], bool], what: str) -> None:
        """Wait until every running replica is ready for a change; `what` says for what, in words."""
        deadline = time.monotonic() + self.timeout
        reported: set[str] = set()
        while late := [each for each in await self._running_replicas() if not is_ready(each)]:
            if time.monotonic() > deadline:
                named = ", ".join(f"{each.name} (heard of {each.silent_seconds:.0f} s ago)" for each in late)
                raise StartRefusedError(
                    f"waited {self.timeout:g} s in vain for {named} {what}. Nothing is lost: run the same command "
                    "again; a replica that is gone for good is left out with --forget NAME"
                )
            for name in sorted({each.name for each in late} - reported):
                reported.add(name)
                self.on_wait(f"waiting for replica {name} {what}")
            await asyncio.sleep(CHECK_SECONDS)

    async def _running_replicas(self) -> list[ReplicaStatus]:
        """The replicas whose last status is not that they stopped, killed ones among them.

        This machine's own one runs only if it holds the lock of its spool: it takes that first, then reads the change.
        """
        dead = None if has_owner(self.spool) else known_name(self.spool)
        return [each for each in await replicas(self.database) if each.state == "running" and each.name != dead]


def _require_unneeded(key: RootKey, holders: list[str]) -> None:
    if holders:
        raise StartRefusedError(f"the key {key.id} is still needed, by\n  " + "\n  ".join(holders))
