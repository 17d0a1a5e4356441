"""The floor of the database: pgbench, with the rows that Leadkeep inserts, in Leadkeep's schema, as its role."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench.databases import database, fresh_postgres
from service.storage.postgres.embedded import EmbeddedPostgres

BATCH = 64

_SEALED = "repeat('k', 8) || '.gAAAAAAAAAAA' || repeat('x', {length})"
"""A token as long as ours of the same field; the database looks at its beginning only."""

_ROWS = f"""
WITH made AS (
    INSERT INTO lead (id, name, phone, nid, address, interested_policy, email, notes, conversation_id,
        phone_index, nid_index, email_index, index_epoch, created_by, content_digest)
    SELECT id, 'Person ' || id, {_SEALED.format(length=268)}, {_SEALED.format(length=268)},
        {_SEALED.format(length=152)}, 'Term Life 20-Year', {_SEALED.format(length=152)}, {_SEALED.format(length=130)},
        {_SEALED.format(length=152)}, sha256(uuid_send(id)), sha256(uuid_send(id) || 'n'),
        'kkkkkkkk.' || encode(uuid_send(id), 'base64'), 1, 'chatbot', sha256(uuid_send(id))
    FROM (SELECT uuidv7() AS id FROM generate_series(1, {{rows}})) AS ids
    RETURNING id, conversation_id
)
INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)
SELECT id, id, conversation_id, 'kkkkkkkk.' || encode(sha256(uuid_send(id)), 'base64') FROM made;
"""


@dataclass(frozen=True, slots=True)
class PgbenchResult:
    """What pgbench did: latencies of transactions in seconds, and rows a second."""

    latencies: list[float]
    rows_per_second: float


class Pgbench:
    """pgbench on a PostgreSQL of its own."""

    def __init__(self, postgres: EmbeddedPostgres, url: str) -> None:
        self.postgres = postgres
        self._url = urlsplit(url)

    def run(self, *, callers: int, seconds: float, rows: int) -> PgbenchResult:
        """`callers` connections, each with one transaction of `rows` rows after the other."""
        query = parse_qs(self._url.query)
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "insert.sql"
            script.write_text(_ROWS.format(rows=rows).replace("\n", " ").strip() + "\n")
            done = subprocess.run(
                [
                    self.postgres.bin_dir / "pgbench",
                    *("--no-vacuum", "--protocol=prepared", f"--client={callers}", "--jobs=1"),
                    *(f"--time={max(1, round(seconds))}", "--log", f"--log-prefix={folder}/log"),
                    *(f"--file={script}", "--host", query["host"][0], "--port", query["port"][0]),
                    *("--username", self._url.username or "", self._url.path.lstrip("/")),
                ],
                # The role gives up a lock that takes long, and pgbench ends then.
                env={**os.environ, "PGDATABASE": "", "PGOPTIONS": "-c lock_timeout=0"},
                capture_output=True,
                text=True,
                check=True,
            )
            lines = [line for path in Path(folder).glob("log.*") for line in path.read_text().splitlines()]
        match = re.search(r"tps = ([0-9.]+)", done.stdout)
        assert match is not None
        # The third field of a line is the transaction's time in microseconds.
        latencies = [int(line.split()[2]) / 1e6 for line in lines]
        return PgbenchResult(latencies, float(match[1]) * rows)


@contextmanager
def pgbench() -> Iterator[Pgbench]:
    """pgbench, ready to run."""
    with fresh_postgres() as postgres:
        yield Pgbench(postgres, database(postgres, "bench"))
