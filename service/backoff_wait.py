"""Waits between attempts, for every retry and every restart in the service: exponential backoff.

Imports nothing of the storage, because the process that renders the daily files must not load SQLAlchemy.
"""

from __future__ import annotations

import backoff


def longest_wait(failures: int, *, first: float, longest: float) -> float:
    """Upper bound in seconds of the wait after so many failures before this one: doubles from `first` to `longest`."""
    # The exponent is bounded as well: 2.0 ** 1024 overflows, and a task that always fails gets there.
    return min(longest, first * 2.0 ** min(failures, 32))


def jittered_wait(failures: int, *, first: float, longest: float) -> float:
    """A random wait up to `longest_wait` (full jitter), so that those who failed together do not retry together."""
    return backoff.full_jitter(longest_wait(failures, first=first, longest=longest))
