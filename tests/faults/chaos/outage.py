"""PostgreSQL is away, leads come, the service is killed and started again without it, PostgreSQL comes back."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from random import Random

from tests.faults.chaos.clear_values import clear_values
from tests.faults.chaos.history import Call, Stored
from tests.faults.chaos.stage import Result, Stage, Tell, figures, stage

LEAST_RATE = 2000
"""Leads drained a second, from the first one to the last, on 2 cores."""

RATED_FROM = 5000
"""Leads from which a rate says something: fewer are drained between two looks."""

ASKED = 200
"""How many of the delayed leads are repeated and read while PostgreSQL is still away, and read in the end."""


def outage(seed: int, leads: int = 10_000, tell: Tell = lambda _: None) -> Result:
    """Submit so many leads without PostgreSQL, and see them arrive."""
    with stage(seed, tell) as played:
        with played.postgres.away(signal.SIGINT):
            began = time.monotonic()
            delayed = played.callers.submit(range(leads))
            submitted = time.monotonic() - began
            tell(f"{leads} leads submitted without PostgreSQL in {submitted:.1f} s")
            broken = [f"{call.request_id} was not delayed: {call.code}" for call in delayed if call.state != "DELAYED"]
            played.service.kill_and_start()
            spooled = played.service.spooled()
            if spooled != leads:
                broken.append(f"{spooled} leads wait in the spool after the kill")
            broken += _asked_without_database(played, Random(seed).sample(delayed, min(ASKED, leads)))
            files = [path for path in played.service.spool_folder.rglob("*") if path.is_file()]
            broken += clear_values([*files, played.service.running.log_path], range(leads))
        from_back, from_first = _drain_rates(played, leads)
        tell(f"drained {from_first:.0f} leads a second, {from_back:.0f} counted from PostgreSQL being back")
        if leads >= RATED_FROM and from_first < LEAST_RATE:
            broken.append(f"{from_first:.0f} leads a second were drained")
        broken += played.verdict() + played.left_in_clear() + played.callers.differences(ASKED)
        stored = played.postgres.stored()
        broken += _not_as_leads(delayed, stored)
        counts = {
            "submitted a second": round(leads / submitted),
            "in the spool after kill -9 and a start without PostgreSQL": spooled,
            "drained a second": f"{from_first:.0f} from the first one, {from_back:.0f} from PostgreSQL being back",
            **figures(played.history, stored),
        }
    done = f"{leads} leads submitted without PostgreSQL; kill -9; a start without it; PostgreSQL back"
    return Result("outage", done, counts, broken)


def _asked_without_database(played: Stage, delayed: Sequence[Call]) -> Iterator[str]:
    numbers = [call.content.phone for call in delayed if call.content is not None]
    for first, again in zip(delayed, played.callers.submit(numbers), strict=True):
        if (again.id, again.state) != (first.id, "DELAYED"):
            yield f"{first.request_id} was {first.id}, and repeated: {again.code} {again.id} {again.state}"
    for call in played.callers.read([call.id for call in delayed]):
        if call.reason != "STORAGE_UNAVAILABLE":
            yield f"{call.asked} lies in the spool, and asked for: {call.code} {call.reason}"


def _drain_rates(played: Stage, leads: int) -> tuple[float, float]:
    """Leads a second from now on, and from the first one that was drained."""
    back = first = time.monotonic()
    while (left := played.service.spooled()) > 0 and time.monotonic() - back < 60:
        if left == leads:
            first = time.monotonic()
        time.sleep(0.05)
    end = time.monotonic()
    return leads / (end - back), leads / (end - first)


def _not_as_leads(delayed: Sequence[Call], stored: Stored) -> Iterator[str]:
    """All persons are different and none was there before, so nothing may have become anything but a lead."""
    leads = {row.id for row in stored.leads}
    return (f"{call.id} is no lead" for call in delayed if call.id not in leads)
