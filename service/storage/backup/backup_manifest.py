"""Manifest of a backup: enough to refuse a wrong one before anything is touched, and nothing secret.

Promise: a manifest is written last and whole, so that a folder without one is no backup.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from pydantic import TypeAdapter

from service.errors import StartRefusedError
from service.keys.secret_file import replace_secret_file

FORMAT = "leadkeep-backup"
VERSION = 1
MANIFEST = "manifest.json"
DUMP = "leadkeep.dump"

SESSION = "-c timezone=UTC -c datestyle=ISO -c bytea_output=hex -c extra_float_digits=1 -c intervalstyle=postgres"
"""Rows are compared as text, so whatever decides how they are written is set."""

_KEY_IDS: LiteralString = """
    SELECT DISTINCT split_part(token, '.', 1) FROM (
        SELECT unnest(ARRAY[phone, nid, address, email, notes]) AS token FROM lead
        UNION ALL SELECT unnest(ARRAY[phone, nid, address, email, notes]) FROM resubmission
        UNION ALL SELECT unnest(ARRAY[phone, nid, address, email, notes]) FROM lead_conflict
    ) tokens WHERE token IS NOT NULL ORDER BY 1
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
    digest: str
    """Hexadecimal."""
    normaliser: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. `canary` is None when no service had started yet."""

    made_at: datetime
    leadkeep: str
    postgres: int
    """The server's major version."""
    schema: str
    key_ids: tuple[str, ...]
    canary: Canary | None
    tables: Mapping[str, TableContent]
    dump_bytes: int
    dump_sha256: str

    def write(self, folder: Path) -> None:
        """Put it into the folder, whole or not at all."""
        manifest = {"format": FORMAT, "version": VERSION, **asdict(self), "made_at": self.made_at.isoformat()}
        manifest["sha256"] = _digest_of(manifest)
        replace_secret_file(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished backup. Raises StartRefusedError."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT:
            raise StartRefusedError(f"{path} is not the manifest of a Leadkeep backup")
        if manifest["version"] != VERSION:
            raise StartRefusedError(
                f"{path} is of version {manifest['version']}; this release reads {VERSION}: use a later one"
            )
        if manifest.pop("sha256") != _digest_of(manifest):
            raise StartRefusedError(f"{path} is damaged: take another backup")
        return TypeAdapter(Manifest).validate_python(manifest)
    except FileNotFoundError:
        raise StartRefusedError(f"{folder} has no {MANIFEST}: it is no backup, or one that was not finished") from None
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StartRefusedError(f"{path} is damaged: take another backup") from None


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """Digest of the manifest, however it is laid out. A damaged one must be noticed before the restore."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def require_whole_dump(folder: Path, manifest: Manifest) -> None:
    """Raise StartRefusedError unless the dump is, byte for byte, the one of the manifest."""
    path = folder / DUMP
    try:
        size, digest = path.stat().st_size, sha256_of(path)
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be read: {error.strerror}") from None
    if (size, digest) != (manifest.dump_bytes, manifest.dump_sha256):
        raise StartRefusedError(f"{path} is damaged: it is not what {MANIFEST} describes; take another backup")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(connection: psycopg.Connection) -> dict[str, TableContent]:
    """What every table holds, in the connection's snapshot. Rows are compared in an order of their own digests."""
    names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
    return {name: _content(connection, name) for (name,) in names}


def _content(connection: psycopg.Connection, table: str) -> TableContent:
    query = sql.SQL("COPY (SELECT encode(sha256(convert_to(t::text, 'UTF8')), 'hex') FROM {} t ORDER BY 1) TO STDOUT")
    digest, rows = hashlib.sha256(), 0
    with connection.cursor() as cursor, cursor.copy(query.format(sql.Identifier("public", table))) as copy:
        for line in copy:
            digest.update(line)
            rows += 1
    return TableContent(rows, digest.hexdigest())


def key_ids(connection: psycopg.Connection) -> tuple[str, ...]:
    """The keys that the stored tokens were sealed with."""
    return tuple(str(row[0]) for row in connection.execute(_KEY_IDS))


def canary_of(connection: psycopg.Connection) -> Canary | None:
    """The database's canary."""
    row = connection.execute("SELECT sealed, encode(digest, 'hex'), normaliser FROM key_canary").fetchone()
    return None if row is None else Canary(*row)


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
