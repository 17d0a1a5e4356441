"""Failovers to a synchronous standby under load, the old primary killed or frozen; how long until a lead is SAVED."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from random import Random

from tests.faults.chaos.background import Background
from tests.faults.chaos.callers import Callers
from tests.faults.chaos.history import History
from tests.faults.chaos.launcher import Launcher
from tests.faults.chaos.pair import Pair
from tests.faults.chaos.service import KilledService
from tests.faults.chaos.stage import SUBJECT, Result, Tell, figures, judge
from tests.harness.postgres import folder_for_postgres
from tests.harness.processes import eventually

LONGEST = 5.0
"""Seconds from the order to promote the standby to the first SAVED answer, on a machine that does nothing else."""

LONGEST_BESIDE_OTHERS = 20.0
"""Likewise, where other tests may have the processors."""

GIVEN_UP = 30.0
HOW = {signal.SIGKILL: "killed", signal.SIGSTOP: "frozen"}


def failovers(seed: int, number: int = 20, tell: Tell = lambda _: None, *, longest: float = LONGEST) -> Result:
    """So many failovers, every second one with a frozen primary, while one service goes on."""
    rng, history = Random(seed), History(SUBJECT)
    taken: dict[str, list[float]] = {how: [] for how in HOW.values()}
    with ExitStack() as ending:
        folder = ending.enter_context(folder_for_postgres())
        background = ending.enter_context(Background())
        launcher = ending.enter_context(Launcher())
        pair = Pair(folder, history, launcher)
        ending.callback(pair.close)
        pair.replicate()
        service = KilledService(folder, pair.serve_url, history)
        service.start()
        ending.callback(service.stop)
        callers = Callers(background, service.address, service.token(), history, seed)
        ending.callback(callers.close)
        with callers.at_work() as load:
            for turn in range(number):
                if load.done():
                    break
                how = (signal.SIGKILL, signal.SIGSTOP)[turn % 2]
                time.sleep(rng.uniform(0.5, 1.5))
                with history.window(f"failover, primary {HOW[how]}"):
                    pair.lose_primary(how)
                    # Whoever decides about failovers needs a moment to notice.
                    time.sleep(rng.uniform(0.1, 1))
                    seconds = _promoted(pair, history)
                taken[HOW[how]].append(seconds)
                tell(f"failover {turn + 1}, old primary {HOW[how]}: SAVED after {seconds:.2f} s")
                time.sleep(rng.uniform(0.5, 1.5))
                pair.bury()
                pair.replicate()
        broken = service.undrained()
        stored = pair.stored()
        broken += judge(history, stored, tell) + callers.differences(200)
    broken += [
        f"the first SAVED answer came {seconds:.2f} s after the promotion, the old primary was {how}"
        for how, all_of_them in taken.items()
        for seconds in all_of_them
        if seconds > longest
    ]
    counts: dict[str, object] = {
        f"failovers, old primary {how}": f"{len(of)}, SAVED after {min(of):.2f} to {max(of):.2f} s"
        for how, of in taken.items()
        if of
    }
    done = "64 callers; the primary lost, its synchronous standby promoted, the lost one copied anew"
    return Result("failovers", done, counts | figures(history, stored), broken)


def _promoted(pair: Pair, history: History) -> float:
    """Promote the standby; seconds from the order to the first SAVED answer."""
    seen, ordered = len(history.calls), time.monotonic()
    pair.promote()

    def saved() -> list[float]:
        return [call.ended for call in history.calls[seen:] if call.state == "SAVED" and call.ended > ordered]

    eventually(lambda: bool(saved()), within=GIVEN_UP)
    return min(saved(), default=ordered + GIVEN_UP) - ordered
