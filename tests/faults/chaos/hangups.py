"""Callers that hang up at a random moment of CreateLead: nothing may be left of them but what they sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.faults.chaos.history import Call, Stored
from tests.faults.chaos.service import KilledService
from tests.faults.chaos.stage import Result, Tell, figures, stage
from tests.harness.processes import eventually, resident_megabytes

LONGEST_WAIT = 0.1
"""Seconds after which the last of them is gone; at 64 at a time most answers come within them."""

CONNECTIONS = 18
"""The service's pool holds 16, and two look after the database."""

MOST_GROWTH = 30.0
"""Megabytes."""

WARMING_UP = 300
IN_FLIGHT = "leadkeep_calls_in_flight"


def hangups(seed: int, calls: int = 2000, tell: Tell = lambda _: None) -> Result:
    """Hang up on so many calls, look what is left, then repeat each request."""
    with stage(seed, tell) as played:
        service, callers = played.service, played.callers
        # Pools, caches and channels are filled, so that what grows afterwards is a leak.
        callers.submit(range(1_000_000, 1_000_000 + WARMING_UP))
        callers.hang_up(range(2_000_000, 2_000_000 + WARMING_UP), LONGEST_WAIT)
        broken = _in_flight(service)
        before = resident_megabytes(service.running.pid)
        gone: list[Call] = []
        while sum(call.hung_up for call in gone) < calls:
            # Those that are answered in time have not hung up.
            gone += callers.hang_up(range(len(gone), len(gone) + calls // 2), LONGEST_WAIT)
        broken += _in_flight(service)
        grown = resident_megabytes(service.running.pid) - before
        connections = played.postgres.connections()
        if grown > MOST_GROWTH:
            broken.append(f"memory has grown by {grown:.0f} MB")
        if connections > CONNECTIONS:
            broken.append(f"{connections} connections are open")
        stored_before = played.postgres.stored()
        tell(f"{sum(call.hung_up for call in gone)} of {len(gone)} hung up, memory grew by {grown:.1f} MB")
        repeated = callers.submit(range(len(gone)))
        callers.submit(range(2_000_000, 2_000_000 + WARMING_UP))
        stored = played.postgres.stored()
        broken += [*_not_as_stored(repeated, stored_before), *_not_as_stored(repeated, stored, all_of_them=True)]
        broken += played.verdict()
        known = {row.request_id for row in stored_before.leads}
        counts = {
            "hung up": f"{sum(call.hung_up for call in gone)} of {len(gone)}",
            "of these stored before the repeat": sum(call.hung_up and call.request_id in known for call in gone),
            "memory grown": f"{grown:.1f} MB",
            "connections": connections,
            **figures(played.history, stored),
        }
    done = f"at least {calls} calls cancelled at a random moment, then every one repeated"
    return Result("hang-ups", done, counts, broken)


def _in_flight(service: KilledService) -> list[str]:
    """Wait until no call is in flight; how many are still."""
    if eventually(lambda: service.metric(IN_FLIGHT) == 0, within=10):
        return []
    return [f"{service.metric(IN_FLIGHT):.0f} calls are still in flight"]


def _not_as_stored(repeated: Sequence[Call], stored: Stored, *, all_of_them: bool = False) -> Iterator[str]:
    leads = {row.request_id: row.id for row in stored.leads}
    for call in repeated:
        kept = leads.get(call.request_id)
        if call.id != kept and (all_of_them or kept is not None):
            yield f"{call.request_id} is stored as {kept}, and repeated: {call.code} {call.id}"
