"""Manifest of a backup: enough to refuse a wrong one before anything is touched, and nothing secret.

Promise: a manifest is written last and whole, so that a folder without one is no backup. Its proof, a keyed digest over
everything else in it, the digest of the dump included, can be made with an audit key of the keyring only: who can write
to the folder of the backups cannot make another backup pass for ours.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, LiteralString

import psycopg
from psycopg import sql
from pydantic import AwareDatetime, ConfigDict, StringConstraints, TypeAdapter

from service.errors import StartRefusedError
from service.foreign_text import parse_json
from service.keys.encryption import EncryptionService, KeyCanary
from service.keys.secret_file import open_regular, replace_secret_file
from service.validation import have_same_settings

FORMAT = "leadkeep-backup"
VERSION = 1
MANIFEST = "manifest.json"
DUMP = "leadkeep.dump"

_LARGEST_MANIFEST = 1_000_000
"""Bytes; one of twenty tables has 4,000."""

_PIECE_BYTES = 1 << 20

TRANSACTION: LiteralString = (
    "SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = 0;"
    " SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL bytea_output = 'hex';"
    " SET LOCAL extra_float_digits = 1; SET LOCAL intervalstyle = 'postgres'; SET LOCAL search_path = public"
)
"""Rows are compared as text, so whatever decides how they are written is set, and a dump takes its time. Takes no
snapshot."""

_KEY_IDS: LiteralString = """
    SELECT DISTINCT split_part(token, '.', 1) FROM (
        SELECT unnest(ARRAY[phone, nid, address, email, notes]) AS token FROM lead
        UNION ALL SELECT unnest(ARRAY[phone, nid, address, email, notes]) FROM resubmission
        UNION ALL SELECT unnest(ARRAY[phone, nid, address, email, notes]) FROM lead_conflict
    ) tokens WHERE token IS NOT NULL ORDER BY 1
"""


_LOGGED_TABLES: LiteralString = """
    SELECT relname FROM pg_class c
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relpersistence = 'p'
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY relname
"""

_UNLOGGED_TABLES: LiteralString = """
    SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        AND relpersistence = 'u' AND relname <> 'spool_search' ORDER BY relname
"""


@dataclass(frozen=True, slots=True)
class TableContent:
    """How many rows a table has, and the SHA-256 of the sorted SHA-256 of each."""

    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Canary:
    """The proof of which keyring and normaliser the leads belong to; see storage/keys/canary.py."""

    sealed: str
    digest: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$")]
    normaliser: str

    def is_of(self, encryption: EncryptionService) -> bool:
        """Whether this keyring opens the leads, and makes their blind indexes."""
        return encryption.confirms(KeyCanary(self.sealed, bytes.fromhex(self.digest)))


@dataclass(frozen=True, slots=True)
class Proof:
    """HMAC-SHA256 of a manifest without its `proof` and `sha256`, with the audit key `key_id`."""

    key_id: str
    hmac: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]*$")]
    """Hexadecimal."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. `proof` is None when nothing shows who made it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    made_at: AwareDatetime
    leadkeep: str
    postgres: int
    """The server's major version."""
    schema: str
    key_ids: tuple[str, ...]
    canary: Canary
    tables: Mapping[str, TableContent]
    dump_bytes: int
    dump_sha256: str
    proof: Proof | None = None

    def write(self, folder: Path) -> None:
        """Put it into the folder, whole or not at all."""
        document = self._document()
        if self.proof is None:
            del document["proof"]
        document["sha256"] = hashlib.sha256(_canonical(document)).hexdigest()
        replace_secret_file(folder / MANIFEST, (json.dumps(document, indent=2) + "\n").encode())

    def proven(self, encryption: EncryptionService) -> Manifest:
        """This manifest with the proof that the keyring made it."""
        key_id = encryption.audit_key_id
        made = encryption.backup_proof(key_id, self._proven_part())
        assert made is not None  # noqa: S101 # the keyring holds its own primary key
        return replace(self, proof=Proof(key_id, made.hex()))

    def require_proof(self, encryption: EncryptionService) -> None:
        """Raise StartRefusedError unless the proof was made with an audit key of this keyring, retired ones too."""
        if self.proof is None:
            raise StartRefusedError(f"the backup carries no proof of who made it: {_UNPROVEN}")
        made = encryption.backup_proof(self.proof.key_id, self._proven_part())
        if made is None:
            raise StartRefusedError(
                f"the backup was proven with the audit key {self.proof.key_id}, which this keyring does not have: "
                f"point LEADKEEP_KEYRING to one that has it, or: {_UNPROVEN}"
            )
        if not hmac.compare_digest(made.hex(), self.proof.hmac):
            raise StartRefusedError(
                f"the backup is not the one that was made with this keyring, somebody changed it: {_UNPROVEN}"
            )

    def require_keyring(self, encryption: EncryptionService, normaliser: str) -> None:
        """Raise StartRefusedError unless this keyring opens the leads and these settings find their equals."""
        if not self.canary.is_of(encryption):
            raise StartRefusedError(
                "the keyring is not the one that this backup's leads were sealed with: point LEADKEEP_KEYRING to that "
                "one. Nothing was changed"
            )
        if not have_same_settings(self.canary.normaliser, normaliser):
            raise StartRefusedError(
                f"the backup's phone numbers and national IDs were normalised as '{self.canary.normaliser}', these "
                f"settings mean '{normaliser}': set LEADKEEP_DEFAULT_REGION, LEADKEEP_PHONE_RULE and LEADKEEP_NID_RULE "
                "back. Nothing was changed"
            )
        if missing := [key_id for key_id in self.key_ids if not encryption.opens_with(key_id)]:
            raise StartRefusedError(
                "the backup holds fields that were sealed with keys which this keyring does not have: "
                f"{', '.join(missing)}. Nothing was changed"
            )

    def _document(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self), "made_at": self.made_at.isoformat()}

    def _proven_part(self) -> bytes:
        document = self._document()
        del document["proof"]
        return _canonical(document)


