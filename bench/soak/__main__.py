"""`python -m bench.soak [MINUTES]`: does a service that is loaded steadily, by clients that die, hang up and cancel,
keep its memory, tasks, connections and handles as they are?

A fresh PostgreSQL and a real service; clients.py and rude.py are the load, flatness.py says what "flat" means. Writes
`bench/soak.md`; a run shorter than the default is a look that leaves the report alone. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import leadkeep_on_postgres, leadkeep_over_grpc, with_known_leads
from bench.soak.clients import Clients
from bench.soak.report import Soak, text_of, verdicts, write
from bench.soak.sampling import Sample, sample

MINUTES = 30.0
SAMPLE_EVERY = 10.0
REPLACE_EVERY = 12.0
"""Seconds. There are ten clients, so that each lives for two minutes."""

STORM_EVERY = 60.0
LONGEST_WARM_UP = 300.0
REST = 15.0
"""Seconds that the service has to let go of everything."""


@dataclass(slots=True)
class Turn:
    """Something that is done again and again."""

    due: float
    every: float
    act: Callable[[], None]


def take_turns(turns: list[Turn], until: float) -> None:
    """Do each thing when it is due, one at a time."""
    while (turn := min(turns, key=lambda each: each.due)).due < until:
        time.sleep(max(0.0, turn.due - time.monotonic()))
        turn.act()
        turn.due += turn.every


def soak(clients: Clients, look: Callable[[float], Sample], seconds: float) -> Soak:
    """Warm, rest, load, rest."""
    clients.warm()
    time.sleep(REST)
    before = look(0.0)
    samples: list[Sample] = []
    began = time.monotonic()

    def take() -> None:
        samples.append(look(time.monotonic() - began))
        tell(samples[-1])

    clients.begin()
    turns = [
        Turn(began + SAMPLE_EVERY, SAMPLE_EVERY, take),
        Turn(began + REPLACE_EVERY, REPLACE_EVERY, clients.replace_one),
        Turn(began + STORM_EVERY / 2, STORM_EVERY, clients.storm),
    ]
    take_turns(turns, began + seconds)
    clients.close()
    time.sleep(REST)
    after = look(time.monotonic() - began)
    warm_up = min(LONGEST_WARM_UP, seconds / 6)
    return Soak(
        before=before, samples=samples, after=after, warm_up=warm_up, killed=clients.killed, ended=tuple(clients.ended)
    )


def tell(seen: Sample) -> None:
    """One line of progress."""
    print(
        f"{seen.at:6.0f} s: {seen.resident:.1f} MB, {seen.tasks:g} tasks, {seen.handles:g} handles, "
        f"{seen.connections:g} connections, {sum(seen.calls.values()):,.0f} calls",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.split("\n")[0])
    parser.add_argument("minutes", type=float, nargs="?", default=MINUTES)
    minutes = parser.parse_args().minutes
    if minutes < 1:
        parser.error("less than a minute has too few samples to judge")
    with tempfile.TemporaryDirectory() as folder, leadkeep_on_postgres(Path(folder) / "soak") as (service, postgres):
        ids = with_known_leads(
            leadkeep_over_grpc(service, postgres, ids=()), "SELECT id FROM lead ORDER BY conversation_id"
        )
        clients = Clients(service=service, postgres=postgres, ids=ids)
        admin_url = postgres.url(user="postgres", database="postgres")
        try:
            done = soak(
                clients,
                lambda at: sample(service.pid, http_url=service.http_url, admin_url=admin_url, at=at),
                60 * minutes,
            )
        finally:
            clients.close()
    print(text_of(done))
    if minutes >= MINUTES:
        write(done, Path(__file__).parents[1])
    return int(not all(verdict.met for verdict in verdicts(done)))


if __name__ == "__main__":
    sys.exit(main())
