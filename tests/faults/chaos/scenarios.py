"""Which scenarios there are, in the long form and in the short one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.faults.chaos import storm as sizes
from tests.faults.chaos.erasures import erasures
from tests.faults.chaos.failovers import LONGEST_BESIDE_OTHERS, failovers
from tests.faults.chaos.hangups import hangups
from tests.faults.chaos.outage import outage
from tests.faults.chaos.stage import Result, Tell
from tests.faults.chaos.storm import storm
from tests.faults.chaos.timeline import timeline
from tests.faults.chaos.tiny_spool import tiny_spool

Scenario = Callable[[int, Tell], Result]
"""Takes the seed, and whom to tell how it goes."""

LONG: Mapping[str, Scenario] = {
    "storm": lambda seed, tell: storm(seed, sizes.LONG, tell),
    "failovers": lambda seed, tell: failovers(seed, 20, tell),
    "outage": lambda seed, tell: outage(seed, 10_000, tell),
    "hang-ups": lambda seed, tell: hangups(seed, 2000, tell),
    "tiny spool": tiny_spool,
    "erasures": lambda seed, tell: erasures(seed, 200, tell),
    "timeline": lambda seed, tell: timeline(seed, 6, tell),
}
SHORT: Mapping[str, Scenario] = {
    "storm": lambda seed, tell: storm(seed, sizes.SHORT, tell),
    "failovers": lambda seed, tell: failovers(seed, 2, tell, longest=LONGEST_BESIDE_OTHERS),
    "outage": lambda seed, tell: outage(seed, 300, tell),
    "hang-ups": lambda seed, tell: hangups(seed, 100, tell),
    "tiny spool": tiny_spool,
    "erasures": lambda seed, tell: erasures(seed, 20, tell),
}
