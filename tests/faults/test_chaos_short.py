"""Some scenarios of the chaos harness in their short form. `make faults` runs all of them in their long form."""

from __future__ import annotations

import pytest

from tests.faults.chaos import checker
from tests.faults.chaos.scenarios import SHORT
from tests.harness.disks import NoMountError

SEED = 3
SCENARIOS = ("storm", "failovers", "erasures")
"""Those that find what no single fault finds: many faults, a lost primary, and erasures among both."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_promise_is_broken(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine calls are ended by their own deadlines: one of a thousand is too many in the long form alone.
    monkeypatch.setattr(checker, "LEAST_SHARE", 0.5)
    monkeypatch.setattr(checker, "NOTICED_SECONDS", 10.0)
    said: list[str] = []
    try:
        result = SHORT[scenario](SEED, said.append)
    except NoMountError:
        pytest.skip("nothing may be mounted here")
    assert result.violations == [], said
