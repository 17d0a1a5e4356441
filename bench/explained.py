"""Which plan PostgreSQL chooses for every query of the service, seen by auto_explain while the service runs.

Caveat: a table that is small is rightly read as a whole; only such reads of a large table count as a fault.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg

from service.storage.postgres.embedded import EmbeddedPostgres

LARGE_ROWS = 10_000
"""Rows from which a table is too large to be read as a whole for one call."""

_BLOCK = re.compile(r"duration: [0-9.]+ ms  plan:\n((?:\t.*\n|\n)+)")
_ACCESS = re.compile(
    r"(Seq Scan) on (\w+)|(?:Index Scan|Index Only Scan)(?: Backward)? using (\w+) on \w+|Bitmap Index Scan on (\w+)"
)
_HEAD = re.compile(r"^(\t?\s*Query Text: .*?)(?=\n\t[^\n]*\(cost=)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Explained:
    """One statement, the indexes that it used, and the large tables that it read as a whole."""

    statement: str
    indexes: tuple[str, ...]
    whole_tables: tuple[str, ...]


def watch(postgres: EmbeddedPostgres, name: str) -> None:
    """Let every connection that is made from now on to this database log its plans."""
    settings = {
        "session_preload_libraries": "'auto_explain'",
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_nested_statements": "on",
        "auto_explain.log_parameter_max_length": "0",
    }
    with psycopg.connect(postgres.url(user="postgres", database="postgres"), autocommit=True) as connection:
        for setting, value in settings.items():
            connection.execute(f"ALTER DATABASE {name} SET {setting} = {value}".encode())


def drive(address: str, token: str) -> None:
    """Make every kind of call, in a process of its own: this one must not start gRPC's threads."""
    subprocess.run([sys.executable, "-m", "bench.every_call", address, token], check=True, timeout=120)


def explained(log: str, large: set[str]) -> list[Explained]:
    """Every statement that the log tells of, once for each way in which it was run."""
    found: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Explained] = {}
    for (block,) in (match.groups() for match in _BLOCK.finditer(log)):
        head = _HEAD.match(block)
        statement = " ".join((head[1] if head else block.split("\n", 1)[0]).split()).removeprefix("Query Text: ")
        whole, indexes = set(), set()
        for access in _ACCESS.finditer(block):
            if access[1] and access[2] in large:
                whole.add(access[2])
            elif access[3] or access[4]:
                indexes.add(access[3] or access[4])
        key = (statement, tuple(sorted(indexes)), tuple(sorted(whole)))
        found[key] = Explained(*key)
    return sorted(found.values(), key=lambda each: each.statement)


def large_tables(url: str) -> set[str]:
    """The tables with so many rows that reading them as a whole is a fault."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples >= %s", [LARGE_ROWS])
        return {row[0] for row in rows}


def read_log(postgres: EmbeddedPostgres) -> str:
    """The server's log so far."""
    return Path(postgres.log_file).read_text(errors="replace")
