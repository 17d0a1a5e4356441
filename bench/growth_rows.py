"""Many leads in a hurry: rows for COPY, of which a few thousand are truly sealed, and the others look the same to the
database.

Promise: every lead that the measurements read, list or meet is a real one, sealed with the service's own keys. The rest
has tokens of the same form and length, random and therefore as little compressible, and random blind indexes. Ids and
times grow as they would with a lead every 86 seconds, a thousand a day.
"""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg

from bench.samples import PERSON, numbered
from service.keys.encryption import TEXT_INDEX_BYTES, EncryptionService, IndexPlan, IndexScheme
from service.lead import SEALED_FORM, CustomerFields
from service.lead_sealer import LeadSealer
from service.validation import ValidationService

APART = timedelta(seconds=86)
READ = 2000
"""Real leads spread evenly over all of them."""

WINDOW = 300
"""Real leads side by side, where a page is listed: the newest ones, and some in the middle."""

_COLUMNS = (
    "id, name, interested_policy, status, updated_at, version, created_by, assignee, source, resubmissions, "
    "resubmitted_at, phone, nid, address, email, notes, conversation_id, created_at, phone_index, nid_index, "
    "email_index, index_epoch, content_digest"
)
_NULL = r"\N"
_LINK_COLUMNS = "lead_id, submission_id, conversation_id, conversation_index, linked_at"
_SEALED = ("phone", "nid", "address", "email", "notes", "conversation_id")
_EVERY_THIRD = 3
"""Such leads were contacted, and have a history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear:
    """What stands in clear in a lead."""

    name: str
    interested_policy: str = "Term Life 20-Year"
    status: str = "new"
    updated_at: datetime
    version: int = 1
    created_by: str = "chatbot"
    assignee: str | None = None
    source: str | None = None
    resubmissions: int = 0
    resubmitted_at: datetime | None = None


class Rows:
    """`count` leads; the newest was created now."""

    def __init__(self, count: int, encryption: EncryptionService, epoch: int) -> None:
        self.count = count
        validation = ValidationService()
        self._sealer = LeadSealer(encryption, validation, transcript_url=None)
        scheme = IndexScheme(encryption.index_primary_id, validation.normaliser_identity)
        encryption.plan = IndexPlan(epoch, (scheme, None))
        self._epoch = epoch
        self.newest = datetime.now(UTC)
        self._random = random.Random(count)
        self._noise = base64.urlsafe_b64encode(os.urandom(3 << 18)).decode()
        example = self._sealer.seal(UUID(int=1), self._details(0), created_by="chatbot", request_id=None)
        self._key_id = example.sealed["phone"].partition(".")[0]
        self._lengths = {
            name: len(token.partition(".")[2]) - len(SEALED_FORM) + 1 for name, token in example.sealed.items()
        }

    def created_at(self, number: int) -> datetime:
        """When the lead with this number was created."""
        return self.newest - APART * (self.count - number)

    def lead_id(self, number: int) -> UUID:
        """Its UUIDv7."""
        milliseconds = int(self.created_at(number).timestamp() * 1000)
        tail = random.Random(number).getrandbits(74)
        return UUID(int=milliseconds << 80 | 7 << 76 | (tail >> 62) << 64 | 2 << 62 | tail & (1 << 62) - 1)

    def read(self) -> list[int]:
        """The numbers of the real leads that are spread over all, in random order."""
        step = max(1, self.count // READ)
        return self._random.sample(found := range(0, self.count, step), len(found))

    def is_real(self, number: int) -> bool:
        """Whether this lead is truly sealed."""
        spread = number % max(1, self.count // READ) == 0
        return spread or number >= self.count - WINDOW or abs(number - self.count // 2) <= WINDOW // 2

    def load(self, url: str) -> None:
        """COPY all of them, their conversations and histories, as a superuser, without triggers, which is what a
        restore does too; then VACUUM (ANALYZE)."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            for table, lines in (
                (f"lead ({_COLUMNS})", self._leads()),
                (f"lead_conversation ({_LINK_COLUMNS})", self._conversations()),
                ("lead_event (lead_id, type, version, actor, from_status, to_status, at)", self._events()),
            ):
                with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
                    for chunk in _chunks(lines):
                        copy.write(chunk)
            connection.execute("VACUUM (ANALYZE)")

    def clear(self, number: int) -> Clear:
        """What stands in clear in the lead with this number."""
        at, name = self.created_at(number), f"Person {number:010}"
        if number % _EVERY_THIRD:
            return Clear(name=name, updated_at=at)
        return Clear(name=name, updated_at=at, status="contacted", version=2)

    def _leads(self) -> Iterator[str]:
        for number in range(self.count):
            lead_id, at = self.lead_id(number), self.created_at(number).isoformat()
            if self.is_real(number):
                made = self._sealer.seal(lead_id, self._details(number), created_by="chatbot", request_id=None)
                tokens = [made.sealed[name] for name in _SEALED]
                digests = [made.indexes.phone[0], made.indexes.nid[0], made.content_digest]
                email = made.indexes.email
            else:
                tokens = [self._token(name) for name in _SEALED]
                email = f"{self._key_id}.{base64.urlsafe_b64encode(os.urandom(TEXT_INDEX_BYTES['email'])).decode()}"
                digests = [os.urandom(32) for _ in range(3)]
            sealed = "\t".join(tokens)
            phone_index, nid_index, content = (f"\\\\x{(digest or b'').hex()}" for digest in digests)
            clear = "\t".join(_NULL if value is None else str(value) for value in astuple(self.clear(number)))
            yield (
                f"{lead_id}\t{clear}\t{sealed}\t{at}\t{phone_index}\t{nid_index}\t{email}\t{self._epoch}\t{content}\n"
            )

    def _conversations(self) -> Iterator[str]:
        for number in range(self.count):
            lead_id = self.lead_id(number)
            if self.is_real(number):
                made = self._sealer.seal(lead_id, self._details(number), created_by="chatbot", request_id=None)
                token, index = made.sealed["conversation_id"], made.indexes.conversation[0]
            else:
                token = self._token("conversation_id")
                index = f"{self._key_id}.{base64.urlsafe_b64encode(os.urandom(32)).decode()}"
            yield f"{lead_id}\t{lead_id}\t{token}\t{index}\t{self.created_at(number).isoformat()}\n"

    def _events(self) -> Iterator[str]:
        for number in range(self.count):
            lead_id, at = self.lead_id(number), self.created_at(number).isoformat()
            yield f"{lead_id}\t1\t1\tchatbot\t\\N\t\\N\t{at}\n"
            if number % _EVERY_THIRD == 0:
                yield f"{lead_id}\t3\t2\tagent\tnew\tcontacted\t{at}\n"

    def _details(self, number: int) -> CustomerFields:
        return CustomerFields(**{name: numbered(text, number) for name, text in PERSON.items()})

    def _token(self, field: str) -> str:
        length = self._lengths[field]
        at = self._random.randrange(len(self._noise) - length)
        return f"{self._key_id}{SEALED_FORM}{self._noise[at : at + length]}"


def _chunks(lines: Iterator[str], size: int = 500) -> Iterator[str]:
    chunk: list[str] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == size:
            yield "".join(chunk)
            chunk.clear()
    yield "".join(chunk)
