"""Verification of the access record: computes every digest anew and walks every chain to its end.

Promise: a changed, added, moved or missing entry is found, and so are a tail that was cut and a chain that is missing,
unless everything that names it is gone as well: the heads in the database show cuts in the record alone, those in the
log show cuts in all of the database. Memory does not grow with the record.

A chain whose writer was killed has no end, and is well all the same: it reaches as far as its newest head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from service.keys.encryption import EncryptionService
from service.storage.access.record import (
    NOTHING_BEFORE,
    Chain,
    Head,
    Registration,
    earlier_digest,
    entry_payload,
    head_payload,
    recorded_access,
    registration_payload,
)
from service.storage.database.database import snapshot

FAULTS_NAMED = 1000
"""Beyond so many, faults are counted and no longer named."""

_ROWS_AHEAD = 2000


@dataclass(frozen=True, slots=True)
class RecordFault:
    """A fault of the record. `kind` is one of: changed, gap, cut, missing chain, unknown key."""

    kind: str
    what: str
    chain: str | None = None
    number: int | None = None


@dataclass(slots=True)
class Findings:
    """Report of a check: entries, chains and heads checked, and faults found."""

    entries: int = 0
    earlier_entries: int = 0
    earlier_sealed: bool = False
    chains: int = 0
    ended: int = 0
    heads: int = 0
    fault_count: int = 0
    faults: list[RecordFault] = field(default_factory=list)

    @property
    def unchanged(self) -> bool:
        """Whether there is no fault."""
        return self.fault_count == 0

    def add(self, kind: str, what: str, chain: UUID | None = None, number: int | None = None) -> None:
        """Note a fault."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_NAMED:
            self.faults.append(RecordFault(kind, what, str(chain) if chain else None, number))


@dataclass(slots=True)
class _CheckedChain:
    """A registered chain while it is checked."""

    id: UUID
    number: int
    digest: bytes
    """The digest of the last entry seen; of the registration while there is none."""
    wanted: dict[int, set[bytes]] = field(default_factory=dict)
    """Digests that entries must have, by number, as the log has them; number 0 is the registration."""
    at: int = 0
    """The number of the last entry seen."""
    reach: int = 0
    """The number that the heads name at most."""
    ended_at: int | None = None

    def extend(self, head: Head) -> None:
        """Note that the chain reaches as far as a head."""
        self.reach = max(self.reach, head.number)
        if head.ended:
            self.ended_at = head.number


def check(url: str, encryption: EncryptionService, logged: Iterable[Chain] = ()) -> Findings:
    """Check the record in one snapshot of the database. Raises StorageFaultError."""
    with snapshot(url, "leadkeep-audit") as connection:
        return AccessCheck(connection, encryption).run(logged)


