"""Is the access record as it was written? Every digest is computed anew, and every chain walked from end to end.

Promise: a changed, added, moved or missing entry is found, and so are a tail that was cut and a chain that is missing,
unless everything that tells of it is gone as well: the heads in the database tell of cuts in the record alone, those in
the log of cuts in all of the database. Memory does not grow with the record.

A chain whose writer was killed has no end, and is well all the same: it reaches as far as its newest head says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from service.encryption import EncryptionService
from service.storage.access_chain import (
    EVENT,
    NOTHING_BEFORE,
    Head,
    Registration,
    earlier_digest,
    entry_digest,
    entry_of,
    head_seal,
    registration_digest,
)
from service.storage.failures import StorageFaultError, cause_of

FAULTS_NAMED = 1000
"""Beyond so many, faults are counted and no longer named."""

_ROWS_AHEAD = 2000
_CONNECT_SECONDS = 5

_REGISTRATIONS = "SELECT * FROM access_chain ORDER BY number"
_EARLIER = "SELECT * FROM access_record WHERE chain_id IS NULL ORDER BY id"
_ENTRIES = "SELECT * FROM access_record WHERE chain_id IS NOT NULL ORDER BY chain_id, number"
_HEADS = "SELECT * FROM access_head ORDER BY chain_id, number"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was written. `kind` is one of: changed, gap, cut, missing chain, unknown key."""

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
    faults: list[Fault] = field(default_factory=list)

    @property
    def unchanged(self) -> bool:
        """Whether all is as it was written."""
        return self.fault_count == 0

    def add(self, kind: str, what: str, chain: UUID | None = None, number: int | None = None) -> None:
        """Note a fault."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_NAMED:
            self.faults.append(Fault(kind, what, str(chain) if chain else None, number))


@dataclass(frozen=True, slots=True)
class LoggedHead:
    """A head as a line of the log has it."""

    chain_number: int
    head: Head


@dataclass(slots=True)
class _Chain:
    """A registered chain while it is checked."""

    number: int
    digest: bytes
    at: int = 0
    """The number of the last entry seen."""
    reach: int = 0
    """The number that the heads in the database name at most."""
    ended_at: int | None = None
    wanted: dict[int, set[bytes]] = field(default_factory=dict)
    """Digests that entries must have, by number: what logs and heads tell."""


def logged_heads(lines: Iterable[str]) -> Iterator[LoggedHead]:
    """The heads among the lines of a log; whatever else stands there, or before a line, is passed over.

    Raises ValueError for a line that calls itself a head and is none.
    """
    for number, line in enumerate(lines, start=1):
        if EVENT not in line:
            continue
        try:
            told = json.loads(line[line.index("{") :])
        except ValueError:
            continue  # a line of somebody else, or one that was cut by the end of the file
        if not isinstance(told, dict) or told.get("event") != EVENT:
            continue
        try:
            head = Head(
                chain_id=UUID(told["chain"]),
                number=int(told["number"]),
                digest=bytes.fromhex(told["digest"]),
                ended=bool(told["ended"]),
            )
            yield LoggedHead(int(told["chain_number"]), head)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"line {number} is a damaged head") from None


def check(url: str, encryption: EncryptionService, logged: Iterable[LoggedHead] = ()) -> Findings:
    """Check the record in one snapshot of the database. Raises StorageFaultError."""
    try:
        with psycopg.connect(
            url, connect_timeout=_CONNECT_SECONDS, application_name="leadkeep-audit", options="-c timezone=UTC"
        ) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            return _Check(connection, encryption).run(logged)
    except psycopg.Error as error:
        raise StorageFaultError(cause_of(error)) from None


class _Check:
    def __init__(self, connection: psycopg.Connection[Any], encryption: EncryptionService) -> None:
        self._connection = connection
        self._encryption = encryption
        self._findings = Findings()
        self._chains: dict[UUID, _Chain] = {}
        self._missing: set[UUID] = set()

    def run(self, logged: Iterable[LoggedHead]) -> Findings:
        self._registrations()
        self._heads()
        self._logged(logged)
        self._entries()
        for chain_id, chain in self._chains.items():
            self._reach(chain_id, chain)
        self._findings.chains = len(self._chains)
        self._findings.ended = sum(chain.ended_at is not None for chain in self._chains.values())
        return self._findings

    def _rows(self, name: str, query: str) -> Iterator[dict[str, Any]]:
        with self._connection.cursor(name, row_factory=dict_row) as cursor:
            cursor.itersize = _ROWS_AHEAD
            yield from cursor.execute(query)

    def _registrations(self) -> None:
        before, expected, sealed = NOTHING_BEFORE, 1, None
        for row in self._rows("registrations", _REGISTRATIONS):
            number, chain_id, digest = row["number"], row["id"], bytes(row["digest"])
            intact = number == expected
            if not intact:
                self._findings.add("missing chain", f"no registration of the chains {expected} to {number - 1}")
            registration = Registration(
                number=number,
                id=chain_id,
                writer=row["writer"],
                began_at=row["began_at"],
                earlier_entries=row["earlier_entries"],
                earlier_digest=_bytes(row["earlier_digest"]),
            )
            if not self._encryption.has_audit_key(row["key_id"]):
                self._unknown_key(row["key_id"], chain_id)
            # Behind a gap the digest before is not known.
            elif intact and registration_digest(self._encryption, row["key_id"], before, registration) != digest:
                self._findings.add("changed", f"the registration of chain {number}", chain_id)
            elif number == 1:
                sealed = registration, row["key_id"]
            self._chains[chain_id] = _Chain(number, digest)
            before, expected = digest, number + 1
        self._earlier(sealed)

    def _earlier(self, sealed: tuple[Registration, str] | None) -> None:
        key_id = sealed[1] if sealed else self._encryption.audit_key_id
        entries = ((row["id"], entry_of(row)) for row in self._rows("earlier", _EARLIER))
        count, digest = earlier_digest(self._encryption, key_id, entries)
        self._findings.earlier_entries, self._findings.earlier_sealed = count, sealed is not None
        if sealed is not None and (count, digest) != (sealed[0].earlier_entries, sealed[0].earlier_digest):
            self._findings.add(
                "changed",
                f"the entries from before the chains: {sealed[0].earlier_entries} were sealed, {count} are there",
            )
        elif sealed is None and count and self._chains:
            self._findings.add("changed", "the entries from before the chains: what sealed them is missing")

    def _heads(self) -> None:
        for row in self._rows("heads", _HEADS):
            chain_id, number = row["chain_id"], row["number"]
            head = Head(chain_id=chain_id, number=number, digest=bytes(row["digest"]), ended=row["ended"])
            chain = self._chains.get(chain_id)
            if chain is None:
                self._not_registered(chain_id, "heads in the database name it")
            elif not self._encryption.has_audit_key(row["key_id"]):
                self._unknown_key(row["key_id"], chain_id)
            elif head_seal(self._encryption, row["key_id"], head) != bytes(row["seal"]):
                self._findings.add("changed", f"a head in the database, at {number}", chain_id, number)
            else:
                chain.reach = max(chain.reach, number)
                if head.ended:
                    chain.ended_at = number

    def _logged(self, logged: Iterable[LoggedHead]) -> None:
        for each in logged:
            self._findings.heads += 1
            head = each.head
            chain = self._chains.get(head.chain_id)
            if chain is None:
                self._not_registered(head.chain_id, f"the log names it as chain {each.chain_number}")
            elif chain.number != each.chain_number:
                self._findings.add("changed", f"the log names it as chain {each.chain_number}", head.chain_id)
            else:
                chain.wanted.setdefault(head.number, set()).add(head.digest)
                chain.reach = max(chain.reach, head.number)
                if head.ended:
                    chain.ended_at = head.number

    def _entries(self) -> None:
        current: UUID | None = None
        before: bytes | None = None
        for row in self._rows("entries", _ENTRIES):
            self._findings.entries += 1
            chain_id, number, digest = row["chain_id"], row["number"], bytes(row["digest"])
            chain = self._chains.get(chain_id)
            if chain is None:
                self._not_registered(chain_id, "entries name it")
                continue
            if chain_id != current:
                current, before = chain_id, chain.digest
                self._compare(chain_id, chain, 0, chain.digest)
            if number != chain.at + 1:
                self._findings.add("gap", f"entries {chain.at + 1} to {number - 1} are missing", chain_id, number)
                before = None  # not known, so that this entry cannot be checked, but the next one can
            self._check_entry(row, chain_id, before)
            self._compare(chain_id, chain, number, digest)
            if chain.ended_at is not None and number > chain.ended_at:
                self._findings.add("changed", f"entry {number} stands behind the end", chain_id, number)
            chain.at, before = number, digest

    def _check_entry(self, row: Mapping[str, Any], chain_id: UUID, before: bytes | None) -> None:
        number, key_id = row["number"], row["key_id"]
        if not self._encryption.has_audit_key(key_id):
            self._unknown_key(key_id, chain_id, number)
        elif before is not None:
            made = entry_digest(self._encryption, key_id, chain_id, number, before, entry_of(row))
            if made != bytes(row["digest"]):
                self._findings.add("changed", f"entry {number}", chain_id, number)

    def _compare(self, chain_id: UUID, chain: _Chain, number: int, digest: bytes) -> None:
        if chain.wanted.pop(number, {digest}) != {digest}:
            self._findings.add("changed", f"entry {number} is not the one that the log names", chain_id, number)

    def _reach(self, chain_id: UUID, chain: _Chain) -> None:
        if chain.at == 0:
            self._compare(chain_id, chain, 0, chain.digest)
        if chain.at < chain.reach:
            what = f"entries {chain.at + 1} to {chain.reach} are missing at the end"
            self._findings.add("cut", what, chain_id, chain.at + 1)

    def _not_registered(self, chain_id: UUID, known_from: str) -> None:
        if chain_id not in self._missing:
            self._missing.add(chain_id)
            self._findings.add("missing chain", f"it is not registered, and {known_from}", chain_id)

    def _unknown_key(self, key_id: str, chain_id: UUID, number: int | None = None) -> None:
        self._findings.add("unknown key", f"the keyring has no audit key {key_id}", chain_id, number)


def _bytes(value: bytes | memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)
