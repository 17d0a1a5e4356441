"""kill -9 of the service and every fault of PostgreSQL, one after the other and into one another, under 64-way load."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from tests.faults.chaos.proxy import Loss
from tests.faults.chaos.stage import Result, Stage, Tell, figures, stage

READ_BACK = 500
"""How many acknowledged leads are read in the end and compared with what was sent."""

ENDS = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Size:
    """How often each fault happens."""

    kills: int
    """Of the service, in a healthy moment."""
    outages: int
    """Of PostgreSQL, long enough for the spool; the service is killed in each of them, and again in the drain."""
    frozen_kills: int
    """PostgreSQL is frozen, the service killed meanwhile."""
    freezes: int
    restarts: int
    """PostgreSQL ends in some way and is back at once."""
    silences: int
    """The network to PostgreSQL swallows everything for some seconds."""
    lost_commits: int
    """Moments in which the proxy swallows some commits, or the replies to them."""


LONG = Size(kills=160, outages=15, frozen_kills=10, freezes=20, restarts=25, silences=10, lost_commits=20)
SHORT = Size(kills=2, outages=1, frozen_kills=0, freezes=1, restarts=1, silences=0, lost_commits=1)


def storm(seed: int, size: Size = LONG, tell: Tell = lambda _: None) -> Result:
    """Do all of that in an order that the seed decides, heal everything, and compare."""
    with stage(seed, tell) as played:
        faults = _Faults(played, Random(seed))
        steps = faults.steps(size)
        began = time.monotonic()
        with played.callers.at_work() as load:
            time.sleep(1)
            for number, step in enumerate(steps, 1):
                if load.done():
                    break
                step()
                if number % 10 == 0:
                    tell(f"{number} of {len(steps)} faults after {time.monotonic() - began:.0f} s")
            time.sleep(1)
        broken = played.verdict() + played.callers.differences(READ_BACK)
        lost = played.postgres.proxy.lost
        of_postgres = sum(faults.done.values())
        counts = {
            "seconds": round(time.monotonic() - began),
            "kill -9 of the service": played.service.kills,
            "faults of PostgreSQL": f"{of_postgres} ({', '.join(f'{n} {kind}' for kind, n in faults.done.items())})",
            "commits swallowed": f"{lost[Loss.COMMIT]}, and the replies to {lost[Loss.REPLY]} more",
            **figures(played.history, played.postgres.stored()),
        }
    return Result("storm", "64 callers; the service killed, PostgreSQL ended, frozen and cut off", counts, broken)


class _Faults:
    def __init__(self, played: Stage, rng: Random) -> None:
        self._postgres = played.postgres
        self._service = played.service
        self._rng = rng
        self.done: Counter[str] = Counter()

    def steps(self, size: Size) -> list[Callable[[], None]]:
        """All faults, in the order of this seed. Each takes its own random numbers, whatever the others took."""
        kinds = [
            *[self.kill] * size.kills,
            *[self.outage] * size.outages,
            *[self.frozen_kill] * size.frozen_kills,
            *[self.freeze] * size.freezes,
            *[self.restart] * size.restarts,
            *[self.silence] * size.silences,
            *[self.lose_commits] * size.lost_commits,
        ]
        self._rng.shuffle(kinds)
        return [partial(kind, Random(self._rng.random())) for kind in kinds]

    def kill(self, rng: Random) -> None:
        time.sleep(rng.uniform(0.2, 0.8))
        self._service.kill_and_start()

    def outage(self, rng: Random) -> None:
        self.done["outages"] += 1
        with self._postgres.away(rng.choice(ENDS)):
            time.sleep(rng.uniform(2.2, 3.5))
            self._service.kill_and_start()
            time.sleep(rng.uniform(0, 1))
        self._service.wait_until_drain_begins()
        time.sleep(rng.uniform(0, 0.2))
        self._service.kill_and_start()

    def frozen_kill(self, rng: Random) -> None:
        self.done["freezes with a kill of the service"] += 1
        with self._postgres.frozen():
            time.sleep(rng.uniform(0.1, 2.5))
            self._service.kill_and_start()

    def freeze(self, rng: Random) -> None:
        self.done["freezes"] += 1
        with self._postgres.frozen():
            time.sleep(rng.uniform(1, 6))
        time.sleep(rng.uniform(0, 1))

    def restart(self, rng: Random) -> None:
        if rng.random() < 0.3:
            self.done["backends killed"] += 1
            self._postgres.kill_backend()
        else:
            how = rng.choice(ENDS)
            self.done[f"restarts after {how.name}"] += 1
            with self._postgres.away(how):
                time.sleep(rng.uniform(0, 0.3))
        time.sleep(rng.uniform(0.2, 1))

    def silence(self, rng: Random) -> None:
        self.done["silences of its network"] += 1
        with self._postgres.cut_off():
            time.sleep(rng.uniform(1, 5))
        time.sleep(rng.uniform(0.2, 1))

    def lose_commits(self, rng: Random) -> None:
        self._postgres.proxy.lose(rng.choices(list(Loss), k=rng.randint(1, 6)))
        time.sleep(rng.uniform(0.5, 1))