class AccessCheck:
    """One check of the record, in one transaction of a connection."""

    def __init__(self, connection: psycopg.Connection[Any], encryption: EncryptionService) -> None:
        self._connection = connection
        self._encryption = encryption
        self._findings = Findings()
        self._chains: dict[UUID, _CheckedChain] = {}
        self._missing: set[UUID] = set()

    def run(self, logged: Iterable[Chain]) -> Findings:
        """Check the record, and compare it with chains whose heads were logged."""
        self._check_earlier_entries(self._check_registrations())
        self._check_heads()
        self._note_logged(logged)
        self._check_entries()
        for chain in self._chains.values():
            if chain.at < chain.reach:
                what = f"entries {chain.at + 1} to {chain.reach} are missing at the end"
                self._findings.add("cut", what, chain.id, chain.at + 1)
        self._findings.chains = len(self._chains)
        self._findings.ended = sum(chain.ended_at is not None for chain in self._chains.values())
        return self._findings

    def _rows(self, name: str, query: str) -> Iterator[dict[str, Any]]:
        with self._connection.cursor(name, row_factory=dict_row) as cursor:
            cursor.itersize = _ROWS_AHEAD
            yield from cursor.execute(query)

    def _check_registrations(self) -> dict[str, Any] | None:
        """Check how chains were registered; the row of the first one, unless that is missing or changed."""
        first = None
        expected, before = 1, NOTHING_BEFORE
        for row in self._rows("registrations", "SELECT * FROM access_chain ORDER BY number"):
            registration = Registration(
                number=row["number"],
                id=row["id"],
                writer=row["writer"],
                began_at=row["began_at"],
                earlier_entries=row["earlier_entries"],
                earlier_digest=row["earlier_digest"],
            )
            payload: bytes | None = registration_payload(before, registration)
            if registration.number != expected:
                self._findings.add("missing chain", f"no registration of the chains {expected} to {row['number'] - 1}")
                payload = None
            if self._fits(row, row["digest"], payload, f"the registration of chain {row['number']}", row["id"]):
                first = row if row["number"] == 1 else first
            self._chains[row["id"]] = _CheckedChain(row["id"], row["number"], row["digest"])
            expected, before = row["number"] + 1, row["digest"]
        return first

    def _check_earlier_entries(self, first: dict[str, Any] | None) -> None:
        """Check what was recorded before there were chains: the first registration covers it."""
        key_id = first["key_id"] if first else self._encryption.audit_key_id
        rows = self._rows("earlier", "SELECT * FROM access_record WHERE chain_id IS NULL ORDER BY id")
        count, digest = earlier_digest(self._encryption, key_id, map(recorded_access, rows))
        self._findings.earlier_entries, self._findings.earlier_sealed = count, first is not None
        if first is not None and (count, digest) != (first["earlier_entries"], first["earlier_digest"]):
            self._findings.add(
                "changed",
                f"the entries from before the chains: {first['earlier_entries']} were sealed, {count} are there",
            )
        elif first is None and count and self._chains:
            self._findings.add("changed", "the entries from before the chains: what sealed them is missing")

    def _check_heads(self) -> None:
        for row in self._rows("heads", "SELECT * FROM access_head ORDER BY chain_id, number"):
            head = Head(chain_id=row["chain_id"], number=row["number"], digest=row["digest"], ended=row["ended"])
            chain = self._registered(head.chain_id, "heads in the database name it")
            what = f"a head in the database, at {head.number}"
            if chain and self._fits(row, row["seal"], head_payload(head), what, chain.id, head.number):
                chain.extend(head)

    def _note_logged(self, logged: Iterable[Chain]) -> None:
        for each in logged:
            self._findings.heads += 1
            named = f"the log names it as chain {each.number}"
            chain = self._registered(each.head.chain_id, named)
            if chain and chain.number != each.number:
                self._findings.add("changed", named, chain.id)
            elif chain:
                chain.wanted.setdefault(each.head.number, set()).add(each.head.digest)
                chain.extend(each.head)

    def _check_entries(self) -> None:
        for chain in self._chains.values():
            self._compare_with_log(chain, 0, chain.digest)
        query = "SELECT * FROM access_record WHERE chain_id IS NOT NULL ORDER BY chain_id, number"
        for row in self._rows("entries", query):
            self._findings.entries += 1
            if registered := self._registered(row["chain_id"], "entries name it"):
                self._check_entry(registered, row)

    def _check_entry(self, chain: _CheckedChain, row: dict[str, Any]) -> None:
        entry, number, payload = recorded_access(row), row["number"], None
        if number == chain.at + 1:
            payload = entry_payload(chain.id, number, chain.digest, entry.recorded_at, entry.access)
        else:
            self._findings.add("gap", f"entries {chain.at + 1} to {number - 1} are missing", chain.id, number)
        self._fits(row, row["digest"], payload, f"entry {number}", chain.id, number)
        self._compare_with_log(chain, number, row["digest"])
        if chain.ended_at is not None and number > chain.ended_at:
            self._findings.add("changed", f"entry {number} stands behind the end", chain.id, number)
        chain.at, chain.digest = number, row["digest"]

    def _fits(
        self,
        row: dict[str, Any],
        digest: bytes,
        payload: bytes | None,
        what: str,
        chain_id: UUID,
        number: int | None = None,
    ) -> bool:
        """Whether a stored digest is that of this payload; None: unknown, what is before it is missing."""
        if not self._encryption.has_audit_key(row["key_id"]):
            self._findings.add("unknown key", f"the keyring has no audit key {row['key_id']}", chain_id, number)
            return False
        if payload is not None and self._encryption.audit_digest(row["key_id"], payload) != digest:
            self._findings.add("changed", what, chain_id, number)
            return False
        return payload is not None

    def _compare_with_log(self, chain: _CheckedChain, number: int, digest: bytes) -> None:
        if chain.wanted.pop(number, {digest}) != {digest}:
            self._findings.add("changed", f"entry {number} is not the one that the log names", chain.id, number)

    def _registered(self, chain_id: UUID, known_from: str) -> _CheckedChain | None:
        """The chain of this id; one that is not registered is a fault."""
        chain = self._chains.get(chain_id)
        if chain is None and chain_id not in self._missing:
            self._missing.add(chain_id)
            self._findings.add("missing chain", f"it is not registered, and {known_from}", chain_id)
        return chain
