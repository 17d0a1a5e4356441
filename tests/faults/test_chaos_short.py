"""The chaos harness in its short form. `make faults` runs the long one; a seed that failed there fails here too."""

from __future__ import annotations

import pytest

from tests.faults.chaos.scenarios import SHORT
from tests.harness.disks import NoMountError

SEED = 3


@pytest.mark.parametrize("scenario", SHORT)
def test_no_promise_is_broken(scenario: str) -> None:
    said: list[str] = []
    try:
        result = SHORT[scenario](SEED, said.append)
    except NoMountError:
        pytest.skip("nothing may be mounted here")
    assert result.violations == [], said
