"""Faults put into the running service and its database. `make faults` (FAULTS=whole) repeats them more often."""

import os


def times(few: int, *, whole: int) -> int:
    """How often a fault is repeated: in a run of all tests, and in `make faults`."""
    return whole if os.environ.get("FAULTS") == "whole" else few
