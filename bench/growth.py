"""`python -m bench.growth`: what becomes of latency, disk and memory when there are 10 thousand, 100 thousand and 1
million leads, and which index each query uses at the largest size.

One PostgreSQL holds a database for each size, each with a Leadkeep of its own; the sizes take turns, so that the
machine's moods concern all of them. Writes `bench/growth.md`. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from leadkeep.v1 import lead_service_pb2 as pb

from bench.arithmetic import Spread, pair_ratios, quantile
from bench.contenders import Contender, leadkeep_over_grpc
from bench.databases import database, fresh_postgres
from bench.explained import Explained, drive, explained, large_tables, read_log, watch
from bench.generator import run
from bench.growth_report import Disk, write
from bench.growth_rows import Rows
from bench.load.plan import Load, Requests
from bench.operations import PAGE, Operation, grpc_requests
from service.keys.encryption import EncryptionService
from service.keys.keyring import keyring_file
from service.lead import LeadOrder
from service.storage.postgres.embedded import EmbeddedPostgres
from service.use_cases.page_token import make_page_token
from tests.harness.processes import resident_megabytes
from tests.harness.running_service import RunningService

SIZES = (10_000, 100_000, 1_000_000)
ROUNDS = 20
SECONDS = 2.0
FIRST_PAGE, MIDDLE_PAGE = "ListLeads, first page", "ListLeads, middle page"
MEASURED = (
    Operation.CREATE,
    Operation.GET,
    Operation.BY_CONVERSATION,
    Operation.MOVE,
    Operation.DUPLICATE,
    FIRST_PAGE,
    MIDDLE_PAGE,
)

LOADING = {"max_wal_size": "8GB", "max_connections": "100"}
"""A load of a million leads in a minute must not meet a checkpoint every few seconds."""


@dataclass
class Size:
    """Leadkeep with so many leads."""

    count: int
    service: RunningService
    contender: Contender
    middle: Requests
    latencies: dict[str, list[float]] = field(default_factory=dict)
    """The median of each round, in seconds."""
    loaded_in: float = 0.0

    def plan(self, operation: str) -> Load:
        """One run of one caller."""
        if operation in (FIRST_PAGE, MIDDLE_PAGE):
            load = self.contender.load(Operation.LIST, callers=1, seconds=SECONDS)
            return Load(**{**vars(load), "requests": self.middle}) if operation == MIDDLE_PAGE else load
        return self.contender.load(Operation(operation), callers=1, seconds=SECONDS)

    def measure(self, operation: str) -> float:
        """The median latency of one run."""
        result = run(self.plan(operation))
        if operation in set(Operation):
            self.contender.starts[Operation(operation)] = result.next_start
        if result.failures:
            raise AssertionError(f"{operation} at {self.count}: {result.failures} calls failed")
        return quantile(result.latencies, 0.5)


def grown(postgres: EmbeddedPostgres, folder: Path, count: int, stack: ExitStack) -> Size:
    """A service whose database has `count` leads."""
    name = f"leads_{count}"
    service = RunningService(folder / name, database_url=database(postgres, name))
    stack.callback(service.stop)
    service.start()  # makes the canary, whose epoch the rows carry
    url = postgres.url(user="postgres", database=name)
    with psycopg.connect(url) as connection:
        ((epoch,),) = connection.execute("SELECT epoch FROM key_canary").fetchall()
    encryption = EncryptionService(keyring_file(service.data_dir / "keyring.json").load())
    rows = Rows(count, encryption, epoch)
    began = time.monotonic()
    rows.load(url)
    loaded_in = time.monotonic() - began
    numbers = rows.read()
    ids = tuple(str(rows.lead_id(number)).encode() for number in numbers)
    texts = tuple(b"%010d" % number for number in numbers)
    contender = leadkeep_over_grpc(service, postgres, ids=ids)
    contender.requests = {o: grpc_requests(o, ids=ids, numbers=texts) for o in Operation}
    contender.starts = {Operation.CREATE: count}
    token = make_page_token(
        rows.created_at(count // 2 + PAGE // 2),
        rows.lead_id(count // 2 + PAGE // 2),
        list_identity=f"leads/{LeadOrder.CREATED_DESC.name}/[]",  # what the service makes of a list without any filter
        tags=encryption.page_token_tags,
    )
    page = pb.ListLeadsRequest(page_size=PAGE, page_token=token, view=pb.LEAD_VIEW_MASKED).SerializeToString()
    print(f"{count:,} leads in {loaded_in:.0f} s", file=sys.stderr, flush=True)
    return Size(count, service, contender, Requests(templates=(page,), values=(b"",)), loaded_in=loaded_in)


def measure(sizes: list[Size], rounds: int) -> None:
    """Every operation at every size, in turns."""
    for size in sizes:
        for operation in MEASURED:
            size.measure(operation)  # warm
    for number in range(rounds):
        for operation in MEASURED:
            for size in sizes[number % len(sizes) :] + sizes[: number % len(sizes)]:
                size.latencies.setdefault(operation, []).append(size.measure(operation))


def disk(postgres: EmbeddedPostgres, size: Size) -> Disk:
    """What the leads take on disk, and what autovacuum did."""
    with psycopg.connect(postgres.url(user="postgres", database=f"leads_{size.count}")) as connection:
        tables = connection.execute(
            "SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid) FROM pg_class c"
            " WHERE c.relname IN ('lead', 'lead_conversation', 'lead_event') ORDER BY 1"
        ).fetchall()
        indexes = connection.execute(
            "SELECT indexrelname, pg_relation_size(indexrelid) FROM pg_stat_user_indexes WHERE relname = 'lead'"
            " ORDER BY 2 DESC"
        ).fetchall()
        ((dead, vacuums, analyses),) = connection.execute(
            "SELECT n_dead_tup, autovacuum_count, autoanalyze_count FROM pg_stat_user_tables WHERE relname = 'lead'"
        ).fetchall()
    return Disk(
        count=size.count,
        loaded_in=size.loaded_in,
        tables={name: (heap, index) for name, heap, index in tables},
        indexes=dict(indexes),
        dead=dead,
        vacuums=vacuums,
        analyses=analyses,
        service_megabytes=resident_megabytes(size.service.pid),
    )


def queries(postgres: EmbeddedPostgres, size: Size) -> list[Explained]:
    """Every query at this size, run by a service that was started anew."""
    name = f"leads_{size.count}"
    url = postgres.url(user="postgres", database=name)
    size.service.stop()
    watch(postgres, name)
    already = len(read_log(postgres))
    size.service.start()
    drive(size.service.grpc_address, size.service.token("admin"))
    return explained(read_log(postgres)[already:], large_tables(url))


def ratios(sizes: list[Size]) -> Mapping[str, Spread]:
    """Each goal's figure: the largest size against the smallest, the middle page against the first."""
    small, large = sizes[0], sizes[-1]

    held = (Operation.GET, Operation.BY_CONVERSATION, Operation.DUPLICATE, Operation.CREATE)
    found = {
        f"{operation}: {large.count:,} / {small.count:,} leads": pair_ratios(
            large.latencies[operation], small.latencies[operation]
        )
        for operation in held
    }
    page = pair_ratios(large.latencies[MIDDLE_PAGE], large.latencies[FIRST_PAGE])
    return found | {f"ListLeads at {large.count:,}: middle / first page": page}


def main() -> int:
    """Load, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        postgres = stack.enter_context(fresh_postgres(LOADING))
        sizes = [grown(postgres, Path(folder), count, stack) for count in sorted(options.sizes)]
        measure(sizes, options.rounds)
        disks = [disk(postgres, size) for size in sizes]
        plans = queries(postgres, sizes[-1])
    whole = tuple(sorted(options.sizes)) == SIZES
    latencies = {size.count: size.latencies for size in sizes}
    met = write(latencies, ratios(sizes), disks, plans, Path(__file__).with_name("growth.md") if whole else None)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
