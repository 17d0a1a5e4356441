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
    # A busy machine ends a call by its own deadline now and then, and one of a thousand would be too many.
    monkeypatch.setattr(checker, "LEAST_SHARE", 0.98)
    monkeypatch.setattr(checker, "NOTICED_SECONDS", 10.0)
    said: list[str] = []
    try:
        result = SHORT[scenario](SEED, said.append)
    except NoMountError:
        pytest.skip("nothing may be mounted here")
    assert result.violations == [], said
