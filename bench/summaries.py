"""`python -m bench.summaries`: how long SummarizeLeads takes at a million leads, while 5 % of them change.

The leads were created within 400 days, so that the longest span holds all of them. Policies, sources and assignees are
skewed: a few have most of the leads, and there are more sources than a summary has groups. With `--folder` the database
is kept there, and used again by the next run. Writes `bench/summaries.md`. Exit code 1: a summary took too long.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import psycopg
from leadkeep.v1 import lead_service_pb2 as pb

from bench.arithmetic import quantile
from bench.cpu import cpu_seconds
from bench.growth import LOADING
from service.lead import SEALED_FORM
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import OWN_DATABASE, OWN_LOGIN, prepare_own_database
from tests.harness.running_service import RunningService

LEADS = 1_000_000
CHANGED = 0.05
CHANGES_A_SECOND = 1000
TOGETHER = 20
"""Changes in a transaction, so that a slow disk does not stretch them over minutes."""

ROUNDS = 20
LIMITS = {31: 0.3, 400: 2.0}
"""Seconds that a summary of so many days may take."""

REPORT = Path(__file__).with_name("summaries.md")

_SEALED = ("phone", "nid", "address", "email", "notes")


def _noise(name: str) -> str:
    """Text that no compression makes shorter, as long as the longest token."""
    return " || ".join(f"encode(sha512((n || '{name}{part}')::bytea), 'hex')" for part in range(3))


# Each lead is a copy of the one that was created through the service, with other tokens of the same length, as little
# compressible as true ones, and other blind indexes. Skewed: half of the leads have one of an eighth of the values.
_VALUES: Mapping[str, str] = {
    "id": "uuidv7(at - clock_timestamp())",
    "created_at": "at",
    "updated_at": "at",
    "phone_index": "sha256(('p' || n)::bytea)",
    "nid_index": "sha256(('n' || n)::bytea)",
    "request_id": "NULL",
    "status": "(ARRAY['new', 'new', 'new', 'contacted', 'contacted', 'not_interested', 'converted'])[1 + mod(n, 7)]",
    "interested_policy": "'Policy ' || floor(200 * power(random(), 3))",
    "source": "CASE WHEN mod(n, 5) > 0 THEN 'Source ' || floor(3000 * power(random(), 3)) END",
    "assignee": "CASE WHEN mod(n, 5) > 1 THEN 'agent-' || floor(60 * power(random(), 3)) END",
    **{
        name: f"split_part({name}, '{SEALED_FORM}', 1) || '{SEALED_FORM}' || substr({_noise(name)}, 1, length({name})"
        f" - strpos({name}, '{SEALED_FORM}') - {len(SEALED_FORM) - 1})"
        for name in _SEALED
    },
}


def fill(url: str, leads: int) -> None:
    """Copy the one lead that there is, without triggers, as a restore does; then VACUUM (ANALYZE)."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = [
            row[0]
            for row in connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'lead'::regclass AND attnum > 0 AND NOT attisdropped"
            )
        ]
        connection.execute("SET session_replication_role = replica")
        copied = f"""
            INSERT INTO lead ({", ".join(names)}) SELECT {", ".join(_VALUES.get(name, name) for name in names)}
            FROM (SELECT * FROM lead LIMIT 1) lead, (
                SELECT n, now() - (%(leads)s - n) * (interval '400 days' / %(leads)s) AS at
                FROM generate_series(1, %(leads)s) n
            ) numbers"""
        connection.execute(copied.encode(), {"leads": leads})
        connection.execute("VACUUM (ANALYZE)")


