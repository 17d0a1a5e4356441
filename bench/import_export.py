"""`python -m bench.import_export [imported] [round trip]`: files that come in, go out, and come back.

Imports 100,000 foreign leads (and before them a tenth of that, to compare the memory), exports them, then brings 50,000
leads with histories and links through their daily files into an empty database with the same keyring, and compares what
pg_dump writes of both. PostgreSQL syncs to disk. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.cpu import family_cpu_seconds
from bench.databases import database, fresh_postgres
from service.storage.postgres.embedded import EmbeddedPostgres
from tests.harness.faults import execute
from tests.harness.processes import family_megabytes
from tests.harness.running_service import RunningService

IMPORTED = 100_000
ROUND_TRIP = 50_000

SPEED_GOAL = 5_000.0
"""Leads a second on 2 cores, by the time that the import itself tells: without the second in which Python starts."""
MEMORY_GOAL = 40.0
"""Megabytes that ten times the leads may cost: what allocators and caches of four processes vary by."""

TABLES = ("lead", "resubmission", "lead_alias")
"""What a dump must show alike; links of conversations and events are numbered by each database itself."""

EVENTS = """
    SELECT (lead_id, row_number() OVER (PARTITION BY lead_id ORDER BY version, id), version, type, actor, reason,
        fields, from_status, to_status, from_assignee, to_assignee, at)::text FROM lead_event
"""

# What a year of work leaves behind, with times and numbers of its own.
HISTORIES = (
    "UPDATE lead SET status = 'contacted', assignee = 'rahima', version = 3, resubmissions = 0,"
    " created_at = created_at - (random() * 30)::int * interval '1 day'",
    "UPDATE lead_event SET at = created_at FROM lead WHERE lead.id = lead_id AND type = 1",
    "INSERT INTO lead_event (type, lead_id, from_status, to_status, actor, reason, at, version)"
    " SELECT 3, id, 'new', 'contacted', 'agent', E'said \"yes\" \\\\ twice', created_at + interval '1 h', 2"
    " FROM lead",
    "INSERT INTO lead_event (type, lead_id, to_assignee, actor, at, version)"
    " SELECT 4, id, 'rahima', 'agent', created_at + interval '2 h', 3 FROM lead",
    "INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)"
    " SELECT lead_id, submission_id, conversation_id, conversation_index FROM lead_conversation",
    "INSERT INTO lead_alias (id, lead_id, created_by) SELECT gen_random_uuid(), id, 'chatbot' FROM lead LIMIT 1000",
)


@dataclass(frozen=True)
class Ran:
    """One command: what it printed, how long it took (seconds), and the most that its processes held (megabytes)."""

    out: str
    seconds: float
    peak: float


def run(operator: RunningService, *arguments: str) -> Ran:
    began, peak = time.monotonic(), 0.0
    with tempfile.TemporaryFile() as out:
        running = operator.begin(*arguments, stdout=out)
        while running.poll() is None:
            peak = max(peak, family_megabytes(running.pid))
            time.sleep(0.05)
        out.seek(0)
        if running.returncode != 0:
            raise AssertionError(f"{arguments[0]} ended with {running.returncode}")
        return Ran(out.read().decode(), time.monotonic() - began, peak)


def cpu_used(postgres: EmbeddedPostgres) -> float:
    """CPU seconds of all commands that have ended, with their workers, and of PostgreSQL: nobody else's."""
    assert postgres.pid is not None
    commands = resource.getrusage(resource.RUSAGE_CHILDREN)
    return commands.ru_utime + commands.ru_stime + family_cpu_seconds(postgres.pid)


def leads_file(folder: Path, first: int, count: int) -> Path:
    path = folder / f"leads-{first}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Full name", "Mobile", "National ID", "Address", "Policy", "E-mail", "Remarks", "Chat ID"])
        for number in range(first, first + count):
            person = [
                f'"P" {number} রহিমা \U0001f600',
                f"+88017{number:08d}",
                f"19{number:011d}",
                f"{number} Lake\nRoad",
            ]
            writer.writerow([*person, "Term Life", f"p{number}@example.com", "=1+1 \\ said", f"chat-{number}"])
    return path


def dumped(postgres: EmbeddedPostgres, url: str) -> list[str]:
    """What pg_dump writes of leads and links, and their events; the rows in an order of their own."""
    chosen = [part for table in TABLES for part in ("--table", table)]
    command = [str(postgres.bin_dir / "pg_dump"), "--data-only", *chosen, "--dbname", url]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    with psycopg.connect(url) as connection:
        events = [event for (event,) in connection.execute(EVENTS)]
    return sorted([*events, *(line for line in text.splitlines() if not re.match(r"\\(un)?restrict ", line))])


def main() -> None:
    imported, round_trip = (int(given) for given in (sys.argv[1:] + [IMPORTED, ROUND_TRIP][len(sys.argv) - 1 :])[:2])
    missed = []

    def show(what: str, *, good: bool) -> None:
        print(f"{what}: {'good' if good else 'MISSED'}", flush=True)
        if not good:
            missed.append(what)

    with fresh_postgres({}) as postgres, tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        first = RunningService(folder / "first", database_url=database(postgres, "imported"))
        small = run(first, "import", "--json", str(leads_file(folder, 0, imported // 10)))
        large_file, before_large = leads_file(folder, imported, imported), cpu_used(postgres)
        large = run(first, "import", "--json", str(large_file))
        cpu = cpu_used(postgres) - before_large
        (told,) = json.loads(large.out)
        speed = imported / told["seconds"]
        show(
            f"import of {imported:,} leads: {speed:,.0f} leads/s, {imported / cpu:,.0f} a second of CPU, "
            f"{told['saved']:,} saved",
            good=speed >= SPEED_GOAL,
        )
        grown = large.peak - small.peak
        show(
            f"its memory: {small.peak:.0f} MB, of ten times the leads {large.peak:.0f} MB",
            good=grown <= MEMORY_GOAL,
        )
        out = run(first, "export", "--format", "csv", "--output", str(folder / "out.csv"))
        show(f"export: {out.seconds:.1f} s, {out.peak:.0f} MB", good=out.peak < small.peak)

        source = RunningService(folder / "source", database_url=database(postgres, "source"))
        run(source, "import", str(leads_file(folder, 3 * imported, round_trip)))
        execute(postgres.url(user="postgres", database="source"), *HISTORIES)
        run(source, "files", "render")
        keyring = {"LEADKEEP_KEYRING": str(source.data_dir / "keyring.json")}
        target = RunningService(folder / "target", database_url=database(postgres, "target"), settings=keyring)
        files = sorted(map(str, (source.data_dir / "files").glob("leads_*.json")))
        back = run(target, "import", *files)
        urls = [postgres.url(user="postgres", database=name) for name in ("source", "target")]
        before, after = (dumped(postgres, url) for url in urls)
        show(
            f"round trip of {round_trip:,} leads in {len(files)} daily files: import {back.seconds:.1f} s, "
            f"{len(before):,} lines of pg_dump equal",
            good=before == after and len(before) > 5 * round_trip,
        )
        again = run(target, "import", *files)
        show("repeated: nothing changed", good=" saved" in again.out and dumped(postgres, urls[1]) == before)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
