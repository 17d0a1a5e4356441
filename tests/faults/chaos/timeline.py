"""One fault of each kind in a fixed order, with healthy moments between them: what callers see of it, as a picture."""

from __future__ import annotations

import signal
import time

from tests.faults.chaos.load import Mix
from tests.faults.chaos.plot import draw
from tests.faults.chaos.stage import Result, Tell, figures, stage


def timeline(seed: int, healthy: float = 6.0, tell: Tell = lambda _: None) -> Result:
    """Go through the faults once; `healthy` seconds lie between two of them."""
    with stage(seed, tell) as played:
        postgres, service = played.postgres, played.service

        def frozen() -> None:
            with postgres.frozen():
                time.sleep(4)

        def restarted() -> None:
            with postgres.away(signal.SIGQUIT):
                pass

        def away() -> None:
            with postgres.away(signal.SIGINT):
                time.sleep(10)

        def killed() -> None:
            service.kill_and_start()

        def away_and_killed() -> None:
            with postgres.away(signal.SIGKILL):
                time.sleep(4)
                service.kill_and_start()
                time.sleep(3)

        # Reads wait for PostgreSQL as long as they may, and while they wait their callers send no leads.
        with played.callers.at_work(Mix(get=0.0)):
            for fault in (frozen, restarted, away, killed, away_and_killed):
                time.sleep(healthy)
                fault()
                tell(fault.__name__)
            time.sleep(healthy)
        broken = played.verdict()
        counts = figures(played.history, played.postgres.stored())
    plot = draw(played.history, healthy / 2)
    done = "64 callers; PostgreSQL frozen, restarted, away; the service killed; both at once"
    return Result("timeline", done, counts, broken, plot)