@contextmanager
def filled(folder: Path, leads: int) -> Iterator[tuple[RunningService, str]]:
    """A running service with so many leads, and the URL of its database's owner."""
    folder.mkdir(mode=0o711, exist_ok=True)
    folder.chmod(0o711)
    postgres = EmbeddedPostgres(folder / "postgres", settings=LOADING, root_base=folder / "root-base")
    postgres.start()
    try:
        prepare_own_database(postgres)
        url = postgres.url(user="postgres", database=OWN_DATABASE)
        service = RunningService(folder / "leadkeep", database_url=postgres.url(user=OWN_LOGIN, database=OWN_DATABASE))
        service.start()
        try:
            with psycopg.connect(url) as connection:
                ((there,),) = connection.execute("SELECT count(*) FROM lead").fetchall()
            if there < leads:
                service.create()
                began = time.monotonic()
                fill(url, leads)
                print(f"{leads:,} leads in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            yield service, url
        finally:
            service.stop()
    finally:
        postgres.stop()


class Changes(threading.Thread):
    """Moves and assigns a share of the leads."""

    def __init__(self, url: str, leads: int) -> None:
        super().__init__(daemon=True)
        self._connection = psycopg.connect(url, autocommit=True)
        query = "SELECT id FROM lead TABLESAMPLE BERNOULLI (7) ORDER BY random() LIMIT %s"
        self._ids = [row[0] for row in self._connection.execute(query, [round(leads * CHANGED)])]
        self.done = 0

    def run(self) -> None:
        began = time.monotonic()
        for start in range(0, len(self._ids), TOGETHER):
            with self._connection.transaction():
                for number, lead_id in enumerate(self._ids[start : start + TOGETHER]):
                    change = "status = 'contacted'" if number % 2 else f"assignee = 'agent-{number}'"
                    self._connection.execute(
                        f"UPDATE lead SET {change}, version = version + 1, updated_at = clock_timestamp()"
                        " WHERE id = %s".encode(),
                        [lead_id],
                    )
                    self.done += 1
            time.sleep(max(0.0, began + self.done / CHANGES_A_SECOND - time.monotonic()))
        self._connection.close()


Took = tuple[float, float]
"""Seconds of a summary, and of those the seconds of a processor that PostgreSQL used for it."""


def measure(service: RunningService, url: str, changes: Changes, rounds: int) -> dict[tuple[int, str], list[Took]]:
    """Each summary by days and group, in turns, until all changes are made."""
    found: dict[tuple[int, str], list[Took]] = {}
    with service.channel() as channel, psycopg.connect(url, autocommit=True) as connection:
        stub, metadata = service.stub(channel), service.metadata()

        def of_postgres() -> float:
            backends = "SELECT pid FROM pg_stat_activity WHERE application_name = 'leadkeep'"
            return sum(cpu_seconds(pid) for (pid,) in connection.execute(backends))

        def summarize(days: int, group: str) -> Took:
            end = datetime.now(UTC)
            request = pb.SummarizeLeadsRequest(group_by=group, time_zone="Asia/Dhaka")
            request.created_after.FromDatetime(end - timedelta(days=days))
            request.created_before.FromDatetime(end)
            used, began = of_postgres(), time.monotonic()
            with suppress(grpc.RpcError):  # QUERY_TIMEOUT, beyond every limit
                stub.SummarizeLeads(request, metadata=metadata, timeout=30)
            seconds = time.monotonic() - began
            return seconds, of_postgres() - used

        cases = [(days, group) for group in pb.LeadGroup.keys()[1:] for days in LIMITS]
        for case in cases:
            summarize(*case)  # warm
        changes.start()
        while changes.is_alive() or len(found[cases[0]]) < rounds:
            for case in cases:
                found.setdefault(case, []).append(summarize(*case))
    return found


def report(found: Mapping[tuple[int, str], Sequence[Took]], leads: int, changed: int) -> tuple[str, bool]:
    """The table, and whether every summary was fast enough."""
    rows, met = [], True
    for (days, group), took in found.items():
        seconds = [each for each, _ in took]
        worst, cpu = max(seconds), sum(used for _, used in took) / len(took)
        met = met and worst <= LIMITS[days]
        cells = (cpu, quantile(seconds, 0.5), quantile(seconds, 0.95), worst, LIMITS[days])
        name = group.removeprefix("LEAD_GROUP_").lower()
        verdict = "met" if worst <= LIMITS[days] else "**missed**"
        rows.append(f"| {name} | {days} | {len(seconds)} | " + " | ".join(f"{cell * 1000:,.0f}" for cell in cells))
        rows[-1] += f" | {verdict} |"
    busy = f"load average at the end {os.getloadavg()[0]:.1f}"
    text = f"""# SummarizeLeads at {leads:,} leads

Written by `python -m bench.summaries`. All leads were created within 400 days; {changed:,} of them were moved or
assigned meanwhile, at most {CHANGES_A_SECOND:,} a second. One caller, by gRPC, 2 cores shared by
caller, service and PostgreSQL; {busy}.

| group | days | summaries | CPU of PostgreSQL, ms | median, ms | 95th percentile | worst | limit | |
|---|---|---|---|---|---|---|---|---|
""" + "\n".join(rows)
    return text + "\n", met


def main() -> int:
    """Fill, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m bench.summaries", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--leads", type=int, default=LEADS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, help="keeps the database")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o711)
        with filled((options.folder or Path(temporary) / "summaries").resolve(), options.leads) as (service, url):
            changes = Changes(url, options.leads)
            found = measure(service, url, changes, options.rounds)
    text, met = report(found, options.leads, changes.done)
    print(text)
    if options.leads == LEADS:
        REPORT.write_text(text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