_UNPROVEN = "use another backup, or accept what whoever wrote it put in, with --unproven. Nothing was changed"

_READER = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished backup, which nothing proves yet. Raises StartRefusedError."""
    path = folder / MANIFEST
    damaged = StartRefusedError(f"{path} is damaged: take another backup")
    try:
        with open_regular(path) as file:
            document: dict[str, Any] = parse_json(file.read(_LARGEST_MANIFEST))
        if document["format"] != FORMAT:
            raise StartRefusedError(f"{path} is not the manifest of a Leadkeep backup")
        if document["version"] != VERSION:
            raise StartRefusedError(f"{path} is of another version than {VERSION}, which this release reads")
        if document.pop("sha256") != hashlib.sha256(_canonical(document)).hexdigest():
            raise damaged
        del document["format"], document["version"]
        manifest = _READER.validate_json(json.dumps(document), strict=True)
    except FileNotFoundError:
        raise StartRefusedError(f"{folder} has no {MANIFEST}: it is no backup, or one that was not finished") from None
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if "lead" not in manifest.tables:
        raise damaged
    return manifest


def _canonical(document: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON object, however its file is laid out."""
    return json.dumps(document, sort_keys=True).encode()


@contextmanager
def whole_dump(folder: Path, manifest: Manifest) -> Iterator[IO[bytes]]:
    """The dump that the manifest describes, as a private copy. Raises StartRefusedError for another one.

    A copy, because who can write to the folder could exchange the bytes between this look at them and their use.
    """
    path = folder / DUMP
    # Without a name in any folder: nobody else opens it, and it goes with this process.
    with tempfile.TemporaryFile() as copy:
        digest = hashlib.sha256()
        try:
            with open_regular(path) as file:
                while copy.tell() <= manifest.dump_bytes and (piece := file.read(_PIECE_BYTES)):
                    digest.update(piece)
                    copy.write(piece)
            copy.flush()
        except OSError as error:
            raise StartRefusedError(
                f"{path} cannot be read, or there is no room for a copy in {tempfile.gettempdir()} (TMPDIR): "
                f"{error.strerror}"
            ) from None
        if (copy.tell(), digest.hexdigest()) != (manifest.dump_bytes, manifest.dump_sha256):
            raise StartRefusedError(f"{path} is damaged: it is not what {MANIFEST} describes; take another backup")
        yield copy


def contents(connection: psycopg.Connection) -> dict[str, TableContent]:
    """What every table of a dump holds, in the transaction, which began with TRANSACTION; rows in an order of their
    digests."""
    return {name: _content(connection, name) for (name,) in connection.execute(_LOGGED_TABLES).fetchall()}


def unlogged_tables(connection: psycopg.Connection) -> list[str]:
    """The tables that a dump would leave out, except those whose rows last seconds."""
    return [name for (name,) in connection.execute(_UNLOGGED_TABLES).fetchall()]


def _content(connection: psycopg.Connection, table: str) -> TableContent:
    # By code points, as every database can sort: that of a restore may have another locale.
    row = sql.SQL("""encode(sha256(convert_to(t::text, 'UTF8')), 'hex') COLLATE "C" """)
    query = sql.SQL("COPY (SELECT {} FROM {} t ORDER BY 1) TO STDOUT")
    digest, rows = hashlib.sha256(), 0
    with connection.cursor() as cursor, cursor.copy(query.format(row, sql.Identifier("public", table))) as copy:
        for line in copy:
            digest.update(line)
            rows += 1
    return TableContent(rows, digest.hexdigest())


def key_ids(connection: psycopg.Connection) -> tuple[str, ...]:
    """The keys that the stored tokens were sealed with."""
    return tuple(str(row[0]) for row in connection.execute(_KEY_IDS))


def canary_of(connection: psycopg.Connection) -> Canary:
    """The database's canary. Raises StartRefusedError when no service has started with the database."""
    row = connection.execute("SELECT sealed, encode(digest, 'hex'), normaliser FROM key_canary").fetchone()
    if row is None:
        raise StartRefusedError("no service has started with this database yet: there is nothing to back up")
    return Canary(*row)


def differences(expected: Mapping[str, TableContent], found: Mapping[str, TableContent]) -> list[str]:
    """Which tables do not hold what they should, in words."""
    found_differences = []
    for name in sorted({*expected, *found}):
        if name not in found:
            found_differences.append(f"{name} is missing")
        elif name not in expected:
            found_differences.append(f"{name} should not be there")
        elif expected[name] != found[name]:
            found_differences.append(f"{name} has {found[name].rows} rows instead of {expected[name].rows}, or others")
    return found_differences
